"""The only place that builds and joins rooms: `kdn.open(...)` and what can be asked of it.

with kdn.open() as k:
    k.ingest(["docs/"])
    print(k.ask("How long is a tab?").text)
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import torch

from kdn.api.answers import Answer, Source, collect, sources_of
from kdn.api.choosing import choose_attention, choose_dtype, find_kernels, prefill_estimate
from kdn.api.guarding import make_guard, refuse_unmeasured
from kdn.api.store import open_configured_store
from kdn.calibration.background import BackgroundWork
from kdn.calibration.drift import DriftKeeper, drift_share, measure_drift
from kdn.calibration.idle import IdleFit
from kdn.calibration.times import JctMeter, jct_path, measure_jct, stored_jct
from kdn.clock import Clock, SystemClock
from kdn.config import Config, load_config
from kdn.core import (
    EXACT,
    Blend,
    Fingerprint,
    JctModel,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Stream,
)
from kdn.cost import GRID, Ledger, compute_ledger, load_sheet, load_speed, save_jct
from kdn.engine import Engine, EngineLimits
from kdn.errors import BadInput, MissingExtra, UnknownModel
from kdn.machine.facts import free_memory_bytes
from kdn.machine.memory import keep_freed
from kdn.model import Document, LoadedModel, Message, Remembered, load_model, resolve
from kdn.model.attention import Attention
from kdn.rag import (
    Cutting,
    Embedder,
    IngestReport,
    Library,
    LibrarySettings,
    Part,
    Progress,
    Survey,
    answer_instruction,
    answer_pieces,
)
from kdn.rank import (
    YES_NO,
    Asking,
    ChoiceProbabilities,
    Conversation,
    Judge,
    Layout,
    RankedDocument,
    Ranking,
    Template,
    decision_question,
    find_template,
    frame_of,
    make_choices,
    pair_question,
    rank,
    yes_and_no,
)
from kdn.reuse import LossRule, PrefixReuse, Stack
from kdn.reuse.blend import BlendReuse, Drift, RatioController
from kdn.reuse.codec_quality import QualityRecord, load_record
from kdn.reuse.load_or_compute import MeasuredSpeeds
from kdn.schedule import RequestQueue, make_policy
from kdn.store import LookupRecorder, Match, Store
from kdn.trace import Recorder, Tee, Trace

__all__ = ["Answer", "Kdn", "RankedDocument", "Ranking", "Source", "blending", "open"]

Messages = str | Sequence[Message] | Sequence[Mapping[str, str]]
Documents = Sequence[str] | Sequence[Document]
Reuse = Literal["exact", "blend"]

_PREFILL_TOKENS_PER_S = 2000.0
_EMBED_TOKENS_PER_S = 4000.0
"""For estimates before anything was measured; a laptop's order of magnitude."""


def open(  # noqa: A001  kdn.open, as in gzip.open
    model: str | Path = "smollm2-135m",
    *,
    home: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    int8: bool = False,
    adapters: Mapping[str, Path] | None = None,
    config: Config | None = None,
    clock: Clock | None = None,
    trace: Trace | None = None,
) -> Kdn:
    """A model with its store and library, ready to answer.

    `model` is a known name, a folder or a GGUF file; nothing is downloaded.  `home` holds everything
    that is kept (default: `$KDN_HOME`, else the user's cache folder).  What is not given comes from
    `config`, else from kdn.toml and the environment.  Raises KdnError.
    """
    config = config or load_config(os.environ, home=home)
    clock, trace = clock or SystemClock(), trace or Recorder()
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    keep_freed()
    kernel = find_kernels(config.home, trace)
    loaded = load_model(
        model,
        cache_dir=config.models_folder,
        home=config.home,
        dtype=choose_dtype(
            dtype or config.engine.dtype, device or config.engine.device, config.home
        ),
        device=device or config.engine.device,
        int8=int8,
        adapters=adapters,
        clock=clock,
        kernel=kernel,
    )
    refuse_unmeasured(config, load_record(config.home, loaded.decoder.fingerprint_with(None)))
    store = open_configured_store(config, clock, trace)
    attention = choose_attention(loaded.decoder, kernel)
    return Kdn(loaded, attention, store, config, clock, trace)


class Kdn:
    """One model, one store, one library. Use it in a `with`, or `close` it.

    Safe from several threads; requests that run at the same time share the model.
    """

    def __init__(
        self,
        model: LoadedModel,
        attention: Attention,
        store: Store,
        config: Config,
        clock: Clock,
        trace: Trace,
    ) -> None:
        decoder = model.decoder
        self.name = model.name
        self.model = model
        self.attention = attention
        self.store = store
        self.config = config
        self.trace = trace
        self._clock = clock
        self._remembered = Remembered()
        self._names = (f"r{number}" for number in itertools.count(1))
        shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self.jct = stored_jct(model.decoder, config.home)
        """How long prompts take here: fitted by `kdn cost fit`, else counted."""
        self._fingerprints: dict[str | None, Fingerprint] = {}
        self._drift = DriftKeeper(
            config.home,
            self._fingerprint(None),
            partial(measure_drift, model, attention),
            lambda texts: self.prompt([Message("user", "?")], texts),
            drift_share(model.name, config.blend.drift),
            trace,
        )
        self._records: dict[Fingerprint, QualityRecord | None] = {}
        loss = LossRule(config.store.codec, config.store.max_kl, self.quality)
        record = config.store.record
        self._recorder = None if record is None else LookupRecorder(record, clock)
        speeds = MeasuredSpeeds()
        controller = RatioController(config.blend.ratio, speeds)
        self.guard = make_guard(config, controller, self._fingerprint(None), trace)
        prefix = PrefixReuse(
            store,
            shape,
            self._fingerprint,
            loss,
            recorder=self._recorder,
            estimate_s=prefill_estimate(config, self.jct),
            load_within_s=config.store.load_within_s,
        )
        blend = BlendReuse(
            store,
            shape,
            self._fingerprint,
            controller,
            clock,
            movable=not decoder.rope.length_dependent,
            bias=self._drift.known,
            trace=trace,
        )
        self._reuse = Stack(
            [prefix, blend],
            on_plan=lambda request: self._background.note(request),  # noqa: PLW0108  it is made below
            trace=trace,
        )
        self._background = BackgroundWork(
            self._reuse.background, self.guard, trace, self._drift.when_idle
        )
        limits = EngineLimits(
            kv_bytes=config.engine.kv_budget_bytes or free_memory_bytes() // 4,
            max_batch_tokens=config.engine.max_batch_tokens,
            max_stall_ms=config.engine.max_stall_ms,
            pack_tokens=config.engine.pack_tokens,
            row_chunk=config.engine.row_chunk,
        )
        room = RequestQueue(make_policy(config.engine.policy, self.jct))
        heard = Tee(trace, speeds, self._background)
        self.engine = Engine(model, attention, self._reuse, limits, clock, room, heard)
        self._background.start(self.engine, self._is_idle)
        self._idle_fit = self._fit_when_idle()

    # --- text in, text out -------------------------------------------------------------------

    def generate(
        self,
        prompt: Messages,
        documents: Documents = (),
        *,
        sampling: Sampling | None = None,
        stream: Callable[[str], None] | None = None,
        salt: str = "",
        adapter: str | None = None,
        retention: Retention = Retention.ALL,
        reuse: Reuse = "exact",
        ratio: float | None = None,
        collection: str = "",
    ) -> Answer:
        """Answer a message or a conversation, with documents in front if there are any.

        `stream` is given pieces of text as they come.  The KV of documents and of the conversation
        is kept (see `retention`), so that the next turn, and the next question about the same
        documents, begin where this one ended.  With `reuse="blend"` documents that were computed
        anywhere before are reused and mended (see `blending`); the answer then approximates that of
        a full prefill, and the quality guard judges each `collection` of documents apart.  Raises
        PromptTooLong, UnknownModel, BadInput.
        """
        messages = _messages(prompt)
        request = self.request(messages, documents, sampling=sampling, salt=salt, adapter=adapter)
        techniques = blending(reuse, ratio, collection)
        request = replace(request, retention=retention, techniques=techniques)
        answer = collect(self.engine.submit(request), stream)
        self.remember(salt, answer.text, answer.token_ids)
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
    ) -> Answer:
        """Answer a question from the ingested documents, and name the passages that say so.

        The prompt holds the `max_parts` parts that fit best, best first: with stored KV the first one
        is never computed twice, and with `reuse="blend"` (see `blending`) none is, as a whole.
        With `rerank` so many parts are retrieved, and the model itself says which of them fit best;
        their KV is that of the answer.  Raises BadInput when nothing was ingested.
        """
        parts = self._context(question, max_tokens, max_parts, rerank, salt)
        messages = [
            Message("system", answer_instruction()),
            Message("user", _asked(question, parts)),
        ]
        documents = [Document(part.key, part.text) for part in parts]
        request = self.request(
            messages, documents, sampling=Sampling(max_tokens=max_tokens), salt=salt
        )
        request = replace(request, techniques=blending(reuse, ratio, "ingested"))
        answer = collect(self.engine.submit(request), stream)
        return replace(answer, sources=sources_of(answer.text, parts))

    def prompt(self, messages: Messages, documents: Documents = (), salt: str = "") -> Prompt:
        """The conversation as segments of token ids. Answers given under `salt` keep their ids."""
        turns = _messages(messages)
        return self.model.chat.segments(
            turns, _documents(documents), self.model.tokenizer, self._remembered.known(salt, turns)
        )

    def request(
        self,
        messages: Messages,
        documents: Documents = (),
        *,
        sampling: Sampling | None = None,
        salt: str = "",
        adapter: str | None = None,
    ) -> Request:
        """A request as the engine takes it, for those who want to change more of it."""
        return Request(
            id=f"{next(self._names)}-{uuid.uuid4().hex[:8]}",
            prompt=self.prompt(messages, documents, salt),
            sampling=sampling or Sampling(),
            salt=salt,
            adapter=adapter,
        )

    def submit(self, request: Request) -> Stream:
        """Queue a request and hand out its stream of tokens."""
        return self.engine.submit(request)

    def remember(self, salt: str, text: str, token_ids: tuple[int, ...]) -> None:
        """Keep an answer's ids, so that it hits when it comes back as part of a conversation."""
        self._remembered.remember(salt, text, token_ids)

    # --- one token ---------------------------------------------------------------------------

    def score(
        self,
        query: str,
        texts: Sequence[str],
        *,
        choices: Sequence[str] = YES_NO,
        instruction: str | None = None,
        temperature: float = 1.0,
        salt: str = "",
    ) -> list[ChoiceProbabilities]:
        """For each text, how likely each of `choices` is as the answer about `query`.

        By default: does the text answer the query, Yes or No?  `instruction` says otherwise.  The KV
        of the query is computed once.  Choices that begin alike take a pass more where they part.
        Raises BadInput for choices that cannot be told apart.
        """
        found = make_choices(choices, self.model.tokenizer.encode, whole=True)
        asked = (self.question(pair_question(query, t, instruction), salt) for t in texts)
        return list(self.judge(salt).ask(asked, found, temperature))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
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
        of its own has blocks of its own.  `adapter` names a LoRA that was given to `kdn.open`.
        Equal documents are computed once; empty ones score 0.  Raises PromptTooLong for a document
        beyond the context, unless `truncate`; BadInput for an empty query, an unknown template, or
        one whose tokens this model lacks.
        """
        asking = self.asking(
            query, layout=layout, template=template, instruction=instruction, truncate=truncate
        )
        near = partial(self._nearness, salt=salt, adapter=adapter)
        return rank(documents, asking, self.judge(salt, adapter), top_n, near)

    def asking(
        self,
        query: str,
        *,
        layout: str | Layout = Layout.DOCUMENT_FIRST,
        template: str | Path | Template | None = None,
        instruction: str | None = None,
        truncate: bool = False,
    ) -> Asking:
        """How `rerank` asks about documents: for those who run the prompts themselves."""
        chosen, where = find_template(template), _layout(layout)
        tokenizer = self.model.tokenizer
        frame = frame_of(query, chosen, where, self.model.chat, tokenizer, instruction)
        most = self.engine.most_tokens()

        def prompt(text: str) -> Prompt:
            return frame.shortened(text, most, tokenizer) if truncate else frame.prompt(text)

        return Asking(prompt, yes_and_no(chosen, tokenizer), where)

    def _nearness(self, prompt: Prompt, salt: str, adapter: str | None) -> int:
        """The slowest tier that a prompt's stored KV lies in; what is mostly to compute comes last."""
        names = [tier.name for tier in self.store.tiers]
        tokens = prompt.token_ids[:-1]
        match = self.store.match(self._fingerprint(adapter), EXACT, salt, tokens)
        if 2 * match.num_tokens < len(tokens):
            return len(names)
        return max(names.index(hit.tier) for hit in match.hits)

    def decide(
        self, text: str, questions: Sequence[str], *, salt: str = ""
    ) -> list[ChoiceProbabilities]:
        """For each question about `text`, how likely Yes and No are. The text's KV is computed once."""
        found = make_choices(YES_NO, self.model.tokenizer.encode)
        asked = (self.question(decision_question(text, one), salt) for one in questions)
        return list(self.judge(salt).ask(asked, found))

    def question(self, conversation: Conversation, salt: str = "") -> Prompt:
        """A conversation of the rank room as a prompt of this model."""
        return self.prompt(conversation.messages, conversation.documents, salt)

    def judge(self, salt: str = "", adapter: str | None = None) -> Judge:
        """Asks one-token questions of this model, many at a time."""
        return Judge(self.engine, lambda: f"job-{next(self._names)}", salt, adapter)

    def fit_jct(self, grid: Sequence[tuple[int, int]] = GRID, repeats: int = 3) -> JctModel:
        """Measure how long prompts take here, keep the fit, and use it from the next opening on.

        Takes a few seconds of the machine; other requests meanwhile spoil it.
        """
        self._keep_jct(measure_jct(self.model, self.attention, self._clock, grid, repeats))
        return self.jct

    # --- documents ---------------------------------------------------------------------------

    def ingest(
        self,
        paths: Iterable[Path | str],
        *,
        prefill: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> IngestReport:
        """Take files and folders into the library; again: only what changed is done.

        With `prefill` the KV of every part of them is computed and stored now, not on first use;
        `on_prefill` is told how many tokens of how many are done.
        """
        report = self.library.ingest(paths, on_progress=on_progress, cancelled=cancelled)
        if prefill and not report.cancelled:
            sources = (*report.added, *report.updated, *report.unchanged)
            parts = [part for source in sources for part in self.library.parts(source)]
            total, done = sum(part.num_tokens for part in parts), 0
            for part in parts:
                if cancelled is not None and cancelled():
                    return replace(report, cancelled=True)
                self.prefill(part.text, part.key)
                done += part.num_tokens
                if on_prefill is not None:
                    on_prefill(done, total)
        return report

    def survey(self, paths: Iterable[Path | str]) -> Survey:
        """What `ingest` would take: files, tokens, bytes of KV, minutes. Changes nothing."""
        shape = self.model.decoder.config.kv_shape(
            str(self.model.decoder.dtype).removeprefix("torch.")
        )
        return self.library.survey(
            paths,
            kv_bytes_per_token=shape.token_bytes,
            embed_tokens_per_s=_EMBED_TOKENS_PER_S,
            prefill_tokens_per_s=self._prefill_rate(),
        )

    def _prefill_rate(self) -> float:
        """Tokens a second for parts of the usual length: fitted, or an order of magnitude."""
        if self.jct.source != "fit":
            return _PREFILL_TOKENS_PER_S
        tokens = self.config.library.part_tokens
        return tokens / self.jct.seconds(tokens)

    def prefill(self, text: str, name: str | None = None, salt: str = "") -> int:
        """Compute and store the KV of a document behind the neutral prelude; its number of tokens.

        What is stored already is not computed again.
        """
        prompt = self.prompt([Message("user", "?")], [Document(name, text)], salt)
        request = Request(
            f"prefill-{uuid.uuid4().hex[:8]}", prompt, Sampling(max_tokens=1), salt=salt
        )
        collect(self.engine.submit(request))
        return sum(s.num_tokens for s in prompt.segments if s.role is Role.DOCUMENT)

    def lookup(self, text: str, name: str | None = None, salt: str = "") -> tuple[Match, int]:
        """What of a document's KV is stored, prelude included, and how many tokens it has so.

        Moves no bytes; blocks of the public salt count.
        """
        prompt = self.prompt([Message("user", "?")], [Document(name, text)], salt)
        stop = max(b for segment, _, b in prompt.spans() if segment.role is Role.DOCUMENT)
        tokens = prompt.token_ids[:stop]
        return self.store.match(self._fingerprint(None), EXACT, salt, tokens), len(tokens)

    @cached_property
    def embedder(self) -> Embedder:
        """The sentence embedder. Raises MissingExtra when its weights are not here."""
        from kdn.rag.minilm import MiniLm

        try:
            return MiniLm(resolve("minilm-l6", self.config.home))
        except UnknownModel as error:
            raise MissingExtra(
                "the sentence embedder is not installed; run: kdn models get minilm-l6"
            ) from error

    @cached_property
    def library(self) -> Library:
        """The documents. Opened on first use. Raises MissingExtra, ForeignStore."""
        settings = self.config.library
        return Library.open(
            self.config.library_folder,
            self.embedder,
            self.model.tokenizer.encode,
            self._clock,
            LibrarySettings(Cutting(settings.passage_tokens, settings.part_tokens)),
        )

    def ledger(self) -> Ledger:
        """What the stored blocks have saved and spent, by `[cost]` of the settings.

        Blocks that are gone are not in it.  Raises BadInput for a tier without a price.
        """
        settings = self.config.cost
        return compute_ledger(
            self.store.lives(), load_speed(settings.speed), load_sheet(settings.prices)
        )

    # --- housekeeping ------------------------------------------------------------------------

    def quality(self, fingerprint: Fingerprint) -> QualityRecord | None:
        """What `kdn store calibrate` found for that model; looked up once while this is open."""
        if fingerprint not in self._records:
            self._records[fingerprint] = load_record(self.config.home, fingerprint)
        return self._records[fingerprint]

    def learn_drift(self) -> Drift:
        """How far keys drift behind other texts, which blending corrects (see docs/blend.md).

        Measured when it is not known: two prefills of some 2,000 tokens, once a model; the home
        folder keeps it.  Idle time does this by itself after the first blended answer.
        """
        return self._drift.learn()

    def catch_up(self) -> int:
        """Do now what blended answers left for idle time: store their documents, compare samples.

        The number of answers that were looked after.
        """
        return self._background.work(self.engine)

    def check(self) -> None:
        """Audit the books of engine and store. Raises AssertionError. For tests, between requests."""
        self.guard.check()
        self._background.check()
        self.engine.check()
        self.store.check()

    def close(self) -> None:
        """Stop the engine and write out what the store still holds back."""
        if self._idle_fit is not None:
            self._idle_fit.close()
        self._background.close()
        self.engine.close()
        self._reuse.close()
        self.store.close()
        if self._recorder is not None:
            self._recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _fit_when_idle(self) -> IdleFit | None:
        """Measures how long prompts take, where that was never done and settings do not forbid it."""
        after_s = self.config.engine.fit_idle_s
        if after_s == 0 or self.jct.source == "fit":
            return None
        return IdleFit(
            meter=lambda: JctMeter(self.model, self.attention, self._clock),
            num_requests=lambda: self.engine.num_submitted,
            is_idle=self._is_idle,
            keep=self._keep_jct,
            after_s=after_s,
            trace=self.trace,
        )

    def _keep_jct(self, found: JctModel) -> None:
        self.jct = found
        save_jct(found, jct_path(self.model.decoder, self.config.home))

    def _is_idle(self) -> bool:
        stat = self.engine.stat()
        return not (stat.num_waiting or stat.num_prefilling or stat.num_decoding)

    def _fingerprint(self, adapter: str | None) -> Fingerprint:
        if adapter is not None and adapter not in self.model.adapters:
            known = ", ".join(sorted(self.model.adapters)) or "none"
            raise UnknownModel(f"no adapter is called {adapter!r}; loaded adapters: {known}")
        if adapter not in self._fingerprints:
            chosen = None if adapter is None else self.model.adapters[adapter]
            self._fingerprints[adapter] = self.model.decoder.fingerprint_with(chosen)
        return self._fingerprints[adapter]

    def _context(
        self, question: str, max_tokens: int, max_parts: int, rerank: int = 0, salt: str = ""
    ) -> list[Part]:
        if not self.library.num_sources:
            raise BadInput("the library is empty; take documents in first: kdn ingest PATH")
        room = self.model.decoder.config.max_position - max_tokens - _FRAME_TOKENS
        room -= len(self.model.tokenizer.encode(question))
        room = max(room, 1)
        if rerank:
            parts = self._reranked(question, room, max_parts, max(rerank, max_parts), salt)
        else:
            parts = self.library.context(question, max_tokens=room, max_parts=max_parts)
        if not parts:
            raise BadInput(
                f"nothing in the library has to do with {question!r}; ask in other words"
            )
        return parts

    def _reranked(
        self, question: str, room: int, max_parts: int, candidates: int, salt: str
    ) -> list[Part]:
        """The best of `candidates` retrieved parts, by the model's own judgement."""
        found = self.library.context(question, max_tokens=room * candidates, max_parts=candidates)
        fitting = [part for part in found if part.num_tokens <= room]
        chosen: list[Part] = []
        for one in self.rerank(question, [part.text for part in fitting], salt=salt):
            part = fitting[one.index]
            if len(chosen) < max_parts and part.num_tokens <= room:
                chosen.append(part)
                room -= part.num_tokens
        return chosen


def _layout(given: str | Layout) -> Layout:
    try:
        return Layout(given)
    except ValueError as error:
        names = " or ".join(Layout)
        raise BadInput(f"layout is {given!r}; it can be {names}") from error


def blending(reuse: Reuse, ratio: float | None = None, collection: str = "") -> tuple[Blend, ...]:
    """How a request says which stored KV it may use.

    `"exact"`: only what equals a full prefill.  `"blend"`: also documents that stood elsewhere when
    they were computed; `ratio` in 0..1 of their tokens is recomputed, None leaves it to the loading
    controller and the quality guard, which knows the documents by `collection`.  Raises BadInput for
    anything else.
    """
    if reuse not in ("exact", "blend"):
        raise BadInput(f"reuse is {reuse!r}; it can be 'exact' or 'blend'")
    if ratio is not None and not 0 <= ratio <= 1:
        raise BadInput(f"ratio is {ratio}; it is a share, 0 to 1, of the reused tokens")
    return (Blend(ratio, collection),) if reuse == "blend" else ()


_FRAME_TOKENS = 256
"""Room for the prelude, the instruction and the template around an `ask`."""


def _asked(question: str, parts: Sequence[Part]) -> str:
    return next(p.text for p in answer_pieces(question, parts) if p.role is Role.QUESTION)


def _messages(given: Messages) -> list[Message]:
    if isinstance(given, str):
        return [Message("user", given)]
    return [one if isinstance(one, Message) else _message(one) for one in given]


def _message(given: Mapping[str, str]) -> Message:
    unknown = set(given) - {"role", "content"}
    if unknown or "role" not in given or "content" not in given:
        raise BadInput(f"a message has a role and a content, not {sorted(given)}")
    return Message(given["role"], given["content"])


def _documents(given: Documents) -> list[Document]:
    return [Document(None, one) if isinstance(one, str) else one for one in given]
