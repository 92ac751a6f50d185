"""Answers of one token: probabilities of choices, and rankings made of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from kdn.api.prompts import Prompts
from kdn.core import Prompt, TokenIds, as_many, texts_of
from kdn.engine import Engine
from kdn.errors import BadInput
from kdn.model import LoadedModel
from kdn.rank import (
    MODEL_ALONE,
    Asking,
    Choice,
    ChoiceProbabilities,
    Conversation,
    Judge,
    LabelJob,
    LabelTable,
    Layout,
    Ranking,
    RowTemplate,
    Template,
    answer_of,
    check_rows,
    find_template,
    frame_of,
    make_choices,
    make_table,
    rank,
    yes_and_no,
)
from kdn.store import Match, Store

__all__ = ["Scoring"]


class Scoring:
    """Asks one-token questions of one model, many at a time. Safe from several threads."""

    def __init__(
        self,
        model: LoadedModel,
        engine: Engine,
        store: Store,
        prompts: Prompts,
        stored: Callable[[TokenIds, str, str | None], Match],
        rerankers: Collection[str] = (),
    ) -> None:
        """`stored` tells what is stored of some tokens for a salt and an adapter; `rerankers` are the
        adapters that rank where no other is named, each called as its layout."""
        self.rerankers = frozenset(rerankers)
        self._model = model
        self._engine = engine
        self._store = store
        self._prompts = prompts
        self._stored = stored

    def judge(self, salt: str = "", adapter: str | None = None) -> Judge:
        """Runs one-token prompts and gathers their answers in order."""
        return Judge(self._engine, partial(self._prompts.new_id, "job"), salt, adapter)

    def choices(self, names: str | Sequence[str], *, whole: bool = True) -> tuple[Choice, ...]:
        """Answers to choose among. Raises BadInput where they cannot be told apart.

        `whole` reads every token of a name, else the first ones that tell the names apart.
        """
        return make_choices(texts_of(names, "choices"), self._model.tokenizer.encode, whole=whole)

    def ask(
        self,
        questions: Iterable[Conversation],
        choices: Sequence[Choice],
        *,
        temperature: float = 1.0,
        salt: str = "",
    ) -> list[ChoiceProbabilities]:
        """How likely each of `choices` is as the answer to each question."""
        asked = (self._prompts.question(one, salt) for one in questions)
        return list(self.judge(salt).ask(asked, choices, temperature))

    def rank(
        self,
        documents: Sequence[str],
        asking: Asking,
        top_n: int | None,
        *,
        salt: str = "",
        adapter: str | None = None,
    ) -> Ranking:
        """Documents by how well they belong to what `asking` asks, best first."""
        near = partial(self._nearness, salt=salt, adapter=adapter)
        return rank(documents, asking, self.judge(salt, adapter), top_n, near)

    def reranker(
        self,
        layout: str | Layout = Layout.DOCUMENT_FIRST,
        template: str | Path | Template | None = None,
        adapter: str | None = None,
    ) -> str | None:
        """The adapter that ranks; None is the model alone, which `"none"` asks for.

        Where no adapter is named it is the one that comes with the model for this layout, while it is
        loaded.  It was trained on the words of the default template, so for others it is the model alone.
        """
        if adapter is not None:
            return None if adapter == MODEL_ALONE else adapter
        own = _layout(layout).value
        is_there = own in self.rerankers and own in self._model.adapters
        return own if is_there and find_template(template) == find_template(None) else None

    def asking(
        self,
        query: str,
        *,
        layout: str | Layout = Layout.DOCUMENT_FIRST,
        template: str | Path | Template | None = None,
        instruction: str | None = None,
        truncate: bool = False,
    ) -> Asking:
        """How `rank` asks about documents: for callers that run the prompts themselves."""
        chosen, where = find_template(template), _layout(layout)
        tokenizer = self._model.tokenizer
        frame = frame_of(query, chosen, where, self._model.chat, tokenizer, instruction)
        most = self._engine.most_tokens()

        def prompt(text: str) -> Prompt:
            return frame.shortened(text, most, tokenizer) if truncate else frame.prompt(text)

        return Asking(prompt, yes_and_no(chosen, tokenizer), where)

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
        """One of `choices` for every row, as `template` asks about it."""
        fingerprint = self._model.fingerprints.of(adapter)
        job = LabelJob(fingerprint, template, self.choices(choices), known, threshold)
        filled, rows = RowTemplate(template), _rows(rows)
        check_rows(rows, template, known)
        asked = (self._prompts.question(filled.fill(row), salt) for row in rows)
        judge = self.judge(salt, adapter)
        answers = [answer_of(one) for one in judge.ask_each(asked, job.choices)]
        return make_table(job, rows, answers)

    def _nearness(self, prompt: Prompt, salt: str, adapter: str | None) -> int:
        """The slowest tier that a prompt's stored KV lies in; what is mostly to compute comes last."""
        names = [tier.name for tier in self._store.tiers]
        tokens = prompt.token_ids[:-1]
        match = self._stored(tokens, salt, adapter)
        if 2 * match.num_tokens < len(tokens):
            return len(names)
        return max(names.index(hit.tier) for hit in match.hits)


def _rows(given: Mapping[str, str] | Sequence[Mapping[str, str]]) -> tuple[Mapping[str, str], ...]:
    rows = as_many(given, "rows")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise BadInput(f"rows: item {number} is {row!r:.60}; it must map columns to texts")
    return rows


def _layout(given: str | Layout) -> Layout:
    try:
        return Layout(given)
    except ValueError as error:
        names = " or ".join(Layout)
        raise BadInput(f"layout is {given!r}; it can be {names}") from error
