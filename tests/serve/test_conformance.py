"""Known traffic on a real model and store, then every series of /metrics against the truth."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import kdn
from kdn.config import load_config
from kdn.serve import ServeSettings, served
from kdn.serve.run import STORE_EVENTS
from kdn.store.admin.manage import forget
from tests.serve.running import Running, running

MANUAL = "Hold the red button for ten seconds to reset the controller. " * 6
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=4096)
    with kdn.open(folder, config=config, dtype="float32") as opened:
        yield opened


@pytest.fixture(scope="module")
def server(model: kdn.Kdn) -> Iterator[Running]:
    with running(served(model), ServeSettings(port=0)) as server:
        yield server


@pytest.fixture(scope="module")
def answers(model: kdn.Kdn, server: Running) -> list[Any]:
    """Cold, warm from memory, warm from the disk, and under a salt where nothing is stored."""
    found = [chat(server, "How do I reset it?"), chat(server, "Which button?", max_tokens=5)]
    model.store.flush()
    keys = [entry.key for entry in model.store.index.entries()]
    forget(model.store, keys, "memory")
    found.append(chat(server, "For how long?"))
    found.append(chat(server, "For how long?", cache_salt="blue"))
    model.store.flush()
    return found


def chat(server: Running, question: str, **more: Any) -> Any:
    body = {
        "messages": [{"role": "user", "content": question}],
        "documents": [MANUAL],
        "max_tokens": 3,
        "ignore_eos": True,
    } | more
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def series(server: Running) -> dict[str, float]:
    """Every sample of kdn's, its labels but the model's name in braces."""
    found = {}
    for family in text_string_to_metric_families(server.metrics()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            if "le" not in labels and not sample.name.endswith("_created"):
                inside = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
                found[f"{sample.name}{{{inside}}}" if inside else sample.name] = sample.value
    return found


def test_the_traffic_is_what_it_is_meant_to_be(answers: list[Any]) -> None:
    reused = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    # a token is a byte: the neutral prelude, the document and the line breaks behind it
    shared = 8 + 73 + len("<|end|>") - 6 + 1 + len("user\n") + 1
    assert reused[0] == reused[3] == 0
    assert reused[1] == reused[2] >= shared + len(MANUAL)
    assert list(answers[1]["kdn"]["tiers"]) == ["memory"]
    assert list(answers[2]["kdn"]["tiers"]) == ["disk"]


def test_every_series_is_the_truth(server: Running, model: kdn.Kdn, answers: list[Any]) -> None:
    usages = [answer["usage"] for answer in answers]
    reports = [answer["kdn"] for answer in answers]
    prompt = sum(one["prompt_tokens"] for one in usages)
    exact = sum(one["exact"] for one in reports)
    tiers: Counter[str] = Counter()
    for one in reports:
        tiers.update(one["tiers"])
    stat, ledger = model.store.stat(), model.cost.ledger()
    truth: dict[str, Any] = {
        "vllm:prompt_tokens_total": prompt,
        "vllm:generation_tokens_total": 3 + 5 + 3 + 3,
        "vllm:prefix_cache_queries_total": prompt,
        "vllm:prefix_cache_hits_total": exact,
        "vllm:prompt_tokens_cached_total": exact,
        "vllm:request_success_total{finished_reason=length}": 4,
        "vllm:request_success_total{finished_reason=stop}": 0,
        "vllm:request_success_total{finished_reason=abort}": 0,
        "kdn_requests_failed_total": 0,
        "kdn_reused_tokens_total{kind=exact}": exact,
        "kdn_reused_tokens_total{kind=blended}": 0,
        "kdn_reused_tokens_total{kind=shared}": 0,
        "kdn_reused_tokens_total{kind=lossy}": 0,
        "kdn_recomputed_tokens_total": prompt - exact,
        "kdn_blend_collections": 0,
        "kdn_tier_tokens_total{tier=memory}": tiers["memory"],
        "kdn_tier_tokens_total{tier=disk}": tiers["disk"],
        "vllm:time_to_first_token_seconds_count": 4,
        "vllm:time_to_first_token_seconds_sum": sum(one["ttft_ms"] for one in reports) / 1e3,
        "vllm:inter_token_latency_seconds_count": 2 + 4 + 2 + 2,
        "vllm:inter_token_latency_seconds_sum": None,
        "vllm:request_queue_time_seconds_count": 4,
        "vllm:request_queue_time_seconds_sum": sum(one["queue_ms"] for one in reports) / 1e3,
        "vllm:e2e_request_latency_seconds_count": 4,
        "vllm:e2e_request_latency_seconds_sum": None,
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
        "kdn_store_numbers_age_seconds": None,
        "kdn_store_money_usd{way=saved}": ledger.saved.value,
        "kdn_store_money_usd{way=spent}": None,
        "kdn_reuse_failed_total{step=plan}": 0,
        "kdn_reuse_failed_total{step=store}": 0,
        "kdn_reuse_failed_total{step=background}": 0,
        "kdn_store_events_total{event=lookup}": stat.lookups,
        "kdn_store_events_total{event=hit}": stat.hits,
        "kdn_store_events_total{event=miss}": 0,
        "kdn_store_events_total{event=corrupt}": 0,
        "kdn_store_events_total{event=lost}": 0,
        "kdn_store_events_total{event=put}": stat.puts,
        "kdn_store_events_total{event=evict}": 0,
        "kdn_store_events_total{event=drop}": stat.dropped,
        "kdn_store_events_total{event=not_worth_writing}": 0,
        "kdn_store_events_total{event=fail}": 0,
    }
    for name, usage in stat.tiers.items():
        truth[f"kdn_store_blocks{{tier={name}}}"] = usage.blocks
        truth[f"kdn_store_bytes{{tier={name}}}"] = usage.size_bytes
        truth[f"kdn_tier_errors_total{{tier={name}}}"] = 0
    engine = model.engine.stat()
    assert engine.resident is not None
    truth |= {
        "kdn_resident_prefixes": engine.resident.num_prefixes,
        "kdn_resident_bytes": engine.resident.size_bytes,
        "kdn_resident_hits_total": engine.resident.num_hits,
    }
    truth |= dict.fromkeys(f"kdn_engine_seconds_total{{part={part}}}" for part in engine.seconds)
    told = series(server)
    processors = {name: told.pop(name) for name in list(told) if name.startswith("kdn_cpu_")}
    assert processors["kdn_cpu_seconds_total{thread=kdn-engine}"] > 0
    assert sum(processors.values()) == pytest.approx(time.process_time(), rel=0.2)
    assert set(told) == set(truth)
    for name, value in truth.items():
        if value is not None:
            assert told[name] == pytest.approx(value, abs=1e-4), name


def test_the_rates_of_the_tiers_and_the_rest_are_one(server: Running, answers: list[Any]) -> None:
    """One definition: tokens that a tier supplied over tokens that were looked up."""
    told = series(server)
    asked = told["vllm:prefix_cache_queries_total"]
    rates = {t: told[f"kdn_tier_tokens_total{{tier={t}}}"] / asked for t in ("memory", "disk")}
    assert rates["memory"] == rates["disk"] > 0.2
    assert sum(rates.values()) + told["kdn_recomputed_tokens_total"] / asked == pytest.approx(1)


def test_the_dashboard_asks_only_for_what_there_is(server: Running, answers: list[Any]) -> None:
    """docs/grafana.json, panel by panel; series that a plain server lacks are named here."""
    board = json.loads((ROOT / "docs" / "grafana.json").read_text("utf-8"))
    text = server.http.get("/metrics").text
    known = set(re.findall(r"^([a-z_:]+)(?:\{| )", text, re.MULTILINE)) | {"kdn_blend"}
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"\b((?:vllm:|kdn_)[a-z_]+)", target["expr"])
    }
    assert asked <= known
    assert len(asked) >= 15
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]


def test_the_pages_name_the_events_that_there_are() -> None:
    """Each as "`name` in `/metrics`" where it is meant, and all of them on the page of metrics."""
    pages = {page.name: page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md")}
    named = {page: re.findall(r"`(\w+)` in `/metrics`", text) for page, text in pages.items()}
    assert {name for names in named.values() for name in names} <= set(STORE_EVENTS)
    assert named["cost.md"] == ["not_worth_writing"]
    (row,) = re.findall(
        r"^\| `kdn_store_events_total` .*$", pages["observability.md"], re.MULTILINE
    )
    assert set(re.findall(r"`(\w+)`", row)) == {"kdn_store_events_total", *STORE_EVENTS}
