"""Does a configuration chosen for each question, with what is stored and free, answer sooner at equal recall?

Questions of five data sets come to one engine in Poisson processes from light load to four times
saturation.  Arms: every static configuration, the median of the pruned space, chunks by queue depth,
a choice by complexity alone, METIS as published (arXiv 2412.10543), and ours.  Real runs check the event
simulator, which plays the sweep.  Recall is the share of the gold parts a question needs that reach the
call which answers; the F1 of a small model says little, and is told for the real runs alone.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import torch

from kdn import api
from kdn.bench.common.result import BenchOptions, Result, Row, scratch_folder
from kdn.bench.rag.arms import Arms, arms, blended_arms, static_arms
from kdn.bench.rag.check import RealCheck, simulator_summary
from kdn.bench.rag.profiles import NotedProfiles
from kdn.bench.rag.quality import judge_quality
from kdn.bench.rag.questions import load_sets
from kdn.bench.rag.real import RealRuns
from kdn.bench.rag.simulate import EngineSpeed
from kdn.bench.rag.simulated import ArmOutcome, SimulatedLoad, rows_by_set
from kdn.bench.rag.workload import CUTTING, AskedQuestion, arrivals, find_all
from kdn.calibration.times import measure_jct
from kdn.config import Config, EngineConfig, StoreConfig, home_folder
from kdn.core import JctModel
from kdn.errors import BadInput, ProfileFailed
from kdn.plot import Figure
from kdn.rag.metis import (
    ClassifierProfiler,
    LibraryNote,
    ModelProfiler,
    OracleProfiler,
    Profiler,
    QuestionProfile,
    RuleProfiler,
)

__all__ = ["run"]

OURS, BEST, BLIND = "ours, balanced", "ours, most chunks", "ours, balanced, without the store"
BLENDED, BEST_BLENDED = f"{OURS}, blended", f"{BEST}, blended"
METIS, ADAPTIVE = "METIS as published", "adaptive by complexity"
_REAL_STATIC = "static stuff 2"
_REAL = (OURS, ADAPTIVE, _REAL_STATIC, BEST, BEST_BLENDED)
"""Arms that run in truth too, twice each."""
_BY_SET = (OURS, BEST, METIS, ADAPTIVE, "static stuff 2", "static stuff 5", "static stuff 8")
_EQUAL = 0.01
"""Recalls that differ by less are equal."""
_STORED = 0.5
_PROFILE_S = 60.0
"""As long as a profile by the open model may take."""
_GOLD = (
    "MuSiQue's file marks no passages: parts that hold the answer in words count as gold. Filings mark "
    "none, and count for delays only."
)


@dataclass(frozen=True)
class _Size:
    """How much is measured."""

    questions: int = 40
    """Of each set."""
    simulated: int = 400
    real: int = 40
    real_arms: tuple[str, ...] = (*_REAL, METIS)
    fits: int = 12
    refits: int = 12
    """Questions that tell how quick prefills and steps are after each real arm."""
    repeats: int = 3
    loads: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    kv_tokens: int = 8_000
    max_tokens: int = 24
    profiled: int = 24
    """Questions whose profile the open model makes."""


_QUICK = _Size(
    questions=12,
    simulated=180,
    real=4,
    real_arms=_REAL,
    fits=4,
    refits=2,
    repeats=1,
    loads=(0.25, 1.0, 4.0),
    profiled=3,
)


def run(options: BenchOptions) -> Result:
    """Real runs at one load, the simulator fitted on them, and the sweep; or how good answers are."""
    if options.only in ("quality", "page"):
        return judge_quality(options)
    if options.only is not None:
        raise BadInput(f"rag has no part {options.only!r}; there are quality and page")
    torch.set_num_threads(options.threads)
    size = _QUICK if options.quick else _Size()
    sets = load_sets(options.data, size.questions)
    with scratch_folder() as folder, ExitStack() as stack:
        config = Config(
            home=options.home or home_folder(os.environ),
            engine=EngineConfig(threads=options.threads, fit_idle_s=0, speculative_tokens=0),
            store=StoreConfig(folder=folder / "blocks"),
        )
        k = stack.enter_context(api.open(options.model, config=options.note(config)))
        asked = find_all(k, sets, folder, options)
        random.Random(options.seed).shuffle(asked)
        asked = [one for one in asked if one.parts]
        if not asked:
            raise BadInput("no question found a part of a document; look at the data")
        options.say("measuring how long prompts take")
        jct = measure_jct(k.model, k.parts.attention, options.clock, repeats=size.repeats)
        real = RealRuns(k, asked, jct, size.max_tokens, options.seed)
        real.fit(size.fits)
        token_bytes = real.model().token_bytes
        kv_tokens = k.engine.stat().kv_total_bytes // token_bytes
        speed = real.speed(kv_tokens, config.engine.max_stall_ms / 1000)
        names = {one.text: own.name for own in sets for one in own.questions}
        bench = _Bench(options, size, asked, names, real, speed, NotedProfiles(k.parts, _PROFILE_S))
        checked, judged = bench.check()
        swept, summary, figure = bench.sweep(k.model.decoder.config.max_position)
    gold = [one for one in asked if one.num_gold]
    return Result(
        bench="rag",
        model=options.model,
        config=options.describe()
        | {
            "questions": len(asked),
            "part_tokens": CUTTING.part_tokens,
            "stored_share": _STORED,
            "simulated_kv_tokens": size.kv_tokens,
            "max_tokens": size.max_tokens,
        },
        rows=checked + swept,
        summary=summary | judged,
        notes=(
            _fitted(jct, real),
            f"{len(asked)} questions of {len(sets)} sets; {len(gold)} have gold parts.",
            _GOLD,
            "A question that the simulator asks again is asked of another copy of its library.",
            (
                "Each real arm runs twice with equal calls. simulator_error: mean of how far the simulator is"
                " from the mean of both runs; simulator_bias: with its sign, below zero where it is"
                " too quick; simulator_error_floor: half of the mean difference of the two runs, which a"
                " perfect one would miss too."
            ),
            (
                "An answer has a fixed length in the simulator, which guesses no tokens: so real runs guess"
                " none. F1 of a model this small is no evidence."
            ),
            (
                "A profile by the open model is a call of the engine like others; its profiles are of fewer"
                " questions, over which its arm runs."
            ),
            (
                "Gains are at equal recall. delay_gain_adaptive: the quickest of ours, blended too; _exact:"
                " not blended. cache_aware_gain: the most chunks over an engine that blends, chosen with and"
                " without a look at the store; _exact: over one that does not; _balanced: by balanced"
                " over one that does not. store_gain: the same choice with half of the parts stored, and"
                " with none."
            ),
        ),
        figures=(figure,),
    )


def _fitted(jct: JctModel, real: RealRuns) -> str:
    return (
        f"The time model's error is {jct.error or 0.0:.0%}; real prefills take {real.slowdown:.2f} times"
        f" as long, a decode step {1000 * real.step_s:.1f} ms and"
        f" {1000 * (real.row_s or 0.0):.1f} ms more for each further sequence, {1e6 * real.column_s:.1f}"
        " us for each of its columns."
    )


@dataclass(frozen=True)
class _Bench:
    options: BenchOptions
    size: _Size
    asked: Sequence[AskedQuestion]
    names: Mapping[str, str]
    """Of each question's set."""
    real: RealRuns
    speed: EngineSpeed
    model: NotedProfiles

    def oracle(self) -> Mapping[str, QuestionProfile]:
        """The right profile of every question."""
        return {one.question.text: one.question.profile for one in self.asked}

    # --- real runs ---------------------------------------------------------------------------

    def check(self) -> tuple[list[Row], dict[str, float | None]]:
        """Real runs of some arms at saturation, each played again by the simulator."""
        known, count = self.oracle(), min(self.size.real, len(self.asked))
        times = arrivals(count, 1 / self._alone_s(), self.options.seed)
        check = RealCheck(
            self.real, self.asked, {**arms(), **static_arms(), **blended_arms()}, _STORED,
            self.size.refits,
            lambda: self.real.speed(self.speed.kv_tokens, self.speed.stall_s), self.options.say,
        )  # fmt: skip
        checked = list(check.run(self.size.real_arms, known, times))
        f1 = {one.name: one.f1(self.asked) for one in checked}
        summary = simulator_summary(checked) | {"f1_diff_static": f1[OURS] - f1[_REAL_STATIC]}
        return [one.row(self.asked) for one in checked], dict(summary)

    def _alone_s(self) -> float:
        """A plain query's own time: three parts in one prompt."""
        load = self._load([0.0], 8192)
        return load.run(static_arms()["static stuff 3"], self.oracle().__getitem__).mean_s

    # --- the sweep ---------------------------------------------------------------------------

    def _load(self, times: Sequence[float], max_context: int) -> SimulatedLoad:
        rng = random.Random(self.options.seed)
        rounds = range(-(-len(times) // len(self.asked)))
        asked = [one.copied(number) for number in rounds for one in self.asked][: len(times)]
        rng.shuffle(asked)
        speed = replace(self.speed, kv_tokens=self.size.kv_tokens)
        return SimulatedLoad(
            asked, times, self.real.model(), speed, max_context, _STORED, self.options.seed
        )

    def sweep(self, max_context: int) -> tuple[list[Row], dict[str, float | None], Figure]:
        """Every arm at every load, and what the comparison comes to at saturation."""
        known, alone_s = self.oracle(), self._alone_s()
        every: Arms = {**arms(), **static_arms(), **blended_arms()}
        ratios = dict.fromkeys(blended_arms(), self.real.blend_ratio)
        rows, lines = list[Row](), dict[str, list[tuple[float, float]]]()
        by_set = list[Row]()
        found: dict[str, ArmOutcome] = {}
        for load in self.size.loads:
            times = arrivals(self.size.simulated, load / alone_s, self.options.seed)
            simulated = self._load(times, max_context)
            for name, arm in every.items():
                outcome = simulated.run(arm, known.__getitem__, blend_ratio=ratios.get(name))
                rows.append(_row(name, load, outcome))
                if load == 1.0:
                    found[name] = outcome
                if load == self.size.loads[0] and name in _BY_SET:
                    sets = [self.names[one.question.text] for one in simulated.asked]
                    by_set += rows_by_set(name, load, outcome, sets)
                if not name.startswith("static"):
                    lines.setdefault(name, []).append((load, outcome.mean_s))
        times = arrivals(self.size.simulated, 1 / alone_s, self.options.seed)
        simulated = self._load(times, max_context)
        profiled, share = self._profilers(simulated)
        by_model, model_share = self._by_model(simulated)
        cold = simulated.with_stored(0.0).run(arms()[OURS], known.__getitem__)
        summary = _summary(found) | {
            "store_gain": cold.mean_s / found[OURS].mean_s,
            "profiler_share": share,
            "profiler_share_model": model_share,
        }
        figure = Figure("Delay by load", "load (1 is saturation)", "mean delay, s", lines)
        return [*rows, *profiled, by_model, *by_set], summary, figure

    def _profilers(self, load: SimulatedLoad) -> tuple[list[Row], float]:
        """Ours by each profiler's profiles, whose measured time passes before each choice."""
        rows, shares, note = list[Row](), list[float](), LibraryNote("", CUTTING.part_tokens)
        profilers: list[Profiler] = [
            OracleProfiler(self.oracle()), RuleProfiler(), ClassifierProfiler(),
        ]  # fmt: skip
        for profiler in profilers:
            begun_s = self.options.clock.now()
            profiles = {
                one.question.text: profiler.profile(one.question.text, note) for one in self.asked
            }
            each_s = (self.options.clock.now() - begun_s) / len(self.asked)
            outcome = load.run(arms()[OURS], profiles.__getitem__, each_s)
            shares.append(each_s / outcome.mean_s)
            right = [profiles[t].is_joint == p.is_joint for t, p in self.oracle().items()]
            row = _row(f"{OURS}, profiles by {profiler.name}", 1.0, outcome)
            rows.append(row | {"joint right": statistics.fmean(right), "profile ms": 1000 * each_s})
        return rows, shares[-1]

    def _by_model(self, load: SimulatedLoad) -> tuple[Row, float]:
        """Ours by the open model's profiles: each is a call of the engine before the query's own."""
        note, some = LibraryNote("", CUTTING.part_tokens), self.asked[: self.size.profiled]
        profiler, clock = ModelProfiler(self.model), self.options.clock
        self.options.say(f"profiling {len(some)} questions by {self.model.name}")
        profiles, begun_s = dict[str, QuestionProfile](), clock.now()
        for one in some:
            with suppress(ProfileFailed):
                profiles[one.question.text] = profiler.profile(one.question.text, note)
        each_s = (clock.now() - begun_s) / len(some)
        rules = RuleProfiler()  # stand in where the model gives none, as for every query
        for one in some:
            text = one.question.text
            profiles.setdefault(text, rules.profile(text, note))
        asked = [some[i % len(some)] for i in range(len(load.arrivals_s))]
        outcome = replace(load, asked=asked).run(
            arms()[OURS], profiles.__getitem__, profile_call=self.model.mean_call()
        )
        right = [
            profiles[one.question.text].is_joint == one.question.profile.is_joint for one in some
        ]
        row = _row(f"{OURS}, profiles by model {self.model.name}", 1.0, outcome)
        return row | {"joint right": statistics.fmean(right), "profile ms": 1000 * each_s}, (
            each_s / outcome.mean_s
        )


def _row(name: str, load: float, outcome: ArmOutcome) -> Row:
    return {
        "arm": name,
        "load": f"{load:g}",
        "mean s": outcome.mean_s,
        "P50 s": outcome.quantile_s(0.5),
        "P99 s": outcome.quantile_s(0.99),
        "queries/s": outcome.per_s,
        "recall": outcome.recall,
        "chunks": outcome.mean_chunks,
    }


def _summary(found: Mapping[str, ArmOutcome]) -> dict[str, float | None]:
    """At saturation, with half of the parts stored."""
    ours = found[OURS]
    statics = [one for name, one in found.items() if name.startswith("static")]
    as_good = [one.mean_s for one in statics if one.recall >= ours.recall - _EQUAL]
    as_quick = [one.recall for one in statics if one.mean_s <= ours.mean_s]
    # Where none is as good, the best: ours is better and its delay the less flattered.
    as_good = as_good or [max(statics, key=lambda one: one.recall).mean_s]
    as_quick = as_quick or [min(statics, key=lambda one: one.mean_s).recall]
    return {
        "delay_gain_static": min(as_good) / ours.mean_s,
        "delay_gain_adaptive": _gain(found, ADAPTIVE),
        "delay_gain_adaptive_exact": _gain(found, ADAPTIVE, (OURS, BEST)),
        "delay_gain_metis": _gain(found, METIS),
        "recall_gain_static": ours.recall - max(as_quick),
        "cache_aware_gain": _gain(found, f"{BEST_BLENDED}, without the store", (BEST_BLENDED,)),
        "cache_aware_gain_exact": _gain(found, f"{BEST}, without the store", (BEST,)),
        "cache_aware_gain_balanced": _gain(found, BLIND, (OURS,)),
        "recall_ours": ours.recall,
        "recall_adaptive": found[ADAPTIVE].recall,
    }


def _gain(
    found: Mapping[str, ArmOutcome],
    name: str,
    ours: Sequence[str] = (OURS, BEST, BLENDED, BEST_BLENDED),
) -> float | None:
    """How much sooner the quickest of ours is whose recall equals the other's; None where none does."""
    other = found[name]
    as_good = [found[one].mean_s for one in ours if found[one].recall >= other.recall - _EQUAL]
    return other.mean_s / min(as_good) if as_good else None
