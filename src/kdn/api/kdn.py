"""What can be asked of an open model: `Kdn`, which `kdn.open(...)` hands out.

with kdn.open() as k:
    k.ingest(["docs/"])
    print(k.ask("How long is a tab?").text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kdn.api.answering import Answering
from kdn.api.answers import Answer, collect, not_in_documents, sources_of
from kdn.api.ask import FRAME_TOKENS, find_parts, put_question
from kdn.api.checked import checked_verbs
from kdn.api.embedders import EMBEDDER, open_bert, open_embedder
from kdn.api.parts import Parts
from kdn.api.profilers import make_profiler
from kdn.api.prompts import (
    AnswerSchema,
    Documents,
    Messages,
    Reuse,
    ShareMode,
    blending,
    constraint_of,
    sharing,
)
from kdn.api.steering import AskSteering, Steering, is_steered, retrieved_spans, steered_answer
from kdn.core import Request, Retention, Role, Sampling, Stream, text_of, texts_of
from kdn.errors import BadInput
from kdn.rag import Cutting, IngestReport, Library, LibrarySettings, Progress
from kdn.rag.metis import QueryReport
from kdn.rank import (
    YES_NO,
    ChoiceProbabilities,
    LabelTable,
    Layout,
    Ranking,
    Template,
    decision_question,
    pair_question,
)
from kdn.reuse.steer import RecipeFolder, steer_of
from kdn.store import Match

if TYPE_CHECKING:
    from kdn.rag.minilm import MiniLm

__all__ = ["Kdn"]


@checked_verbs
class Kdn:
    """One model, one store, one library. Use it in a `with`, or `close` it.

    Its parts are named for callers that go deeper: `prompts` makes requests, `scoring` one-token
    questions, `store` holds KV, `library` documents, `calibration` what was measured, `cost` accounts,
    `answering` answers questions as suits each.
    Safe from several threads; requests that run at the same time share the model.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.name = parts.name
        self.model = parts.model
        self.config = parts.config
        self.trace = parts.trace
        self.store = parts.store
        self.engine = parts.engine
        self.prompts = parts.prompts
        self.scoring = parts.scoring
        self.calibration = parts.calibration
        self.cost = parts.cost
        self.answering = Answering(parts, lambda: self.library, make_profiler(parts))

    # --- text in, text out -------------------------------------------------------------------

    def generate(
        self,
        prompt: Messages,
        documents: Documents = (),
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        sampling: Sampling | None = None,
        schema: AnswerSchema | None = None,
        stream: Callable[[str], None] | None = None,
        salt: str = "",
        adapter: str | None = None,
        retention: Retention = Retention.ALL,
        reuse: Reuse = "exact",
        ratio: float | None = None,
        collection: str = "",
        steer: Steering = (),
        steer_report: bool = False,
        share: ShareMode | None = None,
    ) -> Answer:
        """Answer a message or a conversation, with documents in front if there are any.

        `stream` is given pieces of text as they come.  The KV of documents and of the conversation
        is kept (see `retention`), so that the next turn, and the next question about the same
        documents, begin where this one ended.  With `reuse="blend"` documents that were computed
        anywhere before are reused, and some of their rows recomputed (see `blending`); the answer
        then approximates that of a full prefill, and the quality guard judges each `collection` of
        documents apart.  `steer` stresses or mutes marked spans, or `"look"`s for a sentence to stress that
        the question clearly attends to (see `Steering`); with `steer_report` the answer says what that
        did.  `share` says whether KV of a sibling may stand in (see `sharing`).

        With `schema` the answer is JSON that it allows (or fulfils a `Constraint`), unless `max_tokens`
        cuts it off.  `max_tokens` and `temperature` stand above `sampling`; what neither gives is as the
        model's publisher recommends, else greedy.  Raises PromptTooLong, UnknownModel, BadInput.
        """
        drawn = sampling or self.model.sampling
        if max_tokens is not None:
            drawn = replace(drawn, max_tokens=max_tokens)
        if temperature is not None:
            drawn = replace(drawn, temperature=temperature)
        if schema is not None:
            drawn = replace(drawn, constraint=constraint_of(schema))
        request = self.prompts.request(
            prompt, documents, sampling=drawn, salt=salt, adapter=adapter
        )
        techniques = (*blending(reuse, ratio, collection), *sharing(share))
        request = replace(request, retention=retention, techniques=techniques)
        if is_steered(steer, report=steer_report):
            request = self._steered(request, steer, prompt, documents)
        answer = steered_answer(self.engine.submit, request, stream, report=steer_report)
        self.model.chat.remember(salt, answer.text, answer.token_ids)
        return answer

    def ask(
        self,
        question: str,
        *,
        max_tokens: int = 256,
        max_parts: int = 1,
        rerank: int = 0,
        stream: Callable[[str], None] | None = None,
        salt: str = "",
        reuse: Reuse = "exact",
        ratio: float | None = None,
        steer: AskSteering = (),
        steer_report: bool = False,
        always: bool = False,
    ) -> Answer:
        """Answer a question from the ingested documents, and name the passages that say so.

        The prompt holds the `max_parts` parts that fit best, best first: with stored KV the first one
        is never computed twice, and with `reuse="blend"` (see `blending`) none is, as a whole.
        With `rerank` so many parts are retrieved, and `rerank` orders them (where no adapter ranks, their
        KV is that of the answer).  Where retrieval finds too little that speaks for an answer
        (`kdn.rag.Support`), none is generated unless `always`: the text is then `NOT_IN_DOCUMENTS`
        and `in_documents` is False.  `steer` is as in `generate`, or `"retrieved"`: the passage that
        retrieval put first is stressed.  Raises BadInput when nothing was ingested.
        """
        if not text_of(question, "question").strip():
            raise BadInput("the question is empty; ask something")
        steered = is_steered(steer, report=steer_report)
        room = self.model.decoder.config.max_position - max_tokens - FRAME_TOKENS
        parts = find_parts(
            self.library,
            question,
            room - len(self.model.tokenizer.encode(question)),
            max_parts,
            candidates=rerank,
            rank=partial(self.rerank, question, salt=salt),
        )
        support = None if always else self.library.support(question)
        if support is not None and not support.is_enough:
            return not_in_documents(stream)
        messages, documents = put_question(question, parts)
        request = self.prompts.request(
            messages, documents, sampling=Sampling(max_tokens=max_tokens), salt=salt
        )
        request = replace(request, techniques=blending(reuse, ratio, "ingested"))
        if steered:
            spans = retrieved_spans(parts) if steer == "retrieved" else steer
            request = self._steered(request, spans, messages, documents)
        answer = steered_answer(self.engine.submit, request, stream, report=steer_report)
        report = QueryReport.of_stuffed(max_parts, len(parts), answer.usage.total_ms)
        return replace(answer, sources=sources_of(answer.text, parts), report=report)

    def submit(self, request: Request) -> Stream:
        """Queue a request and hand out its stream of tokens."""
        return self.engine.submit(request)

    def _steered(
        self, request: Request, steer: object, messages: Messages, documents: Documents
    ) -> Request:
        places = self.prompts.places(request.prompt, messages, documents)
        own = RecipeFolder(self.config.home, self.model.fingerprints.of_context(request.adapter))
        return request.using(steer_of(steer, places, own.named))

    # --- one token ---------------------------------------------------------------------------

    def score(
        self,
        query: str,
        texts: str | Sequence[str],
        *,
        choices: str | Sequence[str] = YES_NO,
        instruction: str | None = None,
        temperature: float = 1.0,
        salt: str = "",
    ) -> list[ChoiceProbabilities]:
        """For each text, how likely each of `choices` is as the answer about `query`.

        By default: does the text answer the query, Yes or No?  `instruction` says otherwise.  The KV
        of the query is computed once.  Choices that begin alike take a pass more where they part.
        Raises BadInput for choices that cannot be told apart.
        """
        asked = [
            pair_question(text_of(query, "query"), text, instruction)
            for text in texts_of(texts, "texts")
        ]
        found = self.scoring.choices(choices)
        return self.scoring.ask(asked, found, temperature=temperature, salt=salt)

    def rerank(
        self,
        query: str,
        documents: str | Sequence[str],
        top_n: int | None = None,
        *,
        layout: str | Layout = Layout.DOCUMENT_FIRST,
        template: str | Path | Template | None = None,
        instruction: str | None = None,
        adapter: str | None = None,
        truncate: bool = False,
        salt: str = "",
    ) -> Ranking:
        """Documents by how well each belongs to `query`, best first; scores are 0..1 and log-odds.

        Document first, which is the default, a document's KV is computed once for all queries, and
        is the same that answers over it use; `layout="query-first"` asks as most published rerankers
        were trained.  `template` names one of `kdn.rank.TEMPLATES` or a TOML file; one with words
        of its own has blocks of its own.  `adapter` names a LoRA that was given to `kdn.open`; without it a
        packaged model ranks with the one that was trained for the layout, and `"none"` takes the model alone.
        Equal documents are computed once; empty ones score 0.  Raises PromptTooLong for a document
        beyond the context, unless `truncate`; BadInput for an empty query, an unknown template, or
        one whose tokens this model lacks.
        """
        asking = self.scoring.asking(
            text_of(query, "query"),
            layout=layout,
            template=template,
            instruction=instruction,
            truncate=truncate,
        )
        return self.scoring.rank(
            texts_of(documents, "documents"),
            asking,
            top_n,
            salt=salt,
            adapter=self.scoring.reranker(layout, template, adapter),
        )

    def decide(
        self, text: str, questions: str | Sequence[str], *, salt: str = ""
    ) -> list[ChoiceProbabilities]:
        """For each question about `text`, how likely Yes and No are. The text's KV is computed once."""
        asked = [
            decision_question(text_of(text, "text"), one)
            for one in texts_of(questions, "questions")
        ]
        return self.scoring.ask(asked, self.scoring.choices(YES_NO, whole=False), salt=salt)

    def label(
        self,
        rows: Mapping[str, str] | Sequence[Mapping[str, str]],
        template: str,
        choices: str | Sequence[str],
        *,
        known: str | None = None,
        threshold: float = 0.0,
        salt: str = "",
        adapter: str | None = None,
    ) -> LabelTable:
        """One of `choices` for every row of a table, with probabilities.

        `template` names columns as `{column}`.  `known` names the column of right labels, where they
        are known: they calibrate the others.  Below `threshold` a row gets no label.  `kdn label` does
        the same with files, and goes on where it was killed.  Raises BadInput, UnknownModel.
        """
        return self.scoring.label(
            rows, template, choices, known=known, threshold=threshold, salt=salt, adapter=adapter
        )

    # --- documents ---------------------------------------------------------------------------

    def ingest(
        self,
        paths: Path | str | Iterable[Path | str],
        *,
        prefill: bool = False,
        exclude: str | Iterable[str] = (),
        adapter: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> IngestReport:
        """Take files and folders into the library; again: only what changed is done.

        With `prefill` the KV of every part of them is computed and stored now, not on first use;
        `on_prefill` is told how many tokens of how many are done. `exclude` names what to pass over
        in folders, in the form of a `.gitignore`. The KV is that of `adapter`, if one is named.
        """
        report = self.library.ingest(
            paths, exclude=exclude, on_progress=on_progress, cancelled=cancelled
        )
        if prefill and not report.cancelled:
            sources = (*report.added, *report.updated, *report.unchanged)
            parts = [part for source in sources for part in self.library.parts(source)]
            total, done = sum(part.num_tokens for part in parts), 0
            for part in parts:
                if cancelled is not None and cancelled():
                    return replace(report, cancelled=True)
                self.prefill(part.text, part.key, adapter=adapter)
                done += part.num_tokens
                if on_prefill is not None:
                    on_prefill(done, total)
        return report

    def prefill(
        self, text: str, name: str | None = None, salt: str = "", adapter: str | None = None
    ) -> int:
        """Compute and store the KV of a document behind the neutral prelude; its number of tokens.

        What is stored already is not computed again.  Raises BadInput for an empty text.
        """
        if not text_of(text, "text").strip():
            raise BadInput(f"{name or 'the text'} is empty; there is nothing to store")
        prompt = self.prompts.of_document(text, name, salt)
        name = self.prompts.new_id("prefill")
        sampling = Sampling(max_tokens=1)
        collect(self.engine.submit(Request(name, prompt, sampling, salt=salt, adapter=adapter)))
        return sum(s.num_tokens for s in prompt.segments if s.role is Role.DOCUMENT)

    def lookup(self, text: str, name: str | None = None, salt: str = "") -> tuple[Match, int]:
        """What of a document's KV is stored, prelude included, and how many tokens it has so.

        Moves no bytes; public blocks count, and those of a lossy codec that the settings allow.  Raises
        BadInput for an empty text.
        """
        if not text_of(text, "text").strip():
            raise BadInput(f"{name or 'the text'} is empty; there is nothing to look up")
        prompt = self.prompts.of_document(text, name, salt)
        stop = max(b for segment, _, b in prompt.spans() if segment.role is Role.DOCUMENT)
        tokens = prompt.token_ids[:stop]
        return self.parts.prefix.match(tokens, salt), len(tokens)

    @cached_property
    def embedder(self) -> MiniLm:
        """The packaged sentence embedder. Raises MissingExtra when its weights are not here."""
        return open_bert(EMBEDDER, self.config.home)

    @cached_property
    def library(self) -> Library:
        """The documents. Opened on first use. Raises MissingExtra, ForeignStore."""
        settings = self.config.library
        return Library.open(
            self.config.library_folder,
            self.embedder
            if settings.embedder == EMBEDDER
            else open_embedder(settings, self.config.home),
            self.model.tokenizer.encode,
            self.parts.clock,
            LibrarySettings(Cutting(settings.passage_tokens, settings.part_tokens)),
        )

    # --- housekeeping ------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Do now what blended answers left for idle time: store their documents, compare samples."""
        self.parts.ended.wait()
        self.parts.idle.finish("bias", "prefill", "compare", "shares")

    def check(self) -> None:
        """Audit the books of engine and store. Raises AssertionError. For tests, between requests."""
        self.parts.guard.check()
        self.parts.ended.check()
        self.engine.check()
        self.store.check()

    def close(self) -> None:
        """Stop the engine and write out what the store still holds back."""
        self.answering.close()
        for close in self.parts.closers:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
