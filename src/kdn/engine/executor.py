"""One executor runs every plan: a pass over a ragged batch, one layer at a time.

A pass knows rows, columns and sources; it knows no technique.  At each layer of each sequence:

    rows that enter or are given  ->  q, k, v  ->  stored columns, then fresh rows, are placed
    ->  observers look  ->  a selector may drop rows  ->  attention  ->  the rest of the layer

Plain rows may go through several layers in one call.  Between two calls of `advance` nothing is in
flight but the sources' own reads, so the step loop may run other work there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from kdn.clock import Clock
from kdn.core import Choose, LayerKV, LayerView, Plan
from kdn.engine.batch import Batch, LoadedRuns, SequenceSlice, StoredColumns, places
from kdn.engine.kv import SequenceKV
from kdn.model import AdapterRun, Decoder
from kdn.model.attention import Attention, AttentionSlice

__all__ = ["Part", "Pass", "PassPace", "StepTimes", "fill_prefix"]

_FIRST_ROW_S = 0.25e-3
"""A row's share of a pass before any was timed."""
_LEAST_PASS_S = 1e-4

Part = Literal["wait", "admit", "prefill", "decode", "draw", "retain"]
"""Idle; planning and memory; prompts; decode steps; drawing and telling tokens; handing KV to the store."""


class Pass:
    """Plans on their way through the layers together."""

    def __init__(
        self, decoder: Decoder, attention: Attention, slices: Sequence[SequenceSlice]
    ) -> None:
        assert slices, "a pass needs a sequence"
        self._decoder = decoder
        self._attention = attention
        self.layer = 0
        self._batch = Batch(decoder, attention, slices)
        self._stored = StoredColumns(decoder, attention, self._batch.slices)
        self.num_rows = self._batch.num_rows
        """Rows that the plans have at the layer computed last, whether or not it finished them all."""
        self._row_chunk = min((one.plan.row_chunk or 0 for one in self.slices), default=0)
        self._steady = all(one.plan.is_steady for one in self.slices)
        """True when no layer changes the rows or is looked at."""
        self._is_plain = self._steady and not (
            self._stored.is_loading
            or self._row_chunk
            or self._batch.adapters
            or self._batch.biases
            or any(one.plan.stored or not len(one.rows) for one in self.slices)
            or any(one.capture is not None and _has_gaps(one) for one in self.slices)
        )
        self._stored.start(0)

    @property
    def slices(self) -> list[SequenceSlice]:
        return self._batch.slices

    @property
    def done(self) -> bool:
        return self.layer == self._decoder.config.num_layers

    def advance(self, most_layers: int = 1) -> bool:
        """Compute the next layer, or up to `most_layers` where the decoder has them in one call, with the
        same bits; True after the last. Raises CorruptBlock if a source fails."""
        if not self._advance_in_one_call(most_layers):
            self._advance_one()
        if self.done:
            self._count_columns()
        return self.done

    def run(self) -> None:
        """Compute all layers."""
        while not self.advance(self._decoder.config.num_layers):
            pass

    def _advance_one(self) -> None:
        layer = self.layer
        self._stored.start(layer + 1)
        if not self._steady:
            self._batch.change_rows(layer)
        if self._batch.num_rows:
            self._compute(layer)
        else:  # no row goes on, but what is stored is for a later pass
            self._stored.place(layer)
        self.layer += 1

    def _advance_in_one_call(self, most_layers: int) -> bool:
        """True when that was possible: plain rows. The last layer computes few of them, so it is left
        where not all are wanted."""
        fused, batch = self._decoder.fused, self._batch
        num_layers = self._decoder.config.num_layers - (not batch.wants_all)
        stop = min(self.layer + most_layers, num_layers)
        if fused is None or stop <= self.layer or not self._is_plain:
            return False
        notes = [
            None if one.capture is None else one.capture.note_at(one.first, one.stop)
            for one in self.slices
        ]
        hidden = fused.run(batch.hidden, batch.bound, notes, self.layer, stop)
        if hidden is None:
            return False
        batch.hidden, self.layer = hidden, stop
        return True

    def _count_columns(self) -> None:
        for one in self.slices:
            suffix = one.kv.suffix
            suffix.num_columns = max(suffix.num_columns, one.stop - one.kv.num_prefix)

    def logits(self) -> list[Tensor]:
        """For each sequence fp32 [wanted positions, vocabulary or allowed]; no rows if its prompt goes on."""
        assert self.done, "logits come after the last layer"
        return self._batch.logits()

    # --- one layer ---------------------------------------------------------------------------

    def _compute(self, layer: int) -> None:
        queries = self._queries(layer)
        self.num_rows = self._batch.num_rows
        if layer == self._decoder.config.num_layers - 1:
            queries = self._batch.narrow_to_wanted(queries)
        if self._batch.num_rows:
            self._finish(layer, self._attend(layer, queries))

    def _queries(self, layer: int) -> Tensor:
        """Rotated queries of the rows that go on; K and V are in place when this returns.

        Unrotated K and V end here, before attention needs memory for its output.
        """
        q, k, v = self._project(layer)
        stored = self._stored.place(layer)
        for one, (start, stop) in self._batch.parts():
            if one.capture is not None:
                one.capture.note(layer, one.rows, k[start:stop], v[start:stop])
        q = self._batch.bound.place(layer, q, k, v)
        if self._steady:
            return q
        return self._look_and_choose(layer, q, LayerKV(k, v), stored)

    def _look_and_choose(
        self, layer: int, q: Tensor, fresh: LayerKV, stored: Sequence[LoadedRuns]
    ) -> Tensor:
        """Let observers look, then selectors drop rows. Gives back the queries of those left."""
        going_on = []
        for (one, (start, stop)), runs in zip(self._batch.parts(), stored, strict=True):
            rule = one.plan.rule(layer)
            choosing = isinstance(rule, Choose) and rule.count < stop - start
            chosen = torch.arange(stop - start)
            if start < stop and (one.plan.observers or choosing):
                rows = slice(start, stop)
                own = LayerKV(fresh.k[rows], fresh.v[rows])
                view = self._view(layer, one, q[rows], own, runs, rows)
                for observe in one.plan.observers:
                    observe(view)
                if isinstance(rule, Choose) and choosing:
                    chosen = rule.selector(view, rule.count)
                    assert chosen.numel() == rule.count, "a selector must choose its count of rows"
            going_on.append(chosen)
        return self._batch.narrow(going_on, q)

    def _view(
        self,
        layer: int,
        one: SequenceSlice,
        q: Tensor,
        fresh: LayerKV,
        stored: LoadedRuns,
        rows: slice,
    ) -> LayerView:
        where = one.attention_slice(rows.start, rows.stop)
        return LayerView(
            layer=layer,
            rows=one.rows,
            hidden=self._batch.hidden[rows],
            query=q,
            fresh=fresh,
            join_stored=partial(_joined, one.plan.num_tokens, stored),
            attend=_Mass(self._attention, q, where, layer, self._decoder.layers[layer].window),
        )

    # --- arithmetic --------------------------------------------------------------------------

    def _chunks(self) -> list[tuple[int, int]]:
        """Row ranges for position-wise work, as small as a plan asks for; none when all rows are one."""
        num_rows, size = self._batch.num_rows, self._row_chunk
        if not size or num_rows <= size:
            return []
        return [(a, min(a + size, num_rows)) for a in range(0, num_rows, size)]

    def _project(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        chunks, batch = self._chunks(), self._batch
        if not chunks:
            return self._decoder.layers[layer].qkv(batch.hidden, batch.adapters)
        config = self._decoder.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        size = (batch.num_rows, heads + 2 * kv_heads, config.head_dim)
        fused = batch.hidden.new_empty(size)  # in place: joining chunks would hold all twice
        q, k, v = torch.split(fused, [heads, kv_heads, kv_heads], dim=1)
        for a, b in chunks:
            runs = cut_runs(batch.adapters, a, b)
            parts = self._decoder.layers[layer].qkv(batch.hidden[a:b], runs)
            for whole, part in zip((q, k, v), parts, strict=True):
                whole[a:b] = part
        return q, k, v

    def _attend(self, layer: int, q: Tensor) -> Tensor:
        window, batch = self._decoder.layers[layer].window, self._batch
        return batch.bound.attend(layer, q, window, batch.scalings(layer))

    def _finish(self, layer: int, attended: Tensor) -> None:
        chunks, batch = self._chunks(), self._batch
        finish = self._decoder.layers[layer].finish
        if not chunks:
            batch.hidden = finish(batch.hidden, attended, batch.adapters)
            return
        for a, b in chunks:
            runs = cut_runs(batch.adapters, a, b)
            batch.hidden[a:b] = finish(batch.hidden[a:b], attended[a:b], runs)


def _has_gaps(one: SequenceSlice) -> bool:
    """Are some positions of its part not computed? Compiled layers note neighbouring rows only."""
    return len(one.rows) < one.stop - one.first


def cut_runs(runs: Sequence[AdapterRun], start: int, stop: int) -> list[AdapterRun]:
    """The parts of adapter runs inside rows [start, stop), counted from `start`."""
    cut = [
        AdapterRun(max(run.start, start) - start, min(run.stop, stop) - start, run.adapter)
        for run in runs
    ]
    return [run for run in cut if run.start < run.stop]


def _joined(num_tokens: int, loaded: LoadedRuns) -> LayerKV | None:
    """A layer's stored runs at their columns, zero between them; None when there are none."""
    if not loaded:
        return None
    like = loaded[0][1][0]
    size = (num_tokens, *like.k.shape[1:])
    whole = LayerKV(like.k.new_zeros(size), like.v.new_zeros(size))
    for start, parts in loaded:
        for part, at in zip(parts, places(start, parts), strict=True):
            whole.k[at] = part.shifted().k
            whole.v[at] = part.v
    return whole


class _Mass:
    """Attention mass that some rows put on each column, computed when asked for."""

    def __init__(
        self,
        attention: Attention,
        q: Tensor,
        where: AttentionSlice,
        layer: int,
        window: int | None,
    ) -> None:
        self._attention = attention
        self._q, self._where, self._layer, self._window = q, where, layer, window

    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        q, positions = self._q[rows], self._where.positions[rows]
        mass = self._attention.mass(q, positions, self._where, self._layer, self._window)
        return mass[columns]

    def by_head(self, rows: Tensor, columns: Tensor) -> Tensor:
        q, positions = self._q[rows], self._where.positions[rows]
        mass = self._attention.mass_by_head(q, positions, self._where, self._layer, self._window)
        return mass[:, columns]


class StepTimes:
    """Seconds by part. One thread calls `spent`; any may read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s: float | None = None
        self._seconds: dict[str, float] = dict.fromkeys(get_args(Part), 0.0)

    def spent(self, part: Part) -> None:
        """What has passed since the last call went into `part`."""
        now_s = self._clock.now()
        if self._since_s is not None:
            self._seconds[part] += now_s - self._since_s
        self._since_s = now_s

    def seconds(self) -> Mapping[str, float]:
        """Of every part, since the start."""
        return dict(self._seconds)


def fill_prefix(decoder: Decoder, attention: Attention, plan: Plan, kv: SequenceKV) -> None:
    """Bring all layers of the sequence's prefix to their places. Raises CorruptBlock if its source fails."""
    assert kv.prefix is not None, "there is a prefix to fill"
    kv.prefix.start_over()
    first = plan.num_prefix
    one = SequenceSlice.prefill(plan, kv, first, first, new_prefix=kv.prefix)
    stored = StoredColumns(decoder, attention, [one])
    stored.start(0)
    for layer in range(decoder.config.num_layers):
        stored.start(layer + 1)
        stored.place(layer)


class PassPace:
    """How long a row of a pass takes, by the last pass."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun_s = 0.0
        self._row_s = _FIRST_ROW_S

    def begin(self) -> None:
        """A pass begins."""
        self._begun_s = self._clock.now()

    def end(self, num_rows: int) -> None:
        """The pass of so many rows is over."""
        seconds = max(self._clock.now() - self._begun_s, _LEAST_PASS_S)
        self._row_s = seconds / max(num_rows, 1)

    def rows_within(self, milliseconds: float) -> int:
        """As many rows as take so long."""
        return int(milliseconds / 1e3 / self._row_s)
