"""Where the KV of running sequences lives: shared prefixes, own suffixes.

    columns   0 ....... num_prefix | num_prefix ..... num_prefix + suffix columns
              prefix, read-only,   | suffix, grows in extents of 256 columns,
              one copy for all     | owned by one sequence
              sequences that       |
              begin with it        |

Layouts are those of `kdn.model.attention`: K [layers, kv heads, columns, dim], rotated;
V [layers, kv heads, dim, columns].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    KvShape,
    Plan,
    Recipe,
    Request,
    RetainedKV,
    Retention,
    TokenIds,
    chain_hash,
)
from kdn.engine.bias import ColumnBias
from kdn.errors import PromptTooLong
from kdn.machine.memory import allocate
from kdn.machine.text import counted
from kdn.model import LoadedModel
from kdn.model.decoder import KvNote

if TYPE_CHECKING:
    from kdn.engine.request import RunningRequest

__all__ = [
    "EXTENT",
    "Capture",
    "PrefixKV",
    "SequenceKV",
    "SuffixKV",
    "check_room",
    "drop_handed_over",
    "extents",
    "family_name",
    "has_answer_block",
    "kv_shape",
    "retained_answer",
    "retained_blocks",
    "retained_parts",
    "retained_prompt",
    "retains_answer",
    "shared_tokens",
    "wanted_capture",
    "zeros",
]


EXTENT = 256
"""Columns a suffix grows by."""

_SKEW = 32
"""Unused columns after the last: rows of V whose distance is a power of two would crowd each
other out of the processor's caches."""
_PAD = 64
"""Kernels read whole tiles of columns: buffers are padded with zeros to a multiple of this."""


def extents(num_columns: int) -> int:
    """`num_columns` rounded up to whole extents."""
    return -(-num_columns // EXTENT) * EXTENT


def zeros(size: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Zeros; on the CPU in pages that are made when first written, where `torch.zeros` writes twice."""
    if device != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    return torch.frombuffer(allocate(math.prod(size) * dtype.itemsize), dtype=dtype).view(size)


def kv_shape(model: LoadedModel) -> KvShape:
    """The shape of the model's KV in the type that it computes in."""
    decoder = model.decoder
    return decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))


class PrefixKV:
    """Rotated KV of the first `num_columns` positions of some prompt. Filled once, layer by layer."""

    def __init__(
        self,
        name: str,
        num_columns: int,
        shape: KvShape,
        dtype: torch.dtype,
        device: str,
        *,
        one_layer: bool = False,
    ) -> None:
        """With `one_layer` each layer overwrites the one before: such a prefix serves one pass and is
        never complete."""
        padded = -(-num_columns // _PAD) * _PAD + _SKEW
        self.name = name
        self.num_columns = num_columns
        layers, heads, dim = shape.num_layers, shape.num_kv_heads, shape.head_dim
        held = 1 if one_layer else layers
        self.k = zeros((held, heads, padded, dim), dtype, device).expand(layers, -1, -1, -1)
        self.v = zeros((held, heads, dim, padded), dtype, device).expand(layers, -1, -1, -1)
        self._one_layer = one_layer
        self.num_layers_ready = 0
        self.users = 0

    @property
    def size_bytes(self) -> int:
        return self.k.untyped_storage().nbytes() + self.v.untyped_storage().nbytes()

    @property
    def is_complete(self) -> bool:
        return not self._one_layer and self.num_layers_ready == self.k.shape[0]

    def start_over(self) -> None:
        """The pass that filled it broke off: the next one begins at the first layer."""
        assert not self.is_complete, "a complete prefix is read-only"
        self.num_layers_ready = 0

    def layer_done(self, layer: int) -> None:
        """Note that `layer` is written; layers come in order."""
        assert layer == self.num_layers_ready, "a prefix is filled layer by layer"
        self.num_layers_ready += 1


class SuffixKV:
    """A sequence's own columns."""

    def __init__(
        self,
        shape: KvShape,
        dtype: torch.dtype,
        device: str,
        num_columns: int,
        *,
        one_layer: bool = False,
    ) -> None:
        """With `one_layer` all layers lie in the same memory, and each overwrites the one before."""
        self._shape = shape
        self._held = 1 if one_layer else shape.num_layers
        self._dtype = dtype
        self._device = device
        self.k, self.v = self._allocate(extents(num_columns))
        self.num_columns = 0

    def _allocate(self, capacity: int) -> tuple[Tensor, Tensor]:
        layers, heads, dim = self._shape.num_layers, self._shape.num_kv_heads, self._shape.head_dim
        size = capacity + _SKEW
        k = zeros((self._held, heads, size, dim), self._dtype, self._device)
        v = zeros((self._held, heads, dim, size), self._dtype, self._device)
        return k.expand(layers, -1, -1, -1), v.expand(layers, -1, -1, -1)

    @property
    def capacity(self) -> int:
        return self.k.shape[2] - _SKEW

    @property
    def size_bytes(self) -> int:
        """What the columns take, however many layers share them."""
        return self.k.untyped_storage().nbytes() + self.v.untyped_storage().nbytes()

    def grow(self, num_columns: int) -> None:
        """Memory for `num_columns` in all. What is written stays."""
        if num_columns <= self.capacity:
            return
        k, v = self._allocate(extents(num_columns))
        k[:, :, : self.k.shape[2]] = self.k
        v[:, :, :, : self.v.shape[3]] = self.v
        self.k, self.v = k, v


@dataclass
class SequenceKV:
    """All the KV a running sequence reads."""

    suffix: SuffixKV
    prefix: PrefixKV | None = None
    num_prefix: int = 0
    bias: ColumnBias | None = None
    """What the plan adds to the scores of columns; decoded rows see it too."""

    @property
    def num_columns(self) -> int:
        return self.num_prefix + self.suffix.num_columns


class Capture:
    """K before rotation and V from position `start` on: [layers, 2, tokens, kv heads, dim], on the CPU."""

    def __init__(self, shape: KvShape, dtype: torch.dtype, start: int, num_tokens: int) -> None:
        self.start = start
        self._size = (shape.num_layers, 2, extents(num_tokens), shape.num_kv_heads, shape.head_dim)
        self._kv = zeros(self._size, dtype)

    @property
    def stop(self) -> int:
        """The first position there is no memory for."""
        return self.start + self._kv.shape[2]

    def drop_before(self, start: int, stop: int) -> None:
        """Give up what lies before `start`. What was noted of [start, stop) stays."""
        if start <= self.start:
            return
        layers, two, _, heads, dim = self._size
        kv = zeros((layers, two, extents(max(stop - start, 1)), heads, dim), self._kv.dtype)
        kv[:, :, : stop - start] = self._kv[:, :, start - self.start : stop - self.start]
        self._kv, self.start = kv, start

    def note(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Rows [rows, kv heads, dim] at `positions`; those outside the buffer are passed over."""
        if not positions.numel():
            return
        first, last = int(positions[0]), int(positions[-1])
        if last - first + 1 == positions.numel() and first >= self.start and last < self.stop:
            at = slice(first - self.start, last + 1 - self.start)
            self._kv[layer, 0, at] = k
            self._kv[layer, 1, at] = v
            return
        inside = (positions >= self.start) & (positions < self.stop)
        places = positions[inside] - self.start
        self._kv[layer, 0, places] = k[inside.to(k.device)].cpu()
        self._kv[layer, 1, places] = v[inside.to(v.device)].cpu()

    def note_at(self, first: int, stop: int) -> KvNote:
        """Where [first, stop) goes, less what lies past the buffer: for a kernel that notes it itself."""
        assert first >= self.start, "what was handed over is not computed again"
        return KvNote(self._kv, first - self.start, max(min(stop, self.stop) - first, 0))

    def retained(
        self, token_ids: TokenIds, start: int, recipe: Recipe = EXACT, *, is_answer: bool = False
    ) -> RetainedKV:
        """What was noted for positions [start, len(token_ids)), as a view."""
        kv = self._kv[:, :, start - self.start : len(token_ids) - self.start]
        return RetainedKV(start, token_ids, kv, recipe, is_answer)


def shared_tokens(request: Request) -> int:
    """Prompt tokens before the last segment: what other requests may have in common."""
    segments = request.prompt.segments
    return sum(segment.num_tokens for segment in segments[:-1]) if len(segments) > 1 else 0


def family_name(request: Request, adapter_from: int = 0) -> str:
    """Names the shared part of a prompt and whose KV may stand in for it."""
    num_shared = shared_tokens(request)
    shared = chain_hash(request.prompt.token_ids[:num_shared])
    adapter = request.adapter if adapter_from < num_shared else None
    return f"{adapter}/{request.salt}/{shared}"


def wanted_capture(request: Request, plan: Plan) -> tuple[int, int] | None:
    """The positions [start, stop) whose KV must be noted as it is computed, or None.

    The plan's own limit is an upper limit to what the request asks for.
    """
    if request.retention is Retention.NOTHING:
        return None
    whole = request.retention is Retention.ALL
    stop = request.prompt.num_tokens if whole else shared_tokens(request)
    if plan.keep is not None:
        stop = plan.keep.within(stop)
    return (plan.num_prefix, stop) if stop > plan.num_prefix else None


def retained_prompt(running: RunningRequest) -> RetainedKV | None:
    """KV of the shared part, once the prompt is done. None when all of it was stored already."""
    capture, request = running.capture, running.request
    if capture is None:
        return None
    stop = min(shared_tokens(request), capture.stop)
    limit = running.planned.plan.keep if running.planned is not None else None
    stop = limit.within(stop) if limit is not None else stop
    if stop <= capture.start:
        return None
    return capture.retained(request.prompt.token_ids[:stop], capture.start, _recipe(running))


def retained_parts(running: RunningRequest) -> list[RetainedKV]:
    """What the store is to be handed of a prompt that is done, or of the answer so far, as views that
    live on."""
    parts = (retained_prompt(running), retained_blocks(running))
    if parts[0] is not None and not retains_answer(running):
        running.capture = None  # the answer needs none
    return [part for part in parts if part is not None]


def retains_answer(running: RunningRequest) -> bool:
    """Is KV to be noted while the request decodes?"""
    limit = running.planned.plan.keep if running.planned is not None else None
    is_limited = limit is not None and limit.num_tokens is not None
    return running.request.retention is Retention.ALL and not is_limited


def retained_blocks(running: RunningRequest) -> RetainedKV | None:
    """KV of the whole blocks of question and answer that were noted: prompts that begin alike need not
    wait for the answer, nor a long answer for memory. None when there are none, or the answer is not
    retained."""
    capture = running.capture
    if capture is None or not retains_answer(running):
        return None
    start, stop = _own_blocks(running, capture, _num_computed(running))
    token_ids = (*running.request.prompt.token_ids, *running.generated)[:stop]
    recipe = _recipe(running)
    return capture.retained(token_ids, start, recipe, is_answer=True) if stop > start else None


def drop_handed_over(running: RunningRequest) -> None:
    """Give up, once the store was handed them, the rows that it needs not be handed again.

    What is left is less than a block, and there is memory for the rest of it: so a buffer holds an answer
    of any length, and is no larger than what was reserved for the prompt's.
    """
    capture = running.capture
    if capture is not None and retains_answer(running):
        num_computed = _num_computed(running)
        _, given_to = _own_blocks(running, capture, num_computed)
        capture.drop_before(given_to, min(num_computed, capture.stop))


def has_answer_block(running: RunningRequest) -> bool:
    """Has an answer that is retained come to the end of a block, so that the buffer is full?"""
    capture = running.capture
    if capture is None or not retains_answer(running):
        return False
    return _num_computed(running) - capture.start >= BLOCK_TOKENS


def _num_computed(running: RunningRequest) -> int:
    """Tokens with KV, once the prompt is done: all but the last one drawn."""
    return running.request.prompt.num_tokens + max(len(running.generated) - 1, 0)


def _own_blocks(running: RunningRequest, capture: Capture, num_tokens: int) -> tuple[int, int]:
    """Where what is not shared begins, and its whole blocks end, of so many first tokens, where noted."""
    start = max(shared_tokens(running.request), capture.start)
    noted = min(num_tokens, capture.stop) - start
    return start, start + max(noted, 0) // BLOCK_TOKENS * BLOCK_TOKENS


def retained_answer(running: RunningRequest) -> RetainedKV | None:
    """KV of the question and the answer, after what `retained_parts` gave and `drop_handed_over` gave up.
    The last token drawn was never computed, so it is not in."""
    capture, request = running.capture, running.request
    if capture is None or request.retention is not Retention.ALL:
        return None
    token_ids: TokenIds = (*request.prompt.token_ids, *running.generated[:-1])
    limit = running.planned.plan.keep if running.planned is not None else None
    stop = capture.stop if limit is None else limit.within(capture.stop)
    token_ids = token_ids[:stop]
    start, given_to = _own_blocks(running, capture, request.prompt.num_tokens)
    if retains_answer(running):
        start = given_to
    if len(token_ids) <= start:
        return None
    return capture.retained(token_ids, start, _recipe(running), is_answer=True)


def _recipe(running: RunningRequest) -> Recipe:
    limit = running.planned.plan.keep if running.planned is not None else None
    return limit.recipe if limit is not None else EXACT


def check_room(num_tokens: int, max_new_tokens: int, token_bytes: int, total_bytes: int) -> None:
    """Raises PromptTooLong when the whole budget could not hold a prompt and its answer at all layers."""
    needed = extents(num_tokens + max_new_tokens) * token_bytes
    if needed > total_bytes:
        raise PromptTooLong(
            f"the prompt ({counted(num_tokens, 'token')}) and its answer (up to {max_new_tokens}) "
            f"need {needed >> 20} MiB of KV; the budget is {total_bytes >> 20} MiB, "
            f"about {total_bytes // token_bytes} tokens: shorten it, lower max_tokens, "
            "or raise engine.kv_budget_bytes"
        )
