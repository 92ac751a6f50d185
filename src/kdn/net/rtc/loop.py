"""The hot loop of a call: capture, encode by table, pace, send, decode, and hear what arrived.

The network is the packet world's own: `loop.emit` sends a packet into it, its log tells what arrived.
`advance` stops at each capture when pictures are coded by a real codec, and else only when time is up.
"""

from __future__ import annotations

from kdn.net.rtc.rows import (
    DECODED,
    PACKET_ACKED,
    PACKET_LOST,
    PACKET_SENT,
    PACKET_WAITS,
    PADDING,
    SKIPPED,
    CallState,
    Rows,
)
from kdn.net.world import loop as world_loop
from kdn.net.world.compiled import compiled
from kdn.net.world.records import NOT_ECT, SECOND, State

__all__ = [
    "CAPTURE",
    "FULL",
    "LEAST_SHARE",
    "TIME",
    "add_packet",
    "advance",
    "arrived",
    "book",
    "budget_bytes",
    "capture",
    "holds_enough",
    "pad",
    "place_of",
    "quality_of",
    "settle",
    "take_packet",
]

TIME = 0
CAPTURE = 1
FULL = 2

_FLOW = 0
LEAST_SHARE = 0.1
"""Of a picture's packets, which must have arrived to decode it."""
_MOST_WAIT_S = 0.15
"""No picture is coded while the pacer holds more than this much time of packets."""


@compiled
def advance(call: CallState, world: State, until: int, by_table: bool) -> int:
    """Run up to `until`; TIME, FULL when rows are used up, or CAPTURE for the caller to `book` one."""
    c = call.call[0]
    while True:
        t = min(until, c.next_capture)
        if c.next_packet < c.num_packets or c.probe > 0.0:
            t = min(t, max(c.next_send, world.clock[0].now))
        reason = world_loop.advance(world, t)
        _hear(call, world)
        if reason == world_loop.FULL or c.num_packets + 512 > len(call.sent):
            return FULL
        now = world.clock[0].now
        if reason == world_loop.LOG_FULL or _pace(call, world, now, until):
            continue
        if now >= c.next_capture:
            if c.num_frames >= len(call.frames):
                return FULL
            if not by_table:
                return CAPTURE
            capture(call, now)
        elif now >= until:
            return TIME


@compiled
def _pace(call: CallState, world: State, now: int, until: int) -> bool:
    """Send the next packet, or make one of padding for a probe; False when none is due."""
    c = call.call[0]
    if c.next_send > now:
        return False
    if c.next_packet < c.num_packets:
        _send_one(call, world, now)
        return True
    if c.probe > 0.0 and now < until:
        pad(call)
        return True
    return False


@compiled
def capture(call: CallState, now: int) -> None:
    """A picture is taken and coded: the largest level that fits what the rate leaves for it."""
    c = call.call[0]
    if (
        c.num_frames > 0
        and c.waiting_bytes * 8.0 > max(c.rate * c.pace, c.pace_floor) * _MOST_WAIT_S
    ):
        book(call, now, 0, 0, False)  # the pacer has enough: this picture is not coded
        return
    intra = c.num_frames == 0 or c.key_due == 1
    sizes = call.intra_sizes if intra else call.sizes
    row = place_of(c.num_frames, c.loops)
    budget = budget_bytes(call)
    level = 0
    for one in range(c.levels):
        if sizes[row, one] <= budget:
            level = one
    size = sizes[row, level]
    count = max(-(-size // c.payload), c.least_packets)
    if c.spare > 0.0:
        count = int(count / (1.0 - c.spare)) + 1
        size = int(size / (1.0 - c.spare))
    frame = book(call, now, level, count, intra)
    for index in range(count):
        add_packet(call, frame, index, size // count + (1 if index < size % count else 0))
    settle(call, frame)


@compiled
def holds_enough(call: CallState) -> bool:
    """Does the pacer hold so much that the next picture is better not coded?"""
    c = call.call[0]
    pace = max(c.rate * c.pace, c.pace_floor)
    return bool(c.num_frames > 0 and c.waiting_bytes * 8.0 > pace * _MOST_WAIT_S)


@compiled
def budget_bytes(call: CallState) -> float:
    """Bytes for the next picture: the rate's share and what the last one saved, less what still waits.

    Without what was saved, a picture would seldom rise to a level whose first picture costs more than
    those that follow.
    """
    c = call.call[0]
    share = c.rate / 8.0 * c.interval / SECOND + c.saved - c.waiting_bytes
    packets = max(-(-int(share) // c.payload), c.least_packets)
    return float((share - packets * c.header) * (1.0 - c.spare))


@compiled
def settle(call: CallState, frame: int) -> None:
    """After a picture's packets are queued: keep what it did not use, at most one picture's share."""
    c = call.call[0]
    share = c.rate / 8.0 * c.interval / SECOND
    c.saved = min(max(share + c.saved - call.frames[frame].bytes, 0.0), share)


@compiled
def book(call: CallState, now: int, level: int, count: int, intra: bool) -> int:
    """A row for a picture coded now; its packets follow by `add_packet`."""
    c = call.call[0]
    frame = c.num_frames
    c.num_frames += 1
    c.next_capture += c.interval
    row = call.frames[frame]
    row.t, row.level, row.count, row.first = now, level, count, c.num_packets
    row.intra, row.known = 1 if intra else 0, c.known_frames
    if intra:
        c.key_due, c.key_asked = 0, frame
    return int(frame)


@compiled
def add_packet(call: CallState, frame: int, index: int, payload: int) -> None:
    """Queue one packet at the pacer."""
    c = call.call[0]
    row = call.sent[c.num_packets]
    row.frame, row.index, row.size, row.status = frame, index, payload + c.header, PACKET_WAITS
    c.num_packets += 1
    c.waiting_bytes += row.size
    call.frames[frame].bytes += row.size


@compiled
def pad(call: CallState) -> None:
    """One packet of padding, which waits for nothing."""
    c = call.call[0]
    row = call.sent[c.num_packets]
    row.frame, row.index, row.size, row.status = PADDING, 0, c.payload + c.header, PACKET_WAITS
    c.num_packets += 1
    c.waiting_bytes += row.size


@compiled
def take_packet(call: CallState, now: int) -> int:
    """The row of the pacer's next packet, booked as sent now. There must be one."""
    c = call.call[0]
    at = c.next_packet
    p = call.sent[at]
    call.by_number[c.num_sent] = at
    c.next_packet += 1
    c.num_sent += 1
    c.waiting_bytes -= p.size
    c.sent_bytes += p.size
    p.status, p.t_send = PACKET_SENT, now
    rate = max(c.rate * c.pace, c.pace_floor, c.probe)
    c.next_send = max(now, c.next_send) + int(p.size * 8.0 * SECOND / rate)
    return int(at)


@compiled
def _send_one(call: CallState, world: State, now: int) -> None:
    at = take_packet(call, now)
    world_loop.emit(world, _FLOW, call.sent[at].size, NOT_ECT, now)


@compiled
def _hear(call: CallState, world: State) -> None:
    """Take the world's new log rows: what each tells the receiver, and the sender."""
    clock = world.clock[0]
    for i in range(clock.num_log):
        row = world.log[i]
        if row.flow != _FLOW:
            continue
        arrived(call, row.seq, row.t_deliver, row.t_ack)
    clock.num_log = 0


@compiled
def arrived(call: CallState, seq: int, t_deliver: int, t_ack: int) -> None:
    """Transmission `seq` arrived then, which its sender hears now; earlier ones not heard of are lost."""
    c = call.call[0]
    for number in range(c.highest_acked + 1, seq):
        _lost(call, call.by_number[number])
    c.highest_acked = max(c.highest_acked, seq)
    at = call.by_number[seq]
    p = call.sent[at]
    p.status, p.t_deliver, p.t_ack = PACKET_ACKED, t_deliver, t_ack
    c.acked_bytes += p.size
    c.num_acked += 1
    if call.num_acks[0] < len(call.acks):
        ack = call.acks[call.num_acks[0]]
        ack.seq, ack.size, ack.t_send = seq, p.size, p.t_send
        ack.t_deliver, ack.t_ack = t_deliver, t_ack
        call.num_acks[0] += 1
    if p.frame == PADDING:
        return
    frame = call.frames[p.frame]
    frame.arrived += 1
    frame.arrived_bytes += p.size
    c.newest = max(c.newest, p.frame)
    _decode_ready(call, c.newest, t_deliver)
    c.known_frames = max(c.known_frames, min(c.next_decode, p.frame))


@compiled
def _lost(call: CallState, at: int) -> None:
    """A gap in what arrived. A picture that must be whole is sent again, piece by piece."""
    c = call.call[0]
    p = call.sent[at]
    if p.status != PACKET_SENT:
        return
    p.status = PACKET_LOST
    c.num_lost += 1
    if p.frame == PADDING:
        return
    frame = call.frames[p.frame]
    if frame.intra == 1 and p.frame >= c.next_decode and c.survives == 1:
        frame.bytes -= p.size
        add_packet(call, p.frame, p.index, p.size - c.header)


@compiled
def _decode_ready(call: CallState, newest: int, now: int) -> None:
    """Decode, in order, every picture that is whole or followed by a later one's packet."""
    c = call.call[0]
    while c.next_decode < c.num_frames and c.next_decode <= newest:
        at = c.next_decode
        frame = call.frames[at]
        if frame.count == 0:
            frame.fate = SKIPPED
            c.next_decode += 1
            continue
        if frame.arrived < frame.count and at == newest:
            return
        if c.survives == 1:
            if frame.intra == 1 and frame.arrived < frame.count:
                return  # its missing packets are sent again
            _decode_any(call, at, now)
        else:
            _decode_whole(call, at, now)
        c.next_decode += 1


@compiled
def _decode_any(call: CallState, at: int, now: int) -> None:
    """The codec that survives loss: a tenth of the packets will do, the quality falls with the rest."""
    c = call.call[0]
    frame = call.frames[at]
    frame.loss = 1.0 - frame.arrived_bytes / max(frame.bytes, 1)
    if frame.arrived < LEAST_SHARE * frame.count:
        frame.fate = SKIPPED
        frame.damage = _own_damage(call, at, 0.9)
        return
    _note_decoded(call, at, now)
    row = place_of(at, c.loops)
    frame.damage = _own_damage(call, at, frame.loss)
    damage, share = frame.damage, 1.0
    for before in range(at - 1, frame.known - 1, -1):
        share *= c.carry
        damage += share * call.frames[before].damage
    frame.quality = max(quality_of(call.quality, row, frame.level, 0.0) - damage, 0.0)
    frame.psnr = quality_of(call.psnr, row, frame.level, frame.loss)


@compiled
def _own_damage(call: CallState, at: int, loss: float) -> float:
    """The similarity that the picture's own losses take from it."""
    row, level = place_of(at, call.call[0].loops), call.frames[at].level
    clean = quality_of(call.quality, row, level, 0.0)
    return max(clean - quality_of(call.quality, row, level, loss), 0.0)


@compiled
def _decode_whole(call: CallState, at: int, now: int) -> None:
    """A classical codec: all but the repair share, and an unbroken chain since an intra picture."""
    c = call.call[0]
    frame = call.frames[at]
    needed = frame.count - int(c.spare * frame.count)
    frame.loss = 1.0 - frame.arrived / max(frame.count, 1)
    if frame.arrived < needed or (c.broken == 1 and frame.intra == 0):
        frame.fate = SKIPPED
        c.broken = 1
        if at > c.key_asked or call.frames[at].intra == 1:
            c.key_due = 1
        return
    c.broken = 0
    _note_decoded(call, at, now)
    row = place_of(at, c.loops)
    frame.quality = quality_of(call.quality, row, frame.level, 0.0)
    frame.psnr = quality_of(call.psnr, row, frame.level, 0.0)


@compiled
def _note_decoded(call: CallState, at: int, now: int) -> None:
    frame = call.frames[at]
    frame.fate, frame.t_decode = DECODED, now
    call.call[0].last_decode_t = now


@compiled
def place_of(number: int, length: int) -> int:
    """The place in a clip of a call's picture: a clip is played to its end, then backwards, and so on."""
    turn = max(2 * (length - 1), 1)
    place = number % turn
    return int(place if place < length else turn - place)


@compiled
def quality_of(table: Rows, row: int, level: int, loss: float) -> float:
    """The table at a loss, on a line between the tenths; above 0.9 as at 0.9."""
    place = min(max(loss, 0.0), 0.9) * 10.0
    low = min(int(place), 8)
    share = place - low
    return float(table[row, level, low] * (1.0 - share) + table[row, level, low + 1] * share)
