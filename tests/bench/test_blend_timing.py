"""Timing of blending on a tiny model: which ways are timed, in which state, and by which rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdn.bench import BenchOptions
from kdn.bench.blend.prompts import BlendPrompt
from kdn.bench.blend.timing import ANCHORS, BLEND, DISK, FULL_TIME, LAYER, time_ways
from kdn.bench.engine.lineup import opened
from kdn.errors import BadInput

ASKED = [
    BlendPrompt(str(n), tuple(f"Text {n} {k}. " + "It rains. " * 20 for k in range(3)), "?", ("!",))
    for n in range(2)
]


def test_ways_are_timed_in_turns_over_the_documents_that_they_share(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The ways that were asked for and a full prefill, each over the same prompt; two of three documents
    are blended. The rule is kdn's own again at the end."""
    options = BenchOptions(
        model=str(tiny_model(num_hidden_layers=4, max_position_embeddings=2048)),
        home=tmp_path,
        arms=("ours", "layer", "anchors", "disk"),
        threads=torch.get_num_threads(),
    )
    with opened(options, tmp_path) as service:
        rule = service.parts.blend.rule
        timed = time_ways(options, service, ASKED, 2)
        assert service.parts.blend.rule == rule
        with pytest.raises(BadInput, match="no way 'hkvd' to time; there are prefix, naive, ours"):
            time_ways(BenchOptions(arms=("hkvd",)), service, ASKED, 1)
    assert list(timed.samples) == [FULL_TIME, BLEND, LAYER, ANCHORS, DISK]
    assert all(len(found) == 2 for found in timed.samples.values())
    assert timed.usages[FULL_TIME].blended == 0
    spent = {(one.blended, one.recomputed) for way, one in timed.usages.items() if "blend" in way}
    assert len(spent) == 1, "every rule recomputes as many rows"
    assert timed.loaded_bytes[DISK] == timed.loaded_bytes[BLEND] > 0
