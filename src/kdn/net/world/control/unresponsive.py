"""No congestion control: what the application gives is sent, whatever comes of it."""

from __future__ import annotations

from kdn.net.world.control.rule import Rule, ignore, ignore_ack, ignore_loss, ignore_mark

__all__ = ["UNRESPONSIVE"]

UNRESPONSIVE = Rule(
    "unresponsive",
    ignore_ack,
    ignore_mark,
    ignore_loss,
    ignore,
    has_window=False,
    restarts_after_idle=False,
)
