"""Exact prefix reuse with a real store in a folder: what comes back, and what must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdn.clock import SystemClock
from kdn.core import (
    EXACT,
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
from kdn.reuse import PrefixReuse, Stack
from kdn.store import MemoryTier, Store, open_store
from kdn.store.tiers.remote.calls import RemoteCallSettings
from kdn.store.tiers.remote.tier import RemoteSettings, RemoteTier
from kdn.trace import NoTrace
from tests.engine.runs import load_tiny, some_tokens
from tests.store.twins import Door

PRELUDE = Segment(Role.PRELUDE, some_tokens(20, 200, seed=9))
DOCUMENT = Segment(Role.DOCUMENT, some_tokens(300, 200, seed=8))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tiny(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path], model_cache: Path
) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache, request.param)


class RequestContext:
    """An engine over a store, stepped by hand."""

    def __init__(self, model: LoadedModel, store: Store) -> None:
        decoder = model.decoder
        shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self.store = store
        self.reuse = Stack([PrefixReuse(store, shape, lambda _: decoder.fingerprint)])
        self.engine = Engine(
            model,
            TorchAttention(),
            self.reuse,
            EngineLimits(1 << 28),
            SystemClock(),
            threaded=False,
        )
        self._count = 0

    def ask(
        self,
        *segments: Segment,
        salt: str = "",
        reuse: bool = True,
        retention: Retention = Retention.SHARED,
    ) -> tuple[list[int], Usage]:
        self._count += 1
        sampling = Sampling(max_tokens=6, ignore_eos=True, logprobs=0)
        prompt = Prompt(segments)
        stream = self.engine.submit(
            Request(str(self._count), prompt, sampling, salt=salt, reuse=reuse, retention=retention)
        )
        while self.engine.step():
            pass
        events = list(stream)
        last = events[-1]
        assert isinstance(last, Finish)
        return [e.token_id for e in events if isinstance(e, Token)], last.usage

    def close(self) -> None:
        self.reuse.close()
        self.engine.close()


@contextmanager
def desk(model: LoadedModel, folder: Path | None) -> Iterator[RequestContext]:
    with open_store(folder, memory_bytes=1 << 26, disk_bytes=1 << 27) as store:
        made = RequestContext(model, store)
        yield made
        made.close()


def question(seed: int) -> Segment:
    return Segment(Role.QUESTION, some_tokens(12, 200, seed=seed))


def test_the_second_question_about_a_document_computes_the_question_only(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    with desk(tiny, tmp_path / "store") as d:
        _, cold = d.ask(PRELUDE, DOCUMENT, question(1))
        warm_ids, warm = d.ask(PRELUDE, DOCUMENT, question(2))
        assert (cold.exact, cold.recomputed) == (0, 332)
        assert (warm.exact, warm.recomputed, warm.tiers) == (320, 12, {"memory": 320})
        assert warm_ids == d.ask(PRELUDE, DOCUMENT, question(2), reuse=False)[0]
        d.store.check()


def test_after_a_restart_the_disk_serves_it(tiny: LoadedModel, tmp_path: Path) -> None:
    with desk(tiny, tmp_path / "store") as d:
        before, _ = d.ask(PRELUDE, DOCUMENT, question(1))
    with desk(tiny, tmp_path / "store") as d:
        after, usage = d.ask(PRELUDE, DOCUMENT, question(1))
    assert (usage.exact, usage.tiers) == (320, {"disk": 320})
    assert after == before


def test_blocks_across_a_network_are_opened_together(tiny: LoadedModel) -> None:
    remote, clock, trace = Door(3), SystemClock(), NoTrace()
    settings = RemoteSettings(RemoteCallSettings(timeout_s=120, attempts=1))

    def afresh() -> Store:
        far = RemoteTier(remote, settings, clock, trace)
        return Store([MemoryTier(1 << 26, trace)], far=[far])

    with afresh() as store:
        writer = RequestContext(tiny, store)
        before, _ = writer.ask(PRELUDE, DOCUMENT, question(1))
        assert store.flush(60)
        writer.close()
    with afresh() as store:
        reader = RequestContext(tiny, store)
        after, usage = reader.ask(PRELUDE, DOCUMENT, question(1))
        reader.close()
    # the prelude's block and the document's two
    assert (usage.exact, usage.tiers) == (320, {"dict": 320})
    assert after == before


def test_another_document_behind_the_same_prelude_reuses_the_prelude(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    other = Segment(Role.DOCUMENT, some_tokens(50, 200, seed=77))
    with desk(tiny, tmp_path / "store") as d:
        d.ask(PRELUDE, DOCUMENT, question(1))
        _, usage = d.ask(PRELUDE, other, question(1))
    assert usage.exact == 20


def test_a_conversation_goes_on_where_it_ended(tiny: LoadedModel, tmp_path: Path) -> None:
    """20 + 12 tokens of prompt and 5 of the 6 answered ones come back; the last was never computed."""
    with desk(tiny, tmp_path / "store") as d:
        said, _ = d.ask(PRELUDE, question(1), retention=Retention.ALL)
        history = Segment(Role.HISTORY, (*question(1).token_ids, *said))
        _, usage = d.ask(PRELUDE, history, question(2), retention=Retention.ALL)
    assert usage.exact == 37


def test_tenants_do_not_see_each_other(tiny: LoadedModel, tmp_path: Path) -> None:
    with desk(tiny, tmp_path / "store") as d:
        d.ask(PRELUDE, DOCUMENT, question(1), salt="one")
        assert d.ask(PRELUDE, DOCUMENT, question(1), salt="two")[1].exact == 0
        assert d.ask(PRELUDE, DOCUMENT, question(1))[1].exact == 0
        assert d.ask(PRELUDE, DOCUMENT, question(2), salt="one")[1].exact == 320


def test_a_prompt_that_is_stored_whole_still_computes_its_last_token(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    with desk(tiny, tmp_path / "store") as d:
        first, _ = d.ask(PRELUDE, DOCUMENT, retention=Retention.ALL)
        again, usage = d.ask(PRELUDE, DOCUMENT)
    assert (usage.exact, usage.recomputed) == (319, 1)
    assert again == first


def test_damage_on_disk_is_a_counted_miss_and_the_same_answer(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    with desk(tiny, folder) as d:
        before, _ = d.ask(PRELUDE, DOCUMENT, question(1))
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix == ".kdn":
            data = bytearray(path.read_bytes())
            data[-100] ^= 0x10
            path.write_bytes(data)
    with desk(tiny, folder) as d:
        after, usage = d.ask(PRELUDE, DOCUMENT, question(1))
        assert after == before
        assert usage.exact < 320
        assert d.store.stat().corrupt >= 1
        d.store.check()


def test_another_model_finds_nothing(
    tiny: LoadedModel, tiny_model: Callable[..., Path], model_cache: Path, tmp_path: Path
) -> None:
    other = load_tiny(tiny_model("llama", seed=5), model_cache, str(tiny.decoder.dtype)[6:])
    with desk(tiny, tmp_path / "store") as d:
        d.ask(PRELUDE, DOCUMENT, question(1))
    with desk(other, tmp_path / "store") as d:
        assert d.ask(PRELUDE, DOCUMENT, question(1))[1].exact == 0
        assert (
            d.store.match(tiny.decoder.fingerprint, EXACT, "", PRELUDE.token_ids).num_tokens == 20
        )
