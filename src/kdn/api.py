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
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from kdn.answers import Answer, Source, collect
from kdn.clock import Clock, SystemClock
from kdn.config import Config, StoreConfig, load_config
from kdn.core import Fingerprint, Keeping, Prompt, Request, Role, Sampling, Stream
from kdn.cost import Ledger, close_books, load_sheet, load_speed, use_saving
from kdn.engine import Engine, Limits
from kdn.errors import BadInput, MissingExtra, UnknownModel
from kdn.machine import free_memory_bytes
from kdn.model import Decoder, Document, LoadedModel, Message, Remembered, load_model, resolve
from kdn.model.attention import Attention, FusedAttention, TorchAttention
from kdn.model.kernels import KernelAttention, Kernels, NoKernel, load
from kdn.rag import (
    Cutting,
    Embedder,
    IngestReport,
    Library,
    LibraryConfig,
    Part,
    Progress,
    Survey,
    answer_instruction,
    answer_pieces,
    cite,
)
from kdn.reuse import PrefixReuse
from kdn.store import LookupRecorder, Rules, Store, Use, open_store
from kdn.trace import Recorder, Trace

__all__ = ["Answer", "Kdn", "Source", "open"]

Messages = str | Sequence[Message] | Sequence[Mapping[str, str]]
Documents = Sequence[str] | Sequence[Document]

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
    kernel = _kernel(config.home, trace)
    loaded = load_model(
        model,
        cache_dir=config.models_folder,
        home=config.home,
        dtype=_dtype(dtype or config.engine.dtype, device or config.engine.device, config.home),
        device=device or config.engine.device,
        int8=int8,
        adapters=adapters,
        clock=clock,
        kernel=kernel,
    )
    store = open_store(
        config.store_folder,
        memory_bytes=config.store.memory_bytes,
        disk_bytes=config.store.disk_bytes,
        clock=clock,
        trace=trace,
        policy=config.store.policy,
        rules=_rules(config.store),
        saving=_saving(config) if config.store.policy == "value" else None,
    )
    attention = _attention(loaded.decoder, kernel)
    return Kdn(loaded, attention, store, config, clock, trace)


def _saving(config: Config) -> Callable[[Use], float]:
    """What a use of a block saves, in dollars, by the cost model."""
    saved = use_saving(load_speed(config.cost.speed), load_sheet(config.cost.prices))
    return lambda use: saved(use.start, use.num_tokens)


def _rules(settings: StoreConfig) -> Rules | None:
    return None if settings.ttl_s is None else Rules(ttl_s=settings.ttl_s)


def _dtype(asked: str, device: str, home: Path) -> str:
    """What was asked for; for `auto` what `kdn doctor` measured on this machine, if it did."""
    if asked != "auto":
        return asked
    from kdn.doctor import measured_dtype

    return measured_dtype(home, "cuda" if device.startswith("cuda") else "cpu") or "auto"


def _kernel(home: Path, trace: Trace) -> Kernels | None:
    """The compiled kernels where there can be any; else the trace says why not."""
    try:
        return load(home / "kernels")
    except NoKernel as why:
        trace.event("kernels.none", why=str(why))
        return None


def _attention(decoder: Decoder, kernel: Kernels | None) -> Attention:
    """The compiled one where it can run, torch's own on a GPU, else plain torch."""
    if decoder.device.type == "cuda":
        return FusedAttention()
    if kernel and KernelAttention.suits(decoder.dtype, decoder.device, decoder.config.head_dim):
        return KernelAttention(kernel)
    return TorchAttention()


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
        self.store = store
        self.config = config
        self.trace = trace
        self._clock = clock
        self._remembered = Remembered()
        self._names = (f"r{number}" for number in itertools.count(1))
        shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        record = config.store.record
        self._recorder = None if record is None else LookupRecorder(record, clock)
        self._reuse = PrefixReuse(store, shape, self._fingerprint, self._recorder)
        limits = Limits(
            kv_bytes=config.engine.kv_budget_bytes or free_memory_bytes() // 4,
            max_batch_tokens=config.engine.max_batch_tokens,
            max_stall_ms=config.engine.max_stall_ms,
        )
        self.engine = Engine(model, attention, self._reuse, limits, clock, trace=trace)

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
        keeping: Keeping = Keeping.ALL,
    ) -> Answer:
        """Answer a message or a conversation, with documents in front if there are any.

        `stream` is given pieces of text as they come.  The KV of documents and of the conversation
        is kept (see `keeping`), so that the next turn, and the next question about the same
        documents, begin where this one ended.  Raises PromptTooLong, UnknownModel, BadInput.
        """
        messages = _messages(prompt)
        request = self.request(messages, documents, sampling=sampling, salt=salt, adapter=adapter)
        answer = collect(self.engine.submit(replace(request, keeping=keeping)), stream)
        self.remember(salt, answer.text, answer.token_ids)
        return answer

    def ask(
        self,
        question: str,
        *,
        max_tokens: int = 256,
        max_parts: int = 1,
        stream: Callable[[str], None] | None = None,
        salt: str = "",
    ) -> Answer:
        """Answer a question from the ingested documents, and name the passages that say so.

        The prompt holds the `max_parts` parts that fit best, best first: with stored KV the first one
        is never computed twice.  Raises BadInput when nothing was ingested.
        """
        parts = self._context(question, max_tokens, max_parts)
        messages = [
            Message("system", answer_instruction()),
            Message("user", _asked(question, parts)),
        ]
        documents = [Document(part.key, part.text) for part in parts]
        request = self.request(
            messages, documents, sampling=Sampling(max_tokens=max_tokens), salt=salt
        )
        answer = collect(self.engine.submit(request), stream)
        return replace(answer, sources=_sources(answer.text, parts))

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

    # --- documents ---------------------------------------------------------------------------

    def ingest(
        self,
        paths: Iterable[Path | str],
        *,
        prefill: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> IngestReport:
        """Take files and folders into the library; again: only what changed is done.

        With `prefill` the KV of every part of them is computed and stored now, not on first use.
        """
        report = self.library.ingest(paths, on_progress=on_progress, cancelled=cancelled)
        if prefill and not report.cancelled:
            for source in (*report.added, *report.updated, *report.unchanged):
                for part in self.library.parts(source):
                    if cancelled is not None and cancelled():
                        return replace(report, cancelled=True)
                    self.prefill(part.text, part.key)
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
            prefill_tokens_per_s=_PREFILL_TOKENS_PER_S,
        )

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
            LibraryConfig(Cutting(settings.passage_tokens, settings.part_tokens)),
        )

    def ledger(self) -> Ledger:
        """What the stored blocks have saved and spent, by `[cost]` of the settings.

        Blocks that are gone are not in it.  Raises BadInput for a tier without a price.
        """
        settings = self.config.cost
        return close_books(
            self.store.lives(), load_speed(settings.speed), load_sheet(settings.prices)
        )

    # --- housekeeping ------------------------------------------------------------------------

    def check(self) -> None:
        """Audit the books of engine and store. Raises AssertionError. For tests, between requests."""
        self.engine.check()
        self.store.check()

    def close(self) -> None:
        """Stop the engine and write out what the store still holds back."""
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

    def _fingerprint(self, adapter: str | None) -> Fingerprint:
        chosen = None if adapter is None else self.model.adapters[adapter]
        return self.model.decoder.fingerprint_with(chosen)

    def _context(self, question: str, max_tokens: int, max_parts: int) -> list[Part]:
        if not self.library.num_sources:
            raise BadInput("the library is empty; take documents in first: kdn ingest PATH")
        room = self.model.decoder.config.max_position - max_tokens - _FRAME_TOKENS
        room -= len(self.model.tokenizer.encode(question))
        parts = self.library.context(question, max_tokens=max(room, 1), max_parts=max_parts)
        if not parts:
            raise BadInput(
                f"nothing in the library has to do with {question!r}; ask in other words"
            )
        return parts


_FRAME_TOKENS = 256
"""Room for the prelude, the instruction and the template around an `ask`."""


def _asked(question: str, parts: Sequence[Part]) -> str:
    return next(p.text for p in answer_pieces(question, parts) if p.role is Role.QUESTION)


def _sources(answer: str, parts: Sequence[Part]) -> tuple[Source, ...]:
    return tuple(
        Source(
            title=citation.passage.title,
            heading=" > ".join(citation.passage.headings),
            text=citation.passage.text,
            score=citation.score,
            source=citation.passage.source,
        )
        for citation in cite(answer, parts)
    )


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
