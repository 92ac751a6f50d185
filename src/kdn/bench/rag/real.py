"""An arm over questions on the real engine: a thread a query, at the times of a Poisson process."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kdn.api import Kdn, QueryOptions
from kdn.api.foresight import Foresight
from kdn.api.prompts import Reuse, blending
from kdn.bench.rag.arms import ChoiceInput, RagArm
from kdn.bench.rag.simulate import EngineSpeed, SimulatedCall, SimulatedEngine, SimulatedQuery
from kdn.bench.rag.workload import AskedQuestion, is_stored
from kdn.core import JctModel, Request, Sampling, Usage
from kdn.engine import SMALL_PREFIX
from kdn.errors import EngineFailed
from kdn.model import Document, Message
from kdn.rag.metis import (
    DemandModel,
    Method,
    QueryCalls,
    QuestionProfile,
    RagConfiguration,
    row_seconds,
    synthesize,
)

__all__ = ["RealQuery", "RealRuns", "replayed_s", "slope"]

_CANDIDATES = 12
"""Parts that an arm chooses among."""


@dataclass(frozen=True)
class RealQuery:
    """What came of a query."""

    configuration: RagConfiguration
    delay_s: float
    text: str
    usages: tuple[Usage, ...]


class RealRuns:
    """Runs arms one after the other; each has KV of its own, of which a share is stored beforehand."""

    def __init__(
        self,
        k: Kdn,
        asked: Sequence[AskedQuestion],
        jct: JctModel,
        max_tokens: int,
        seed: int,
    ) -> None:
        self._k, self._asked, self._seed = k, asked, seed
        self._jct, self._max_tokens, self._fits = jct, max_tokens, 0
        self._steps: list[tuple[int, float]] = []
        self._rows: list[float] = []
        self._loading: list[float] = []
        self.loading = 1.0
        """How many times as long a prefill takes that loads a stored beginning; measured by `fit`."""
        self.jct = jct
        """The time model, so much slower than its own measurements as `fit` finds prefills."""
        self.step_s = jct.seconds(1)
        """One decode step over `step_columns`; measured by `fit`."""
        self.step_columns: int | None = None
        """Columns of the usual prompt that `fit` measured steps by."""
        self.slowdown = 1.0
        """How much longer prefills take than the time model says; measured by `fit`."""
        self.row_s: float | None = None
        """What a further sequence adds to a decode step; measured by `fit`."""
        self.blend_ratio = k.parts.config.blend.ratio
        """The share of blended tokens that is recomputed."""
        self.column_s = jct.column_s
        """What each of its columns adds; measured by `fit`."""
        self._room = k.engine.stat().kv_total_bytes // self.model().token_bytes // 2
        """Tokens of calls that are admitted together, as `kdn ask` has them."""

    def model(self, salt: str = "", reuse: Reuse = "exact") -> DemandModel:
        """What counts demands, as fitted so far."""
        asked = self._asked[0]
        options = QueryOptions(max_tokens=self._max_tokens, salt=salt, reuse=reuse)
        model = Foresight(self._k.parts).demand_model(asked.question.text, asked.parts[0], options)
        return replace(
            model, jct=self.jct, step_s=self.step_s, slowdown=1.0, row_s=self.row_s,
            column_s=self.column_s,
            answer_tokens=self._max_tokens,
        )  # fmt: skip

    def fit(self, count: int, *, rows: bool = True) -> None:
        """Measure prefills, steps, and what columns and further sequences add, by queries that run alone.

        Prefills and steps are as quick as the machine is now.  What columns, sequences and the loading of a
        stored beginning add lies near the noise of a few queries: it is told by those of all fits.
        Without `rows` a further sequence adds what it added at the last fit.
        """
        ratios, steps = list[float](), list[tuple[int, float]]()
        some = self._asked[:count]
        for number, asked in enumerate(some):
            most = (1, 6, 3)[number % 3]
            (usage,) = self._alone(asked, Method.STUFF, most)
            ratios.append(self._ratio(usage))
            if number % 2 == 0:
                (behind,) = self._alone(asked, Method.STUFF, 3, self._with_first(asked))
                if behind.cached_tokens * SMALL_PREFIX > behind.recomputed:
                    self._loading.append(self._ratio(behind) / ratios[-1])
            if usage.completion_tokens > 1:
                decode_s = (usage.total_ms - usage.ttft_ms) / 1000
                steps.append((usage.prompt_tokens, decode_s / (usage.completion_tokens - 1)))
        self.slowdown = statistics.median(ratios)
        self.loading = statistics.median(self._loading) if self._loading else 1.0
        self.jct = _slower(self._jct, self.slowdown)
        self._steps += steps
        column_s = slope(self._steps)
        self.column_s = self.jct.column_s if column_s is None else column_s
        if steps:
            self.step_columns = round(statistics.median(columns for columns, _ in steps))
            self.step_s = statistics.median(
                each_s - (columns - self.step_columns) * self.column_s for columns, each_s in steps
            )
        if not rows:
            return
        for number, asked in enumerate(some):
            usages = self._alone(asked, Method.MAP_RERANK, (2, 8, 4)[number % 3])
            # Calls of one query are of like lengths: a step of the longest reads as much as one of the first.
            step_s = self.speed(0, 0.0).steps_s([usages[0].prompt_tokens])
            row_s = row_seconds(usages, step_s, self.column_s)
            if row_s is not None:
                self._rows.append(row_s)
        self.row_s = statistics.median(self._rows) if self._rows else None

    def _ratio(self, usage: Usage) -> float:
        """How many times as long as the time model says its prefill took."""
        foreseen_s = self._jct.seconds(usage.recomputed, usage.cached_tokens)
        return (usage.ttft_ms - usage.queue_ms) / 1000 / foreseen_s

    def _with_first(self, asked: AskedQuestion) -> str:
        """A salt of its own under which the question's first part is stored, and not in its place yet."""
        self._fits += 1
        salt, part = f"behind{self._fits}", asked.parts[0]
        self._k.prefill(part.text, part.key, salt)
        return salt

    def _alone(
        self, asked: AskedQuestion, method: Method, most: int, salt: str = ""
    ) -> tuple[Usage, ...]:
        """By default under a salt of its own: nothing is reused."""
        configuration = RagConfiguration(method, min(most, len(asked.parts)))
        self._fits += 1
        name = f"fit{self._fits}"
        return self._answer(asked, configuration, salt or name, name).usages

    def speed(self, kv_tokens: int, stall_s: float) -> EngineSpeed:
        """What the simulated engine is given, as fitted so far."""
        return EngineSpeed(
            self.jct, self.step_s, kv_tokens,
            row_s=self.row_s,
            column_s=self.column_s,
            step_columns=self.step_columns,
            stall_s=stall_s,
            loading=self.loading,
            num_layers=self._k.model.decoder.config.num_layers,
        )  # fmt: skip

    def prefill(self, salt: str, share: float, count: int, like: Sequence[RealQuery] = ()) -> None:
        """Store this share of the parts that the first `count` questions find, or read as `like` did.

        Each once: a part that is prefilled again is loaded for it, and then nobody else has to load it.
        """
        found = [part for asked in self._asked[:count] for part in asked.parts[:_CANDIDATES]]
        if like:  # nobody looks at the others: storing them takes longer than asking
            ways = zip(self._asked, like, strict=False)
            found = [part for one, query in ways for part in query.configuration.ordered(one.parts)]
        for part in {part.key: part for part in found}.values():
            if is_stored(part, share, self._seed):
                self._k.prefill(part.text, part.key, salt)
        self._k.store.flush()

    def run(
        self,
        arm: RagArm,
        profile_of: Callable[[str], QuestionProfile],
        arrivals_s: Sequence[float],
        salt: str,
        reuse: Reuse = "exact",
        *,
        fixed: Sequence[RagConfiguration] = (),
    ) -> list[RealQuery]:
        """Every question at its time; `fixed` configurations, one a question, go before the arm's choice.

        Raises EngineFailed when a question gets no answer.
        """
        clock, foresight = self._k.parts.clock, Foresight(self._k.parts)
        model = self.model(salt, reuse)
        found: dict[int, RealQuery] = {}
        lock, never = threading.Lock(), threading.Event()
        begun_s = clock.now()

        def answer(number: int) -> None:
            asked = self._asked[number]
            while (now_s := clock.now()) < begun_s + arrivals_s[number]:
                never.wait(begun_s + arrivals_s[number] - now_s)
            with lock:  # the next one chooses by what this one has chosen
                foresight.observed.arrived(now_s)
                options = QueryOptions(max_tokens=self._max_tokens, salt=salt)
                chunks = [foresight.chunk(part, options) for part in asked.parts[:_CANDIDATES]]
                given = ChoiceInput(
                    profile_of(asked.question.text), chunks, model, foresight.load(now_s),
                    len(foresight.running), foresight.max_context,
                )  # fmt: skip
                configuration = fixed[number] if fixed else arm(given)
                demand = model.demand(configuration, chunks)
                foresight.running.begin(str(number), now_s, demand.seconds, demand.last_bytes)
            try:
                made = self._answer(asked, configuration, salt, f"{salt}{number}", reuse)
                found[number] = replace(made, delay_s=clock.now() - begun_s - arrivals_s[number])
            finally:
                foresight.running.end(str(number))
                foresight.observed.took(0.0, 0.0, demand.total_bytes)

        threads = [
            threading.Thread(target=answer, args=(number,)) for number in range(len(arrivals_s))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(found) < len(arrivals_s):
            raise EngineFailed(f"{len(arrivals_s) - len(found)} queries of {salt} got no answer")
        return [found[number] for number in range(len(arrivals_s))]

    def _answer(
        self,
        asked: AskedQuestion,
        configuration: RagConfiguration,
        salt: str,
        name: str,
        reuse: Reuse = "exact",
    ) -> RealQuery:
        clock, prompts = self._k.parts.clock, self._k.prompts
        techniques = blending(reuse, self.blend_ratio if reuse == "blend" else None)

        def make(
            messages: Sequence[Message], documents: Sequence[Document], sampling: Sampling
        ) -> Request:
            plain = prompts.request(messages, documents, sampling=sampling, salt=salt)
            return replace(plain, techniques=techniques)

        calls = QueryCalls(name, make, self._k.engine.submit, group_tokens=self._room)
        begun_s = clock.now()
        made = synthesize(
            configuration, asked.question.text, asked.parts, calls, clock,
            max_tokens=self._max_tokens,
        )  # fmt: skip
        return RealQuery(configuration, clock.now() - begun_s, made.text, made.call_usages)


def _slower(jct: JctModel, times: float) -> JctModel:
    """A time model of a machine that takes so many times as long."""
    names = ("pass_s", "token_s", "pair_s", "cached_s", "prompt_s")
    return replace(jct, **{name: times * getattr(jct, name) for name in names})


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """Seconds that each further column adds, 0 where it is too little to be seen; None of too few points.

    The median over pairs that lie half of the range apart or more (Theil and Sen): a step that a neighbour
    has disturbed bends a line of least squares, not this.
    """
    columns = [x for x, _ in points]
    least = (max(columns) - min(columns)) / 2 if columns else 0
    slopes = [
        (y - before_y) / (x - before_x)
        for number, (x, y) in enumerate(points)
        for before_x, before_y in points[:number]
        if x != before_x and abs(x - before_x) >= least
    ]
    return max(statistics.median(slopes), 0.0) if slopes else None


def replayed_s(
    made: Sequence[RealQuery], arrivals_s: Sequence[float], speed: EngineSpeed, num_probe: int
) -> list[float]:
    """The delays of the same calls at the same times on the simulated engine.

    A call that blended took a pass of `num_probe` rows first.
    """

    def stages(query: RealQuery) -> list[list[SimulatedCall]]:
        calls = [
            SimulatedCall(
                usage.recomputed,
                usage.cached_tokens,
                usage.completion_tokens,
                usage.prompt_tokens + usage.completion_tokens + usage.recomputed,
                num_probe if usage.blended else 0,
            )
            for usage in query.usages
        ]
        if query.configuration.method is Method.MAP_REDUCE:
            return [calls[:-1], calls[-1:]]
        return [calls]

    engine = SimulatedEngine(speed)
    queries = [
        SimulatedQuery(arrival_s, partial(_as_they_were, stages(query)))
        for query, arrival_s in zip(made, arrivals_s, strict=True)
    ]
    engine.play(queries)
    return [query.delay_s for query in queries]


def _as_they_were(
    stages: list[list[SimulatedCall]], _: SimulatedEngine
) -> list[list[SimulatedCall]]:
    """A query that asks what it asked, whatever the engine has left."""
    return stages
