"""Selections of our own, made without the question; each has a twin that is as large and means nothing.

Columns are stressed at read time over KV as it is stored, or their keys are edited in it; notes and second
copies stand behind the passage.  Settings are chosen on the half `fit`, and `test` is judged once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kdn.bench.steer.case import SteerCase, Steered, random_like
from kdn.core import ColumnScale, LayerView, Plan
from kdn.engine import HeldKV
from kdn.reuse.steer import AFTER, LOOK_WEIGHT, ColumnSums

__all__ = ["SELECTIONS"]

_SHARE, _SINKS = 0.1, 4
"""Of a text's columns so many are chosen; the first ones never, as in a published recipe."""
_LONGER, _TOWARDS = 1.1, 0.3
"""How far keys are edited: their length, and their part along directions of relevance."""
_SAID = 48
"""Tokens of notes, and of questions that the model asks itself."""
_QUESTIONS = "Do not answer. Ask three short questions that the passages answer."
_NOTES = "Do not answer. Note the most important facts of the passages in short sentences."


def _chosen(case: SteerCase, name: str, worth: Callable[[], Tensor]) -> tuple[int, ...]:
    """The positions of the columns with the most `worth` [columns of the documents]."""

    def make() -> tuple[int, ...]:
        found = worth()
        size = min(max(round(_SHARE * len(found)), 1), max(len(found) - _SINKS, 0))
        top = torch.topk(found[_SINKS:], size).indices + _SINKS
        return tuple(sorted((top + case.context.columns.start).tolist()))

    return case.once(f"columns {name}", make)


def _twin(case: SteerCase, columns: Sequence[int]) -> tuple[int, ...]:
    """As many columns in the same tenths of the text, drawn at random once for the context."""
    start, size = case.context.columns.start, len(case.context.columns)
    own = [column - start for column in columns]
    (found,) = random_like([own], size, _SINKS, case.draw_of_context())
    return tuple(column + start for column in found)


def _pick(case: SteerCase, name: str, worth: Callable[[], Tensor], kind: str) -> tuple[int, ...]:
    """The columns of an arm: the chosen ones, their random twins, or the answer's sentence."""
    if kind == "oracle":
        return tuple(sorted(case.oracle))
    columns = _chosen(case, name, worth)
    return _twin(case, columns) if kind == "random" else columns


# --- questions that the model asks itself ---------------------------------------------------------


def _self_asked(case: SteerCase, kind: str = "") -> Steered:
    """What questions of the model's own look at, in the upper half of the layers."""

    def worth() -> Tensor:
        lab, context = case.lab, case.context
        asked = lab.prompt(case.item, question=_QUESTIONS)
        questions = lab.answer(asked, context.held, most=_SAID)
        prompt = lab.prompt(case.item, question=questions or _QUESTIONS)
        sums = ColumnSums(lab.num_layers, context.since, context.since, prompt.num_tokens)
        lab.run(Plan(prompt.token_ids, prefix=context.held, observers=(sums,), logits=()))
        own = context.columns
        return sums.total[lab.num_layers // 2 :, own.start : own.stop].sum(dim=0)

    return case.stressed(_pick(case, "self-asked", worth, kind))


# --- more text behind the passage -------------------------------------------------------------------


def _behind(case: SteerCase, name: str, more: Callable[[], Sequence[str]]) -> Steered:
    """The context with more documents behind its own."""

    def make() -> tuple[HeldKV, tuple[str, ...]]:
        documents = (*case.item.documents, *more())
        item = replace(case.item, documents=documents)
        return case.lab.make_context(item, begun=case.context).held, documents

    held, documents = case.once(name, make)
    return Steered(held, prompt=case.lab.prompt(replace(case.item, documents=documents)))


def _twice(case: SteerCase, kind: str = "") -> Steered:
    """The passages once more; of the twin, their words in random order."""
    if not kind:
        return _behind(case, "twice", lambda: case.item.documents)
    draw = case.draw_of_context()

    def shuffled() -> list[str]:
        found = []
        for text in case.item.documents:
            words = text.split()
            draw.shuffle(words)
            found.append(" ".join(words))
        return found

    return _behind(case, "twice random", shuffled)


def _notes(case: SteerCase, kind: str = "") -> Steered:
    """What the model notes of the passages; of the twin, random sentences of as many words."""

    def written() -> str:
        prompt = case.lab.prompt(case.item, question=_NOTES)
        return case.lab.answer(prompt, case.context.held, most=_SAID).strip() or "Nothing."

    def drawn() -> str:
        size, texts = len(case.once("notes", written).split()), list(case.texts)
        case.draw_of_context().shuffle(texts)
        return " ".join(" ".join(texts).split()[: max(size, 1)])

    text = drawn if kind else partial(case.once, "notes", written)
    return _behind(case, f"behind notes {kind}", lambda: [text()])


# --- keys that are edited in the store ---------------------------------------------------------------


def _late(case: SteerCase) -> slice:
    """The last third of the layers: keys that are edited in all of them break a model."""
    return slice(round(AFTER * case.lab.num_layers), case.lab.num_layers)


def _document_keys(case: SteerCase) -> Tensor:
    """fp32 [late layers, columns, kv heads, dim], without rotary position."""
    own = case.context.columns
    return case.context.held.kv[_late(case), 0, own.start : own.stop].float()


def _edited_keys(
    case: SteerCase, name: str, columns: Sequence[int], edit: Callable[[Tensor], Tensor]
) -> Steered:
    def make() -> HeldKV:
        kv = case.context.held.kv.clone()
        at = list(columns)
        kv[_late(case), 0, at] = edit(kv[_late(case), 0, at].float()).to(kv.dtype)
        return HeldKV(kv)

    held = make() if "oracle" in name else case.once(name, make)
    return Steered(held, columns=frozenset(columns))


def _key_norm(case: SteerCase, kind: str = "") -> Steered:
    """The longest keys, made longer."""
    columns = _pick(
        case, "key-norm", lambda: _document_keys(case).norm(dim=-1).sum(dim=(0, 2)), kind
    )
    return _edited_keys(case, f"key-norm {kind}", columns, lambda keys: keys * _LONGER)


def _key_directions(case: SteerCase, kind: str = "") -> Steered:
    """Keys that lie most along directions of relevance, moved further along them."""
    towards = case.fit.directions[_late(case)]

    def along(keys: Tensor) -> Tensor:
        return torch.einsum("lthd,lhde->lthe", keys, towards)

    def worth() -> Tensor:
        keys = _document_keys(case)
        share = along(keys).norm(dim=-1) / keys.norm(dim=-1).clamp_min(1e-9)
        found: Tensor = share.sum(dim=(0, 2))
        return found

    columns = _pick(case, "key-directions", worth, kind)
    name = f"key-directions {kind}"
    return _edited_keys(case, name, columns, lambda keys: keys + _TOWARDS * along(keys))


# --- retrieval heads ----------------------------------------------------------------------------------


@dataclass
class _HeadSums:
    """Observer: attention of all rows to every column by some heads, divided by the rows that see it."""

    heads: dict[int, tuple[int, ...]]
    num_columns: int

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.num_columns)

    def __call__(self, view: LayerView) -> None:
        if view.layer in self.heads:
            rows, columns = torch.arange(view.rows.numel()), torch.arange(self.num_columns)
            seen = view.attend.by_head(rows, columns).cpu()
            self.total += seen[list(self.heads[view.layer])].sum(dim=0)

    def worth(self) -> Tensor:
        """[columns]; the last ones, which few rows see, are held back."""
        after = torch.arange(self.num_columns, 0, -1)
        return self.total / (after + 32)


def _retrieval_heads(case: SteerCase, kind: str = "") -> Steered:
    """Columns that retrieval heads look at while they read, stressed for these heads alone."""
    heads = case.fit.heads

    def worth() -> Tensor:
        context = case.context
        sums = _HeadSums(heads, context.since)
        tokens = context.prompt.token_ids[: context.since]
        case.lab.run(Plan(tokens, observers=(sums,), logits=()))
        return sums.worth()[context.columns.start : context.columns.stop]

    columns = _pick(case, "retrieval-heads", worth, kind)
    scale = tuple(ColumnScale(layer, columns, LOOK_WEIGHT, own) for layer, own in heads.items())
    return Steered(case.context.held, scale, columns=frozenset(columns))


_WAYS: dict[str, tuple[Callable[..., Steered], tuple[str, ...]]] = {
    "self-asked": (_self_asked, ("random",)),
    "passage-twice": (_twice, ("random",)),
    "notes": (_notes, ("random",)),
    "key-norm": (_key_norm, ("random",)),
    "key-directions": (_key_directions, ("random", "oracle")),
    "retrieval-heads": (_retrieval_heads, ("random", "oracle")),
}
"""By name, with its twins."""
SELECTIONS: dict[str, Callable[[SteerCase], Steered]] = {
    f"{name}-{kind}" if kind else name: partial(way, kind=kind)
    for name, (way, kinds) in _WAYS.items()
    for kind in ("", *kinds)
}
