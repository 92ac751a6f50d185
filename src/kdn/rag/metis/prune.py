"""From a profile to the space of configurations that are good enough for the question.

METIS (arXiv 2412.10543 v3), Algorithm 1, and the rule of section 4.3 for profiles that the profiler
is not sure of.
"""

from __future__ import annotations

from collections import deque

from kdn.machine.text import counted
from kdn.rag.metis.configuration import MAX_CHUNKS, ConfigurationSpace, Method
from kdn.rag.metis.profile import QuestionProfile

__all__ = ["CONFIDENT", "RECENT", "RecentSpaces", "prune"]

CONFIDENT = 0.9
"""A profile that is less sure than this is not acted on."""
RECENT = 10
"""So many queries' spaces stand in for it."""
_CHUNKS_PER_PIECE = 3
"""Retrievers need two to three times the fewest chunks that hold an answer."""


def prune(profile: QuestionProfile) -> ConfigurationSpace:
    """The methods, chunks and summary lengths that suit the profile.

    A question that needs no joint reasoning is mapped, also when it is complex: the paper leaves
    that corner open.
    """
    if not profile.is_joint:
        methods = frozenset({Method.MAP_RERANK})
    elif not profile.is_complex:
        methods = frozenset({Method.STUFF})
    else:
        methods = frozenset({Method.STUFF, Method.MAP_REDUCE})
    low, high = profile.summary_tokens
    most = min(_CHUNKS_PER_PIECE * profile.num_pieces, MAX_CHUNKS)
    return ConfigurationSpace(methods, profile.num_pieces, most, low, high)


class RecentSpaces:
    """The spaces of the last ten queries; together they stand in for one that is not sure.

    Owned by one controller, which calls it from one thread at a time.
    """

    def __init__(self) -> None:
        self._spaces: deque[ConfigurationSpace] = deque(maxlen=RECENT)

    def space(self, profile: QuestionProfile) -> tuple[ConfigurationSpace, str]:
        """The space to choose from, and why it is that one.

        The pruned space of a sure profile is remembered.  Without recent queries an unsure profile
        is acted on nevertheless: there is nothing better.
        """
        own = prune(profile)
        sure = f"{profile.source} is {profile.confidence:.0%} sure"
        if profile.confidence >= CONFIDENT:
            self._spaces.append(own)
            return own, f"{sure}: its own space"
        if not self._spaces:
            return own, f"{sure}, under {CONFIDENT:.0%}, and no query came before: its own space"
        return _union(self._spaces), (
            f"{sure}, under {CONFIDENT:.0%}: the space of the last "
            f"{counted(len(self._spaces), 'query', 'queries')}"
        )


def _union(spaces: deque[ConfigurationSpace]) -> ConfigurationSpace:
    return ConfigurationSpace(
        frozenset[Method]().union(*(space.methods for space in spaces)),
        min(space.min_chunks for space in spaces),
        max(space.max_chunks for space in spaces),
        min(space.min_summary_tokens for space in spaces),
        max(space.max_summary_tokens for space in spaces),
    )
