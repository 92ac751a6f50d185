"""The sequences of one pass: what each computes, which of their rows go on, what is loaded for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from kdn.core import Choose, GivenRows, LayerKV, LayerSource, Plan
from kdn.engine.bias import ColumnBias, split_rows
from kdn.engine.kv import Capture, PrefixKV, SequenceKV
from kdn.model import AdapterRun, Decoder, LoraAdapter
from kdn.model.attention import Attention, AttentionSlice, BoundAttention, Scaling, Writing

__all__ = ["Batch", "LoadedRuns", "SequenceSlice", "StoredColumns", "most_rows", "places"]

LoadedRuns = Sequence[tuple[int, Sequence[LayerKV]]]
"""A layer's stored runs, as (first column, parts)."""


@dataclass
class SequenceSlice:
    """One sequence's part in a pass: what it computes and where its KV goes.

    `rows` are the positions alive at the current layer, ascending.  `new_prefix` is filled from the
    plan's prefix as the pass goes along.
    """

    plan: Plan
    kv: SequenceKV
    rows: Tensor
    token_ids: list[int]
    """The tokens of `rows` at layer 0."""
    first: int
    stop: int
    """The pass is about positions [first, stop)."""
    logit_positions: tuple[int, ...]
    adapter: LoraAdapter | None = None
    capture: Capture | None = None
    new_prefix: PrefixKV | None = None
    loads: bool = False
    """True when the plan's sources are read in this pass."""

    @staticmethod
    def prefill(
        plan: Plan,
        kv: SequenceKV,
        first: int,
        stop: int,
        *,
        adapter: LoraAdapter | None = None,
        capture: Capture | None = None,
        new_prefix: PrefixKV | None = None,
    ) -> SequenceSlice:
        """Positions [first, stop) of a prompt. A long prompt may run as several such ranges."""
        rows = _initial_rows(plan, first, stop)
        wanted = plan.logits if plan.logits is not None else (plan.num_tokens - 1,)
        return SequenceSlice(
            plan=plan,
            kv=kv,
            rows=rows,
            token_ids=[plan.token_ids[p] for p in rows.tolist()],
            first=first,
            stop=stop,
            logit_positions=tuple(p for p in wanted if first <= p < stop),
            adapter=adapter,
            capture=capture,
            new_prefix=new_prefix,
            loads=first == plan.num_prefix,
        )

    @staticmethod
    def decode(
        kv: SequenceKV,
        token_ids: Sequence[int],
        *,
        adapter: LoraAdapter | None = None,
        capture: Capture | None = None,
    ) -> SequenceSlice:
        """More tokens after everything the sequence has, each with its logits."""
        at = kv.num_columns
        stop = at + len(token_ids)
        return SequenceSlice(
            plan=_NEXT_TOKEN,
            kv=kv,
            rows=torch.arange(at, stop),
            token_ids=list(token_ids),
            first=at,
            stop=stop,
            logit_positions=tuple(range(at, stop)),
            adapter=adapter,
            capture=capture,
        )

    @property
    def num_columns(self) -> int:
        """Columns of the suffix that the pass writes to, from its first one on."""
        stored = [run.stop for run in self.plan.stored] if self.loads else []
        return max([self.stop, *stored]) - self.kv.num_prefix

    @property
    def most_rows(self) -> int:
        """The rows of the layer that has most of them. To be asked before the pass."""
        return most_rows(self.plan, self.first, self.stop) if self.plan.enter else len(self.rows)

    def sources(self, layer: int) -> list[LayerSource]:
        """Everything that is loaded for a layer."""
        if not self.loads:
            return []
        stored = [run.source for run in self.plan.stored if run.supplies(layer)]
        if self.new_prefix is not None and self.plan.prefix is not None:
            stored.insert(0, self.plan.prefix)
        return stored

    def adapter_run(self, start: int, stop: int) -> AdapterRun | None:
        """Those of rows [start, stop) of the batch that the adapter is for."""
        if self.adapter is None:
            return None
        if self.plan.adapter_from:
            start += int(torch.searchsorted(self.rows, self.plan.adapter_from))
        return AdapterRun(start, stop, self.adapter) if start < stop else None

    def attention_slice(self, start: int, stop: int) -> AttentionSlice:
        """The sequence's KV, for rows [start, stop) of the batch."""
        kv, prefix = self.kv, self.kv.prefix
        return AttentionSlice(
            start=start,
            stop=stop,
            positions=self.rows,
            suffix_k=kv.suffix.k,
            suffix_v=kv.suffix.v,
            prefix_k=prefix.k if prefix is not None else None,
            prefix_v=prefix.v if prefix is not None else None,
            num_prefix=kv.num_prefix,
        )


_NEXT_TOKEN = Plan(token_ids=())


def _initial_rows(plan: Plan, first: int, stop: int) -> Tensor:
    """Positions computed at layer 0: given ones, or all in range that no stored run covers."""
    rule = plan.rule(0)
    if isinstance(rule, GivenRows):
        return torch.tensor([p for p in rule.positions if first <= p < stop], dtype=torch.int64)
    if isinstance(rule, Choose) or not plan.stored:
        return torch.arange(first, stop)
    wanted = torch.ones(stop - first, dtype=torch.bool)
    for run in plan.stored:
        wanted[max(run.start - first, 0) : max(run.stop - first, 0)] = False
    return torch.nonzero(wanted).flatten() + first


def most_rows(plan: Plan, first: int, stop: int) -> int:
    """How many rows of [first, stop) the plan computes at the layer where it computes most."""
    alive = set(_initial_rows(plan, first, stop).tolist())
    most = len(alive)
    for layer in range(max((enter.layer for enter in plan.enter), default=-1) + 1):
        for enter in plan.enter:
            if enter.layer == layer:
                alive.update(p for p in enter.positions if first <= p < stop)
        rule = plan.rule(layer)
        if isinstance(rule, GivenRows):
            alive &= set(rule.positions)
        most = max(most, len(alive))
    return most


class Batch:
    """The rows of several sequences, one after the other, with all that follows from which rows they are."""

    def __init__(
        self, decoder: Decoder, attention: Attention, slices: Sequence[SequenceSlice]
    ) -> None:
        self.slices = list(slices)
        for one in self.slices:
            one.kv.suffix.grow(one.num_columns)
            if one.loads:  # later parts and decoded rows find the bias with the KV
                is_scaled = bool(one.plan.scale)
                one.kv.bias = ColumnBias.of(one.plan, decoder) if is_scaled else None
        self._decoder = decoder
        self._attention = attention
        tokens = [token for one in self.slices for token in one.token_ids]
        ids = torch.tensor(tokens, dtype=torch.int64, device=decoder.device)
        self.hidden = decoder.embed(ids)
        """[rows, hidden] the input of the layer at hand."""
        self.num_rows = 0
        self.spans: list[tuple[int, int]] = []
        """By sequence, its rows [start, stop) of the batch."""
        self.adapters: list[AdapterRun] = []
        self.bound_slices: list[AttentionSlice] = []
        """Those that have rows; two of a sequence whose columns are scaled for its later rows only."""
        self.biases: list[ColumnBias | None] = []
        """By bound slice; empty where no column is scaled."""
        self._rebind()

    def _rebind(self) -> None:
        """Work out spans, positions and attention again after rows came or went."""
        counts = [one.rows.numel() for one in self.slices]
        edges = torch.tensor([0, *counts]).cumsum(0).tolist()
        self.num_rows = edges[-1]
        self.spans = list(pairwise(edges))
        whole = [(one.attention_slice(a, b), one.kv.bias) for one, (a, b) in self.parts() if a < b]
        self.bound_slices, self.biases = [part for part, _ in whole], []
        if any(bias is not None for _, bias in whole):
            bound = [pair for part, bias in whole for pair in split_rows(part, bias)]
            self.bound_slices = [part for part, _ in bound]
            self.biases = [bias for _, bias in bound]
        if self.bound_slices:  # else nothing is attended until rows come in
            positions = torch.cat([one.rows for one in self.slices]).to(self._decoder.device)
            cos, sin = self._decoder.rope.tables(positions)
            self.bound: BoundAttention = self._attention.bind(self.bound_slices, cos, sin)
        runs = [one.adapter_run(start, stop) for one, (start, stop) in self.parts()]
        self.adapters = [run for run in runs if run is not None]

    @property
    def wants_all(self) -> bool:
        """Are the logits of every row wanted?"""
        return all(len(one.rows) == len(one.logit_positions) for one in self.slices)

    def scalings(self, layer: int) -> Sequence[Scaling | None]:
        """By bound slice, how its columns are scaled at the layer; empty where none is."""
        if not self.biases:
            return ()
        found = [None if bias is None else bias.at(layer) for bias in self.biases]
        return found if any(found) else ()

    def parts(self) -> list[tuple[SequenceSlice, tuple[int, int]]]:
        """Each sequence with its rows [start, stop) of the batch."""
        return list(zip(self.slices, self.spans, strict=True))

    def change_rows(self, layer: int) -> None:
        """Rows that the plans give or let in at this layer."""
        changed = False
        pieces = []
        for one, (start, stop) in self.parts():
            rows, hidden = one.rows, self.hidden[start:stop]
            rule = one.plan.rule(layer)
            for enter in one.plan.enter:
                if enter.layer == layer:
                    rows, hidden = _join(rows, hidden, *enter.states(one.first, one.stop))
            if layer > 0 and isinstance(rule, GivenRows):
                stay = torch.isin(rows, torch.tensor(rule.positions, dtype=torch.int64))
                rows, hidden = rows[stay], hidden[stay.to(hidden.device)]
            changed |= rows is not one.rows
            one.rows = rows
            pieces.append(hidden)
        if changed:
            self.hidden = torch.cat(pieces)
            self._rebind()

    def narrow(self, chosen: Sequence[Tensor], q: Tensor) -> Tensor:
        """Go on with these rows, by their places in each sequence. Gives back their queries."""
        places = [rows + start for rows, (start, _) in zip(chosen, self.spans, strict=True)]
        together = torch.cat(places)
        if together.numel() == q.shape[0]:
            return q
        for one, rows in zip(self.slices, chosen, strict=True):
            one.rows = one.rows[rows]
        at = together.to(q.device)
        self.hidden = self.hidden[at]
        self._rebind()
        return q[at]

    def narrow_to_wanted(self, q: Tensor) -> Tensor:
        """After the last layer's K and V only rows whose logits are wanted matter."""
        chosen = []
        for one, (start, stop) in self.parts():
            wanted = torch.tensor(one.logit_positions, dtype=torch.int64)
            all_wanted = stop - start == wanted.numel()
            chosen.append(
                torch.arange(stop - start)
                if all_wanted
                else torch.nonzero(torch.isin(one.rows, wanted)).flatten()
            )
        return self.narrow(chosen, q)

    def logits(self) -> list[Tensor]:
        """For each sequence fp32 [wanted positions, vocabulary or allowed]; no rows if its prompt goes on."""
        found: dict[int, Tensor] = {}
        for allowed in dict.fromkeys(one.plan.allowed for one in self.slices):
            members = [i for i, one in enumerate(self.slices) if one.plan.allowed == allowed]
            choice = None if allowed is None else torch.tensor(allowed, device=self._decoder.device)
            rows = [self._logit_rows(i) for i in members]
            at = torch.cat(rows)
            if not at.numel():  # prompts that go on, and probe passes
                found |= {i: self.hidden.new_empty((0, 0), dtype=torch.float32) for i in members}
                continue
            logits = self._decoder.logits(self.hidden[at], choice)
            found |= zip(members, torch.split(logits, [len(r) for r in rows]), strict=True)
        return [found[i] for i in range(len(self.slices))]

    def _logit_rows(self, index: int) -> Tensor:
        one, (start, _) = self.slices[index], self.spans[index]
        wanted = torch.tensor(one.logit_positions, dtype=torch.int64)
        return (torch.searchsorted(one.rows, wanted) + start).to(self.hidden.device)


def _join(
    rows: Tensor, hidden: Tensor, positions: Sequence[int], new_hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Both sets of rows in ascending order; an entering row replaces one already there."""
    new_rows = torch.tensor(positions, dtype=torch.int64)
    stay = ~torch.isin(rows, new_rows)
    together = torch.cat((rows[stay], new_rows))
    states = torch.cat((hidden[stay.to(hidden.device)], new_hidden.to(hidden)))
    order = torch.argsort(together)
    return together[order], states[order.to(states.device)]


class StoredColumns:
    """Stored KV of a pass: fetched a layer ahead, rotated, and written where the sequences read it."""

    def __init__(
        self, decoder: Decoder, attention: Attention, slices: Sequence[SequenceSlice]
    ) -> None:
        self._decoder = decoder
        self._attention = attention
        self._slices = slices
        self._loading = any(s.loads and (s.new_prefix or s.plan.stored) for s in slices)
        for one in slices:  # layer inputs come first: rows wait for all of them
            for source in filter(None, (enter.source for enter in one.plan.enter)):
                source.start()
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._columns: dict[tuple[int, int], Tensor] = {}

    @property
    def is_loading(self) -> bool:
        """Is anything read in this pass?"""
        return self._loading

    def start(self, layer: int) -> None:
        """Begin to fetch a layer; a layer beyond the last is none."""
        if self._loading and layer < self._decoder.config.num_layers:
            for one in self._slices:
                for source in one.sources(layer):
                    source.start(layer)

    def place(self, layer: int) -> list[LoadedRuns]:
        """Bring the layer's stored KV to its place. Gives back what selectors may compare with."""
        if not self._loading:
            return [()] * len(self._slices)
        writings = self._prefix_writings(layer)
        loaded = [self._take_runs(layer, one) if one.loads else () for one in self._slices]
        for one, runs in zip(self._slices, loaded, strict=True):
            suffix, before = one.kv.suffix, one.kv.num_prefix
            to_k, to_v = suffix.k[layer], suffix.v[layer]
            writings += [
                self._writing(parts, start, to_k, to_v, start - before) for start, parts in runs
            ]
        self._attention.write_all(writings)
        for one in self._slices:
            if one.loads and one.new_prefix is not None:
                one.new_prefix.layer_done(layer)
        return loaded

    def _prefix_writings(self, layer: int) -> list[Writing]:
        writings = []
        for one in self._slices:
            to, source = one.new_prefix, one.plan.prefix
            if one.loads and to is not None and source is not None:
                runs = source.take(layer)
                writings.append(self._writing(runs, 0, to.k[layer], to.v[layer], 0))
        return writings

    def _take_runs(self, layer: int, one: SequenceSlice) -> LoadedRuns:
        """The sequence's own stored runs of the layer."""
        loaded = [
            (run.start, run.source.take(layer)) for run in one.plan.stored if run.supplies(layer)
        ]
        if one.capture is not None:
            for start, parts in loaded:
                for part, at in zip(parts, places(start, parts), strict=True):
                    positions = torch.arange(at.start, at.stop)
                    one.capture.note(layer, positions, part.shifted().k, part.v)
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


def places(start: int, parts: Sequence[LayerKV]) -> list[slice]:
    """The columns of neighbouring runs that begin at `start`."""
    edges = accumulate((part.num_tokens for part in parts), initial=start)
    return [slice(*edge) for edge in pairwise(edges)]
