"""Every HTTP request gets the status, the fields and the values that it got before.

Of errors the sentence may change; status, type, parameter and code may not.  Two things changed since on
purpose: the `bytes` of a token that is part of a character were null, and are now told, and so was the
`system_fingerprint` of a whole answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdn.errors import MissingExtra
from tests.before import seams
from tests.before.compare import alike
from tests.before.http_cases import EMBEDDINGS, exchanges

HERE = Path(__file__).parent
BF16 = 0.003
"""Embeddings were recorded in bf16, up to 0.0016 from what fp32 gives; other processors round otherwise."""
_NEWLY_TOLD = ("bytes", "system_fingerprint")


def test_every_exchange_is_that_of_before(
    tmp_path: Path, before_tiny: Path, before_lora: Path, before_home: Path
) -> None:
    expected = json.loads((HERE / "chat.json").read_text("utf-8"))
    with (
        seams.opened(
            before_tiny, before_home, store=tmp_path / "store", adapters={"lora": before_lora}
        ) as k,
        seams.serving(k) as server,
    ):
        skipped = () if _embeds(k) else (EMBEDDINGS,)
        for found, recorded in zip(exchanges(server.http), expected, strict=True):
            if recorded["path"] not in skipped:
                now, then = _without_sentence(found), _without_sentence(recorded)
                tolerance = BF16 if recorded["path"] == EMBEDDINGS else 0.001
                alike(_as_told_then(now, then), then, tolerance, _name(recorded))


def _name(recorded: dict[str, Any]) -> str:
    return f"{recorded['path']} {recorded['sent']}"


def _embeds(k: Any) -> bool:
    try:
        return bool(k.embedder.dimension)
    except MissingExtra:
        return False


def _without_sentence(found: dict[str, Any]) -> dict[str, Any]:
    body: Any = found.get("body")
    if found["path"].startswith("/v1/models/"):  # what was recorded told no weights
        return found | {"body": _without_weights(found["body"])}
    if found["path"] == "/v1/models":  # nor did it list the embedder
        cards = [_without_weights(one) for one in body["data"] if one["id"] != "minilm-l6"]
        return found | {"body": body | {"data": cards}}
    if not isinstance(body, dict) or "error" not in body:
        return found
    error = dict(body["error"])
    assert error.pop("message")
    return found | {"body": {"error": error}}


def _without_weights(card: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in card.items() if name != "weights"}


def _as_told_then(found: Any, recorded: Any) -> Any:
    """What was found, but without bytes and digests that nobody could tell when it was recorded."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        told = {name: _as_told_then(one, recorded.get(name)) for name, one in found.items()}
        return told | {name: None for name in _NEWLY_TOLD if _is_newly_told(name, found, recorded)}
    if isinstance(found, list) and isinstance(recorded, list) and len(found) == len(recorded):
        return [_as_told_then(one, then) for one, then in zip(found, recorded, strict=True)]
    return found


def _is_newly_told(name: str, found: dict[str, Any], recorded: dict[str, Any]) -> bool:
    return name in recorded and recorded[name] is None and bool(found.get(name))
