"""Steering without stored KV: a prompt that may reuse nothing, or cannot, is steered like any other.

In this model a token of KV takes 4 layers x 2 x 2 heads x 16 x 4 bytes = 1,024 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdn.core import Blend, Prompt, Request, Retention, Sampling, Stream
from kdn.engine import Engine, EngineLimits, JobMemory
from kdn.errors import PromptTooLong
from kdn.model import LoadedModel
from kdn.reuse.blend import QualityGuard, RatioController
from kdn.store import Store, open_store
from kdn.trace import Recorder
from tests.engine.runs import load_tiny
from tests.reuse.steer.test_technique import ASK, ONE, PRELUDE, ROOMY, STRESS, Desk

SEGMENTS = (PRELUDE, ONE, ASK)
"""332 tokens."""
COLUMN = 1024


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama", num_hidden_layers=4), model_cache)


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(None, memory_bytes=1 << 26) as found:
        yield found


@contextmanager
def opened(model: LoadedModel, store: Store, limits: EngineLimits = ROOMY) -> Iterator[Desk]:
    desk = Desk(model, store, limits)
    yield desk
    assert desk.stack.num_failures == 0
    desk.stack.close()
    desk.engine.check()
    desk.engine.close()


@dataclass
class Stepped:
    """A generator that steps its engine until the answer is there."""

    engine: Engine

    def submit(self, request: Request) -> Stream:
        stream = self.engine.submit(request)
        while self.engine.step():
            pass
        return stream


def test_a_request_that_reuses_nothing_is_steered(tiny: LoadedModel, store: Store) -> None:
    with opened(tiny, store) as desk:
        plain, _ = desk.ask(segments=SEGMENTS, retention=Retention.NOTHING)
        steered, _ = desk.ask(STRESS, segments=SEGMENTS)
        assert desk.num_stored(*SEGMENTS) == 320
        cold, usage = desk.ask(STRESS, segments=SEGMENTS, reuse=False)
    assert (usage.exact, usage.recomputed) == (0, 332)
    assert cold == steered, "bit for bit"
    assert cold != pytest.approx(plain, abs=1e-4)


def test_a_request_whose_stored_beginning_does_not_fit_is_steered(
    tiny: LoadedModel, store: Store
) -> None:
    """Computed whole it takes two pieces of 256 columns; a prefix of 320 and a piece take more."""
    with opened(tiny, store) as roomy:
        steered, _ = roomy.ask(STRESS, segments=SEGMENTS)
    with opened(tiny, store, EngineLimits(512 * COLUMN)) as tight:
        cold, usage = tight.ask(STRESS, segments=SEGMENTS)
    assert usage.exact == 0
    assert cold == pytest.approx(steered, abs=1e-4)


def test_a_steered_prompt_that_only_fits_a_layer_at_a_time_is_refused(
    tiny: LoadedModel, store: Store
) -> None:
    """Asked for one token, 332 tokens are said to take 512 bytes; steered they take 512 columns."""
    limits = EngineLimits(511 * COLUMN, memory=JobMemory(1.0, 0.0))
    with opened(tiny, store, limits) as desk:
        asked = Request("1", Prompt(SEGMENTS), Sampling(max_tokens=1), techniques=(STRESS,))
        stepped = Stepped(desk.engine)
        assert list(stepped.submit(asked.without(type(STRESS))))
        with pytest.raises(PromptTooLong, match=r"332 tokens.* about 511 tokens"):
            list(stepped.submit(asked))


def test_the_guard_of_blending_does_not_measure_steering(tiny: LoadedModel, store: Store) -> None:
    """At a ratio of 1 all is computed: the blended answer is the full one, and both are steered."""
    guard = QualityGuard(RatioController(1.0), 1, 0.1, Recorder())
    with opened(tiny, store) as desk:
        desk.ask(segments=SEGMENTS)
        guard.compare(
            Request("1", Prompt(SEGMENTS), techniques=(Blend(), STRESS)), Stepped(desk.engine)
        )
    assert guard.stats()[""].mean_kl == pytest.approx(0, abs=1e-6)
