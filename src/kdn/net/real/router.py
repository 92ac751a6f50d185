"""A router in user space: datagrams in, through a queue of the simulator's own code, out.

Senders talk to the front socket, the reflector to the back one.  Data wait in the queues and
leave at the link's rate; feedback passes immediately.  The link keeps its own time, which begins with the
first data: when the process wakes late, packets leave late but the rate holds.
"""

from __future__ import annotations

import select
import socket
from collections import deque

from kdn.clock import Clock
from kdn.errors import BadInput
from kdn.net.real import wire
from kdn.net.world.bare import admit, is_lost, leaves_at, next_to_forward
from kdn.net.world.build import empty_hop
from kdn.net.world.packets import release
from kdn.net.world.queue import update
from kdn.net.world.records import NIL, SECOND, copied
from kdn.net.world.spec import Hop

__all__ = ["Router"]

_ROWS = 1 << 14
_BURST = 32
_NAP_S = 0.02


class Router:
    """Owns one hop and the packets in it. `step` does what is due and waits for more."""

    def __init__(
        self,
        hop: Hop,
        front: socket.socket,
        back: socket.socket,
        receiver: tuple[str, int],
        clock: Clock,
    ) -> None:
        self._state = empty_hop(hop, _ROWS)
        self._row = self._state.hops[0]
        self._front, self._back, self._receiver = front, back, receiver
        self._clock = clock
        self._zero: float | None = None
        """When the first data came: a recorded link begins then, however long its users took to load."""
        self._data: dict[int, bytes] = {}
        self._sources: dict[int, tuple[str, int]] = {}
        self._sending: tuple[int, int] | None = None
        """The packet on the link and when its last bit leaves."""
        self._free_at = 0
        self._on_wire: deque[tuple[int, bytes, int]] = deque()
        self._next_update = int(self._row["t_update"])
        self.forwarded = 0
        self.foreign = 0
        self.warm()

    @property
    def marked(self) -> tuple[int, int]:
        """Packets marked in the low-latency and in the classic queue."""
        return int(self._row["marked_l"]), int(self._row["marked_c"])

    @property
    def dropped(self) -> int:
        return int(self._row["dropped"] + self._row["overflowed"])

    @property
    def lost(self) -> int:
        """Packets that the link lost after it had carried them."""
        return int(self._row["lost"])

    def warm(self) -> None:
        """Have every compiled rule ready, so that the first packet is not held up by it."""
        spare = copied(self._state)
        leaves_at(spare, 100, 0)
        is_lost(spare)
        packet = admit(self._state, 100, 1, 0)
        assert next_to_forward(self._state, 0) == packet
        self._forget(packet)
        update(self._state, 0, 0)

    def step(self) -> None:
        """Forward what is due, take in what has come, sleep until one of the two."""
        now = self._now()
        self._update(now)
        self._forward(now)
        wait_s = max(min((self._due() - self._now()) / SECOND, _NAP_S), 0.0)
        ready, _, _ = select.select([self._front, self._back], [], [], wait_s)
        if self._front in ready:
            self._take_in()
        if self._back in ready:
            self._pass_back()

    def check(self) -> None:
        """Every packet held is queued or on the link. Raises AssertionError otherwise."""
        queued = int(self._row["len_l"] + self._row["len_c"])
        assert len(self._data) == queued + (self._sending is not None)

    def _now(self) -> int:
        return 0 if self._zero is None else int((self._clock.now() - self._zero) * SECOND)

    def _due(self) -> int:
        due = self._next_update
        if self._sending is not None:
            due = min(due, self._sending[1])
        if self._on_wire:
            due = min(due, self._on_wire[0][0])
        return due

    def _update(self, now: int) -> None:
        if now >= self._next_update:
            update(self._state, 0, now)
            self._next_update = max(self._next_update + int(self._row["t_update"]), now)

    def _forward(self, now: int) -> None:
        """Run the link up to now, then send what has travelled long enough."""
        while True:
            if self._sending is not None:
                packet, done = self._sending
                if done > now:
                    break
                self._leave(packet, done)
            if not self._start(now):
                break
        while self._on_wire and self._on_wire[0][0] <= now:
            _, data, ecn = self._on_wire.popleft()
            if wire.send(self._back, data, self._receiver, ecn):
                self.forwarded += 1

    def _start(self, now: int) -> bool:
        """Put the next packet on the link; False when the queues are empty."""
        dropped = int(self._row["dropped"])
        packet = next_to_forward(self._state, now)
        if int(self._row["dropped"]) != dropped:
            self._forget_dropped()
        if packet == NIL:
            self._sending = None
            return False
        size = int(self._state.packets[packet]["size"])
        start = max(self._free_at, int(self._state.packets[packet]["t_queue"]))
        self._free_at = int(leaves_at(self._state, size, start))
        self._sending = packet, self._free_at
        return True

    def _leave(self, packet: int, done: int) -> None:
        ecn = int(self._state.packets[packet]["ecn"])
        data = wire.remark(self._data[packet], ecn)
        self._forget(packet)
        self._sending = None
        if is_lost(self._state):
            return
        self._on_wire.append((done + int(self._row["prop"]), data, ecn))

    def _forget(self, packet: int) -> None:
        self._data.pop(packet, None)
        self._state.packets[packet]["travelling"] = 0
        release(self._state, packet)

    def _forget_dropped(self) -> None:
        """The queue has freed rows by itself; let their bytes go too."""
        rows = self._state.packets
        for packet in [held for held in self._data if rows[held]["travelling"] == 0]:
            del self._data[packet]

    def _take_in(self) -> None:
        for _ in range(_BURST):
            found = wire.receive(self._front)
            if found is None:
                return
            data, ecn, source = found
            try:
                flow = wire.read(data).flow
            except BadInput:
                self.foreign += 1
                continue
            if self._zero is None:
                self._zero = self._clock.now()
            self._sources[flow] = source
            packet = admit(self._state, len(data), ecn, self._now())
            if packet != NIL:
                self._data[packet] = data

    def _pass_back(self) -> None:
        for _ in range(_BURST):
            found = wire.receive(self._back)
            if found is None:
                return
            data, ecn, _ = found
            try:
                source = self._sources.get(wire.read(data).flow)
            except BadInput:
                self.foreign += 1
                continue
            if source is not None:
                wire.send(self._front, data, source, ecn)
