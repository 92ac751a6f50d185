"""A running world: built from a scenario, advanced, asked, copied, audited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdn.errors import KdnError
from kdn.net.world import loop
from kdn.net.world.build import build
from kdn.net.world.queue import QUEUES
from kdn.net.world.records import ECT0, ECT1, LOG, NIL, SECOND, State, blank, copied
from kdn.net.world.spec import Scenario

__all__ = [
    "Chooser",
    "ChooserAnswer",
    "ChooserQuestion",
    "FlowTotals",
    "World",
    "WorldFull",
]


class WorldFull(KdnError):
    """More packets exist together than the world was built for."""


@dataclass(frozen=True)
class ChooserQuestion:
    """A flow has a packet to send and may choose its queue."""

    flow: int
    now_ns: int
    acks: NDArray[Any]
    """LOG rows of this flow that arrived since it last asked, oldest first."""
    inflight: int
    mark: int
    """Its current ECN codepoint."""
    size: int
    srtt_ns: float
    world: World | None = None
    """The world that asks, for oracles; None on a real network."""


@dataclass(frozen=True)
class ChooserAnswer:
    """`mark` holds for the flow until its next question; a probe sends one packet the other way."""

    mark: int
    probe: bool = False


class Chooser(Protocol):
    """Chooses a queue for the packets of a flow."""

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        """The marking from now on: ECT1 for the low-latency queue, ECT0 for the classic one."""


@dataclass(frozen=True)
class FlowTotals:
    """What one flow did, up to now."""

    sent: int
    sent_l: int
    acked: int
    goodput_mbps: float
    lost: int
    spurious: int
    ce: int
    switches: int
    late: int
    """Arrivals after a higher sequence number."""
    extent: int
    """The farthest that any came after it, in packets."""


class World:
    """Owns the rows of one scenario."""

    def __init__(self, scenario: Scenario, choosers: dict[int, Chooser] | None = None) -> None:
        self.scenario = scenario
        self.state: State = build(scenario)
        self.num_questions = 0
        self._choosers = choosers or {}
        self._scratch: State | None = None
        self._kept: list[NDArray[Any]] = []
        self._read: dict[int, int] = dict.fromkeys(self._choosers, 0)
        self._unread: dict[int, list[NDArray[Any]]] = {flow: [] for flow in self._choosers}

    @property
    def now_ns(self) -> int:
        return int(self.state.clock[0]["now"])

    def run(
        self, until_s: float | None = None, tick: Callable[[float], None] | None = None
    ) -> None:
        """Advance to `until_s` (by default the scenario's end), asking choosers on the way.

        `tick` hears the simulated seconds about ten times a second of them. Raises WorldFull.
        """
        end = int((self.scenario.seconds if until_s is None else until_s) * SECOND)
        step = end if tick is None else SECOND // 10
        while self.now_ns < end:
            self._run(min(self.now_ns + step, end))
            if tick is not None:
                tick(self.now_ns / SECOND)

    def _run(self, until_ns: int) -> None:
        while True:
            reason = loop.advance(self.state, until_ns)
            if reason == loop.DONE:
                return
            if reason == loop.FULL:
                raise WorldFull(
                    f"scenario {self.scenario.name!r} holds over {len(self.state.packets)} packets "
                    "together; shorten its buffers or windows"
                )
            if reason == loop.LOG_FULL:
                self._flush()
            if reason == loop.ASKED:
                self._ask()

    def _ask(self) -> None:
        flow = int(self.state.clock[0]["asking"])
        self.num_questions += 1
        chooser = self._choosers.get(flow)
        row = self.state.flows[flow]
        if chooser is None:
            loop.answer(self.state, int(row["mark"]), False, 0)
            return
        question = ChooserQuestion(
            flow=flow,
            now_ns=self.now_ns,
            acks=self._new_acks(flow),
            inflight=int(row["inflight"]),
            mark=int(row["mark"]),
            size=int(row["size"]),
            srtt_ns=float(row["srtt"]),
            world=self,
        )
        answer = chooser.choose(question)
        loop.answer(self.state, answer.mark, answer.probe, int(row["decision_cost"]))

    def _new_acks(self, flow: int) -> NDArray[Any]:
        end = int(self.state.clock[0]["num_log"])
        fresh = self.state.log[self._read[flow] : end]
        self._read[flow] = end
        parts = [*self._unread[flow], fresh[fresh["flow"] == flow].copy()]
        self._unread[flow] = []
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _flush(self) -> None:
        """Move the log's rows out, keeping for each asking flow what it has not read."""
        end = int(self.state.clock[0]["num_log"])
        rows = self.state.log[:end].copy()
        self._kept.append(rows)
        for flow, read in self._read.items():
            fresh = rows[read:]
            self._unread[flow].append(fresh[fresh["flow"] == flow])
            self._read[flow] = 0
        self.state.clock[0]["num_log"] = 0

    def delay_of_each(self, horizon_s: float = 2.0) -> tuple[float | None, float | None]:
        """(L, C): one-way seconds the asking flow's next packet would take; None if it is lost.

        A counterfactual: runs two copies of the whole world; this one is not changed.
        """
        if self._scratch is None:
            self._scratch = blank(self.state)
        horizon = int(horizon_s * SECOND)
        return self._fate(ECT1, horizon), self._fate(ECT0, horizon)

    def _fate(self, mark: int, horizon: int) -> float | None:
        assert self._scratch is not None
        arrives, delay = loop.fate(self._scratch, self.state, mark, horizon)
        return delay / SECOND if arrives else None

    def log(self) -> NDArray[Any]:
        """A LOG row per ACK of the logged flows, in order of arrival."""
        end = int(self.state.clock[0]["num_log"])
        rows = [*self._kept, self.state.log[:end]]
        return np.concatenate(rows) if rows else np.zeros(0, LOG)

    def totals(self, flow: int) -> FlowTotals:
        """The flow's counts and its goodput since its start."""
        row = self.state.flows[flow]
        active_ns = max(min(self.now_ns, int(row["stop"])) - int(row["start"]), 1)
        return FlowTotals(
            sent=int(row["sent"]),
            sent_l=int(row["sent_l"]),
            acked=int(row["acked"]),
            goodput_mbps=float(row["acked_bytes"]) * 8e3 / active_ns,
            lost=int(row["lost"]),
            spurious=int(row["spurious"]),
            ce=int(row["ce"]),
            switches=int(row["switches"]),
            late=int(row["late"]),
            extent=int(row["extent"]),
        )

    def clone(self, choosers: dict[int, Chooser] | None = None) -> World:
        """An independent copy that will do exactly as this one would.

        Choosers are shared unless others are given, which must choose for the same flows.
        """
        twin = World(self.scenario, self._choosers if choosers is None else choosers)
        twin.state = copied(self.state)
        twin._kept = list(self._kept)
        twin._read = dict(self._read)
        twin._unread = {flow: list(parts) for flow, parts in self._unread.items()}
        return twin

    def check(self) -> None:
        """Audit the counts: rows, queues and flows agree. Raises AssertionError when they do not."""
        state = self.state
        used = state.packets[: int(state.clock[0]["used"])]
        alive = (used["outstanding"] == 1) | (used["travelling"] == 1)
        free, row = 0, int(state.clock[0]["free"])
        while row != NIL:
            assert not alive[row], f"packet row {row} is both free and in use"
            free, row = free + 1, int(used[row]["next"])
        assert free + int(alive.sum()) == len(used), "a packet row has leaked"
        for index, flow in enumerate(state.flows):
            mine = used[(used["outstanding"] == 1) & (used["flow"] == index)]
            assert int(mine["size"].sum()) == int(flow["inflight"]), (
                f"flow {index}: bytes in flight"
            )
            counted = int(flow["acked"]) + int(flow["lost"]) + len(mine)
            assert counted == int(flow["sent"]), f"flow {index}: packets sent"
            assert 0.0 < float(flow["cwnd"]) < np.inf, f"flow {index}: window"
        for hop in state.hops:
            if QUEUES[int(hop["aqm"])].uses_lists:
                assert self._chain(int(hop["head_l"]), int(hop["len_l"])) == int(hop["bytes_l"])
                assert self._chain(int(hop["head_c"]), int(hop["len_c"])) == int(hop["bytes_c"])

    def _chain(self, head: int, length: int) -> int:
        total = 0
        for _ in range(length):
            total += int(self.state.packets[head]["size"])
            head = int(self.state.packets[head]["next"])
        return total
