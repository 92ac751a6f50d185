"""A call's memory: rows of numbers, as in `net.world`; times are integer nanoseconds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACK",
    "CALL",
    "CODED",
    "DECODED",
    "FRAME",
    "PACKET_ACKED",
    "PACKET_LOST",
    "PACKET_SENT",
    "PACKET_WAITS",
    "PADDING",
    "SENT",
    "SKIPPED",
    "CallState",
    "Rows",
]

# What has become of a picture at the receiver.
CODED = 0
DECODED = 1
SKIPPED = 2

# What the sender knows of a packet.
PACKET_WAITS = 0
PACKET_SENT = 1
PACKET_ACKED = 2
PACKET_LOST = 3

PADDING = -1
"""The picture of a packet that belongs to none."""

CALL = np.dtype(
    [
        # settings
        ("interval", "i8"),  # between pictures
        ("loops", "i8"),  # pictures in the table, which is played forth and back
        ("levels", "i8"),
        ("survives", "i8"),  # 1: any tenth of a picture decodes; 0: all but `spare` must arrive
        ("spare", "f8"),  # share of a picture's packets that are repair packets
        ("carry", "f8"),  # how much of a picture's damage the next one inherits
        ("payload", "i8"),
        ("least_packets", "i8"),
        ("header", "i8"),  # bytes around a payload: UDP, IP and our own
        ("pace", "f8"),  # the pacer sends at this multiple of the rate
        ("pace_floor", "f8"),  # and at least at so many bit/s
        # state of the sender
        ("rate", "f8"),  # bit/s, set by the controller
        ("probe", "f8"),  # bit/s; above 0 the pacer pads up to it
        ("saved", "f8"),  # bytes that earlier pictures left
        ("next_capture", "i8"),
        ("num_frames", "i8"),
        ("num_packets", "i8"),  # rows of SENT in use
        ("next_packet", "i8"),  # the first that waits
        ("waiting_bytes", "i8"),
        ("next_send", "i8"),
        ("num_sent", "i8"),  # transmissions
        ("highest_acked", "i8"),  # transmission number
        ("known_frames", "i8"),  # pictures below this have a fate that the sender knows
        ("key_due", "i8"),  # 1: the next picture must stand alone
        ("key_asked", "i8"),  # the newest intra picture; it repairs the damage before it
        # state of the receiver
        ("newest", "i8"),  # the newest picture of which anything has arrived
        ("next_decode", "i8"),
        ("last_decode_t", "i8"),
        ("broken", "i8"),  # 1: cannot decode before a whole intra picture
        # counts
        ("sent_bytes", "i8"),
        ("acked_bytes", "i8"),
        ("num_lost", "i8"),
        ("num_acked", "i8"),
    ]
)

FRAME = np.dtype(
    [
        ("t", "i8"),  # when it was captured
        ("level", "i8"),
        ("bytes", "i8"),
        ("count", "i8"),
        ("first", "i8"),  # its first row of SENT
        ("intra", "i8"),
        ("known", "i8"),  # pictures below this were known to the sender when it was coded
        ("arrived", "i8"),
        ("arrived_bytes", "i8"),
        ("fate", "i8"),
        ("t_decode", "i8"),
        ("loss", "f8"),
        ("damage", "f8"),  # its own loss of similarity
        ("quality", "f8"),  # SSIM
        ("psnr", "f8"),
    ]
)

SENT = np.dtype(
    [
        ("frame", "i8"),  # PADDING where it belongs to none
        ("index", "i8"),
        ("size", "i8"),
        ("status", "i8"),
        ("t_send", "i8"),
        ("t_deliver", "i8"),
        ("t_ack", "i8"),
    ]
)

ACK = np.dtype(
    [("seq", "i8"), ("size", "i8"), ("t_send", "i8"), ("t_deliver", "i8"), ("t_ack", "i8")]
)

Rows = Any


class CallState(NamedTuple):
    """Everything of a call that changes, and its tables."""

    call: Rows
    """[1]"""
    frames: Rows
    sent: Rows
    """Packets in the order in which they were made, or made again."""
    by_number: NDArray[np.int64]
    """The SENT row of each transmission."""
    acks: Rows
    """ACK rows since the last step, in order of arrival."""
    num_acks: NDArray[np.int64]
    """[1]"""
    sizes: NDArray[np.int64]
    """[pictures, levels]"""
    intra_sizes: NDArray[np.int64]
    """[pictures, levels]"""
    quality: NDArray[np.float64]
    """SSIM, [pictures, levels, 10 losses]"""
    psnr: NDArray[np.float64]
