"""What the engine may use. A few dials; the rest is derived from the machine."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Read-only limits of one engine."""

    kv_bytes: int
    """KV of all running sequences together."""
    max_batch_tokens: int = 2048
    """Rows in one prefill pass; longer prompts run as several."""
    max_sequences: int = 64
    """Sequences that decode side by side."""
    max_stall_ms: float = 60.0
    """A running stream waits at most about this long (plus one layer) for a prefill."""
    idle_head_bytes: int = 256 << 20
    """Assembled prefixes kept for the next request that shares them."""
