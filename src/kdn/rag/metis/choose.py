"""The one configuration that a question is answered with, and why.

`best_fit` is METIS as published (arXiv 2412.10543 v3, section 4.3): of the configurations of the pruned
space that fit into free memory, the one that needs most; where none fits, one that is shrunk to fit.
`choose` goes beyond it: it counts what is stored, foresees the delay, keeps deadlines, and holds memory
and time back for the queries that are about to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kdn.errors import BadInput
from kdn.machine.text import counted
from kdn.rag.metis.configuration import ConfigurationSpace, Method, RagConfiguration
from kdn.rag.metis.demand import ChunkState, Demand, DemandModel
from kdn.rag.metis.pick import CANDIDATES, picked

__all__ = [
    "ChosenConfiguration",
    "EngineLoad",
    "Preference",
    "best_fit",
    "choose",
    "preference_of",
]

PATIENCE = 2.0
"""`balanced` takes at most so many times as long as the least configuration that the context holds would
over documents that are not stored."""
BUSY_SHARE = 0.8
"""`balanced` takes at most so much of the time between arrivals: where the space has nothing that small,
fewer chunks are read, as where memory does not suffice."""
SPENT = 0.25
"""So much of the time that stored chunks save `balanced` spends on further chunks; the rest makes the answer
sooner.  With more, a choice that sees the store came to answer later than one that does not."""
HELD_BACK = 0.5
"""At most this share of free memory is held back for the queries that are about to come."""

DemandOf = Callable[[RagConfiguration], Demand]


class Preference(StrEnum):
    """What a request would rather have, within its deadline and the memory there is."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


def preference_of(name: str) -> Preference:
    """The preference of that name. Raises BadInput that lists them."""
    try:
        return Preference(name)
    except ValueError:
        raise BadInput(f"quality is {name!r}; it can be {', '.join(Preference)}") from None


@dataclass(frozen=True)
class EngineLoad:
    """What the engine has left, and what is about to be asked of it."""

    free_bytes: int
    """KV that may be reserved now, less what waiting requests and running queries will still take."""
    ahead_s: float = 0.0
    """Foreseen seconds of work before the query's own."""
    arrivals_per_s: float = 0.0
    """Queries that came lately; each of them is held a reserve."""
    mean_bytes: int = 0
    """What a query took lately."""


@dataclass(frozen=True)
class ChosenConfiguration:
    """A configuration, what it needs, and the reasons in the order they were met."""

    configuration: RagConfiguration
    demand: Demand
    predicted_s: float
    """Until the last token: the work before it, and its own."""
    reasons: tuple[str, ...]


def best_fit(
    space: ConfigurationSpace, demand_of: DemandOf, free_bytes: int, *, is_joint: bool
) -> ChosenConfiguration:
    """The largest configuration that fits into `free_bytes`, else the fallback, as published.

    One chunk is read at least: where not even that fits, the query waits for memory.
    """
    found = [(one, demand_of(one)) for one in space.configurations()]
    fitting = [(one, demand) for one, demand in found if demand.start_bytes <= free_bytes]
    if fitting:
        chosen, demand = max(fitting, key=lambda pair: pair[1].total_bytes)
        why = f"it needs most of the {len(fitting)} that fit into {_mib(free_bytes)}"
        return ChosenConfiguration(chosen, demand, demand.seconds, (why,))
    return _shrunk(space, demand_of, free_bytes, is_joint=is_joint)


def _shrunk(
    space: ConfigurationSpace, demand_of: DemandOf, free_bytes: int, *, is_joint: bool
) -> ChosenConfiguration:
    """As many chunks as fit: stuffed where they must be read together, else one by one."""
    method = Method.STUFF if is_joint else Method.MAP_RERANK
    sizes = [RagConfiguration(method, k) for k in range(space.max_chunks, 0, -1)]
    fitting = [one for one in sizes if demand_of(one).total_bytes <= free_bytes]
    chosen = fitting[0] if fitting else sizes[-1]
    why = (
        f"nothing of the space fits into {_mib(free_bytes)}: as many chunks as do"
        if fitting
        else f"not even one chunk fits into {_mib(free_bytes)}: it waits for memory"
    )
    demand = demand_of(chosen)
    return ChosenConfiguration(chosen, demand, demand.seconds, (why,))


@dataclass(frozen=True)
class _Candidate:
    configuration: RagConfiguration
    demand: Demand
    cold: Demand
    """What it would need if nothing were stored."""

    @property
    def size(self) -> int:
        """Bytes it would need if nothing were stored: the paper's sign of quality."""
        return self.cold.total_bytes

    @property
    def billed_s(self) -> float:
        """Its time, of which only a share is let off for what is stored."""
        return _billed(self.demand.seconds, self.cold.seconds)

    @property
    def billed_busy_s(self) -> float:
        """What it adds to a busy engine, billed alike."""
        return _billed(self.demand.busy_s, self.cold.busy_s)


def _billed(warm_s: float, cold_s: float) -> float:
    return cold_s - SPENT * (cold_s - warm_s)


def choose(
    space: ConfigurationSpace,
    chunks: Sequence[ChunkState],
    model: DemandModel,
    load: EngineLoad,
    *,
    is_joint: bool,
    max_context: int,
    preference: Preference = Preference.BALANCED,
    deadline_s: float | None = None,
    may_quote: bool = True,
    num_sure: int | None = None,
) -> ChosenConfiguration:
    """The configuration for these chunks, best first, with what is stored of them.

    `chunks` may be more than the space allows: stored ones are read in place of others (`picked`), but
    the best `num_sure` are always read; None: as many as the space wants at least.  `best` replaces none.
    Configurations whose prompts exceed `max_context` are left out.  A deadline goes before the
    preference; where none is foreseen to keep it, the best passage is quoted if that `may_quote`,
    else the quickest is taken.
    """
    chunks = chunks[: CANDIDATES * space.max_chunks]
    space = space.within(len(chunks))
    cold = _unstored(chunks)
    blends = model.blend_ratio is not None
    sure = space.min_chunks if num_sure is None else num_sure
    if preference is Preference.BEST:
        sure = space.max_chunks
    found = [
        _Candidate(one, model.demand(one, chunks), model.demand(one, cold))
        for one in (picked(one, chunks, sure, blends=blends) for one in space.configurations())
        if model.largest_call(one, chunks) <= max_context
    ]
    fitting = [one for one in found if one.demand.start_bytes <= _free_for(one.demand, load)]
    if not fitting:
        return _fallback(space, chunks, model, load, max_context, is_joint=is_joint)
    reasons = [f"{len(fitting)} of {len(found)} fit into {_mib(load.free_bytes)} of free memory"]
    kept = _in_time(fitting, load, deadline_s)
    if deadline_s is not None:
        reasons.append(f"{len(kept)} of them are foreseen within {deadline_s:g} s")
    if not kept and may_quote:
        return _quoted(model, chunks, reasons)
    kept = kept or [_quickest(fitting)]
    if preference is Preference.BALANCED:
        fewer = _in_time(_fewer(space, chunks, model, load, max_context), load, deadline_s)
        least_s = min(one.cold.seconds for one in found)
        chosen = _balanced(kept, fewer, PATIENCE * least_s, load, reasons)
    else:
        chosen = _fast_or_best(kept, preference, reasons)
    stored = sum(chunk.num_stored for chunk in chosen.configuration.ordered(chunks))
    if stored:
        reasons.append(f"{counted(stored, 'token')} of its chunks are stored")
    return ChosenConfiguration(
        chosen.configuration,
        chosen.demand,
        load.ahead_s + chosen.demand.seconds,
        tuple(reasons),
    )


def _free_for(demand: Demand, load: EngineLoad) -> int:
    """Free memory less a reserve for those who will come while the query runs."""
    coming = load.arrivals_per_s * demand.seconds
    reserve = min(coming * load.mean_bytes, HELD_BACK * load.free_bytes)
    return int(load.free_bytes - reserve)


def _fallback(
    space: ConfigurationSpace,
    chunks: Sequence[ChunkState],
    model: DemandModel,
    load: EngineLoad,
    max_context: int,
    *,
    is_joint: bool,
) -> ChosenConfiguration:
    """As published, within the context, and with the delay foreseen."""
    most = space.max_chunks
    method = Method.STUFF if is_joint else Method.MAP_RERANK
    while most > 1 and model.largest_call(RagConfiguration(method, most), chunks) > max_context:
        most -= 1
    shrunk = _shrunk(
        space.within(most),
        lambda one: model.demand(one, chunks),
        load.free_bytes,
        is_joint=is_joint,
    )
    return replace(shrunk, predicted_s=load.ahead_s + shrunk.demand.seconds)


def _in_time(
    fitting: Sequence[_Candidate], load: EngineLoad, deadline_s: float | None
) -> Sequence[_Candidate]:
    """Those that are foreseen to keep the deadline."""
    if deadline_s is None:
        return fitting
    return [one for one in fitting if load.ahead_s + one.demand.seconds <= deadline_s]


def _quoted(
    model: DemandModel, chunks: Sequence[ChunkState], reasons: list[str]
) -> ChosenConfiguration:
    quote = RagConfiguration(Method.EXTRACT, 1)
    reasons.append("none is quick enough: the best passage is quoted")
    return ChosenConfiguration(quote, model.demand(quote, chunks), 0.0, tuple(reasons))


def _fewer(
    space: ConfigurationSpace,
    chunks: Sequence[ChunkState],
    model: DemandModel,
    load: EngineLoad,
    max_context: int,
) -> list[_Candidate]:
    """One prompt of fewer chunks than the space wants, where memory and the context hold it."""
    found = list[_Candidate]()
    for count in range(1, space.min_chunks):
        stuffed = RagConfiguration(Method.STUFF, count)
        one = picked(stuffed, chunks, count, blends=model.blend_ratio is not None)
        demand = model.demand(one, chunks)
        fits = model.largest_call(one, chunks) <= max_context
        if fits and demand.start_bytes <= _free_for(demand, load):
            found.append(_Candidate(one, demand, model.demand(one, _unstored(chunks))))
    return found


def _unstored(chunks: Sequence[ChunkState]) -> list[ChunkState]:
    return [replace(chunk, num_stored=0, load_s=0.0) for chunk in chunks]


def _fast_or_best(
    kept: Sequence[_Candidate], preference: Preference, reasons: list[str]
) -> _Candidate:
    if preference is Preference.FAST:
        reasons.append("fast: the quickest of them")
        return _quickest(kept)
    reasons.append("best: the largest of them")
    return max(kept, key=lambda one: (one.size, -one.demand.seconds))


def _balanced(
    kept: Sequence[_Candidate],
    fewer: Sequence[_Candidate],
    allowed_s: float,
    load: EngineLoad,
    reasons: list[str],
) -> _Candidate:
    """The most chunks, by the quickest method, that are billed `allowed_s` at most, and of the engine's time
    no more than is there until the next query."""
    found = [one for one in kept if one.billed_s <= allowed_s] or [_quickest(kept)]
    reasons.append(f"balanced: {len(found)} of them are billed {allowed_s:.2g} s at most")
    if load.arrivals_per_s > 0:
        share_s = BUSY_SHARE / load.arrivals_per_s
        found = [*found, *fewer]
        small = [one for one in found if one.billed_busy_s <= share_s]
        reasons.append(
            f"a query comes every {1 / load.arrivals_per_s:.2g} s: {_left(small, fewer)}"
        )
        found = small or [min(found, key=lambda one: one.billed_busy_s)]
    reasons.append("of these the quickest with most chunks is taken")
    return max(found, key=_most_chunks)


def _left(small: Sequence[_Candidate], fewer: Sequence[_Candidate]) -> str:
    if not small:
        return "none is small enough, the smallest is left"
    if all(one in fewer for one in small):
        return "only fewer chunks than the question wants leave the engine to it"
    return f"{len(small)} leave the engine to it"


def _most_chunks(one: _Candidate) -> tuple[int, float]:
    """More chunks are better; of as many, the sooner answer: by which method depends on the store."""
    return one.configuration.num_chunks, -one.demand.seconds


def _quickest(candidates: Sequence[_Candidate]) -> _Candidate:
    return min(candidates, key=lambda one: (one.demand.seconds, -one.size))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
