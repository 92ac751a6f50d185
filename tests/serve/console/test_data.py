"""The console's page is strict and empty; its data is an operator's, and no tenant's text is in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kdn.core import EXACT, BlockId, chain_hash
from kdn.serve.console.routes import _csv
from kdn.serve.console.texts import stored_texts
from kdn.store.index.index import Entry
from tests.serve.console.test_page import ADMIN, Served, chat, serving


@pytest.fixture(scope="module")
def site(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with serving(tiny_model, tmp_path_factory.mktemp("home"), (ADMIN,)) as found:
        with httpx.Client(base_url=found.url, timeout=60) as http:
            chat(http, "What is it?", system="=The house style is three spaces a level. " * 3)
            body = {"prompt": "the salary of Odalys is 4711. " * 9, "max_tokens": 1}
            http.post("/v1/completions", json=body | {"cache_salt": "blue"}).raise_for_status()
        found.kdn.store.flush()
        yield found


def ask(site: Served, path: str, key: str | None = ADMIN.token, **body: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    if body:
        return httpx.post(site.url + path, json=body, headers=headers, timeout=60)
    return httpx.get(site.url + path, headers=headers, timeout=60)


@pytest.mark.parametrize("path", ["/", "/console.js", "/console.css", "/console.svg"])
def test_the_page_may_run_nothing_of_others_and_holds_no_data(site: Served, path: str) -> None:
    answer = ask(site, path, None)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", ""), "nothing from afar"
    assert " style=" not in answer.text
    assert "Odalys" not in answer.text


@pytest.mark.parametrize("path", ["", "/texts", "/texts?form=csv", "/requests.csv", "/predicted"])
def test_data_needs_the_admin_key(site: Served, path: str) -> None:
    for key in (None, "wrong"):
        assert ask(site, f"/v1/kdn/console{path}", key).status_code == 401
    assert ask(site, f"/v1/kdn/console{path}").status_code == 200
    assert ask(site, "/v1/kdn/console/act", None, action="clear", ids=[]).status_code == 401


def test_no_text_of_a_tenant_is_told(site: Served) -> None:
    rows = ask(site, "/v1/kdn/console/texts").json()["rows"]
    by_tenant = {row["tenant"]: row for row in rows}
    assert by_tenant["blue"]["title"] == ""
    assert by_tenant["blue"]["tokens"] == 30 * 9 - 1 + 1
    assert "house style" in by_tenant[""]["title"] + "".join(row["title"] for row in rows)
    whole = ask(site, "/v1/kdn/console/texts?form=csv").text + ask(site, "/v1/kdn/requests").text
    assert "Odalys" not in whole
    for one in ask(site, "/v1/kdn/requests").json()["data"]:
        told = ask(site, f"/v1/kdn/requests/{one['id']}?prompt=true").json()
        assert told["why"]["text"] == told["why"]["stored_text"] == told["why"]["before"] == ""
        assert "prompt" not in told


def test_tables_are_whole_and_no_cell_is_a_formula(site: Served) -> None:
    texts = list(csv.DictReader(io.StringIO(ask(site, "/v1/kdn/console/texts?form=csv").text)))
    rows = ask(site, "/v1/kdn/console/texts").json()
    assert len(texts) == rows["total"] == len(rows["rows"])
    assert any("=The house" in row["title"] for row in texts)
    assert _csv("a.csv", [{"x": "=1+1", "y": 2}]).body == b"x,y\n'=1+1,2\n"
    requests = list(csv.DictReader(io.StringIO(ask(site, "/v1/kdn/console/requests.csv").text)))
    assert [int(row["prompt_tokens"]) for row in requests][1] == 30 * 9
    assert int(requests[0]["exact"]) + int(requests[0]["recomputed"]) == int(
        requests[0]["prompt_tokens"]
    )


def test_numbers_are_those_of_the_store(site: Served) -> None:
    seen, stat = ask(site, "/v1/kdn/console").json(), site.kdn.store.stat()
    assert {t["name"]: t["blocks"] for t in seen["tiers"]} == {
        name: usage.blocks for name, usage in stat.tiers.items()
    }
    assert seen["counts"]["lookups"] == stat.lookups
    assert seen["money"]["saved_usd"] == site.kdn.cost.ledger().saved.value


def test_only_what_there_is_can_be_done_with_what_is_there(site: Served) -> None:
    row = ask(site, "/v1/kdn/console/texts?q=house").json()["rows"][0]
    assert ask(site, "/v1/kdn/console/act", action="burn", ids=[row["id"]]).status_code == 400
    assert ask(site, "/v1/kdn/console/act", action="pin", ids=["no"]).status_code == 400
    cleared = ask(site, "/v1/kdn/console/act", action="clear", ids=[row["id"]], to="disk")
    assert cleared.status_code == 400
    assert "'disk', and clear goes to none" in cleared.json()["error"]["message"]
    assert ask(site, "/v1/kdn/console/act", action="copy", ids=[row["id"]]).status_code == 400
    assert ask(site, "/v1/kdn/console/texts?sort=beauty").status_code == 400
    moved = ask(
        site,
        "/v1/kdn/console/act",
        action="move",
        ids=[row["id"], "gone"],
        to="disk",
    )
    assert moved.json() == {"blocks": row["blocks"], "missing": 1}
    ends = ask(site, "/v1/kdn/console/act", action="move", ids=[row["id"]], to="memory")
    assert (ends.status_code, "end with this process" in ends.text) == (400, True)
    after = ask(site, "/v1/kdn/console/texts?q=house").json()["rows"][0]
    assert set(after["tiers"]) == {"disk"}
    warmed = ask(site, "/v1/kdn/console/act", action="warm", ids=[row["id"]])
    assert warmed.json() == {"blocks": row["blocks"], "missing": 0}


def entry(tokens: tuple[int, ...], before: tuple[int, ...] = (), salt: str = "") -> Entry:
    name = BlockId("f", EXACT, salt, chain_hash(before), len(before), tokens)  # type: ignore[arg-type]
    return Entry.of(name)


def test_blocks_of_one_segment_are_one_text() -> None:
    """A document of 600 tokens is 256 + 256 + 88; the question behind it is a text of its own."""
    prelude, document = tuple(range(10)), tuple(range(100, 700))
    blocks = [entry(prelude)]
    blocks += [
        entry(document[start : start + 256], prelude + document[:start]) for start in (0, 256, 512)
    ]
    blocks.append(entry((7, 7, 7), prelude + document))
    orphan = entry((9,) * 5, (1, 2, 3), "blue")
    found = stored_texts([*blocks[::-1], orphan])
    assert sorted((one.head.start, one.num_tokens, len(one.blocks)) for one in found) == [
        (0, 10, 1),
        (3, 5, 1),
        (10, 600, 3),
        (610, 3, 1),
    ]
