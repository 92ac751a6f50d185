"""Blending with a real store in a folder: what is found, what is recomputed, what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kdn.clock import SystemClock
from kdn.core import (
    EXACT,
    Blend,
    Finish,
    GivenRows,
    Plan,
    Prefix,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Share,
    Token,
    Usage,
)
from kdn.engine import Engine, EngineLimits
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse import PrefixReuse, Stack
from kdn.reuse.blend import BlendLayout, BlendReuse, KeyBias, Leading, RatioController
from kdn.reuse.blend.guard import guarding
from kdn.store import (
    MemoryTier,
    RemoteCallSettings,
    RemoteSettings,
    RemoteTier,
    Store,
    open_store,
)
from kdn.trace import NoTrace, Recorder
from tests.engine.runs import load_tiny, some_tokens
from tests.store.twins import Door

PRELUDE = Segment(Role.PRELUDE, some_tokens(20, 200, seed=9))
ONE = Segment(Role.DOCUMENT, some_tokens(300, 200, seed=1))
TWO = Segment(Role.DOCUMENT, some_tokens(100, 200, seed=2))
THREE = Segment(Role.DOCUMENT, some_tokens(60, 200, seed=3))
ALL = (PRELUDE, ONE, TWO, THREE)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tiny(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path], model_cache: Path
) -> LoadedModel:
    return load_tiny(tiny_model("llama", num_hidden_layers=4), model_cache, request.param)


class RequestContext:
    """An engine that blends over a store, stepped by hand."""

    def __init__(
        self,
        model: LoadedModel,
        store: Store,
        *,
        movable: bool = True,
        drift: KeyBias | None = None,
        max_batch_tokens: int = 2048,
    ) -> None:
        decoder = model.decoder
        shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self.store = store
        self.trace = Recorder()
        self.heard = Recorder()
        self.prefix = PrefixReuse(store, shape, lambda _: decoder.fingerprint)
        self.controller = RatioController(0.25)
        self.blend = BlendReuse(
            store,
            shape,
            lambda _: decoder.fingerprint,
            self.controller,
            SystemClock(),
            movable=movable,
            bias=lambda _: drift,
            trace=self.trace,
        )
        self.reuse = Stack([self.prefix, self.blend], trace=self.trace)
        self.engine = Engine(
            model,
            TorchAttention(),
            self.reuse,
            EngineLimits(1 << 28, max_batch_tokens=max_batch_tokens),
            SystemClock(),
            trace=self.heard,
            threaded=False,
        )
        self._count = 0

    def request(self, *segments: Segment, **options: object) -> Request:
        self._count += 1
        sampling = Sampling(max_tokens=6, ignore_eos=True, logprobs=0)
        return Request(str(self._count), Prompt(segments), sampling, **options)  # type: ignore[arg-type]

    def run(self, request: Request) -> tuple[list[int], Usage]:
        stream = self.engine.submit(request)
        while self.engine.step():
            pass
        events = list(stream)
        last = events[-1]
        assert isinstance(last, Finish)
        return [e.token_id for e in events if isinstance(e, Token)], last.usage

    def ask(self, *segments: Segment, **options: object) -> tuple[list[int], Usage]:
        return self.run(self.request(*segments, **options))

    def learn(self, *documents: Segment) -> None:
        for document in documents:
            self.ask(PRELUDE, document, question(99))

    def close(self) -> None:
        self.reuse.close()
        self.engine.check()
        self.engine.close()
        self.store.check()


@contextmanager
def desk(
    model: LoadedModel,
    folder: Path | None,
    *,
    movable: bool = True,
    drift: KeyBias | None = None,
    max_batch_tokens: int = 2048,
) -> Iterator[RequestContext]:
    with open_store(folder, memory_bytes=1 << 26, disk_bytes=1 << 27) as store:
        made = RequestContext(
            model, store, movable=movable, drift=drift, max_batch_tokens=max_batch_tokens
        )
        yield made
        made.close()


def question(seed: int) -> Segment:
    return Segment(Role.QUESTION, some_tokens(12, 200, seed=seed))


def test_documents_behind_the_first_are_blended_and_all_is_accounted_for(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """20 + 300 exact; of 160 reused a quarter is recomputed; 12 tokens ask."""
    with desk(tiny, tmp_path / "store") as d:
        d.learn(ONE, TWO, THREE)
        _, usage = d.ask(*ALL, question(1), techniques=(Blend(0.25),))
        assert (usage.exact, usage.blended, usage.recomputed) == (320, 120, 52)
        assert usage.tiers == {"memory": 480}
        assert usage.cached_tokens == 440


def test_without_being_asked_nothing_is_blended(tiny: LoadedModel, tmp_path: Path) -> None:
    with desk(tiny, tmp_path / "store") as d:
        d.learn(ONE, TWO, THREE)
        _, usage = d.ask(*ALL, question(1))
        assert (usage.exact, usage.blended, usage.recomputed) == (320, 0, 172)
        assert d.trace.count("blend.plan") == 0


def test_the_rule_may_be_exchanged_between_requests(tiny: LoadedModel, tmp_path: Path) -> None:
    """Two documents side by side are one chunk: its first 40 of 160, and the question's 12 besides."""
    chosen: list[tuple[int, ...]] = []

    def leading(base: Plan, layout: BlendLayout, count: int) -> Plan:
        plan = Leading()(base, layout, count)
        assert isinstance(plan.rows[0], GivenRows)
        chosen.append(plan.rows[0].positions)
        return plan

    with desk(tiny, tmp_path / "store") as d:
        d.learn(ONE, TWO, THREE)
        d.ask(*ALL, question(1), techniques=(Blend(0.25),))
        d.blend.rule = leading
        d.ask(*ALL, question(1), techniques=(Blend(0.25),))
        assert chosen == [(*range(320, 360), *range(480, 492))]


def test_at_ratio_one_the_answer_is_that_of_a_full_prefill(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    with desk(tiny, tmp_path / "store") as d:
        d.learn(TWO, THREE)
        cold, _ = d.ask(PRELUDE, THREE, ONE, TWO, question(1), reuse=False)
        ids, usage = d.ask(PRELUDE, THREE, ONE, TWO, question(1), techniques=(Blend(1.0),))
        assert ids == cold
        assert usage.blended == 0


def test_the_disk_serves_a_blend_after_a_restart(tiny: LoadedModel, tmp_path: Path) -> None:
    with desk(tiny, tmp_path / "store") as d:
        d.learn(ONE, TWO, THREE)
        before, _ = d.ask(*ALL, question(1), techniques=(Blend(0.2),))
    with desk(tiny, tmp_path / "store") as d:
        after, usage = d.ask(*ALL, question(1), techniques=(Blend(0.2),))
    assert after == before
    assert usage.tiers == {"disk": 480}


def test_documents_across_a_network_are_opened_together(tiny: LoadedModel) -> None:
    """Two blocks of the exact prefix, then two documents behind it: none opens alone."""
    remote, clock, trace = Door(2), SystemClock(), NoTrace()
    settings = RemoteSettings(RemoteCallSettings(timeout_s=120, attempts=1))
    other = Segment(Role.DOCUMENT, some_tokens(80, 200, seed=4))

    def afresh() -> Store:
        far = RemoteTier(remote, settings, clock, trace)
        return Store([MemoryTier(1 << 26, trace)], far=[far])

    with afresh() as store:
        writer = RequestContext(tiny, store)
        writer.learn(TWO, THREE, other)
        assert store.flush(60)
        writer.close()
    with afresh() as store:
        reader = RequestContext(tiny, store)
        asked = (PRELUDE, TWO, THREE, other, question(1))
        _, usage = reader.ask(*asked, techniques=(Blend(0.25),))
        reader.close()
    assert (usage.exact, usage.blended, usage.tiers) == (120, 105, {"dict": 260})


def test_a_document_never_met_is_computed_and_the_others_are_blended(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    with desk(tiny, tmp_path / "store") as d:
        d.learn(ONE, THREE)
        _, usage = d.ask(*ALL, question(1), techniques=(Blend(0.0),))
        assert (usage.exact, usage.blended, usage.recomputed) == (320, 60, 112)


def test_background_prefills_bring_what_was_lacking(tiny: LoadedModel, tmp_path: Path) -> None:
    """Nothing is stored: the whole is computed, and what it leaves is good for any order."""
    with desk(tiny, tmp_path / "store") as d:
        first = d.request(*ALL, question(1), techniques=(Blend(0.0),))
        assert d.run(first)[1].blended == 0
        prefills = d.reuse.background(first)
        assert [prefill.prompt.segments[1] for prefill in prefills] == [TWO, THREE]
        assert {prefill.option(Share) for prefill in prefills} == {Share("exact")}
        for prefill in prefills:
            d.run(prefill)
        assert d.reuse.background(first) == []
        _, usage = d.ask(PRELUDE, THREE, TWO, ONE, question(2), techniques=(Blend(0.0),))
        assert (usage.exact, usage.blended, usage.recomputed) == (80, 400, 12)


def test_what_is_asked_because_of_a_grouped_request_waits_for_no_group(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """One of three calls of a query: its documents are prefilled, and its answer compared, one by one."""
    with desk(tiny, tmp_path / "store") as d:
        asked = d.request(*ALL, question(1), techniques=(Blend(0.0),), group="query", group_size=3)
        for one in (*d.reuse.background(asked), guarding(asked)):
            heard: list[object] = []
            d.engine.submit(one).on_event(heard.append)
            while d.engine.step():
                pass
            assert heard[-1:] == [None]


def test_a_background_prefill_stores_what_its_request_may_read(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """Else a store that loses precision by its settings would be filled, and asked, for ever."""
    with desk(tiny, tmp_path / "store") as d:
        exact = d.request(*ALL, question(1), techniques=(Blend(0.0), Prefix(0.0, load_within_s=1)))
        assert {one.option(Prefix) for one in d.reuse.background(exact)} == {Prefix(0.0)}


def test_a_document_computed_behind_others_is_found_by_its_content(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    with desk(tiny, tmp_path / "store") as d:
        d.ask(*ALL, question(1))
        _, usage = d.ask(PRELUDE, THREE, TWO, question(2), techniques=(Blend(0.0),))
        assert (usage.exact, usage.blended) == (20, 160)


def test_taint_leaves_no_trace(tiny: LoadedModel, tmp_path: Path) -> None:
    """Blend, chat on, reopen, ask exactly: what comes is what a cold run gives."""
    folder = tmp_path / "store"
    with desk(tiny, folder) as d:
        d.learn(TWO, THREE)
        said, _ = d.ask(*ALL, question(1), techniques=(Blend(0.1),), retention=Retention.ALL)
        turn = Segment(Role.HISTORY, (*question(1).token_ids, *said))
        d.ask(*ALL, turn, question(2), techniques=(Blend(0.1),), retention=Retention.ALL)
    with desk(tiny, folder) as d:
        warm, usage = d.ask(*ALL, turn, question(2))
        assert usage.blended == 0
        assert warm == d.ask(*ALL, turn, question(2), reuse=False)[0]


def test_a_chat_that_has_nothing_to_blend_is_kept_as_any_other(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """20 + 12 tokens of the prompt and 5 of the 6 answered ones."""
    with desk(tiny, tmp_path / "store") as d:
        said, _ = d.ask(PRELUDE, question(1), techniques=(Blend(),), retention=Retention.ALL)
        turn = Segment(Role.HISTORY, (*question(1).token_ids, *said))
        _, usage = d.ask(PRELUDE, turn, question(2), techniques=(Blend(),))
    assert usage.exact == 37


def test_without_a_ratio_the_controller_has_its_say(tiny: LoadedModel, tmp_path: Path) -> None:
    """Its floor is a quarter here; at a floor of one nothing is blended."""
    with desk(tiny, tmp_path / "store") as d:
        d.learn(ONE, TWO, THREE)
        assert d.ask(*ALL, question(1), techniques=(Blend(),))[1].blended == 120
        d.controller.set_floor(1.0)
        assert d.ask(*ALL, question(1), techniques=(Blend(),))[1].blended == 0


def test_a_damaged_block_amid_a_blend_is_computed_instead(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    with desk(tiny, folder) as d:
        d.learn(ONE, TWO, THREE)
        entries = d.store.match(
            tiny.decoder.fingerprint, EXACT, "", PRELUDE.token_ids + TWO.token_ids
        )
        key = entries.hits[-1].id.key
    (path,) = [p for p in folder.rglob("*.kdn") if key in p.name or key[2:] in p.name]
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x10
    path.write_bytes(data)
    with desk(tiny, folder) as d:
        _, usage = d.ask(*ALL, question(1), techniques=(Blend(0.0),))
        assert (usage.exact, usage.blended, usage.recomputed) == (320, 60, 112)
        assert d.store.stat().corrupt == 1


def test_tenants_do_not_blend_one_anothers_documents(tiny: LoadedModel, tmp_path: Path) -> None:
    with desk(tiny, tmp_path / "store") as d:
        d.learn(ONE, TWO, THREE)
        _, usage = d.ask(*ALL, question(1), techniques=(Blend(0.0),), salt="other")
        assert (usage.exact, usage.blended) == (0, 0)


def test_keys_that_cannot_be_moved_are_not_blended(tiny: LoadedModel, tmp_path: Path) -> None:
    with desk(tiny, tmp_path / "store", movable=False) as d:
        d.learn(ONE, TWO, THREE)
        _, usage = d.ask(*ALL, question(1), techniques=(Blend(0.0),))
        assert (usage.exact, usage.blended) == (320, 0)


def test_a_blended_request_that_the_engine_drops_is_waited_for_no_longer(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """Closing the engine tells the trace of every request that ends so."""
    with desk(tiny, tmp_path / "store") as d:
        d.engine.submit(d.request(*ALL, question(1), techniques=(Blend(),)))
        d.engine.step()
        d.engine.close()
        assert [e.fields["request"] for e in d.heard.events("engine.fail")] == ["1"]


def test_several_blended_requests_run_side_by_side(tiny: LoadedModel, tmp_path: Path) -> None:
    with desk(tiny, tmp_path / "store") as d:
        d.learn(ONE, TWO, THREE)
        requests = [d.request(*ALL, question(i), techniques=(Blend(0.25),)) for i in range(3)]
        alone = [d.run(request)[0] for request in requests]
        streams = [d.engine.submit(request) for request in requests]
        while d.engine.step():
            pass
        together = [[e.token_id for e in s if isinstance(e, Token)] for s in streams]
        assert together == alone


def test_a_blend_with_more_rows_than_a_pass_has_runs_in_several(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """460 reused tokens behind 20 exact ones, 90 % recomputed: 426 rows, at most 128 at a time."""
    found = []
    for most in (2048, 128):
        with desk(tiny, tmp_path / str(most), max_batch_tokens=most) as d:
            d.learn(TWO, THREE)
            d.ask(PRELUDE, TWO, ONE, question(9))
            ids, usage = d.ask(PRELUDE, THREE, ONE, TWO, question(1), techniques=(Blend(0.9),))
            found.append((ids, usage.exact, usage.blended, usage.recomputed))
    (one, *counts), (several, *same) = found
    assert same == counts
    if tiny.decoder.dtype == torch.float32:  # sparse rows are summed in other blocks
        assert several == one
