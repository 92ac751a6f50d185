"""Questions about documents, each answered in the way that suits it: `Kdn.answering`.

profile ─> space ─> parts found ─> what is stored of them ─> choice ─> calls ─> answer with its report
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from kdn.api.answers import Answer, not_in_documents, source_of
from kdn.api.checked import checked
from kdn.api.foresight import Foresight
from kdn.api.parts import Parts
from kdn.api.prompts import blending
from kdn.api.queries import Query, QueryOptions
from kdn.core import Request, Sampling
from kdn.errors import BadInput, KdnError, ProfileFailed, PromptTooLong
from kdn.machine.text import counted
from kdn.model import Document, Message
from kdn.rag import Library, Part
from kdn.rag.metis import (
    GOLDEN,
    ChosenConfiguration,
    ChunkState,
    DemandModel,
    EngineLoad,
    FeedbackSchedule,
    LearningProfiler,
    LibraryNote,
    Method,
    Profiler,
    QueryCalls,
    QueryReport,
    QuestionProfile,
    RagConfiguration,
    RecentSpaces,
    RuleProfiler,
    Show,
    Synthesis,
    answer_level,
    choose,
    synthesize,
)
from kdn.rag.metis.configuration import ConfigurationSpace
from kdn.rag.metis.pick import CANDIDATES

__all__ = ["Answering"]

_EMPTY = "the library is empty; take documents in first: kdn ingest PATH"
_NO_MATCH = "nothing in the library has to do with the question; ask in other words"
_UNSUPPORTED = "what was found does not speak for an answer"


@dataclass(frozen=True)
class _Profiled:
    profile: QuestionProfile
    space: ConfigurationSpace
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float


class Answering:
    """Answers questions from a library. Safe from several threads."""

    def __init__(
        self,
        parts: Parts,
        library: Callable[[], Library],
        profiler: Profiler | None = None,
        feedback: FeedbackSchedule | None = None,
    ) -> None:
        """`library` opens the documents when they are needed first; None profiles by the rules."""
        self._parts = parts
        self._library = library
        self._rules = RuleProfiler()
        self._profiler = profiler or self._rules
        self._recent = RecentSpaces()
        self._feedback = feedback or FeedbackSchedule()
        self._lock = threading.Lock()
        """Of the recent spaces and the feedback's count."""
        self._foresight = Foresight(parts)
        self._golden_runs: list[tuple[threading.Thread, Query]] = []

    @checked
    def answer(
        self,
        question: str,
        options: QueryOptions | None = None,
        show: Show | None = None,
        query: Query | None = None,
    ) -> Answer:
        """The answer, with its sources, and in `report` how it was made and why.

        `show` is given its text as it comes.  An empty library, a question without a match and a
        profiler that fails are told in the report's notes.  Raises BadInput for an empty question,
        Cancelled after `query.cancel()`, and what the engine raises.
        """
        options, query = options or QueryOptions(), query or Query()
        if not question.strip():
            raise BadInput("the question is empty; ask something")
        query.check()
        begun_s = self._parts.clock.now()
        self._foresight.observed.arrived(begun_s)
        library = self._library()
        if not library.num_sources:
            return self._nothing(_EMPTY, show)
        profiled = self._profile(question, options)
        query.check()
        found = self._find(library, question, profiled, options)
        if not found:
            return self._nothing(_NO_MATCH, show, profiled)
        support = None if options.always else library.support(question)
        if support is not None and not support.is_enough:
            return self._nothing(_UNSUPPORTED, show, profiled)
        chunks = [self._foresight.chunk(part, options) for part in found]
        chosen = self._choose(question, found, chunks, profiled, options, begun_s)
        return self._run(question, found, chunks, chosen, profiled, options, show, query)

    def close(self) -> None:
        """End what still runs in the background. Calling it twice is harmless."""
        for thread, query in self._golden_runs:
            query.cancel()
            thread.join()
        self._golden_runs.clear()

    # --- what the question needs -------------------------------------------------------------

    def _profile(self, question: str, options: QueryOptions) -> _Profiled | None:
        """None where the request itself says how to answer, so that nothing is to be chosen."""
        if options.method is not None:
            return None
        clock, note, notes = self._parts.clock, self._note(), list[str]()
        begun_s = clock.now()
        try:
            profile = self._profiler.profile(question, note)
        except ProfileFailed as error:
            notes.append(f"{error}; the question's words were read instead")
            profile = self._rules.profile(question, note)
        with self._lock:
            space, why = self._recent.space(profile)
        return _Profiled(profile, space, (why,), tuple(notes), clock.now() - begun_s)

    def _note(self) -> LibraryNote:
        config = self._parts.config
        return LibraryNote(config.ask.about, config.library.part_tokens)

    # --- what there is to answer from --------------------------------------------------------

    def _find(
        self, library: Library, question: str, profiled: _Profiled | None, options: QueryOptions
    ) -> list[Part]:
        most = options.max_chunks or 1
        if profiled is not None:
            most = CANDIDATES * _allowed(profiled, options).max_chunks
        room = self._foresight.max_context - options.max_tokens
        parts = library.context(question, max_tokens=sys.maxsize, max_parts=most)
        fitting = [part for part in parts if part.num_tokens < room]
        if parts and not fitting:
            raise PromptTooLong(
                f"an answer of {counted(options.max_tokens, 'token')} leaves no room for a part in a context"
                f" of {self._foresight.max_context}: lower max_tokens"
            )
        return fitting

    # --- the choice --------------------------------------------------------------------------

    def _choose(
        self,
        question: str,
        found: Sequence[Part],
        chunks: Sequence[ChunkState],
        profiled: _Profiled | None,
        options: QueryOptions,
        begun_s: float,
    ) -> ChosenConfiguration:
        model = self._foresight.demand_model(question, found[0], options)
        now_s = self._parts.clock.now()
        load = self._foresight.load(now_s)
        if profiled is None:
            return self._as_asked(chunks, model, load, options)
        level = answer_level(self._parts.model.name)
        if level is not None and not level.is_enough:
            quote = RagConfiguration(Method.EXTRACT, 1)
            why = (
                f"{self._parts.model.name} answers {level.right:.0%} of {level.num_questions} measured"
                " questions rightly from the right passage: the passage is quoted"
            )
            return ChosenConfiguration(quote, model.demand(quote, chunks), 0.0, (why,))
        deadline_s = None
        if options.deadline_ms is not None:
            deadline_s = max(options.deadline_ms / 1000 - (now_s - begun_s), 0.0)
        return choose(
            _allowed(profiled, options),
            chunks,
            model,
            load,
            is_joint=profiled.profile.is_joint,
            max_context=self._foresight.max_context,
            preference=options.quality,
            deadline_s=deadline_s,
        )

    def _as_asked(
        self,
        chunks: Sequence[ChunkState],
        model: DemandModel,
        load: EngineLoad,
        options: QueryOptions,
    ) -> ChosenConfiguration:
        """The method that the request names, over as many chunks as the context holds."""
        method = options.method or Method.STUFF
        summary = (options.summary_tokens or 100) if method is Method.MAP_REDUCE else 0
        count = 1 if method is Method.EXTRACT else len(chunks)
        asked = RagConfiguration(method, count, summary)
        while count > 1 and model.largest_call(asked, chunks) > self._foresight.max_context:
            count -= 1
            asked = replace(asked, num_chunks=count)
        demand = model.demand(asked, chunks)
        foreseen_s = load.ahead_s + demand.seconds
        return ChosenConfiguration(asked, demand, foreseen_s, ("the request names it",))

    # --- the run -----------------------------------------------------------------------------

    def _run(
        self,
        question: str,
        found: Sequence[Part],
        chunks: Sequence[ChunkState],
        chosen: ChosenConfiguration,
        profiled: _Profiled | None,
        options: QueryOptions,
        show: Show | None,
        query: Query,
    ) -> Answer:
        clock, demand = self._parts.clock, chosen.demand
        name = self._parts.prompts.new_id("q")
        calls = self._calls(name, options)
        query.runs(calls.cancel)
        begun_s = clock.now()
        own_s = chosen.predicted_s
        is_alone = len(self._foresight.running) == 0
        self._foresight.running.begin(name, begun_s, own_s, demand.last_bytes)
        try:
            made = synthesize(
                chosen.configuration, question, found, calls, clock,
                max_tokens=options.max_tokens, show=show,
            )  # fmt: skip
            is_alone = is_alone and len(self._foresight.running) == 1
        finally:
            self._foresight.running.end(name)
        took_s = clock.now() - begun_s
        self._learn_from(made, chosen, took_s, is_alone=is_alone)
        self._feed_back(question, options, profiled)
        count = chosen.configuration.num_chunks
        report = QueryReport(
            chosen.configuration,
            profiled.profile if profiled is not None else None,
            profiled.space if profiled is not None else None,
            (*(profiled.reasons if profiled is not None else ()), *chosen.reasons),
            profiled.notes if profiled is not None else (),
            num_chunks=min(count, len(found)),
            num_stored_tokens=sum(
                chunk.num_stored for chunk in chosen.configuration.ordered(chunks)
            ),
            num_calls=made.num_calls,
            profile_ms=1000 * profiled.seconds if profiled is not None else 0.0,
            predicted_ms=1000 * chosen.predicted_s,
            took_ms=1000 * took_s,
            predicted_bytes=demand.total_bytes,
        )
        sources = tuple(map(source_of, made.citations))
        return Answer(
            made.text,
            made.finish_reason,
            made.usage,
            made.token_ids,
            sources=sources,
            report=report,
        )

    def _calls(self, name: str, options: QueryOptions) -> QueryCalls:
        techniques = blending(options.reuse, options.ratio, "ingested")

        def make(
            messages: Sequence[Message], documents: Sequence[Document], sampling: Sampling
        ) -> Request:
            request = self._parts.prompts.request(
                messages, documents, sampling=sampling, salt=options.salt
            )
            return replace(request, techniques=techniques)

        token_bytes = self._foresight.token_bytes
        room = self._parts.engine.stat().kv_total_bytes // token_bytes // 2
        return QueryCalls(name, make, self._parts.engine.submit, group_tokens=room)

    def _learn_from(
        self, made: Synthesis, chosen: ChosenConfiguration, took_s: float, *, is_alone: bool
    ) -> None:
        usages, mapped = made.call_usages, made.call_usages
        for usage in usages:
            self._foresight.observed.answered(usage)
        if is_alone and made.num_calls:
            if chosen.configuration.method is Method.MAP_REDUCE:
                mapped = usages[:-1]
                self._foresight.observed.decoded(usages[-1:])
            self._foresight.observed.decoded(mapped)
            foreseen_s = chosen.demand.seconds / self._foresight.observed.slowdown()
            self._foresight.observed.took(foreseen_s, took_s, chosen.demand.total_bytes)

    def _nothing(self, note: str, show: Show | None, profiled: _Profiled | None = None) -> Answer:
        notes = (*(profiled.notes if profiled is not None else ()), note)
        report = QueryReport(None, notes=notes)
        if profiled is not None:
            report = replace(report, profile=profiled.profile, space=profiled.space)
        return replace(not_in_documents(show), report=report)

    # --- feedback ----------------------------------------------------------------------------

    def _feed_back(self, question: str, options: QueryOptions, profiled: _Profiled | None) -> None:
        """Every 30th question, where the profiler can learn: the golden answer, in the background."""
        if profiled is None or not isinstance(self._profiler, LearningProfiler):
            return
        with self._lock:
            due = self._feedback.is_due()
        if not due:
            return
        query, profiler = Query(), self._profiler

        def learn() -> None:
            with suppress(KdnError):  # a golden run that fails teaches nothing
                golden = self._golden(question, options, query)
                profiler.learn(question, golden, self._note())

        thread = threading.Thread(target=learn, name="kdn-golden", daemon=True)
        self._golden_runs = [one for one in self._golden_runs if one[0].is_alive()]
        self._golden_runs.append((thread, query))
        thread.start()

    def _golden(self, question: str, options: QueryOptions, query: Query) -> str:
        """The golden configuration's answer, over as many chunks as the context holds summaries of."""
        room = self._foresight.max_context - options.max_tokens - GOLDEN.summary_tokens
        count = max(min(GOLDEN.num_chunks, room // GOLDEN.summary_tokens - 1), 1)
        parts = self._library().context(question, max_tokens=sys.maxsize, max_parts=count)
        calls = self._calls(self._parts.prompts.new_id("g"), options)
        query.runs(calls.cancel)
        golden = replace(GOLDEN, num_chunks=count)
        clock = self._parts.clock
        return synthesize(golden, question, parts, calls, clock, max_tokens=options.max_tokens).text


def _allowed(profiled: _Profiled, options: QueryOptions) -> ConfigurationSpace:
    """The space, with no more chunks than the request wants to be read."""
    space = profiled.space
    return space if options.max_chunks is None else space.within(options.max_chunks)
