"""Which of the chunks found are read, and in which order, where the store knows some of them.

After the first few, the search's order says little: beyond the pieces of information that a question needs,
a chunk of somewhat lower score answers as often.  So a stored one is read in its place, which costs a
fraction where it is reused.  METIS (arXiv 2412.10543) reads the best by score alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdn.rag.metis.configuration import Method, RagConfiguration
from kdn.rag.metis.demand import ChunkState

__all__ = ["CANDIDATES", "STORED_WORTH", "picked"]

CANDIDATES = 2
"""So many times the chunks that a space allows at most are looked at."""
STORED_WORTH = 1.5
"""A stored chunk is preferred to one of up to so many times its score."""


def picked(
    configuration: RagConfiguration, chunks: Sequence[ChunkState], num_sure: int, *, blends: bool
) -> RagConfiguration:
    """The configuration with its places among `chunks`, which are best first.

    The best `num_sure` are always read.  A prompt of several chunks reuses only its first one, unless it
    `blends`: it then reads the best by score, led by the one of them whose stored tokens are most.
    """
    count = min(configuration.num_chunks, len(chunks))
    is_stuffed = configuration.method is Method.STUFF
    places = list(range(count))
    if blends or not is_stuffed:
        sure = min(num_sure, count)
        others = sorted(range(sure, len(chunks)), key=lambda place: -_worth(chunks[place]))
        places = sorted([*range(sure), *others[: count - sure]])
    if is_stuffed and places:
        lead = max(places, key=lambda place: chunks[place].num_stored)
        places.remove(lead)
        places.insert(0, lead)
    return replace(configuration, places=() if places == list(range(count)) else tuple(places))


def _worth(chunk: ChunkState) -> float:
    """The score, raised as far as the chunk is stored."""
    share = chunk.num_stored / max(chunk.num_tokens, 1)
    return chunk.score * (1 + (STORED_WORTH - 1) * share)
