"""Techniques over each other: a lossy prefix under a blend. Counts add up, and taint passes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kdn.clock import SystemClock
from kdn.core import (
    EXACT,
    Blend,
    Finish,
    Prefix,
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
from kdn.reuse import LossRule, PrefixReuse, Stack, lossy_recipe
from kdn.reuse.blend import BlendReuse, RatioController
from kdn.reuse.blend.chunks import StoredDocuments
from kdn.reuse.codec_quality import CodecQuality, QualityRecord
from kdn.store import Store, open_store
from tests.engine.runs import load_tiny, some_tokens

PRELUDE = Segment(Role.PRELUDE, some_tokens(20, 200, seed=9))
ONE = Segment(Role.DOCUMENT, some_tokens(300, 200, seed=1))
TWO = Segment(Role.DOCUMENT, some_tokens(100, 200, seed=2))
THREE = Segment(Role.DOCUMENT, some_tokens(60, 200, seed=3))


MEASURED = QualityRecord(
    model="m", fingerprint="f", positions=400, context_tokens=512, wall_s=0,
    kl_wrong_document=1, kl_no_context=1,
    codecs={"int8": CodecQuality(kl=0.01, kl_p99=0.1, changed_share=0, gain=2)},
)  # fmt: skip


def question(seed: int) -> Segment:
    return Segment(Role.QUESTION, some_tokens(12, 200, seed=seed))


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama", num_hidden_layers=4), model_cache, "float32")


Ask = Callable[..., tuple[list[int], Usage]]


@contextmanager
def asking(
    model: LoadedModel, store: Store, codec: str, max_kl: float | None = None
) -> Iterator[Ask]:
    """Ask over the store; what is kept goes through `codec`, what is read may lose `max_kl`."""
    decoder = model.decoder
    shape = decoder.config.kv_shape("float32")
    loss = LossRule(codec, max_kl, lambda _: MEASURED)
    stack = Stack(
        [
            PrefixReuse(store, shape, lambda _: decoder.fingerprint, loss),
            BlendReuse(
                store,
                shape,
                lambda _: decoder.fingerprint,
                RatioController(0.25),
                SystemClock(),
                reads=loss.reads,
            ),
        ]
    )
    limits, clock = EngineLimits(1 << 28), SystemClock()
    engine = Engine(model, TorchAttention(), stack, limits, clock, threaded=False)
    count = iter(range(100))

    def ask(*segments: Segment, **options: object) -> tuple[list[int], Usage]:
        sampling = Sampling(max_tokens=4, ignore_eos=True)
        stream = engine.submit(
            Request(f"{codec} {next(count)}", Prompt(segments), sampling, **options)  # type: ignore[arg-type]
        )
        while engine.step():
            pass
        *tokens, last = stream
        assert isinstance(last, Finish)
        store.flush()
        return [one.token_id for one in tokens if isinstance(one, Token)], last.usage

    with closing(stack):
        yield ask
        assert stack.num_failures == 0
        engine.check()
        engine.close()


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(None, memory_bytes=1 << 26) as made:
        yield made
        made.check()


def test_a_lossy_prefix_is_followed_by_blended_documents(tiny: LoadedModel, store: Store) -> None:
    """20 tokens are exact and 300 by int8; of 160 blended ones a quarter is computed, and 12 ask."""
    with asking(tiny, store, "none") as exact:
        exact(PRELUDE, TWO, question(1))
        exact(PRELUDE, THREE, question(1))
    with asking(tiny, store, "int8") as lossy:
        lossy(PRELUDE, ONE, question(1), reuse=False)
        _, usage = lossy(PRELUDE, ONE, TWO, THREE, question(2), techniques=(Blend(0.25),))
    assert (usage.exact, usage.lossy, usage.blended, usage.recomputed) == (20, 300, 120, 52)


def test_what_is_computed_over_a_lossy_prefix_is_never_kept_as_exact(
    tiny: LoadedModel, store: Store
) -> None:
    """Only the prelude is stored, by int8; the documents of a request that asks for blending are new."""
    with asking(tiny, store, "int8") as lossy:
        lossy(PRELUDE, question(1), reuse=False)
    with asking(tiny, store, "none", max_kl=0.1) as allowing:
        _, usage = allowing(PRELUDE, ONE, TWO, question(2), techniques=(Blend(0.25),))
        assert (usage.lossy, usage.blended) == (20, 0)
    with asking(tiny, store, "none") as exact:
        exact(PRELUDE, question(4))
        cold, _ = exact(PRELUDE, ONE, TWO, question(3), reuse=False, retention=Retention.NOTHING)
        again, usage = exact(
            PRELUDE,
            ONE,
            TWO,
            question(3),
            techniques=(Prefix(max_kl=0),),
            retention=Retention.NOTHING,
        )
    assert (usage.exact, usage.lossy) == (20, 0), "the prelude alone"
    assert again == cold


def test_a_blend_over_a_lossy_prefix_leaves_nothing_behind(tiny: LoadedModel, store: Store) -> None:
    with asking(tiny, store, "none") as exact:
        exact(PRELUDE, TWO, question(1))
    with asking(tiny, store, "int8") as lossy:
        lossy(PRELUDE, ONE, question(1), reuse=False)
        before = {entry.key for entry in store.index.entries()}
        options = {"techniques": (Blend(0.25),), "retention": Retention.ALL}
        _, usage = lossy(PRELUDE, ONE, TWO, question(2), **options)
        assert usage.blended == 75
    assert {entry.key for entry in store.index.entries()} == before


def test_documents_that_a_named_codec_stored_are_blended(tiny: LoadedModel, store: Store) -> None:
    """All is by int8: 320 tokens are the prefix, and of 160 blended ones a quarter is computed, and 12 ask.

    A request that allows no loss finds none of them, neither after the prelude nor by their content.
    """
    with asking(tiny, store, "int8") as lossy:
        for document in (ONE, TWO):
            lossy(PRELUDE, document, question(1))
        lossy(PRELUDE, TWO, THREE, question(1))  # THREE is stored behind TWO alone
        _, usage = lossy(PRELUDE, ONE, TWO, THREE, question(2), techniques=(Blend(0.25),))
        assert (usage.lossy, usage.blended, usage.recomputed) == (320, 120, 52)
        strict = {"techniques": (Blend(0.25), Prefix(max_kl=0)), "retention": Retention.NOTHING}
        _, usage = lossy(PRELUDE, ONE, TWO, THREE, question(2), **strict)
        assert (usage.exact, usage.lossy, usage.blended) == (0, 0, 0)


def test_a_document_that_a_named_codec_stored_is_not_prefilled_again(
    tiny: LoadedModel, store: Store
) -> None:
    with asking(tiny, store, "int8") as lossy:
        lossy(PRELUDE, TWO, question(1))
    asked = Prompt((PRELUDE, TWO, THREE, question(2)))
    fingerprint, reads = tiny.decoder.fingerprint, (EXACT, lossy_recipe("int8"))
    assert StoredDocuments(store, fingerprint, "", reads=reads).lacks(asked) == [THREE]
    assert StoredDocuments(store, fingerprint, "").lacks(asked) == [TWO, THREE]


def test_a_chat_over_lossy_kv_is_kept_turn_by_turn(tiny: LoadedModel, store: Store) -> None:
    """A turn adds a question of 12 tokens and an answer of 4, whose last was never computed: it is with the
    next question."""
    segments: tuple[Segment, ...] = (PRELUDE, ONE)
    counts: list[tuple[int, int]] = []
    with asking(tiny, store, "int8") as lossy:
        for turn in range(3):
            said, usage = lossy(*segments, question(turn), retention=Retention.ALL)
            counts.append((usage.lossy, usage.recomputed))
            segments += (Segment(Role.HISTORY, (*question(turn).token_ids, *said)),)
    assert counts == [(0, 332), (335, 13), (351, 13)]
