"""An engine as events: calls wait for KV, are prefilled in passes, and decode side by side.

As in the engine, those that decode ride along in a pass of plain prompts, which is then as short as `stall_s`
allows.  A prompt that is probed, or whose stored beginning is loaded, takes no one along: its pass advances a
layer at a time, and takes longer by that; those that decode take a step when they have waited for `stall_s`.
A stored beginning that is small beside its prompt is in its place before the pass, which is a plain one then.
Fitted on real runs, it goes where they would take hours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdn.core import JctModel
from kdn.engine import SMALL_PREFIX
from kdn.model.attention import ROW_BLOCK

__all__ = ["EngineSpeed", "SimulatedCall", "SimulatedEngine", "SimulatedQuery"]


@dataclass(frozen=True)
class EngineSpeed:
    """What the simulated engine can do."""

    jct: JctModel
    step_s: float
    """One decode step of one sequence, over `step_columns`."""
    kv_tokens: int
    """KV of all calls that run at one time."""
    pass_tokens: int = 2048
    row_s: float | None = None
    """What each further sequence adds to a step; None: as a further prompt to a pass."""
    column_s: float | None = None
    """What each column of a further sequence adds to a step; None: as the time model says."""
    step_columns: int | None = None
    """Columns of the sequence by which `step_s` was measured; None: a step of one takes `step_s` over any."""
    stall_s: float = 0.060
    """So long, and a layer more, those that decode wait for a prefill; a pass with them takes so long."""
    num_layers: int = 30
    """Parts in which a pass advances."""
    loading: float = 1.0
    """So many times as long takes a pass in which what is stored is loaded."""

    @property
    def further_s(self) -> float:
        """`row_s`, or what stands in for it."""
        return self.jct.prompt_s + self.jct.token_s if self.row_s is None else self.row_s

    def steps_s(self, contexts: Sequence[int]) -> float:
        """One decode step of sequences of so many columns."""
        step_s = self.step_s + self.rows_s(contexts[1:])
        if self.step_columns is None:
            return step_s
        return step_s + (contexts[0] - self.step_columns) * self._column_s

    def rows_s(self, contexts: Sequence[int]) -> float:
        """What sequences of so many columns add to a step, or to a pass that takes them along."""
        return len(contexts) * self.further_s + sum(contexts) * self._column_s

    @property
    def _column_s(self) -> float:
        return self.jct.column_s if self.column_s is None else self.column_s


@dataclass
class SimulatedCall:
    """One call: rows to compute, rows reused, tokens to answer with, and KV set aside for it."""

    num_new: int
    num_cached: int
    num_answer: int
    kv_tokens: int
    num_probe: int = 0
    """Rows of a pass of its own before it is prefilled, as blending takes."""
    num_left: int = field(init=False)
    """Rows that are still to compute, then tokens that are still to draw."""

    def __post_init__(self) -> None:
        self.num_left = self.num_new

    @property
    def context(self) -> int:
        return self.num_new + self.num_cached

    @property
    def loads(self) -> bool:
        """Has its stored beginning still to be loaded, a layer at a time? Its first pass does that."""
        is_small = not self.num_probe and self.num_cached * SMALL_PREFIX <= self.num_new
        return not is_small and self.num_left == self.num_new

    @property
    def takes_riders(self) -> bool:
        """May those that decode share its pass?"""
        return not (self.num_probe or self.loads)


Stages = list[list[SimulatedCall]]
_FIRST_ROW_S = 0.00025
"""What the engine takes a row to last before its first pass."""


@dataclass
class SimulatedQuery:
    """A query: when it comes, and what it asks once it is there and the engine can be looked at."""

    arrival_s: float
    decide: Callable[[SimulatedEngine], Stages]
    opening: Sequence[SimulatedCall] = ()
    """Calls before it decides, as a profile by the engine's own model."""
    is_decided: bool = False
    stages: Stages = field(default_factory=list)
    num_running: int = 0
    ended_s: float | None = None

    @property
    def delay_s(self) -> float:
        """From its arrival to its last token."""
        assert self.ended_s is not None, "the query has not ended"
        return self.ended_s - self.arrival_s


class SimulatedEngine:
    """Plays queries to their end. Owned by one caller."""

    def __init__(self, speed: EngineSpeed) -> None:
        self._speed = speed
        self.now_s = 0.0
        self.free_tokens = speed.kv_tokens
        self._waiting: deque[tuple[SimulatedQuery, SimulatedCall]] = deque()
        self._prefilling: deque[tuple[SimulatedQuery, SimulatedCall]] = deque()
        self._decoding: list[tuple[SimulatedQuery, SimulatedCall]] = []
        self._in_pass: list[tuple[SimulatedQuery, SimulatedCall]] = []
        """Those that are through when the pass is."""
        self._riding: list[tuple[SimulatedQuery, SimulatedCall]] = []
        """Those that have their next token when the pass is through."""
        self._layers_left, self._layer_s, self._decoded_s = 0, 0.0, 0.0
        self._begun_s, self._num_rows, self._row_s = 0.0, 0, _FIRST_ROW_S
        """When the pass began, its rows, and what a row of the last one took."""
        self._running: list[SimulatedQuery] = []

    @property
    def num_running(self) -> int:
        """Queries that came and have not ended."""
        return len(self._running)

    @property
    def unclaimed_tokens(self) -> int:
        """Free KV less what waits, and less what running queries will still ask for."""
        waits = sum(call.kv_tokens for _, call in self._waiting)
        later = sum(
            max(sum(call.kv_tokens for call in stage) for stage in query.stages)
            for query in self._running
            if query.stages
        )
        return max(self.free_tokens - waits - later, 0)

    def play(self, queries: Sequence[SimulatedQuery]) -> None:
        """Every query to its end; they come in the order of their arrivals."""
        coming = deque(sorted(queries, key=lambda query: query.arrival_s))
        while coming or self._running:
            if not self._running:
                self.now_s = max(self.now_s, coming[0].arrival_s)
            while coming and coming[0].arrival_s <= self.now_s:
                self._begin(coming.popleft())
            self._admit()
            is_due = self.now_s - self._decoded_s >= self._speed.stall_s
            if (self._layers_left or self._prefilling) and not (self._decoding and is_due):
                self._layer()
            else:
                self._step()

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError. Only meaningful when nothing runs."""
        assert self.free_tokens == self._speed.kv_tokens, "KV was lost"
        left = (
            *self._waiting, *self._prefilling, *self._in_pass, *self._riding, *self._decoding
        )  # fmt: skip
        assert not left, f"{len(left)} calls were forgotten"

    def _begin(self, query: SimulatedQuery) -> None:
        self._running.append(query)
        if query.opening:
            query.num_running = len(query.opening)
            self._waiting.extend((query, call) for call in query.opening)
        else:
            self._next_stage(query)

    def _next_stage(self, query: SimulatedQuery) -> None:
        if not query.is_decided:
            query.is_decided, query.stages = True, query.decide(self)
        while query.stages and not query.num_running:
            stage = query.stages.pop(0)
            query.num_running = len(stage)
            self._waiting.extend((query, call) for call in stage)
        if not query.num_running:
            query.ended_s = self.now_s
            self._running.remove(query)

    def _admit(self) -> None:
        """First come, first served; what exceeds all memory runs when it is alone."""
        while self._waiting:
            call = self._waiting[0][1]
            alone = not (self._prefilling or self._layers_left or self._decoding)
            if call.kv_tokens > self.free_tokens and not alone:
                return
            self.free_tokens -= call.kv_tokens
            self._prefilling.append(self._waiting.popleft())

    def _layer(self) -> None:
        """One layer of the pass under way; after the last one its prompts have their first tokens."""
        if not self._layers_left:
            self._begin_pass()
        self.now_s += self._layer_s
        self._layers_left -= 1
        if self._layers_left:
            return
        self._decoded_s = self.now_s
        self._row_s = (self.now_s - self._begun_s) / self._num_rows
        done, self._in_pass = self._in_pass, []
        rode, self._riding = self._riding, []
        self._drawn(rode)
        for query, call in done:
            call.num_left = call.num_answer - 1
            if call.num_left > 0:
                self._decoding.append((query, call))
            else:
                self._end(query, call)

    def _begin_pass(self) -> None:
        """A pass over the first calls; a long one takes several passes, cut where the engine cuts."""
        speed, taken, number = self._speed, 0, 0
        seconds, room = speed.jct.pass_s, speed.pass_tokens
        is_loading = False
        if self._decoding and self._prefilling[0][1].takes_riders:
            self._riding, self._decoding = self._decoding, []
            seconds += speed.rows_s([call.context for _, call in self._riding])
            room = min(room, max(int(speed.stall_s / self._row_s) // ROW_BLOCK, 1) * ROW_BLOCK)
        for one in tuple(self._prefilling):
            call = one[1]
            rows = _rows_within(call, room)
            if rows <= 0 or (self._riding and not call.takes_riders):
                break
            is_loading = is_loading or call.loads
            if call.num_probe and call.num_left == call.num_new:
                seconds += speed.jct.seconds(call.num_probe, call.num_cached)
            seconds += rows / max(call.num_new, 1) * speed.jct.share(call.num_new, call.num_cached)
            taken, number, room = taken + rows, number + 1, room - rows
            call.num_left -= rows
            if not call.num_left:
                self._prefilling.remove(one)
                self._in_pass.append(one)
            if (
                ROW_BLOCK // 2 <= room < ROW_BLOCK
            ):  # as in the engine, a block in place of half a one
                room = min(ROW_BLOCK, speed.pass_tokens - taken)
        seconds += max(number - 1, 0) * speed.jct.prompt_s
        seconds *= speed.loading if is_loading else 1.0
        self._begun_s, self._num_rows = self.now_s, max(taken + len(self._riding), 1)
        self._layers_left = speed.num_layers
        self._layer_s = seconds / speed.num_layers

    def _step(self) -> None:
        """One token for every sequence."""
        if not self._decoding:
            return
        self.now_s += self._speed.steps_s([call.context for _, call in self._decoding])
        self._decoded_s = self.now_s
        members, self._decoding = self._decoding, []
        self._drawn(members)

    def _drawn(self, members: Sequence[tuple[SimulatedQuery, SimulatedCall]]) -> None:
        """Each has a token more, and goes on or ends."""
        for query, call in members:
            call.num_left -= 1
            if call.num_left > 0:
                self._decoding.append((query, call))
            else:
                self._end(query, call)

    def _end(self, query: SimulatedQuery, call: SimulatedCall) -> None:
        self.free_tokens += call.kv_tokens
        query.num_running -= 1
        if not query.num_running:
            self._next_stage(query)


def _rows_within(call: SimulatedCall, room: int) -> int:
    """Rows of the call's next part: all that is left, or up to the end of a block of positions."""
    if call.num_left <= room or call.num_probe:
        return min(call.num_left, room)
    first = call.context - call.num_left
    return max((first + room) // ROW_BLOCK * ROW_BLOCK - first, 0)
