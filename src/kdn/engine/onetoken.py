"""Prompts that are asked for one token: no KV beyond the layer at hand, and a memory that is known.

No decode step follows, so a layer's K and V can go as soon as the layer is done, and position-wise
work can run in chunks of rows whose large temporaries exist once (PrefillOnly, arXiv 2505.07203,
sections 4 and 5).  What may be of use to others, the leading part, is noted down as it goes by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kdn.core import Plan
from kdn.engine.kv import extents
from kdn.engine.limits import JobMemory
from kdn.engine.prefill import computes_in_order
from kdn.engine.request import RunningRequest
from kdn.errors import BadInput
from kdn.model import ModelConfig

__all__ = ["counted_memory", "measured_memory", "one_token_plan"]


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


def one_token_plan(live: RunningRequest, plan: Plan, row_chunk: int) -> Plan:
    """The plan as a prompt of one token runs it; any other prompt's, or a plan of another kind, as it is."""
    allowed = live.request.sampling.allowed or None
    if live.max_new_tokens > 1 or not computes_in_order(plan):
        return plan
    return replace(plan, one_layer=True, row_chunk=row_chunk, allowed=allowed)
