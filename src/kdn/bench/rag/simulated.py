"""An arm over many questions on the simulated engine, with parts that are stored as they are read."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kdn.bench.common.result import Row
from kdn.bench.rag.arms import ChoiceInput, RagArm
from kdn.bench.rag.simulate import EngineSpeed, SimulatedCall, SimulatedEngine, SimulatedQuery
from kdn.bench.rag.workload import AskedQuestion, is_stored, recall
from kdn.core import quantile
from kdn.rag import Part
from kdn.rag.metis import ChunkState, DemandModel, EngineLoad, QuestionProfile, RagConfiguration
from kdn.rag.metis.demand import CallSize, stages_of

__all__ = ["ArmOutcome", "SimulatedLoad", "outcome_of", "rows_by_set"]


@dataclass(frozen=True)
class ArmOutcome:
    """How an arm did: delays of all queries, and recall where gold is marked."""

    delays_s: tuple[float, ...]
    recalls: tuple[float | None, ...]
    """Of each query, None where no gold is marked."""
    recall: float
    per_s: float
    mean_chunks: float

    @property
    def mean_s(self) -> float:
        return statistics.fmean(self.delays_s)

    def quantile_s(self, share: float) -> float:
        """The delay that this share of the queries keeps to."""
        return quantile(self.delays_s, share)


@dataclass(frozen=True)
class SimulatedLoad:
    """Questions that come at given times to one engine."""

    asked: Sequence[AskedQuestion]
    arrivals_s: Sequence[float]
    model: DemandModel
    speed: EngineSpeed
    max_context: int
    stored_share: float = 0.0
    seed: int = 0

    def run(
        self,
        arm: RagArm,
        profile_of: Callable[[str], QuestionProfile],
        profile_s: float = 0.0,
        profile_call: CallSize | None = None,
        *,
        blend_ratio: float | None = None,
    ) -> ArmOutcome:
        """Every question answered as the arm says; before each is chosen for, `profile_s` passes, and the
        engine answers `profile_call`.  With a `blend_ratio` prompts are blended."""
        engine, chosen = SimulatedEngine(self.speed), dict[int, RagConfiguration]()
        model = replace(self.model, blend_ratio=blend_ratio)
        stored = {
            part.key
            for asked in self.asked
            for part in asked.parts
            if is_stored(part, self.stored_share, self.seed)
        }
        rate = len(self.arrivals_s) / max(self.arrivals_s[-1], 1e-9)
        seen: list[int] = []

        def decide(number: int, engine: SimulatedEngine) -> list[list[SimulatedCall]]:
            asked = self.asked[number]
            chunks = [_state(part, part.key in stored) for part in asked.parts]
            token_bytes = model.token_bytes
            load = EngineLoad(
                engine.unclaimed_tokens * token_bytes,
                arrivals_per_s=rate if len(seen) >= 3 else 0.0,
                mean_bytes=round(statistics.fmean(seen)) if seen else 0,
            )
            profile = profile_of(asked.question.text)
            given = ChoiceInput(profile, chunks, model, load, engine.num_running, self.max_context)
            configuration = chosen[number] = arm(given)
            seen.append(model.demand(configuration, chunks).total_bytes)
            stages = stages_of(configuration, chunks, model)
            read = configuration.ordered(asked.parts)
            # A blended prompt stores nothing; of a plain one of several parts the first can serve others.
            leads = read if len(stages[0]) > 1 else read[: 0 if stages[0][0].num_probe else 1]
            stored.update(part.key for part in leads)
            return [[self._call(one) for one in stage] for stage in stages]

        queries = [
            SimulatedQuery(
                arrival_s + profile_s,
                partial(decide, number),
                () if profile_call is None else (_profiling(profile_call),),
            )
            for number, arrival_s in enumerate(self.arrivals_s)
        ]
        engine.play(queries)
        engine.check()
        delays = [query.delay_s + profile_s for query in queries]
        ended = max(query.ended_s or 0.0 for query in queries)
        return outcome_of(self.asked, [chosen[n] for n in range(len(queries))], delays, ended)

    def with_stored(self, share: float) -> SimulatedLoad:
        """The same, with this share of all parts stored beforehand."""
        return replace(self, stored_share=share)

    def _call(self, size: CallSize) -> SimulatedCall:
        drawn = max(round(min(self.model.answer_tokens, size.num_answer)), 1)
        return SimulatedCall(size.num_new, size.num_cached, drawn, size.kv_tokens, size.num_probe)


def outcome_of(
    asked: Sequence[AskedQuestion],
    chosen: Sequence[RagConfiguration],
    delays_s: Sequence[float],
    ended_s: float,
) -> ArmOutcome:
    """What an arm's choices and delays come to."""
    recalls = tuple(recall(one, way) for one, way in zip(asked, chosen, strict=True))
    marked = [one for one in recalls if one is not None]
    return ArmOutcome(
        tuple(delays_s),
        recalls,
        statistics.fmean(marked) if marked else 0.0,
        len(delays_s) / ended_s if ended_s else 0.0,
        statistics.fmean(one.num_chunks for one in chosen),
    )


def rows_by_set(name: str, load: float, outcome: ArmOutcome, sets: Sequence[str]) -> list[Row]:
    """The arm's mean delay and recall over the questions of each set."""
    rows = list[Row]()
    for one in dict.fromkeys(sorted(sets)):
        own = [number for number, of in enumerate(sets) if of == one]
        recalls = [got for number in own if (got := outcome.recalls[number]) is not None]
        rows.append(
            {
                "part": f"load {load:g} by set",
                "arm": name,
                "set": one,
                "queries": len(own),
                "mean s": statistics.fmean(outcome.delays_s[number] for number in own),
                "recall": statistics.fmean(recalls) if recalls else None,
            }
        )
    return rows


def _profiling(size: CallSize) -> SimulatedCall:
    """A profile has as many tokens as its schema wants, whatever answers have."""
    return SimulatedCall(size.num_new, size.num_cached, size.num_answer, size.kv_tokens)


def _state(part: Part, is_there: bool) -> ChunkState:
    return ChunkState(part.num_tokens, part.num_tokens if is_there else 0, score=part.score)
