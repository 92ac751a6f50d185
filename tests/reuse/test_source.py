"""How layers are read together, and how well reading hides behind computing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import ManualClock
from kdn.core import KvShape
from kdn.reuse.source import Pace, StoreSource, tensor_over_all
from kdn.store import Reader

LAYERS, TOKENS, BLOCKS = 30, 256, 8
SHAPE = KvShape(num_layers=LAYERS, num_kv_heads=3, head_dim=64, dtype="bfloat16")
RUN = memoryview(bytes(SHAPE.layer_token_bytes * TOKENS))


class Pipeline(Executor):
    """A loader and a computing side, each with a clock; neither waits."""

    def __init__(self) -> None:
        self.loader = ManualClock()
        self.now_s = 0.0
        """Of the computing side."""
        self.over_s: dict[Future[Any], float] = {}
        self._queue: list[tuple[float, Future[Any], Callable[[], Any]]] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Waited(self)
        self._queue.append((self.now_s, future, lambda: call(*args, **kwargs)))
        return future

    def compute(self, seconds: float) -> None:
        self.now_s += seconds
        while self._queue and self.loader.now() < self.now_s:
            self._load()

    def wait_for(self, future: Future[Any]) -> None:
        while future not in self.over_s:
            self._load()
        self.now_s = max(self.now_s, self.over_s[future])

    def _load(self) -> None:
        asked_s, future, call = self._queue.pop(0)
        self.loader.advance(max(asked_s - self.loader.now(), 0.0))
        future.set_result(call())
        self.over_s[future] = self.loader.now()


class Waited(Future[Any]):
    """A load that is over when the loader's clock says so."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self._pipeline = pipeline

    def result(self, timeout: float | None = None) -> Any:
        self._pipeline.wait_for(self)
        return super().result(timeout)


@dataclass
class SlowReader:
    """A block of which every read takes a beginning, and then so much a layer."""

    clock: ManualClock
    begin_s: float
    layer_s: float
    sizes: list[int] = field(default_factory=list)
    ranges: list[range] = field(default_factory=list)
    num_tokens: int = TOKENS
    at_once: int = 1
    id: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(num_tokens=TOKENS))

    def layers(self, start: int, stop: int) -> list[memoryview]:
        self.clock.advance(self.begin_s + (stop - start) * self.layer_s)
        self.sizes.append(stop - start)
        self.ranges.append(range(start, stop))
        return [RUN] * (stop - start)


def together(load_s: float, compute_s: float, begin_s: float = 0.0) -> tuple[float, list[int]]:
    """Seconds for loading and computing all layers, each taking so long; and what was read at once.

    The executor's order: ask for the next layer, take this one, compute it.
    """
    pipeline = Pipeline()
    readers = [
        SlowReader(pipeline.loader, begin_s / BLOCKS, load_s / BLOCKS) for _ in range(BLOCKS)
    ]
    source = StoreSource("", cast("list[Reader]", readers), SHAPE, pipeline, pipeline.loader)
    source.start(0)
    for layer in range(LAYERS):
        if layer + 1 < LAYERS:
            source.start(layer + 1)
        assert len(source.take(layer)) == BLOCKS
        pipeline.compute(compute_s)
    assert sum(readers[0].sizes) == LAYERS
    return pipeline.now_s, readers[0].sizes


@pytest.mark.parametrize("ratio", [0.5, 0.7, 1.0, 1.4, 2.0])
def test_loading_over_a_slow_link_hides_behind_computing(ratio: float) -> None:
    both_s, sizes = together(load_s=0.016 * ratio, compute_s=0.016)
    longer_s = LAYERS * 0.016 * max(ratio, 1.0)
    floor_s = longer_s + 0.016 * min(ratio, 1.0)  # the first load, or the last layer's computing
    assert max(sizes) == 2
    assert floor_s - 1e-9 <= both_s <= 1.1 * longer_s


def test_a_quick_tier_is_asked_for_more_and_more_at_once() -> None:
    _, sizes = together(load_s=0.0002, compute_s=0.002)
    assert sizes == [1, 1, 1, 2, 4, 6, 6, 6, 3]


def test_where_each_read_begins_slowly_more_is_read_at_once() -> None:
    both_s, sizes = together(load_s=0.001, compute_s=0.002, begin_s=0.1)
    assert max(sizes) == 6
    one_by_one_s = LAYERS * 0.101
    assert both_s < 0.5 * one_by_one_s


def test_a_size_that_brought_nothing_is_given_up_for_good() -> None:
    pace = Pace(most=6)
    pace.took(1, 0.010)
    assert pace.size == 2
    pace.took(2, 0.020)
    assert pace.size == 1
    pace.took(1, 0.001)
    assert pace.size == 1


@given(
    most=st.integers(-1, 64),
    reads=st.lists(st.floats(0, 10), max_size=60),
)
def test_no_read_is_empty_or_too_large(most: int, reads: list[float]) -> None:
    pace = Pace(most)
    for seconds in reads:
        assert 1 <= pace.size <= max(most, 1)
        pace.took(pace.size, seconds)


@given(
    cuts=st.sets(st.integers(0, LAYERS), min_size=2, max_size=6).map(sorted),
    layer_s=st.sampled_from([1e-5, 0.01]),
)
def test_only_the_layers_that_will_be_taken_are_read(cuts: list[int], layer_s: float) -> None:
    """Reads are larger and larger, but never reach into a gap, nor over it."""
    layers = [range(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    pipeline = Pipeline()
    reader = SlowReader(pipeline.loader, 0.0, layer_s)
    readers = cast("list[Reader]", [reader])
    source = StoreSource("", readers, SHAPE, pipeline, pipeline.loader, layers=layers)
    for layer in (layer for part in layers for layer in part):
        source.start(layer)
        assert len(source.take(layer)) == 1
    assert [layer for read in reader.ranges for layer in read] == [
        layer for part in layers for layer in part
    ]
    assert all(any(set(read) <= set(part) for part in layers) for read in reader.ranges)


def test_runs_at_even_distances_in_one_buffer_are_one_tensor_over_it() -> None:
    """Three runs of four values with a gap of two; at uneven distances, or of two buffers, they are not."""
    buffer = bytearray(np.arange(18, dtype=np.uint16).tobytes())
    whole = memoryview(buffer)
    runs = [whole[start : start + 8] for start in (0, 12, 24)]
    together = tensor_over_all(runs, torch.bfloat16, (2, 2))
    assert together is not None
    assert together.view(torch.int16).tolist() == [
        [[0, 1], [2, 3]],
        [[6, 7], [8, 9]],
        [[12, 13], [14, 15]],
    ]
    buffer[12:14] = bytes((99, 0))
    assert together[1, 0, 0].view(torch.int16) == 99, "nothing was copied"
    assert tensor_over_all([runs[0], runs[1], whole[26:34]], torch.bfloat16, (2, 2)) is None
    assert tensor_over_all([runs[1], runs[0]], torch.bfloat16, (2, 2)) is None
    assert tensor_over_all([runs[0], memoryview(bytes(8))], torch.bfloat16, (2, 2)) is None
    alone = tensor_over_all(runs[2:], torch.bfloat16, (4,))
    assert alone is not None
    assert alone.view(torch.int16).tolist() == [[12, 13, 14, 15]]
