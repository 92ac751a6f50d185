"""Real-time video whose codec survives loss, and rate controllers that know it.

May be imported by `bench` and `cli`.  Start reading at `call.py`, then `codec/neural.py` and `env.py`.
"""

from typing import Any

__all__ = ["CallEnv"]


def __getattr__(name: str) -> Any:
    """`CallEnv`, whose gymnasium is loaded when it is asked for."""
    if name == "CallEnv":
        from kdn.net.rtc.env import CallEnv

        return CallEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
