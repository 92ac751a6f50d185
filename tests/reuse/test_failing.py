"""A store or recorder that fails costs a recompute: the answer stays, and no block stays pinned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdn.clock import SystemClock
from kdn.core import (
    Blend,
    BlockId,
    Finish,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Token,
    Usage,
)
from kdn.engine import Engine, EngineLimits
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse import PrefixReuse, RecordLookups, Stack
from kdn.reuse.blend import BlendReuse, RatioController
from kdn.store import Block, LookupRecorder, MemoryTier, Reader, Store
from kdn.trace import Recorder
from tests.engine.runs import load_tiny, some_tokens

PRELUDE = Segment(Role.PRELUDE, some_tokens(20, 200, seed=9))
ONE = Segment(Role.DOCUMENT, some_tokens(300, 200, seed=1))
TWO = Segment(Role.DOCUMENT, some_tokens(100, 200, seed=2))
QUESTION = Segment(Role.QUESTION, some_tokens(12, 200, seed=3))


class FailingStore(Store):
    """A real store of one memory tier whose named methods raise when told to."""

    def __init__(self, trace: Recorder) -> None:
        super().__init__([MemoryTier(1 << 26, trace)], trace=trace)
        self.failing: set[str] = set()
        self.spare = 0
        """Calls that still succeed."""

    def _fail(self, name: str) -> None:
        if name in self.failing:
            self.spare -= 1
            if self.spare < 0:
                raise OSError(f"{name} fails")

    def match(self, *args: Any, **options: Any) -> Any:
        self._fail("match")
        return super().match(*args, **options)

    def open(self, *args: Any, **options: Any) -> Reader | None:
        self._fail("open")
        return super().open(*args, **options)

    def find_content(self, *args: Any, **options: Any) -> tuple[BlockId, ...]:
        self._fail("find_content")
        return super().find_content(*args, **options)

    def write_behind(self, block: Block, *args: Any, **options: Any) -> None:
        self._fail("write_behind")
        super().write_behind(block, *args, **options)


class Bench:
    """An engine over prefix reuse, blending and a recorder that writes to a closed file."""

    def __init__(self, model: LoadedModel, work: Path) -> None:
        decoder = model.decoder
        shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self.trace = Recorder()
        self.store = FailingStore(self.trace)
        self.recorder = LookupRecorder(work / "lookups.jsonl", SystemClock())
        prefix = PrefixReuse(self.store, shape, lambda _: decoder.fingerprint, trace=self.trace)
        blend = BlendReuse(
            self.store, shape, lambda _: decoder.fingerprint, RatioController(0.25), SystemClock()
        )
        self.stack = Stack([RecordLookups(self.recorder), prefix, blend], trace=self.trace)
        self.engine = Engine(
            model,
            TorchAttention(),
            self.stack,
            EngineLimits(1 << 28),
            SystemClock(),
            threaded=False,
        )
        self._count = 0

    def ask(self, *segments: Segment, **options: Any) -> tuple[list[int], Usage]:
        self._count += 1
        sampling = Sampling(max_tokens=4, ignore_eos=True)
        stream = self.engine.submit(
            Request(str(self._count), Prompt(segments), sampling, **options)
        )
        while self.engine.step():
            pass
        *tokens, last = stream
        assert isinstance(last, Finish)
        return [one.token_id for one in tokens if isinstance(one, Token)], last.usage

    def close(self) -> None:
        self.engine.check()
        self.store.check()
        self.engine.close()
        self.stack.close()
        self.store.close()
        self.recorder.close()


@pytest.fixture
def bench(tiny_model: Callable[..., Path], model_cache: Path, tmp_path: Path) -> Any:
    made = Bench(
        load_tiny(tiny_model("llama", num_hidden_layers=4), model_cache, "float32"), tmp_path
    )
    yield made
    made.close()


FIXED = {"techniques": (Blend(0.25),), "retention": Retention.NOTHING}


@pytest.mark.parametrize("name", ["match", "open", "find_content"])
@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_store_that_fails_while_planning_costs_a_recompute(
    bench: Bench, name: str, spare: int
) -> None:
    cold, _ = bench.ask(PRELUDE, ONE, QUESTION, reuse=False)
    bench.ask(PRELUDE, ONE, QUESTION)
    bench.ask(PRELUDE, ONE, TWO, QUESTION)
    bench.store.failing, bench.store.spare = {name}, spare
    again, usage = bench.ask(PRELUDE, ONE, QUESTION)
    assert again == cold
    _, blended = bench.ask(PRELUDE, TWO, ONE, QUESTION, **FIXED)
    bench.store.failing.clear()
    assert usage.exact + usage.recomputed == usage.prompt_tokens
    assert blended.exact + blended.blended + blended.recomputed == blended.prompt_tokens
    assert bench.ask(PRELUDE, ONE, QUESTION)[1].exact == 320, "it is used again when it works again"


def test_failures_are_counted_with_their_reason(bench: Bench) -> None:
    bench.store.failing = {"match", "write_behind"}
    bench.ask(PRELUDE, ONE, QUESTION)
    reasons = [event.fields["why"] for event in bench.trace.events("reuse.failed")]
    assert reasons == ["OSError('match fails')"] * 2 + ["OSError('write_behind fails')"]
    assert bench.stack.num_failures == 3


def test_what_cannot_be_stored_is_computed_next_time(bench: Bench) -> None:
    bench.store.failing = {"write_behind"}
    cold, _ = bench.ask(PRELUDE, ONE, QUESTION)
    bench.store.failing.clear()
    again, usage = bench.ask(PRELUDE, ONE, QUESTION)
    assert (again, usage.exact) == (cold, 0)
    assert bench.ask(PRELUDE, ONE, QUESTION)[1].exact == 320


def test_a_recorder_that_fails_costs_the_recording_alone(bench: Bench) -> None:
    bench.ask(PRELUDE, ONE, QUESTION)
    bench.recorder.close()
    _, usage = bench.ask(PRELUDE, ONE, QUESTION)
    assert usage.exact == 320
    (event,) = bench.trace.events("reuse.failed")
    assert event.fields["technique"] == "RecordLookups"


def test_a_loader_that_is_shut_down_is_a_recompute(bench: Bench) -> None:
    """Reads that cannot be started fail as damaged blocks do: the prompt is planned again."""
    cold, _ = bench.ask(PRELUDE, ONE, QUESTION)
    bench.stack.close()
    again, usage = bench.ask(PRELUDE, ONE, QUESTION)
    assert (again, usage.exact) == (cold, 0)
    assert bench.trace.count("engine.fail") == 0


@pytest.mark.parametrize("salt", ["\x00", "é\u202e", "'; DROP TABLE blocks; --", "a/../b", "\n"])
def test_any_text_is_a_salt_and_keeps_to_itself(bench: Bench, salt: str) -> None:
    bench.ask(PRELUDE, ONE, QUESTION, salt=salt)
    assert bench.ask(PRELUDE, ONE, QUESTION, salt=salt)[1].exact == 320
    assert bench.ask(PRELUDE, ONE, QUESTION, salt=salt + "x")[1].exact == 0
