"""Prompts on their way: cut into passes, several short ones together, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from kdn.core import ALL_ROWS, Plan
from kdn.engine.executor import Pass
from kdn.engine.kv import PrefixKV
from kdn.engine.request import RunningRequest
from kdn.engine.slice import SequenceSlice
from kdn.model import LoadedModel
from kdn.model.attention import ROW_BLOCK, Attention

__all__ = ["PrefillQueue", "computes_in_order"]


class PrefillQueue:
    """Requests that were admitted and have no first token yet, in order of admission."""

    def __init__(self, model: LoadedModel, attention: Attention, max_batch_tokens: int) -> None:
        self._decoder = model.decoder
        self._attention = attention
        self._max_batch_tokens = max(max_batch_tokens // ROW_BLOCK, 1) * ROW_BLOCK
        self._lives: list[RunningRequest] = []
        self._pass: Pass | None = None
        self._in_pass: list[RunningRequest] = []

    def __len__(self) -> int:
        return len(self._lives)

    @property
    def num_tokens_left(self) -> int:
        """Prompt tokens that those in line have still to compute."""
        return sum(live.request.prompt.num_tokens - live.num_computed for live in self._lives)

    def add(self, live: RunningRequest) -> None:
        """Put an admitted request at the end of the line."""
        self._lives.append(live)

    def advance(self) -> list[tuple[RunningRequest, Tensor]]:
        """One layer of the current pass. Gives back who is through, with the last position's logits."""
        if self._pass is None:
            self._begin()
        assert self._pass is not None, "there is a pass when somebody is in line"
        self._read_ahead(self._pass.layer)
        if not self._pass.advance():
            return []
        done, self._pass = self._pass, None
        finished = []
        for live, lane, logits in zip(self._in_pass, done.lanes, done.logits(), strict=True):
            if lane.plan.then is not None:
                _look_is_over(live, lane.plan.then())
                continue
            live.num_computed = lane.stop
            if live.is_prefilled:
                self._lives.remove(live)
                finished.append((live, logits[-1]))
        self._in_pass = []
        return finished

    def _read_ahead(self, layer: int) -> None:
        """Have the layer read for those of the next pass too, behind what this pass waits for."""
        for live in self._lives[len(self._in_pass) :]:
            if live.request.single_use and live.planned is not None and live.kv is not None:
                prefix = live.planned.plan.prefix
                if prefix is not None and _is_to_load(live.kv.head):
                    prefix.start(layer)

    def abandon(self) -> list[RunningRequest]:
        """Give up the current pass and forget who was in it; without a pass, everyone in line."""
        gone = list(self._in_pass if self._pass is not None else self._lives)
        self._lives = [live for live in self._lives if live not in gone]
        self._pass, self._in_pass = None, []
        return gone

    def drop_cancelled(self) -> list[RunningRequest]:
        """Let cancelled requests go. A pass with others in it goes on, and sheds them at its end."""
        if all(live.stream.is_cancelled for live in self._in_pass):
            self._pass, self._in_pass = None, []
        gone = [x for x in self._lives if x.stream.is_cancelled and x not in self._in_pass]
        self._lives = [live for live in self._lives if live not in gone]
        return gone

    def _begin(self) -> None:
        """Fill a pass: whole prompts while they fit, and the next part of one that does not."""
        lanes: list[SequenceSlice] = []
        filled: list[PrefixKV | None] = []
        room = self._max_batch_tokens
        for live in self._lives:
            lane = self._lane(live, room, filled)
            if lane is None or (lanes and not _goes_with(lane, lanes[0], room)):
                break
            filled.append(lane.new_head)
            lanes.append(lane)
            self._in_pass.append(live)
            room -= lane.rows.numel()
            if room <= 0:
                break
        self._pass = Pass(self._decoder, self._attention, lanes)

    def _lane(
        self, live: RunningRequest, room: int, filled: Sequence[PrefixKV | None]
    ) -> SequenceSlice | None:
        """The next part of a prompt, at most `room` rows; None if not even a block of rows fits.

        The first in a pass fills a head that is not complete, for all who share it.
        """
        assert live.planned is not None, "admitted requests have a plan"
        assert live.kv is not None, "admitted requests have KV"
        plan, first, stop = live.planned.plan, live.num_computed, live.request.prompt.num_tokens
        if _can_be_cut(plan) and stop - first > room:
            stop = (first + room) // ROW_BLOCK * ROW_BLOCK
            if stop <= first:
                return None
        new_head = live.kv.head if _is_to_load(live.kv.head) else None
        if new_head is not None and any(new_head is one for one in filled):
            new_head = None
        if new_head is not None:
            new_head.start_over()
        return SequenceSlice.prefill(
            plan,
            live.kv,
            first,
            stop,
            adapter=live.adapter,
            capture=live.capture,
            new_head=new_head,
        )


def _is_to_load(head: PrefixKV | None) -> bool:
    return head is not None and not head.is_complete


def _look_is_over(live: RunningRequest, plan: Plan) -> None:
    """Go on with the plan that was waited for. What the first one loaded lies in its place."""
    assert live.planned is not None, "a look follows a plan"
    for run in live.planned.plan.stored:
        run.source.close()
    live.planned = replace(live.planned, plan=plan)


def _can_be_cut(plan: Plan) -> bool:
    """Plans that only compute rows in order may run in parts; others see all their rows at once."""
    return not plan.one_layer and computes_in_order(plan)


def computes_in_order(plan: Plan) -> bool:
    """True for plans whose rows are all computed, each from what stands before it."""
    simple = all(rule is ALL_ROWS for rule in plan.rows)
    return simple and not (plan.stored or plan.enter or plan.observers or plan.scale or plan.then)


def _goes_with(lane: SequenceSlice, first: SequenceSlice, room: int) -> bool:
    """May `lane` join a pass that begins with `first`? What cannot be cut must find room for all of it."""
    return lane.plan.row_chunk == first.plan.row_chunk and lane.rows.numel() <= room
