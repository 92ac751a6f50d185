"""The ways to choose a configuration that are compared; each sees what its authors' system sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kdn.rag.metis import (
    ChunkState,
    DemandModel,
    EngineLoad,
    Method,
    Preference,
    QuestionProfile,
    RagConfiguration,
    best_fit,
    choose,
    prune,
)

__all__ = ["STATIC", "Arms", "ChoiceInput", "RagArm", "arms", "blended_arms", "static_arms"]

_SUMMARY = 80
_MOST_BY_DEPTH = 6
STATIC_CHUNKS = (1, 2, 3, 5, 8)
STATIC = "static"
_ALL = 1 << 60
"""More memory than there is."""


@dataclass(frozen=True)
class ChoiceInput:
    """What there is to choose by. `chunks` are those found, best first."""

    profile: QuestionProfile
    chunks: Sequence[ChunkState]
    model: DemandModel
    load: EngineLoad
    num_running: int
    max_context: int


class RagArm(Protocol):
    """A way to choose."""

    def __call__(self, given: ChoiceInput) -> RagConfiguration: ...


Arms = dict[str, RagArm]


def _cold(given: ChoiceInput) -> list[ChunkState]:
    return [replace(chunk, num_stored=0, load_s=0.0) for chunk in given.chunks]


def _within(configuration: RagConfiguration, given: ChoiceInput) -> RagConfiguration:
    """No more chunks than were found, and than the context holds."""
    count = max(min(configuration.num_chunks, len(given.chunks)), 1)
    found = replace(configuration, num_chunks=count)
    while count > 1 and given.model.largest_call(found, given.chunks) > given.max_context:
        count -= 1
        found = replace(found, num_chunks=count)
    return found


@dataclass(frozen=True)
class _Static:
    configuration: RagConfiguration

    def __call__(self, given: ChoiceInput) -> RagConfiguration:
        return _within(self.configuration, given)


def static_arms() -> Arms:
    """Every method over several numbers of chunks, the same for all questions."""
    found: Arms = {}
    for method in (Method.STUFF, Method.MAP_RERANK, Method.MAP_REDUCE):
        length = _SUMMARY if method is Method.MAP_REDUCE else 0
        for count in STATIC_CHUNKS:
            one = RagConfiguration(method, count, length)
            found[f"{STATIC} {method} {count}"] = _Static(one)
    return found


def _median(given: ChoiceInput) -> RagConfiguration:
    """The middle of the pruned space, whatever fits."""
    return _within(prune(given.profile).within(len(given.chunks)).median(), given)


def _by_depth(given: ChoiceInput) -> RagConfiguration:
    """As many chunks as the queue leaves, and no profile at all."""
    count = max(_MOST_BY_DEPTH - given.num_running, 1)
    return _within(RagConfiguration(Method.STUFF, count), given)


def _adaptive(given: ChoiceInput) -> RagConfiguration:
    """By complexity alone, for quality alone, as AdaptiveRAG is re-implemented in METIS' evaluation."""
    space = prune(given.profile)
    if not given.profile.is_joint:
        chosen = RagConfiguration(Method.MAP_RERANK, space.max_chunks)
    elif given.profile.is_complex:
        length = space.max_summary_tokens
        chosen = RagConfiguration(Method.MAP_REDUCE, space.max_chunks, length)
    else:
        chosen = RagConfiguration(Method.STUFF, space.max_chunks)
    return _within(chosen, given)


def _metis(given: ChoiceInput) -> RagConfiguration:
    """Best fit as published: nothing is stored, and each query takes the most that fits."""
    model, cold = replace(given.model, noted=False), _cold(given)
    space = prune(given.profile).within(len(given.chunks))
    found = best_fit(
        space,
        lambda one: model.demand(one, cold),
        given.load.free_bytes,
        is_joint=given.profile.is_joint,
    )
    return _within(found.configuration, given)


@dataclass(frozen=True)
class _Ours:
    preference: Preference
    sees_store: bool = True
    holds_reserve: bool = True

    def __call__(self, given: ChoiceInput) -> RagConfiguration:
        load = given.load if self.holds_reserve else replace(given.load, arrivals_per_s=0.0)
        return choose(
            prune(given.profile),
            given.chunks if self.sees_store else _cold(given),
            given.model,
            load,
            is_joint=given.profile.is_joint,
            max_context=given.max_context,
            preference=self.preference,
            may_quote=False,
        ).configuration


def _most_chunks_blind(given: ChoiceInput) -> RagConfiguration:
    return _most_chunks(replace(given, chunks=_cold(given)))


def _most_chunks(given: ChoiceInput) -> RagConfiguration:
    """The most chunks of the pruned space, by the quickest method, however long memory is waited for."""
    space = prune(given.profile).within(len(given.chunks))
    return choose(
        replace(space, min_chunks=space.max_chunks),
        given.chunks,
        given.model,
        replace(given.load, free_bytes=_ALL, arrivals_per_s=0.0),
        is_joint=given.profile.is_joint,
        max_context=given.max_context,
        preference=Preference.FAST,
        may_quote=False,
        num_sure=space.min_chunks,
    ).configuration


def arms() -> Arms:
    """Every way but the static ones, by name."""
    return {
        "median of the pruned space": _median,
        "chunks by queue depth": _by_depth,
        "adaptive by complexity": _adaptive,
        "METIS as published": _metis,
        "ours, balanced": _Ours(Preference.BALANCED),
        "ours, most chunks": _most_chunks,
        "ours, most chunks, without the store": _most_chunks_blind,
        "ours, best": _Ours(Preference.BEST),
        "ours, balanced, without the store": _Ours(Preference.BALANCED, sees_store=False),
        "ours, best, without a reserve": _Ours(Preference.BEST, holds_reserve=False),
    }


def blended_arms() -> Arms:
    """Ways over an engine that blends stored parts wherever they stand, by name."""
    return {
        "ours, balanced, blended": _Ours(Preference.BALANCED),
        "ours, balanced, blended, without the store": _Ours(Preference.BALANCED, sees_store=False),
        "ours, most chunks, blended": _most_chunks,
        "ours, most chunks, blended, without the store": _most_chunks_blind,
        "adaptive by complexity, blended": _adaptive,
    }
