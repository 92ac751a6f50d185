"""Flipped bits and crafted headers, for every codec. `make soak` does the same by the hundred thousand."""

from __future__ import annotations

import random
import tracemalloc
from itertools import islice

import pytest

from kdn.store import CODECS
from tests.store.damage import block_of, crafted, every_bit, some_bits, survives, undetected


@pytest.mark.parametrize("codec", CODECS)
def test_every_flip_is_noticed(codec: str) -> None:
    encoded = block_of(codec)
    one_in_97 = islice(every_bit(encoded), 0, None, 97)
    count, missed = undetected(encoded, one_in_97)
    assert (count > 300, missed) == (True, 0)
    assert undetected(encoded, some_bits(encoded, 400)) == (400, 0)


@pytest.mark.parametrize("codec", CODECS)
def test_crafted_headers_are_refused_or_harmless(codec: str) -> None:
    """The checksum fits, so that everything behind it is tried."""
    encoded, rng = block_of(codec), random.Random(0)
    tracemalloc.start()
    refused = sum(not survives(encoded, crafted(encoded, rng)) for _ in range(300))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > 100
    assert peak_bytes < 32 << 20
