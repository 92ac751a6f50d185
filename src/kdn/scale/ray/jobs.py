"""What is done with the rows of a batch, by an open Kdn. Nothing here knows Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from kdn.api import Kdn
from kdn.errors import BadInput, EngineFailed, KdnError, PromptTooLong
from kdn.rank import Row, RowTemplate, check_choices, check_rows, columns_of, make_choices, name_of

__all__ = ["BatchJob", "LabelBatch", "PrefillBatch", "RerankBatch", "RowResult"]

RowResult = Mapping[str, Any]
"""The new columns of a row; `error` alone when it failed."""


class PrefillBatch(msgspec.Struct, frozen=True, tag="prefill"):
    """Store the KV of a text of each row, for answers and rankings to come."""

    column: str = "text"
    salt: str = ""

    def check(self, rows: Sequence[Row]) -> None:
        """Raises BadInput for a column that is not there."""
        _check_columns(rows, [self.column])

    def columns(self) -> tuple[str, ...]:
        """What is told of each row."""
        return ("num_tokens",)

    def run(self, kdn: Kdn, rows: Sequence[Row]) -> list[RowResult]:
        """Each row's number of tokens."""

        def one(row: Row) -> RowResult:
            return {"num_tokens": kdn.prefill(row[self.column], salt=self.salt)}

        return [_kept(one, row) for row in rows]


class LabelBatch(msgspec.Struct, frozen=True, tag="label"):
    """One of a few choices for each row."""

    template: str
    choices: tuple[str, ...]
    threshold: float = 0.0
    salt: str = ""

    def check(self, rows: Sequence[Row]) -> None:
        """Raises BadInput for a template, or for choices, that no row can be asked with."""
        check_rows(rows, self.template)
        check_choices(self.choices)

    def columns(self) -> tuple[str, ...]:
        """The label, and the probability of each choice."""
        return ("label", *(f"p_{name_of(choice)}" for choice in self.choices))

    def run(self, kdn: Kdn, rows: Sequence[Row]) -> list[RowResult]:
        """All rows together, so that the engine packs them. Raises BadInput for the choices."""
        choices = make_choices(self.choices, kdn.model.tokenizer.encode, whole=True)
        filled = RowTemplate(self.template)
        asked = (kdn.prompts.question(filled.fill(row), self.salt) for row in rows)
        found = list[RowResult]()
        for answer in kdn.scoring.judge(self.salt).ask_each(asked, choices):
            if isinstance(answer, PromptTooLong):
                found.append({"error": str(answer)})
                continue
            sure = max(answer.probabilities) >= self.threshold
            shares = {
                f"p_{name}": share
                for name, share in zip(answer.names, answer.probabilities, strict=True)
            }
            found.append({"label": answer.best if sure else None, **shares})
        return found


class RerankBatch(msgspec.Struct, frozen=True, tag="rerank"):
    """How well the document of each row belongs to its query."""

    query: str = "query"
    document: str = "document"
    layout: str = "document-first"
    template: str | None = None
    instruction: str | None = None
    salt: str = ""

    def check(self, rows: Sequence[Row]) -> None:
        """Raises BadInput for a column that is not there."""
        _check_columns(rows, [self.query, self.document])

    def columns(self) -> tuple[str, ...]:
        """0 to 1, and the log-odds that it is made of."""
        return ("score", "log_odds")

    def run(self, kdn: Kdn, rows: Sequence[Row]) -> list[RowResult]:
        """Each row alone; documents of the store are not computed again."""

        def one(row: Row) -> RowResult:
            ranked = kdn.rerank(
                row[self.query],
                [row[self.document]],
                layout=self.layout,
                template=self.template,
                instruction=self.instruction,
                salt=self.salt,
            )[0]
            odds = ranked.log_odds if math.isfinite(ranked.log_odds) else None
            return {"score": ranked.score, "log_odds": odds}

        return [_kept(one, row) for row in rows]


BatchJob = PrefillBatch | LabelBatch | RerankBatch


def _kept(work: Callable[[Row], RowResult], row: Row) -> RowResult:
    """A row's result, or why there is none. An engine that stopped is no fault of the row."""
    try:
        return work(row)
    except EngineFailed:
        raise
    except KdnError as error:
        return {"error": str(error)}


def _check_columns(rows: Sequence[Row], names: Sequence[str]) -> None:
    there = columns_of(rows)
    for name in names:
        if name not in there:
            raise BadInput(f"no column is called {name!r}; the columns are {', '.join(there)}")
        for number, row in enumerate(rows, 1):
            if name not in row:
                raise BadInput(
                    f"row {number} has no {name!r}: give every row one, or leave the row out"
                )
