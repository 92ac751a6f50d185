"""The world's memory: rows of numbers, so that one copy of the arrays is a copy of the world.

Times are integer nanoseconds, sizes bytes, rates bits per second, packets are row numbers and
`NIL` is the row that does not exist.  A field's comment names who writes it when that is not
plain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "APP_GREEDY",
    "ASK",
    "BLOCKS",
    "BY_TYPE",
    "CE",
    "CLOCK",
    "ECT0",
    "ECT1",
    "EVENT",
    "FIXED",
    "FLOW",
    "FQ",
    "HOP",
    "LOG",
    "MS",
    "NIL",
    "NOT_ECT",
    "PACKET",
    "RANDOM",
    "SECOND",
    "US",
    "WATCH_NEXT",
    "WATCH_NONE",
    "WATCH_PACKET",
    "State",
    "blank",
    "copied",
]

US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000
NIL = -1

# The ECN field (RFC 3168).
NOT_ECT = 0
ECT1 = 1
ECT0 = 2
CE = 3

# How a flow marks its packets.
FIXED = 0
RANDOM = 1
BLOCKS = 2
BY_TYPE = 3
ASK = 4

# Whether a copied world waits to learn a packet's fate.
WATCH_NONE = 0
WATCH_NEXT = 1
WATCH_PACKET = 2

APP_GREEDY = 1e18
"""Bytes waiting at a sender that always has more."""

EVENT = np.dtype([("t", "i8"), ("n", "i8"), ("kind", "i8"), ("arg", "i8")])

PACKET = np.dtype(
    [
        ("flow", "i8"),
        ("seq", "i8"),
        ("size", "i8"),
        ("sent_ecn", "i8"),
        ("ecn", "i8"),  # a queue may turn it into CE
        ("hop", "i8"),
        ("t_ready", "i8"),  # when it could have gone, had deciding cost nothing
        ("t_send", "i8"),
        ("t_queue", "i8"),  # when it joined the queue it is in
        ("t_deliver", "i8"),
        ("long_queue", "i8"),  # Linux DualPI2's step flag, set on joining
        ("next", "i8"),  # the packet after it in its queue, or in the free list
        ("newer", "i8"),  # the sender's list of packets in flight, in send order
        ("older", "i8"),
        ("outstanding", "i8"),  # 1 while the sender waits for its ACK
        ("travelling", "i8"),  # 1 while the network holds it
        ("inflight", "i8"),  # the flow's bytes in flight when it was sent
        ("delivered", "i8"),  # the flow's delivered bytes when it was sent
        ("delivered_t", "i8"),
    ]
)

HOP = np.dtype(
    [
        # what it is
        ("aqm", "i8"),
        ("limit", "i8"),  # bytes
        ("limit_packets", "i8"),
        ("mtu", "i8"),
        ("prop", "i8"),
        ("jitter", "i8"),  # mean of the exponential extra delay; order is kept
        ("loss", "f8"),
        ("next_hop", "i8"),
        ("rates_at", "i8"),  # this hop's rows of State.rate_t and State.rate
        ("rates_len", "i8"),
        ("rates_period", "i8"),
        ("opportunities", "i8"),  # 1: rate_t lists moments at which one packet may leave
        # DualPI2's settings
        ("linux", "i8"),
        ("alpha", "f8"),
        ("beta", "f8"),
        ("target", "i8"),
        ("t_update", "i8"),
        ("coupling", "f8"),
        ("p_c_max", "f8"),
        ("min_th", "i8"),
        ("ramp_range", "i8"),
        ("th_len", "i8"),
        ("ts_fifo", "i8"),
        ("t_shift", "i8"),
        ("weight_c", "i8"),
        ("weight_l", "i8"),
        # its state
        ("p", "f8"),
        ("q_prev", "i8"),
        ("recur_l", "f8"),
        ("recur_c", "f8"),
        ("credit", "i8"),
        ("head_l", "i8"),
        ("tail_l", "i8"),
        ("len_l", "i8"),
        ("bytes_l", "i8"),
        ("head_c", "i8"),
        ("tail_c", "i8"),
        ("len_c", "i8"),
        ("bytes_c", "i8"),
        # FQ-CoDel: first and last of the new and of the old list of queues
        ("new_head", "i8"),
        ("new_tail", "i8"),
        ("old_head", "i8"),
        ("old_tail", "i8"),
        # the link
        ("busy", "i8"),
        ("rate_index", "i8"),  # the rate in force, or the opportunity that was taken last
        ("last_out", "i8"),
        # what happened
        ("joined", "i8"),
        ("left", "i8"),
        ("left_bytes", "i8"),
        ("overflowed", "i8"),
        ("dropped", "i8"),
        ("lost", "i8"),
        ("marked_l", "i8"),
        ("marked_c", "i8"),
    ]
)

FQ = np.dtype(
    [
        ("head", "i8"),
        ("tail", "i8"),
        ("bytes", "i8"),
        ("deficit", "i8"),
        ("listed", "i8"),
        ("next", "i8"),
        ("first_above", "i8"),
        ("drop_next", "i8"),
        ("count", "i8"),
        ("last_count", "i8"),
        ("dropping", "i8"),
    ]
)

FLOW = np.dtype(
    [
        # what it is
        ("cc", "i8"),
        ("has_window", "i8"),  # the facts of its congestion rule
        ("grows_on_marks", "i8"),
        ("restarts_after_idle", "i8"),
        ("keeps_min_rtt", "i8"),
        ("ect", "i8"),  # its own class: NOT_ECT, ECT0 or ECT1
        ("size", "i8"),
        ("first_hop", "i8"),
        ("last_hop", "i8"),
        ("delay_in", "i8"),
        ("delay_out", "i8"),
        ("delay_back", "i8"),
        ("base", "i8"),  # one-way delay of one packet of it through an empty network
        ("start", "i8"),
        ("stop", "i8"),
        ("marking", "i8"),
        ("decision_gap", "i8"),
        ("decision_cost", "i8"),
        ("logged", "i8"),
        ("rwnd", "i8"),
        # the application: a chunk every interval while it is on
        ("chunk", "f8"),
        ("chunk_spread", "f8"),  # 0 constant, 1 exponential
        ("interval", "f8"),
        ("interval_spread", "f8"),
        ("on", "f8"),
        ("off", "f8"),
        ("app_bytes", "f8"),
        ("app_until", "i8"),
        ("chunk_sent", "f8"),
        ("t_ready", "i8"),
        # the window
        ("cwnd", "f8"),
        ("ssthresh", "f8"),
        ("filled", "i8"),  # packets before this number met a window with data for all of it
        ("unfilled", "i8"),  # how long the application was the limit, up to the last ACK
        ("inflight", "i8"),
        ("pacing", "f8"),  # bytes per ns; 0 is unpaced
        ("next_send", "i8"),
        ("send_armed", "i8"),
        ("timer_armed", "i8"),
        ("seq", "i8"),
        ("oldest", "i8"),
        ("newest", "i8"),
        ("srtt", "f8"),
        ("rttvar", "f8"),
        ("min_rtt", "f8"),
        ("min_rtt_t", "i8"),
        ("rack_t", "i8"),  # when the newest acknowledged packet was sent
        ("rack_rtt", "f8"),
        ("last_progress", "i8"),
        ("last_sent", "i8"),
        ("backoff", "i8"),
        ("recovery", "i8"),  # packets sent before this have had their response
        ("reduced", "i8"),
        # scalable: the marked fraction
        ("mark_share", "f8"),
        ("round_acked", "f8"),
        ("round_marked", "f8"),
        ("round_end", "i8"),
        # CUBIC
        ("w_max", "f8"),
        ("epoch", "i8"),
        ("k_cubic", "f8"),
        ("w_reno", "f8"),
        # BBR-like
        ("mode", "i8"),
        ("bw_now", "f8"),
        ("bw_before", "f8"),
        ("bw_full", "f8"),
        ("full_rounds", "i8"),
        ("rounds", "i8"),
        ("round_delivered", "i8"),
        ("cycle", "i8"),
        ("cycle_t", "i8"),
        ("delivered", "i8"),
        ("delivered_t", "i8"),
        # per-packet marking
        ("mark", "i8"),
        ("marks_left", "i8"),
        ("decided", "i8"),
        ("answered", "i8"),  # 1: the packet that asked has not gone yet
        ("probe", "i8"),  # 1: the next packet only goes to the other queue
        ("switches", "i8"),
        # what happened
        ("sent", "i8"),
        ("sent_l", "i8"),
        ("acked", "i8"),
        ("acked_bytes", "i8"),
        ("lost", "i8"),
        ("spurious", "i8"),
        ("ce", "i8"),
        ("highest", "i8"),
        ("late", "i8"),
        ("extent", "i8"),
    ]
)

LOG = np.dtype(
    [
        ("flow", "i8"),
        ("seq", "i8"),
        ("size", "i8"),
        ("sent_ecn", "i8"),
        ("ecn", "i8"),
        ("t_ready", "i8"),
        ("t_send", "i8"),
        ("t_deliver", "i8"),
        ("t_ack", "i8"),
        ("inflight", "i8"),
    ]
)

CLOCK = np.dtype(
    [
        ("now", "i8"),
        ("count", "i8"),
        ("num_events", "i8"),
        ("free", "i8"),  # head of the free list of packets
        ("used", "i8"),  # rows below this have been used
        ("num_log", "i8"),
        ("random", "u8"),
        ("asking", "i8"),  # the flow whose marking is asked for
        ("frozen", "i8"),  # 1: flows keep their mark and ask nobody
        ("watch", "i8"),  # WATCH_NONE, WATCH_NEXT (the next packet that is sent) or WATCH_PACKET
        ("watched", "i8"),  # the packet whose fate ends the run
        ("watched_lost", "i8"),  # 1: it was lost
        ("watched_delay", "i8"),  # its one-way delay, where it was not
        ("handled", "i8"),
        ("full", "i8"),
    ]
)

Rows = Any
"""An array of records, or one record: their fields are attributes only once compiled."""


class State(NamedTuple):
    """Everything that changes, and the tables that do not (`rate_t`, `rate`)."""

    clock: Rows
    events: Rows
    packets: Rows
    hops: Rows
    flows: Rows
    fq: Rows
    """[hops, flows]"""
    log: Rows
    rate_t: NDArray[np.int64]
    rate: NDArray[np.float64]


def copied(state: State) -> State:
    """The same rows again, in memory of their own; the tables that never change are shared."""
    parts = {name: getattr(state, name).copy() for name in _CHANGING}
    return state._replace(**parts)


def blank(state: State) -> State:
    """Room for a copy of `state`, not filled yet."""
    return state._replace(**{name: np.zeros_like(getattr(state, name)) for name in _CHANGING})


_CHANGING = ("clock", "events", "packets", "hops", "flows", "fq", "log")
