"""What wrote the recordings beside it, once, with the code of commit aea6709.

It is not meant to be run again: what it would record today is what the tests compare.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdn.core import Sampling
from tests.before import cases, seams, stored
from tests.before.http_cases import exchanges

HERE = Path(__file__).parent
TINY_MARGIN, SMOLLM2_MARGIN = 0.005, 0.25
"""By how many nats every recorded token leads, so that no rounding of another machine changes it."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        home = work / "home"
        model, adapter = seams.tiny(work / "tiny"), seams.tiny_adapter(work / "lora")
        _write_stores(home, work)
        _write_library(model, home, work)
        tiny = cases.tiny_outputs(model, adapter, home, work / "outputs")
        smollm2 = cases.smollm2_outputs(home, work / "outputs")
        _assert_clear(tiny, TINY_MARGIN)
        _assert_clear(smollm2, SMOLLM2_MARGIN)
        _save("outputs.json", {"tiny": tiny, "smollm2": smollm2})
        _save("decisions.json", cases.decisions(model, adapter, home, work / "decisions"))
        with (
            seams.opened(model, home, store=work / "http", adapters={"lora": adapter}) as k,
            seams.serving(k) as server,
        ):
            _save("chat.json", exchanges(server.http))


def _write_stores(home: Path, work: Path) -> None:
    """Three folders, stored by the public verbs, but for one block of a blend's recipe."""
    thin = stored.thin(work / "thin")
    for name in stored.FOLDERS:
        shutil.rmtree(HERE / name, ignore_errors=True)
    with seams.opened(thin, home, store=HERE / "store", codec="int8") as k:
        seams.run(k, stored.lossy_request(k))
    with seams.opened(thin, home, store=HERE / "store") as k:
        for request in stored.exact_requests(k):
            seams.run(k, request)
        stored.put_tainted_copy(k)
    with seams.opened(thin, home, store=HERE / "sealed", key_file=stored.key_file(work)) as k:
        seams.said(k, "Say a word.", Sampling(max_tokens=4))
    for codec in stored.CODECS:
        with seams.opened(thin, home, store=HERE / "codecs", dtype="bfloat16", codec=codec) as k:
            seams.run(k, seams.request(k, "Say.", max_tokens=2, keep="all", salt=codec))
    for name in stored.FOLDERS:
        shutil.copytree(HERE / name, work / "copies" / name)
    copies = work / "copies"
    seen = stored.seen(thin, home, copies, work)
    seen["codecs"] = stored.seen_of_codecs(thin, home, copies / "codecs")
    _save("store.json", seen)


def _write_library(model: Path, home: Path, work: Path) -> None:
    shutil.rmtree(HERE / "library", ignore_errors=True)
    # a place that any machine may have: its name is written into the library
    documents = Path("/tmp/kdn-documents")
    documents.mkdir(exist_ok=True)
    for name, text in cases.DOCUMENTS.items():
        (documents / name).write_text(text, "utf-8")
    with seams.opened(model, home, store=work / "ingest", library=HERE / "library") as k:
        k.ingest([documents])
    shutil.rmtree(documents)
    shutil.copytree(HERE / "library", work / "library")
    with seams.opened(model, home, store=work / "ask", library=work / "library") as k:
        _save("library.json", cases.library_answers(k))


def _assert_clear(found: Any, margin: float) -> None:
    if isinstance(found, dict):
        pairs: Sequence[tuple[float, float]] = list(
            zip(found.get("logprobs", ()), found.get("second", ()), strict=True)
        )
        assert all(first - second > margin for first, second in pairs), found
        for one in found.values():
            _assert_clear(one, margin)
    elif isinstance(found, list):
        for one in found:
            _assert_clear(one, margin)


def _save(name: str, content: Any) -> None:
    (HERE / name).write_text(_json(content, 0) + "\n", "utf-8")


def _json(value: Any, depth: int) -> str:
    """JSON in which whatever fits on a line stands on one."""
    flat = json.dumps(value)
    if len(flat) + depth <= 100 or not isinstance(value, dict | list):
        return flat
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, list):
        return f"[{inner}" + f",{inner}".join(_json(one, depth + 1) for one in value) + f"{outer}]"
    lines = [f"{json.dumps(name)}: {_json(one, depth + 1)}" for name, one in value.items()]
    return f"{{{inner}" + f",{inner}".join(lines) + f"{outer}}}"


if __name__ == "__main__":
    main()
