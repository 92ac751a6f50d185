"""Prompts that begin alike and come together, with a real store: the beginning is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import SystemClock
from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    Finish,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Token,
    TokenIds,
)
from kdn.engine import Engine, EngineLimits, RunningStream
from kdn.engine.alike import common_blocks
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse import PrefixReuse, Stack
from kdn.store import Store, open_store
from kdn.trace import Recorder
from tests.engine.runs import load_tiny, some_tokens

DOCUMENT, OTHER = some_tokens(256, 200, seed=1), some_tokens(256, 200, seed=2)


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


class Asked:
    """An engine over a store in memory, stepped by hand."""

    def __init__(self, model: LoadedModel, store: Store) -> None:
        decoder = model.decoder
        self.shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self.fingerprint, self.store = decoder.fingerprint, store
        self.reuse = Stack([PrefixReuse(store, self.shape, lambda _: self.fingerprint)])
        self.trace = Recorder()
        self.engine = Engine(
            model,
            TorchAttention(),
            self.reuse,
            EngineLimits(1 << 28),
            SystemClock(),
            trace=self.trace,
            threaded=False,
        )

    def ask(
        self, name: str, tokens: TokenIds, *, reuse: bool = True, keep: bool = True, salt: str = ""
    ) -> RunningStream:
        return self.engine.submit(
            Request(
                name,
                Prompt((Segment(Role.QUESTION, tokens),)),
                Sampling(max_tokens=4, ignore_eos=True),
                salt=salt,
                reuse=reuse,
                retention=Retention.ALL if keep else Retention.NOTHING,
            )
        )

    def run(self) -> None:
        while self.engine.step():
            pass
        self.engine.check()

    def admitted(self) -> list[object]:
        return [event.fields["request"] for event in self.trace.events("engine.admit")]


@pytest.fixture
def asked(tiny: LoadedModel, tmp_path: Path) -> Iterator[Asked]:
    with open_store(tmp_path / "store", memory_bytes=1 << 26, disk_bytes=1 << 27) as store:
        made = Asked(tiny, store)
        yield made
        made.reuse.close()
        made.engine.close()


def ids(stream: RunningStream) -> list[int]:
    return [event.token_id for event in stream if isinstance(event, Token)]


def recomputed(stream: RunningStream) -> int:
    *_, last = stream
    assert isinstance(last, Finish)
    return last.usage.recomputed


def question(seed: int) -> TokenIds:
    return some_tokens(10, 200, seed=seed)


def test_of_three_questions_about_a_document_one_computes_it(asked: Asked) -> None:
    """256 + 10 rows, and then 10 and 10; the question about another document is not held up."""
    streams = [asked.ask(f"d{seed}", DOCUMENT + question(seed)) for seed in (1, 2, 3)]
    streams.append(asked.ask("other", OTHER + question(4)))
    asked.run()
    assert [recomputed(one) for one in streams] == [266, 10, 10, 266]
    assert asked.admitted() == ["d1", "other", "d2", "d3"]


def test_those_that_waited_answer_as_they_would_alone(asked: Asked) -> None:
    prompts = [DOCUMENT + question(seed) for seed in (1, 2)]
    together = [asked.ask(f"t{i}", tokens) for i, tokens in enumerate(prompts)]
    asked.run()
    alone = [asked.ask(f"a{i}", tokens, reuse=False) for i, tokens in enumerate(prompts)]
    asked.run()
    assert [ids(one) for one in together] == [ids(one) for one in alone]


def test_a_beginning_is_stored_before_its_answer_ends_in_the_blocks_that_it_would_be_after(
    asked: Asked,
) -> None:
    tokens = DOCUMENT + question(1)
    stream = asked.ask("a", tokens)

    def found() -> list[tuple[int, int]]:
        match = asked.store.match(asked.fingerprint, EXACT, "", (*tokens, *answered))
        return [(hit.id.start, hit.num_tokens) for hit in match.hits]

    answered: list[int] = []
    stream.on_event(lambda one: answered.append(one.token_id) if isinstance(one, Token) else None)
    while not answered:
        asked.engine.step()
    assert (found(), len(answered)) == ([(0, 256)], 1)
    asked.run()
    assert found() == [(0, 256), (256, 10 + 3)]


@pytest.mark.parametrize(
    "how", ["nothing is retained", "another tenant", "not reused", "less than a block"]
)
def test_who_would_find_little_waits_for_nobody(asked: Asked, how: str) -> None:
    """What is common is no whole block; and nobody reads another tenant's."""
    asked.ask("first", DOCUMENT + question(1), keep=how != "nothing is retained")
    second = DOCUMENT[:200] + OTHER if how == "less than a block" else DOCUMENT + question(2)
    asked.ask("second", second, reuse=how != "not reused", salt="b" * (how == "another tenant"))
    asked.engine.step()
    assert asked.admitted() == ["first", "second"]
    asked.run()


def test_whose_leader_left_nothing_waits_no_more(asked: Asked) -> None:
    """The leader is withdrawn: its first follower computes the document, and the last waits for no second."""
    leader = asked.ask("leader", DOCUMENT + question(1))
    followers = [asked.ask(f"f{seed}", DOCUMENT + question(seed)) for seed in (2, 3)]
    asked.engine.step()
    assert asked.admitted() == ["leader"]
    leader.cancel()
    asked.run()
    assert asked.admitted() == ["leader", "f2", "f3"]
    assert [recomputed(one) for one in followers] == [266, 266]


@given(st.integers(0, 800), st.integers(0, 800), st.integers(0, 800))
def test_whole_blocks_in_common_are_counted(same: int, one: int, other: int) -> None:
    """Against the plain count, token by token."""
    left, right = (0,) * same + (1,) * one, (0,) * same + (2,) * other
    pairs = zip(left, right, strict=False)
    common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
    assert common_blocks(left, right) == common // BLOCK_TOKENS * BLOCK_TOKENS
