"""What the engine may use: a few settings, and the memory that a prompt of one token needs.

No decode step follows such a prompt, so a layer's K and V can go as soon as the layer is done, and
position-wise work can run in chunks of rows whose large temporaries exist once (PrefillOnly, arXiv
2505.07203, sections 4 and 5).  What may be of use to others, the leading part, is noted as it goes by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdn.config import EngineConfig
from kdn.engine.kv import extents
from kdn.errors import BadInput
from kdn.model import ModelConfig

__all__ = ["IDLE_PREFIX_BYTES", "EngineLimits", "JobMemory", "counted_memory", "measured_memory"]

_DEFAULTS = EngineConfig()
IDLE_PREFIX_BYTES = 256 << 20


@dataclass(frozen=True)
class JobMemory:
    """Bytes a one-token prompt needs beside weights and what is retained of it."""

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
    max_batch_tokens: int = _DEFAULTS.max_batch_tokens
    """Rows in one prefill pass; longer prompts run as several."""
    max_sequences: int = 64
    """Sequences that decode side by side."""
    max_stall_ms: float = _DEFAULTS.max_stall_ms
    """A running stream waits at most about this long (plus one layer) for a prefill."""
    pack_tokens: int | None = _DEFAULTS.pack_tokens
    """With a number, requests are admitted a pass at a time: the first in order, and those whose missing
    tokens fit with it into so many. None admits ahead, up to `max_batch_tokens`."""
    row_chunk: int = _DEFAULTS.row_chunk
    """Rows of position-wise work at a time, for prompts that are asked for one token."""
    speculative_tokens: int = _DEFAULTS.speculative_tokens
    """Tokens of an answer that are guessed from the prompt and checked in one step; 0: none."""
    memory: JobMemory | None = None
    """What such a prompt was measured to need; None counts it from the model's shapes."""
    idle_prefix_bytes: int = IDLE_PREFIX_BYTES
    """Assembled prefixes that stay for the next request that shares them."""


def counted_memory(config: ModelConfig, value_bytes: int, row_chunk: int) -> JobMemory:
    """What follows from the shapes, before anything is measured.

    The most exists while queries are rotated: hidden state, fused q, k and v, rotated q, the layer's
    own K and V, all for every row, with the rotary tables (fp32) and positions; and, for one chunk
    of rows, the MLP with its input and output.
    """
    q, kv = config.q_size, config.kv_size
    values = config.hidden_size + (q + 2 * kv) + q + 2 * kv
    tables = 2 * config.head_dim * 4 + 2 * 8
    inner = 3 * config.intermediate_size + 3 * config.hidden_size
    chunk = row_chunk * (inner * value_bytes + 2 * config.hidden_size * 4)
    return JobMemory(values * value_bytes + tables, chunk)


def measured_memory(peak_bytes: Callable[[int], int], shorter: int, longer: int) -> JobMemory:
    """The straight line through two measured peaks. Raises BadInput for lengths that give none.

    A peak is the larger of two lines, a chunk's work and all rows': both lengths must be on the second.
    """
    if not 0 < shorter < longer:
        raise BadInput(f"two lengths in ascending order are needed, not {shorter} and {longer}")
    low, high = peak_bytes(shorter), peak_bytes(longer)
    token_bytes = (high - low) / (extents(longer) - extents(shorter))
    return JobMemory(token_bytes, max(high - token_bytes * extents(longer), 0.0))
