"""One executor runs every plan: a pass over a ragged batch, one layer at a time.

A pass knows rows, columns and sources; it knows no technique.  At each layer of each sequence:

    rows that enter or are given  ->  q, k, v  ->  stored columns, then fresh rows, are placed
    ->  observers look  ->  a selector may drop rows  ->  attention  ->  the rest of the layer

Between two calls of `advance` nothing is in flight but the sources' own reads, so the step loop may
run other work there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kdn.core import Choose, GivenRows, LayerKV, LayerView
from kdn.engine.capture import Capture
from kdn.engine.slice import SequenceSlice
from kdn.model import AdapterRun, Decoder
from kdn.model.attention import (
    Attention,
    AttentionSlice,
    BoundAttention,
    TorchAttention,
    Writing,
)

__all__ = ["Pass"]

_Loaded = Sequence[tuple[int, Sequence[LayerKV]]]
"""A layer's stored runs, as (first column, parts)."""


class Pass:
    """Plans on their way through the layers together."""

    def __init__(
        self, decoder: Decoder, attention: Attention, lanes: Sequence[SequenceSlice]
    ) -> None:
        assert lanes, "a pass needs a sequence"
        self._decoder = decoder
        self._attention = attention
        self._plain = TorchAttention()
        self.lanes = list(lanes)
        self.layer = 0
        self._spans: list[tuple[int, int]] = []
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._columns: dict[tuple[int, int], Tensor] = {}
        self._make_room()
        tokens = [token for lane in self.lanes for token in lane.token_ids]
        self._hidden = decoder.embed(torch.tensor(tokens, device=decoder.device))
        self._rebind()
        self.num_rows = self._hidden.shape[0]
        """Rows that the plans have at the layer computed last, whether or not it finished them all."""
        self._row_chunk = min((lane.plan.row_chunk or 0 for lane in self.lanes), default=0)
        self._sources = [source for lane in self.lanes for source in lane.sources()]
        self._steady = all(lane.plan.is_steady for lane in self.lanes)
        """True when no layer changes the rows or is looked at."""
        self._start_loading(0)

    @property
    def done(self) -> bool:
        return self.layer == self._decoder.config.num_layers

    # --- one layer ---------------------------------------------------------------------------

    def advance(self) -> bool:
        """Compute one layer; True when it was the last. Raises CorruptBlock if a source fails."""
        layer = self.layer
        self._start_loading(layer + 1)
        if not self._steady:
            self._change_rows(layer)
        if self._hidden.shape[0]:
            self._compute(layer)
        else:  # nobody goes on, but what is stored is for a pass behind this one
            self._place_stored(layer)
        self.layer += 1
        if self.done:
            for lane in self.lanes:
                lane.kv.tail.num_columns = max(
                    lane.kv.tail.num_columns, lane.stop - lane.kv.num_head
                )
        return self.done

    def _compute(self, layer: int) -> None:
        queries = self._queries(layer)
        self.num_rows = self._hidden.shape[0]
        if layer == self._decoder.config.num_layers - 1:
            queries = self._keep_wanted(queries)
        if self._hidden.shape[0]:
            self._finish(layer, self._attend(layer, queries))

    def _queries(self, layer: int) -> Tensor:
        """Rotated queries of the rows that go on; K and V are in place when this returns.

        Unrotated K and V end here, before attention needs room for its output.
        """
        q, k, v = self._project(layer)
        stored = self._place_stored(layer)
        self._note(layer, k, v)
        q = self._bound.place(layer, q, k, v)
        if self._steady:
            return q
        return self._look_and_choose(layer, q, LayerKV(k, v), stored)

    def logits(self) -> list[Tensor]:
        """For each lane fp32 [wanted positions, vocabulary or allowed]; no rows if its prompt goes on."""
        assert self.done, "logits come after the last layer"
        found: dict[int, Tensor] = {}
        for allowed in dict.fromkeys(lane.plan.allowed for lane in self.lanes):
            members = [i for i, lane in enumerate(self.lanes) if lane.plan.allowed == allowed]
            choice = None if allowed is None else torch.tensor(allowed, device=self._decoder.device)
            rows = [self._logit_rows(i) for i in members]
            at = torch.cat(rows)
            if not at.numel():  # prompts that go on, and plans that only look
                found |= {i: self._hidden.new_empty((0, 0), dtype=torch.float32) for i in members}
                continue
            logits = self._decoder.logits(self._hidden[at], choice)
            found |= zip(members, torch.split(logits, [len(r) for r in rows]), strict=True)
        return [found[i] for i in range(len(self.lanes))]

    def _logit_rows(self, index: int) -> Tensor:
        lane, (start, _) = self.lanes[index], self._spans[index]
        wanted = torch.tensor(lane.logit_positions, dtype=torch.int64)
        return (torch.searchsorted(lane.rows, wanted) + start).to(self._hidden.device)

    # --- rows --------------------------------------------------------------------------------

    def _make_room(self) -> None:
        for lane in self.lanes:
            lane.kv.tail.grow(lane.stop - lane.kv.num_head)

    def _rebind(self) -> None:
        """Work out spans, positions and attention anew after rows came or went."""
        counts = [lane.rows.numel() for lane in self.lanes]
        edges = torch.tensor([0, *counts]).cumsum(0).tolist()
        self._spans = list(itertools.pairwise(edges))
        live = [
            self._attention_lane(lane, span)
            for lane, span in zip(self.lanes, self._spans, strict=True)
            if span[0] < span[1]
        ]
        self._bound_lanes = live
        if live:  # else nothing is attended until rows come in
            positions = torch.cat([lane.rows for lane in self.lanes]).to(self._decoder.device)
            cos, sin = self._decoder.rope.tables(positions)
            self._bound: BoundAttention = self._attention.bind(live, cos, sin)
        self._adapters = [
            AdapterRun(start, stop, lane.adapter)
            for lane, (start, stop) in zip(self.lanes, self._spans, strict=True)
            if lane.adapter is not None and start < stop
        ]

    def _attention_lane(self, lane: SequenceSlice, span: tuple[int, int]) -> AttentionSlice:
        kv, head = lane.kv, lane.kv.head
        return AttentionSlice(
            start=span[0],
            stop=span[1],
            positions=lane.rows,
            tail_k=kv.tail.k,
            tail_v=kv.tail.v,
            head_k=head.k if head is not None else None,
            head_v=head.v if head is not None else None,
            num_head=kv.num_head,
        )

    def _change_rows(self, layer: int) -> None:
        """Rows that the plan gives or lets in at this layer."""
        changed = False
        pieces = []
        for lane, (start, stop) in zip(self.lanes, self._spans, strict=True):
            rows, hidden = lane.rows, self._hidden[start:stop]
            rule = lane.plan.rule(layer)
            if layer > 0:
                for enter in lane.plan.enter:
                    if enter.layer == layer:
                        rows, hidden = _join(
                            rows, hidden, torch.tensor(enter.positions), enter.hidden
                        )
                if isinstance(rule, GivenRows):
                    keep = torch.isin(rows, torch.tensor(rule.positions))
                    rows, hidden = rows[keep], hidden[keep.to(hidden.device)]
            changed |= rows is not lane.rows
            lane.rows = rows
            pieces.append(hidden)
        if changed:
            self._hidden = torch.cat(pieces)
            self._rebind()

    def _look_and_choose(
        self, layer: int, q: Tensor, fresh: LayerKV, stored: Sequence[_Loaded]
    ) -> Tensor:
        """Let observers look, then selectors drop rows. Gives back the queries of who is left."""
        kept = []
        for lane, (start, stop), old in zip(self.lanes, self._spans, stored, strict=True):
            rule = lane.plan.rule(layer)
            choosing = isinstance(rule, Choose) and rule.count < stop - start
            chosen = torch.arange(stop - start)
            if start < stop and (lane.plan.observers or choosing):
                rows = slice(start, stop)
                view = self._view(
                    layer, lane, q[rows], LayerKV(fresh.k[rows], fresh.v[rows]), old, rows
                )
                for observe in lane.plan.observers:
                    observe(view)
                if isinstance(rule, Choose) and choosing:
                    chosen = rule.selector(view, rule.count)
                    assert chosen.numel() == rule.count, "a selector must keep to its count"
            kept.append(chosen + start)
        return self._keep(kept, q)

    def _keep_wanted(self, q: Tensor) -> Tensor:
        """Behind the last layer's K and V only rows whose logits are wanted matter."""
        kept = []
        for lane, (start, stop) in zip(self.lanes, self._spans, strict=True):
            wanted = torch.tensor(lane.logit_positions, dtype=torch.int64)
            everyone = stop - start == wanted.numel()
            chosen = (
                torch.arange(stop - start)
                if everyone
                else torch.nonzero(torch.isin(lane.rows, wanted)).flatten()
            )
            kept.append(chosen + start)
        return self._keep(kept, q)

    def _keep(self, kept: Sequence[Tensor], q: Tensor) -> Tensor:
        """Go on with these rows, by their places in the batch, lane by lane. Gives back their queries."""
        everyone = torch.cat(tuple(kept))
        if everyone.numel() == q.shape[0]:
            return q
        for lane, chosen, (start, _) in zip(self.lanes, kept, self._spans, strict=True):
            lane.rows = lane.rows[chosen - start]
        at = everyone.to(q.device)
        self._hidden = self._hidden[at]
        self._rebind()
        return q[at]

    def _view(
        self,
        layer: int,
        lane: SequenceSlice,
        q: Tensor,
        fresh: LayerKV,
        stored: _Loaded,
        rows: slice,
    ) -> LayerView:
        where = self._attention_lane(lane, (rows.start, rows.stop))
        return LayerView(
            layer=layer,
            rows=lane.rows,
            hidden=self._hidden[rows],
            query=q,
            fresh=fresh,
            join_stored=partial(_joined, lane.plan.num_tokens, stored),
            attend=_Mass(self._attention, q, where, layer, self._decoder.layers[layer].window),
        )

    def _note(self, layer: int, k: Tensor, v: Tensor) -> None:
        for lane, (start, stop) in zip(self.lanes, self._spans, strict=True):
            if lane.capture is not None:
                lane.capture.note(layer, lane.rows, k[start:stop], v[start:stop])

    # --- stored columns ----------------------------------------------------------------------

    def _start_loading(self, layer: int) -> None:
        if layer < self._decoder.config.num_layers:
            for source in self._sources:
                source.start(layer)

    def _place_stored(self, layer: int) -> list[_Loaded]:
        """Bring the layer's stored KV to its place. Gives back what selectors may compare with."""
        writings = self._head_writings(layer)
        loaded = [self._take_runs(layer, lane) if lane.loads else () for lane in self.lanes]
        for lane, runs in zip(self.lanes, loaded, strict=True):
            to_k, to_v, behind = lane.kv.tail.k[layer], lane.kv.tail.v[layer], lane.kv.num_head
            writings += [
                self._writing(parts, start, to_k, to_v, start - behind) for start, parts in runs
            ]
        self._attention.write_all(writings)
        for lane in self.lanes:
            if lane.loads and lane.new_head is not None:
                lane.new_head.layer_done(layer)
        return loaded

    def _head_writings(self, layer: int) -> list[Writing]:
        writings = []
        for lane in self.lanes:
            head, prefix = lane.new_head, lane.plan.prefix
            if lane.loads and head is not None and prefix is not None:
                runs = prefix.take(layer)
                writings.append(self._writing(runs, 0, head.k[layer], head.v[layer], 0))
        return writings

    def _take_runs(self, layer: int, lane: SequenceSlice) -> _Loaded:
        """The lane's own stored runs of the layer."""
        loaded = [(run.start, run.source.take(layer)) for run in lane.plan.stored]
        if lane.capture is not None:
            for start, parts in loaded:
                _note_parts(lane.capture, layer, start, parts)
        return loaded

    def _writing(
        self, parts: Sequence[LayerKV], position: int, to_k: Tensor, to_v: Tensor, column: int
    ) -> Writing:
        """Stored K, to be rotated to its position, and V, to be written from `column` on."""
        num_tokens = sum(part.num_tokens for part in parts)
        span = (position, position + num_tokens)
        if span not in self._tables:
            self._tables[span] = self._decoder.rope.tables(torch.arange(*span, device=to_k.device))
        columns = (column, column + num_tokens)
        if columns not in self._columns:
            self._columns[columns] = torch.arange(*columns)
        return Writing(parts, *self._tables[span], to_k, to_v, self._columns[columns])

    # --- arithmetic --------------------------------------------------------------------------

    def _chunks(self) -> list[tuple[int, int]]:
        """Row ranges for position-wise work: everything, or as small as a plan asks for."""
        num_rows = self._hidden.shape[0]
        size = self._row_chunk or num_rows
        return [(a, min(a + size, num_rows)) for a in range(0, num_rows, max(size, 1))]

    def _project(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        chunks = self._chunks()
        if len(chunks) == 1:
            return self._decoder.layers[layer].qkv(self._hidden, self._adapters)
        config = self._decoder.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        size = (self._hidden.shape[0], heads + 2 * kv_heads, config.head_dim)
        fused = self._hidden.new_empty(size)  # written in place: gluing chunks would hold all twice
        q, k, v = torch.split(fused, [heads, kv_heads, kv_heads], dim=1)
        for a, b in chunks:
            runs = cut_runs(self._adapters, a, b)
            parts = self._decoder.layers[layer].qkv(self._hidden[a:b], runs)
            for whole, part in zip((q, k, v), parts, strict=True):
                whole[a:b] = part
        return q, k, v

    def _attend(self, layer: int, q: Tensor) -> Tensor:
        window = self._decoder.layers[layer].window
        if not any(scale.layer == layer for lane in self.lanes for scale in lane.plan.scale):
            return self._bound.attend(layer, q, window)
        return self._plain.attend_scaled(
            layer, q, window, self._bound_lanes, [self._bias(lane, layer) for lane in self._alive()]
        )

    def _alive(self) -> list[SequenceSlice]:
        return [lane for lane in self.lanes if lane.rows.numel()]

    def _bias(self, lane: SequenceSlice, layer: int) -> Tensor | None:
        """log(factor) for the scaled columns, [heads, columns]."""
        scales = [scale for scale in lane.plan.scale if scale.layer == layer]
        if not scales:
            return None
        num_heads = self._decoder.config.num_heads
        bias = torch.zeros((num_heads, lane.plan.num_tokens), device=self._decoder.device)
        for scale in scales:
            heads = range(num_heads) if scale.heads is None else scale.heads
            at = torch.tensor(scale.columns, device=bias.device)
            for head in heads:
                bias[head, at] += torch.log(torch.tensor(scale.factor, device=bias.device))
        return bias

    def _finish(self, layer: int, attended: Tensor) -> None:
        chunks = self._chunks()
        if len(chunks) == 1:
            self._hidden = self._decoder.layers[layer].finish(
                self._hidden, attended, self._adapters
            )
            return
        for a, b in chunks:
            runs = cut_runs(self._adapters, a, b)
            self._hidden[a:b] = self._decoder.layers[layer].finish(
                self._hidden[a:b], attended[a:b], runs
            )


def cut_runs(runs: Sequence[AdapterRun], start: int, stop: int) -> list[AdapterRun]:
    """The parts of adapter runs inside rows [start, stop), counted from `start`."""
    cut = [
        AdapterRun(max(run.start, start) - start, min(run.stop, stop) - start, run.adapter)
        for run in runs
    ]
    return [run for run in cut if run.start < run.stop]


def _join(
    rows: Tensor, hidden: Tensor, new_rows: Tensor, new_hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Both sets of rows in ascending order; an entering row replaces one already there."""
    stay = ~torch.isin(rows, new_rows)
    everyone = torch.cat((rows[stay], new_rows))
    states = torch.cat((hidden[stay.to(hidden.device)], new_hidden.to(hidden)))
    order = torch.argsort(everyone)
    return everyone[order], states[order.to(states.device)]


def _joined(num_tokens: int, loaded: _Loaded) -> LayerKV | None:
    """A layer's stored runs at their columns, zero between them; None when there are none."""
    if not loaded:
        return None
    like = loaded[0][1][0]
    size = (num_tokens, *like.k.shape[1:])
    whole = LayerKV(like.k.new_zeros(size), like.v.new_zeros(size))
    for start, parts in loaded:
        for part, at in zip(parts, _places(start, parts), strict=True):
            whole.k[at] = part.shifted().k
            whole.v[at] = part.v
    return whole


def _note_parts(capture: Capture, layer: int, start: int, parts: Sequence[LayerKV]) -> None:
    for part, at in zip(parts, _places(start, parts), strict=True):
        capture.note(layer, torch.arange(at.start, at.stop), part.shifted().k, part.v)


def _places(start: int, parts: Sequence[LayerKV]) -> list[slice]:
    edges = itertools.accumulate((part.num_tokens for part in parts), initial=start)
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


class _Mass:
    """Attention mass that some rows put on each column, computed when asked for."""

    def __init__(
        self,
        attention: Attention,
        q: Tensor,
        lane: AttentionSlice,
        layer: int,
        window: int | None,
    ) -> None:
        self._attention = attention
        self._q, self._lane, self._layer, self._window = q, lane, layer, window

    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        q, positions = self._q[rows], self._lane.positions[rows]
        mass = self._attention.mass(q, positions, self._lane, self._layer, self._window)
        return mass[columns]
