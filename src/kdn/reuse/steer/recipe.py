"""Steering without a question: which columns of a text two scoring passes agree on (LLMSteer, 2411.13009).

What the paper leaves open is a named setting here, with its reason; docs/steer.md has the table.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from kdn.core import Cause, ColumnScale, Fingerprint, Recipe
from kdn.errors import BadInput

__all__ = ["PASSAGES_FOLLOW", "TEXTS_FOLLOW", "SteerRecipe", "recipe_scales", "top_columns"]

PASSAGES_FOLLOW = (
    "Answer the question by the given passages. Give the answer alone and nothing else."
    " The passages follow."
)
TEXTS_FOLLOW = (
    "Respond to the query with nothing but what the supplied texts say. Return ONLY the answer, not"
    " one word more. The texts follow."
)
"""Two prompts with the structure of the paper's (appendix A.1), in our words: theirs are not published
with the method's settings, and nothing says how far the wording matters."""


_ABSURD = 1000.0
_COMBINED = ("intersection", "union", "first")


@dataclass(frozen=True)
class SteerRecipe:
    """How texts of one model are steered. Equal recipes give equal KV.

    Raises BadInput for values that make no sense.
    """

    model: str
    """The fingerprint of the model that it was made for."""
    weight: float = 1.5
    """Attention to a chosen column is multiplied by it. The paper gives none; 1 is the identity."""
    share: float = 0.1
    """Of a text's columns, so many are the top of each pass, per layer. The paper gives none."""
    literal: bool = False
    """As the paper's formula: weights are scaled after the softmax and rows not renormalised.  Off by
    default: rows of more than 1 let the residual stream grow with the weight."""
    combine: Literal["intersection", "union", "first"] = "intersection"
    """What the two passes' tops make together; `first` is a single pass."""
    sinks: int = 4
    """So many first columns of a text are never chosen: later rows all see them, so sums favour them."""
    layers: tuple[int, ...] | None = None
    """None: all layers. The paper's list comes from a profile that is not published."""
    heads: tuple[int, ...] | None = None
    """Query heads of these layers; None: all."""
    prompts: tuple[str, str] = (PASSAGES_FOLLOW, TEXTS_FOLLOW)

    def __post_init__(self) -> None:
        weight, share, sinks = (_number(one) for one in (self.weight, self.share, self.sinks))
        checks = {
            f"weight is {self.weight!r:.40}; give a number above 0, at most {_ABSURD:g}": (
                0 < weight <= _ABSURD
            ),
            f"share is {self.share!r:.40}; give a share from 0 to 1": 0 <= share <= 1,
            f"sinks is {self.sinks!r:.40}; give a whole number of 0 or more": (
                sinks >= 0 and sinks.is_integer()
            ),
            f"layers are {self.layers!r:.40}; give some numbers from 0 on": _are_places(
                self.layers
            ),
            f"heads are {self.heads!r:.40}; give some numbers from 0 on": _are_places(self.heads),
            f"combine is {self.combine!r:.40}; it can be {', '.join(_COMBINED)}": (
                self.combine in _COMBINED
            ),
            f"literal is {self.literal!r:.40}; it is true or false": isinstance(self.literal, bool),
            f"prompts are {self.prompts!r:.40}; give two texts": _are_prompts(self.prompts),
        }
        for complaint, is_right in checks.items():
            if not is_right:
                raise BadInput(f"a steering recipe's {complaint}")
        # recipes that are equal must have one name in the store: 5 and 5.0 are written differently
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "share", share)

    @property
    def taint(self) -> Recipe:
        """What names KV made by it in the store."""
        text = msgspec.json.encode(asdict(self), order="sorted")
        return Recipe((Cause.STEER,), hashlib.sha256(text).hexdigest()[:16])

    def check_model(self, fingerprint: Fingerprint) -> None:
        """Raises BadInput where the model is another one."""
        if self.model != fingerprint:
            raise BadInput(
                f"the steering recipe was made for the model {_shown(self.model)} and this one is"
                f" {fingerprint[:12]}: make one with kdn steer fit"
            )

    def check_fits(self, num_layers: int, num_heads: int) -> None:
        """Raises BadInput for layers or heads that a model of so many does not have."""
        for name, own, count in (
            ("layers", self.layers, num_layers),
            ("heads", self.heads, num_heads),
        ):
            if own is not None and max(own) >= count:
                raise BadInput(
                    f"the steering recipe names {name} up to {max(own)} and the model has {count}: make"
                    " one with kdn steer fit"
                )

    def encode(self) -> bytes:
        """The recipe as a file."""
        return msgspec.json.format(msgspec.json.encode(asdict(self)), indent=2) + b"\n"

    @staticmethod
    def decode(data: bytes, name: str) -> SteerRecipe:
        """A recipe file. Raises BadInput, naming it, for what is none."""
        try:
            found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
            unknown = sorted(found.keys() - {field.name for field in fields(SteerRecipe)})
            if unknown:
                raise BadInput(f"{name} is no steering recipe: {unknown[0]!r:.40} is unknown")
            return msgspec.convert(found, SteerRecipe)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadInput(f"{name} is no steering recipe: {error}") from error


def top_columns(sums: Sequence[Tensor], recipe: SteerRecipe) -> tuple[tuple[int, ...], ...]:
    """By layer, the chosen columns of a text, counted from its first, ascending.

    `sums`, one for each pass, are fp32 [layers, columns]: attention that every row of the pass puts on
    the text's columns, over all heads.
    """
    num_layers, num_columns = sums[0].shape
    layers = range(num_layers) if recipe.layers is None else recipe.layers
    size = min(round(recipe.share * num_columns), max(num_columns - recipe.sinks, 0))
    chosen: list[tuple[int, ...]] = []
    for layer in range(num_layers):
        tops = [_top(one[layer], recipe.sinks, size) for one in sums]
        if layer not in layers or not size:
            chosen.append(())
        elif recipe.combine == "first":
            chosen.append(tuple(sorted(tops[0])))
        elif recipe.combine == "union":
            chosen.append(tuple(sorted(set.union(*tops))))
        else:
            chosen.append(tuple(sorted(set.intersection(*tops))))
    return tuple(chosen)


def recipe_scales(
    columns: Sequence[Sequence[int]], recipe: SteerRecipe, start: int
) -> tuple[ColumnScale, ...]:
    """The chosen columns of a text that begins at position `start`, as scales of a plan."""
    return tuple(
        ColumnScale(
            layer,
            tuple(start + column for column in own),
            recipe.weight,
            recipe.heads,
            literal=recipe.literal,
        )
        for layer, own in enumerate(columns)
        if own
    )


def _number(value: object) -> float:
    """NaN for what is none or beyond all floats; no comparison with it holds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    return math.nan


def _are_places(value: object) -> bool:
    """None, or different whole numbers from 0 on, at least one."""
    if value is None:
        return True
    if not isinstance(value, tuple) or not value or len(set(value)) < len(value):
        return False
    return all(type(one) is int and one >= 0 for one in value)


def _are_prompts(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return all(isinstance(one, str) and one.strip() for one in value)


def _shown(model: str) -> str:
    """A fingerprint's beginning; what is none may hold anything, and is quoted."""
    return model[:12] if model.isprintable() else repr(model[:12])


def _top(sums: Tensor, sinks: int, size: int) -> set[int]:
    return {int(i) + sinks for i in torch.topk(sums[sinks:], size).indices} if size else set()
