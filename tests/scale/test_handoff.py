"""A prompt that is computed for another engine leaves nothing behind in kdn's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import kdn
from kdn.core import Blend, Request
from kdn.model import Document, Message
from kdn.scale.handoff import hand_over
from kdn.store import open_store

TIDES, BREAD = "The tide comes twice a day. " * 8, "The oven is lit at four. " * 8


def test_nobody_waits_for_the_end_of_a_prompt_that_was_handed_over(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """It is planned as a request of the engine is, which never runs it."""
    with (
        kdn.open(tiny_model(), home=tmp_path / "home") as own,
        open_store(tmp_path / "kv", disk_bytes=10**9) as store,
    ):
        for name, document in (("tides", TIDES), ("bread", BREAD)):
            own.prefill(document, name)
        documents = (Document("bread", BREAD), Document("tides", TIDES))
        prompt = own.prompts.segments((Message("user", "When is the oven lit?"),), documents)
        request = Request("handed", prompt, techniques=(Blend(0.1),))
        found = hand_over(own, request, store, "weights", lambda: "salt")
        assert found.num_blended > 0
        waiting = threading.Thread(target=own.parts.ended.wait, daemon=True)
        waiting.start()
        waiting.join(10.0)
        assert not waiting.is_alive(), "a request is noted that has no end"
