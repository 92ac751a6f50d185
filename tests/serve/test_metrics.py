"""What /metrics says equals what was truly done."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import kdn
from kdn.config import load_config
from kdn.errors import StoreError
from kdn.serve import StoreNumbers, served
from kdn.serve.run import REUSE_FAILURES
from kdn.store.tiers.disk.schema import WRITE_BUSY_S
from kdn.trace import Recorder
from tests.serve.running import Running, running, wait_for
from tests.serve.scripted import ANSWER, ScriptedService

SOURCE = Path(kdn.__file__).parent


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


@pytest.fixture
def server(service: ScriptedService) -> Iterator[Running]:
    with running(service) as server:
        yield server


def test_counters_equal_the_sum_of_all_usage(server: Running, service: ScriptedService) -> None:
    for text in ("hello there", "hello there", "hello you"):
        server.openai.completions.create(model="scripted", prompt=text, max_tokens=10)
    server.openai.completions.create(model="scripted", prompt="all of it")
    usages = [stream.finish.usage for stream in service.streams if stream.finish]
    assert len(usages) == 4
    assert server.metric("vllm:prompt_tokens_total") == sum(u.prompt_tokens for u in usages) == 40
    assert server.metric("vllm:generation_tokens_total") == 30 + len(ANSWER)
    assert server.metric("vllm:prefix_cache_queries_total") == 40
    # "hello there" again: all but the last; "hello you": "hello " is 6.
    assert server.metric("vllm:prefix_cache_hits_total") == 10 + 6
    assert server.metric("kdn_reused_tokens_total", kind="exact") == 16
    assert server.metric("kdn_tier_tokens_total", tier="memory") == 16
    assert server.metric("kdn_recomputed_tokens_total") == 24
    assert server.metric("vllm:request_success_total", finished_reason="length") == 3
    assert server.metric("vllm:request_success_total", finished_reason="stop") == 1
    assert server.metric("vllm:time_to_first_token_seconds_count") == 4
    assert server.metric("vllm:time_to_first_token_seconds_sum") == pytest.approx(0.008)
    assert server.metric("vllm:inter_token_latency_seconds_count") == 27 + len(ANSWER) - 1


def test_gauges_tell_the_present(server: Running, service: ScriptedService) -> None:
    service.gate.clear()
    asked = threading.Thread(
        target=server.openai.completions.create,
        kwargs={"model": "scripted", "prompt": "x", "max_tokens": 1},
    )
    asked.start()
    while not service.streams:
        pass
    assert server.metric("vllm:num_requests_running") == 1
    service.gate.set()
    asked.join()
    assert server.metric("vllm:num_requests_running") == 0
    assert server.metric("vllm:kv_cache_usage_perc") == 0.25
    assert server.metric("kdn_store_blocks", tier="memory") == 3
    assert server.metric("kdn_store_events_total", event="hits") == 2


def test_a_client_that_left_is_counted_all_the_same(
    server: Running, service: ScriptedService
) -> None:
    service.pause_at = 4
    stream = server.openai.completions.create(model="scripted", prompt="x", stream=True)
    wait_for(lambda: service.streams[0].num_sent == 4)
    stream.close()
    wait_for(lambda: server.metric("vllm:request_success_total", finished_reason="abort") == 1)
    assert service.streams[0].finish is not None
    assert server.metric("vllm:generation_tokens_total") == 4


def test_tokenize_and_back_and_version(server: Running) -> None:
    asked = {"prompt": "héllo", "return_token_strs": True}
    found = server.http.post("/tokenize", json=asked).json()
    assert (found["count"], found["max_model_len"]) == (5, 4096)
    assert found["token_strs"] == list("héllo")
    back = server.http.post("/detokenize", json={"tokens": found["tokens"]}).json()
    assert back == {"prompt": "héllo"}
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    assert server.http.post("/tokenize", json=chat).json()["count"] == len("<user>hi")
    assert server.http.post("/tokenize", json={}).status_code == 400
    assert server.http.get("/version").json() == {"version": "1.2.3"}
    assert server.http.get("/ping").status_code == 200


def test_a_raw_prompt_begins_as_the_model_wants_it(
    server: Running, service: ScriptedService
) -> None:
    service.vocabulary.bos_ids = (ord("^"),)
    server.openai.completions.create(model="scripted", prompt="hi", max_tokens=1)
    server.openai.completions.create(model="scripted", prompt="^hi", max_tokens=1)
    prompts = [request.prompt.token_ids for request in service.requests]
    assert prompts == [tuple(map(ord, "^hi"))] * 2
    assert server.http.post("/tokenize", json={"prompt": "hi"}).json()["count"] == 3
    plain = {"prompt": "hi", "add_special_tokens": False}
    assert server.http.post("/tokenize", json=plain).json()["count"] == 2


def test_a_store_that_does_not_answer_freezes_nothing(service: ScriptedService) -> None:
    """A scrape gives the last numbers with their age; the next one waits for the same reading."""
    answers, readings = threading.Event(), list[int]()

    def read() -> StoreNumbers:
        readings.append(len(readings))
        if len(readings) > 1:
            answers.wait()
        return StoreNumbers(blocks={"memory": len(readings)})

    model = replace(service.served(), store_numbers=read)
    with running(model) as server:
        assert server.metric("kdn_store_blocks", tier="memory") == 1
        for _ in range(2):
            assert (
                server.metric("kdn_store_blocks", tier="memory") == 1
            )  # which gives up after 60 s
        assert server.http.get("/version").status_code == 200
        assert readings == [0, 1]
        answers.set()
        wait_for(lambda: server.metric("kdn_store_blocks", tier="memory") >= 2)


def test_the_catalogue_held_by_another_process_freezes_no_route(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path)
    with kdn.open(tiny_model("llama"), config=config, dtype="float32") as opened:
        opened.generate("hello " * 40)
        opened.store.flush()
        with running(served(opened)) as server:
            assert server.metric("kdn_store_blocks", tier="disk") >= 1
            other = sqlite3.connect(tmp_path / "store" / "catalogue.sqlite", isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            try:
                scrape = threading.Thread(target=server.http.get, args=("/metrics",))
                scrape.start()
                began_s = time.monotonic()
                for path in ("/version", "/health", "/v1/models"):
                    assert server.http.get(path).status_code == 200
                assert time.monotonic() - began_s < WRITE_BUSY_S / 2, (
                    "nobody waits for the catalogue"
                )
                scrape.join(60)
                assert not scrape.is_alive()
            finally:
                other.execute("ROLLBACK")
                other.close()


def test_series_of_the_store_stand_at_0_until_it_answers(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The same series as after the first answer, so that no rule meets one that is missing."""
    with kdn.open(tiny_model("llama"), config=load_config({}, home=tmp_path)) as opened:
        model = served(opened)

        def read() -> StoreNumbers:
            raise StoreError("the disk is gone")

        with running(replace(model, store_numbers=read)) as server:
            silent = _of_the_store(server)
        with running(model) as server:
            assert _of_the_store(server).keys() == silent.keys()
    assert set(silent.values()) == {0.0}
    for name in ("blocks{tier=disk}", "bytes{tier=memory}", "events_total{event=hit}"):
        assert f"kdn_store_{name}" in silent
    assert any(name.startswith("kdn_tier_tokens_total{") for name in silent)


def _of_the_store(server: Running) -> dict[str, float]:
    """Values of its series by name and labels, without the model's name and the age of the numbers."""
    text = server.http.get("/metrics").text
    named = ("kdn_store_", "kdn_tier_", "kdn_reuse_")
    return {
        f"{one.name}{{{','.join(f'{k}={v}' for k, v in one.labels.items() if k != 'model_name')}}}": one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if one.name.startswith(named) and "_age_" not in one.name and "created" not in one.name
    }


def test_faults_that_cost_reuse_alone_are_counted(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """`tests/reuse/test_failing.py` holds that such faults make these events."""
    trace = Recorder()
    with (
        kdn.open(tiny_model("llama"), config=load_config({}, home=tmp_path), trace=trace) as k,
        running(served(k)) as server,
    ):
        trace.event("reuse.failed", technique="Prefix", why="OSError()")
        trace.event("reuse.failed", technique="open", why="OSError()")
        trace.event("engine.retain_failed", why="OSError()")
        told = {step: server.metric("kdn_reuse_failed_total", step=step) for step in REUSE_FAILURES}
    assert told == {"plan": 2, "store": 1, "background": 0}
    written = "".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    assert all(written.count(f'"{name}"') > 1 for name in REUSE_FAILURES.values())


def test_the_engines_time_and_its_resident_prefixes_are_told(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path)
    with kdn.open(tiny_model("llama"), config=config, dtype="float32") as opened:
        for _ in range(3):  # computed, loaded, still there
            opened.generate("hello " * 40)
        with running(served(opened)) as server:
            model = opened.name
            assert server.metric("kdn_resident_prefixes", model_name=model) >= 1
            assert server.metric("kdn_resident_bytes", model_name=model) > 0
            assert server.metric("kdn_resident_hits_total", model_name=model) >= 1
            for part in ("wait", "admit", "prefill", "decode", "draw", "retain"):
                spent = server.metric("kdn_engine_seconds_total", model_name=model, part=part)
                assert spent > 0, part
