"""Candidates of equal length, and services that hold their KV in one tier each."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdn import api
from kdn.bench.common.records import read_records
from kdn.bench.common.result import BenchOptions
from kdn.config import Config, EngineConfig, StoreConfig, home_folder
from kdn.core import Generator, Prompt, Request, Retention, Role, Segment, Stream, TokenIds
from kdn.corpus import corpus_files
from kdn.model import Document
from kdn.rank import YES_NO, Layout, make_choices, odds_of, relevance_question

__all__ = ["Candidates", "RankArm", "RankOutcome", "opened_over"]

_BYTES = 8 * 1024**3
_CUE = 7
"""Tokens that close a question whatever its length: the template's own words to the assistant."""


@contextmanager
def opened_over(
    options: BenchOptions, folder: Path, *, dtype: str | None = None, **store: Any
) -> Iterator[api.Kdn]:
    """kdn over a folder of blocks, with `store` settings of its own."""
    settings: dict[str, Any] = {"disk_bytes": _BYTES, "memory_bytes": _BYTES, **store}
    config = Config(
        home=options.home or home_folder(os.environ),
        engine=EngineConfig(threads=options.threads),
        store=StoreConfig(folder=folder, **settings),
    )
    with api.open(options.model, config=options.note(config), dtype=dtype) as service:
        yield service


@dataclass(frozen=True)
class RankOutcome:
    """One ranking: how long it took, and what became of its prompts."""

    seconds: float
    odds: tuple[float, ...]
    cached_tokens: int
    prompt_tokens: int
    tiers: frozenset[str]

    @property
    def per_s(self) -> float:
        """Documents a second."""
        return len(self.odds) / self.seconds


class Candidates:
    """Prompts of real text, cut to exact lengths; no two documents are alike."""

    def __init__(self, service: api.Kdn, options: BenchOptions) -> None:
        texts = _passages(options.data) or [path.read_text("utf-8") for path in corpus_files()]
        random.Random(options.seed).shuffle(texts)
        encode = service.model.tokenizer.encode
        pool = [token for text in texts[:4000] for token in encode(text)]
        self._pool: TokenIds = tuple(pool)
        asked = relevance_question("a", Document(None, "a"), Layout.DOCUMENT_FIRST)
        segments = service.prompts.question(asked).segments
        self.prelude = segments[0]
        self._cue = segments[-1].token_ids[-_CUE:]

    def document(self, length: int, number: int) -> TokenIds:
        """`length` tokens; equal numbers give equal documents."""
        return self._cut(length, number * 997 + length)

    def question(self, length: int, number: int) -> TokenIds:
        """Query, instruction and the template's closing words: `length` tokens in all."""
        return self._cut(length - _CUE, 31 * number + 5) + self._cue

    def document_first(self, document: TokenIds, question: TokenIds) -> Prompt:
        """The document after the neutral prelude, then what is asked."""
        segments = (Segment(Role.DOCUMENT, document), Segment(Role.QUESTION, question))
        return Prompt((self.prelude, *segments))

    def query_first(self, document: TokenIds, question: TokenIds) -> Prompt:
        """The same tokens; only prelude and question can be shared."""
        lead = Segment(Role.INSTRUCTION, question[:-_CUE])
        return Prompt((self.prelude, lead, Segment(Role.QUESTION, document + question[-_CUE:])))

    def _cut(self, length: int, start: int) -> TokenIds:
        at = start % len(self._pool)
        return (
            (*self._pool[at:], *self._pool)[:length]
            if at + length > len(self._pool)
            else (self._pool[at : at + length])
        )


@dataclass(frozen=True)
class RankArm:
    """One way to rank on one service."""

    service: api.Kdn
    options: BenchOptions
    layout: Layout = Layout.DOCUMENT_FIRST
    reuse: bool = True

    def rank(self, prompts: Sequence[Prompt]) -> RankOutcome:
        """Score every prompt, wall clock."""
        judge = replace(
            self.service.scoring.judge(),
            single_use=self.layout is Layout.DOCUMENT_FIRST,
            generator=self.service.engine if self.reuse else _Cold(self.service.engine),
        )
        choices = make_choices(YES_NO, self.service.model.tokenizer.encode)
        started_s = self.options.clock.now()
        asked = list(judge.logits(prompts, choices))
        seconds = self.options.clock.now() - started_s
        usages = [usage for _, usage in asked]
        return RankOutcome(
            seconds,
            tuple(odds_of(logits) for logits, _ in asked),
            sum(usage.cached_tokens for usage in usages),
            sum(usage.prompt_tokens for usage in usages),
            frozenset(tier for usage in usages for tier in usage.tiers),
        )


@dataclass(frozen=True)
class _Cold:
    """The engine for those who reuse nothing and leave nothing."""

    engine: Generator

    def submit(self, request: Request) -> Stream:
        return self.engine.submit(replace(request, reuse=False, retention=Retention.NOTHING))


def _passages(data: Path | None) -> list[str]:
    """Titles and abstracts of SciFact's corpus, if the data folder has it."""
    path = data / "scifact" / "corpus.jsonl.gz" if data is not None else None
    if path is None or not path.is_file():
        return []
    return [f"{one.get('title', '')} {_joined(one)}" for one in read_records(path)]


def _joined(one: dict[str, object]) -> str:
    text = one.get("text") or one.get("sentences") or ""
    return " ".join(text) if isinstance(text, list) else str(text)
