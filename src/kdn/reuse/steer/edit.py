"""A text steered once, for every question to come: two passes that score, one that computes it steered.

    head 1 + text ─> column sums ┐
    head 2 + text ─> column sums ┴─> columns ─> prelude + text with these columns scaled ─> KV

A pass never holds a matrix of attention: an observer adds up its columns layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdn.core import ColumnScale, Fingerprint, KvShape, LayerView, Plan, Prompt, TokenIds
from kdn.reuse.prefix import run_bytes
from kdn.reuse.steer.recipe import SteerRecipe, recipe_scales, top_columns
from kdn.reuse.stored_run import recipe_for_whole
from kdn.store import Block, block_ids, cut_blocks

__all__ = ["ColumnSums", "EditedText", "RunPlan", "edit_text", "edited_blocks", "score_text"]

RunPlan = Callable[[Plan], Tensor]
"""Runs a plan alone, and gives the KV that it computed: [layers, 2, tokens, kv heads, dim]."""


@dataclass
class ColumnSums:
    """Observer: the attention that rows [start, stop) pay to every column, layer by layer."""

    num_layers: int
    num_columns: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.num_layers, self.num_columns)
        """fp32 [layers, columns], over heads."""

    def __call__(self, view: LayerView) -> None:
        at = torch.nonzero((view.rows >= self.start) & (view.rows < self.stop)).flatten()
        if at.numel():
            self.total[view.layer] += view.attend(at, torch.arange(self.num_columns)).cpu()


@dataclass(frozen=True)
class EditedText:
    """A steered text behind its prelude."""

    kv: Tensor
    """[layers, 2, prelude and text, kv heads, dim]: K without rotary position, and V."""
    columns: tuple[tuple[int, ...], ...]
    """By layer, the chosen columns, counted from the text's first."""
    scales: tuple[ColumnScale, ...]
    """What later rows are to scale, by position; none where the KV holds it all."""


def score_text(
    run: RunPlan, num_layers: int, heads: Sequence[TokenIds], text: TokenIds
) -> list[Tensor]:
    """For each head fp32 [layers, columns]: the attention that the text's columns get behind it."""
    found = []
    for head in heads:
        size = len(head) + len(text)
        sums = ColumnSums(num_layers, size, 0, size)
        run(Plan((*head, *text), observers=(sums,), logits=()))
        found.append(sums.total[:, len(head) :])
    return found


def edit_text(
    run: RunPlan,
    num_layers: int,
    recipe: SteerRecipe,
    heads: Sequence[TokenIds],
    prelude: TokenIds,
    text: TokenIds,
) -> EditedText:
    """Score the text behind `heads`, and compute it behind `prelude` with the chosen columns scaled.

    The literal form over all heads is put into V, so that nobody who reads it need know of it.
    """
    columns = top_columns(score_text(run, num_layers, heads, text), recipe)
    scales = recipe_scales(columns, recipe, len(prelude))
    plan = Plan((*prelude, *text), scale=scales, scale_from=len(prelude), logits=())
    kv = run(plan)
    if not (recipe.literal and recipe.heads is None):
        return EditedText(kv, columns, scales)
    kv = kv.clone()
    for scale in scales:
        kv[scale.layer, 1, list(scale.columns)] *= scale.factor
    return EditedText(kv, columns, ())


def edited_blocks(
    edited: EditedText,
    prompt: Prompt,
    shape: KvShape,
    fingerprint: Fingerprint,
    recipe: SteerRecipe,
    salt: str,
) -> Iterator[Block]:
    """The blocks of the prompt's first tokens, which `edited` is of, under the recipe's taint for them."""
    upto = edited.kv.shape[2]
    made = recipe_for_whole(recipe.taint, prompt.token_ids[:upto])
    ids = block_ids(prompt, upto, fingerprint=fingerprint, recipe=made, salt=salt)
    for (start, stop), block_id in zip(cut_blocks(prompt, upto), ids, strict=True):
        runs = tuple(run_bytes(run) for run in edited.kv[:, :, start:stop])
        within = [
            replace(s, columns=tuple(c - start for c in s.columns if start <= c < stop))
            for s in edited.scales
        ]
        yield Block(block_id, shape, runs, columns=tuple(s for s in within if s.columns))
