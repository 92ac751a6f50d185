"""What the engine may use. A few dials; the rest is derived from the machine."""

from __future__ import annotations

from dataclasses import dataclass

from kdn.engine.kv import extents

__all__ = ["EngineLimits", "JobMemory"]


@dataclass(frozen=True)
class JobMemory:
    """Bytes a one-token prompt needs beside weights and whatever is kept of it."""

    token_bytes: float
    """For each row that is computed."""
    fixed_bytes: float
    """For one chunk of rows, however long the prompt."""

    def needed(self, num_rows: int) -> int:
        """Bytes for a prompt of `num_rows` rows to compute."""
        return round(self.fixed_bytes + self.token_bytes * extents(num_rows))

    def largest(self, budget_bytes: int) -> int:
        """The most rows that fit into `budget_bytes`; 0 when not even a few do."""
        rows = int((budget_bytes - self.fixed_bytes) / self.token_bytes)
        return max(rows // extents(1) * extents(1), 0)


@dataclass(frozen=True)
class EngineLimits:
    """Read-only limits of one engine."""

    kv_bytes: int
    """KV of all running sequences together."""
    max_batch_tokens: int = 2048
    """Rows in one prefill pass; longer prompts run as several."""
    max_sequences: int = 64
    """Sequences that decode side by side."""
    max_stall_ms: float = 60.0
    """A running stream waits at most about this long (plus one layer) for a prefill."""
    pack_tokens: int | None = None
    """With a number, requests are admitted a pass at a time: the first in order, and those whose missing
    tokens fit with it into so many. None admits ahead, up to `max_batch_tokens`."""
    row_chunk: int = 512
    """Rows of position-wise work at a time, for prompts that are asked for one token."""
    memory: JobMemory | None = None
    """What such a prompt was measured to need; None counts it from the model's shapes."""
    idle_head_bytes: int = 256 << 20
    """Assembled prefixes kept for the next request that shares them."""
