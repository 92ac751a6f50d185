"""Lossy codecs: who may be given their blocks, and that nobody gets them by accident."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kdn.clock import SystemClock
from kdn.core import (
    EXACT,
    Fingerprint,
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
from kdn.reuse.codec_quality import CodecQuality, QualityRecord
from kdn.store import Store, open_store
from tests.engine.runs import load_tiny, some_tokens

DOCUMENT = Segment(Role.DOCUMENT, some_tokens(300, 200, seed=8))
MODEL = Fingerprint("model-a")


def record(**kl: float) -> QualityRecord:
    """A record of codecs by their KL; the gain is 2 for int8 and 3 for others."""
    codecs = {
        name.replace("_", "-"): CodecQuality(
            kl=value, kl_p99=value, changed_share=0, gain=2 if name == "int8" else 3
        )
        for name, value in kl.items()
    }
    return QualityRecord(
        model="a", fingerprint=MODEL, positions=400, context_tokens=512, wall_s=0,
        kl_wrong_document=1, kl_no_context=1, codecs=codecs,
    )  # fmt: skip


def request(max_kl: float | None = None) -> Request:
    return Request("r", Prompt((DOCUMENT,)), techniques=(Prefix(max_kl),))


def allowed(rule: LossRule, max_kl: float | None = None) -> tuple[str, list[str]]:
    """What the rule writes with, and which lossy codecs' blocks it reads."""
    reads = rule.reads(request(max_kl), MODEL)
    assert not reads[0].tainted
    return rule.writes(request(max_kl), MODEL).name, [recipe.detail for recipe in reads[1:]]


def test_without_a_record_no_lossy_codec_is_chosen() -> None:
    assert allowed(LossRule()) == ("none", [])
    assert allowed(LossRule("auto")) == ("lossless", [])
    assert allowed(LossRule("auto", max_kl=100.0)) == ("lossless", [])
    assert allowed(LossRule("int8", max_kl=100.0)) == ("lossless", [])
    assert allowed(LossRule("none"), max_kl=100.0) == ("none", [])


def test_auto_takes_the_smallest_that_was_measured_within_the_limit() -> None:
    rule = LossRule("auto", 0.01, lambda _: record(int8=0.001, entropy_2=0.008, entropy_4=0.07))
    assert allowed(rule) == ("entropy-2", ["int8", "entropy-2"])
    assert allowed(rule, max_kl=0.005) == ("int8", ["int8"])
    assert allowed(rule, max_kl=0.0) == ("lossless", [])
    assert allowed(rule, max_kl=0.1)[0] in {"entropy-2", "entropy-4"}


def test_who_names_a_codec_gets_it_and_a_limit_still_holds() -> None:
    rule = LossRule("int8", None, lambda _: record(int8=0.02))
    assert allowed(rule) == ("int8", ["int8"])
    assert allowed(rule, max_kl=0.01) == ("lossless", [])
    assert allowed(rule, max_kl=0.0) == ("lossless", [])
    assert allowed(rule, max_kl=0.02) == ("int8", ["int8"])


class RequestContext:
    """An engine over a store, stepped by hand."""

    def __init__(self, model: LoadedModel, store: Store, loss: LossRule) -> None:
        decoder = model.decoder
        shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self.reuse = Stack([PrefixReuse(store, shape, lambda _: decoder.fingerprint, loss)])
        self.engine = Engine(
            model,
            TorchAttention(),
            self.reuse,
            EngineLimits(1 << 28),
            SystemClock(),
            threaded=False,
        )
        self.store = store

    def ask(
        self, seed: int, *before: Segment, max_kl: float | None = None
    ) -> tuple[list[int], Usage]:
        question = Segment(Role.QUESTION, some_tokens(12, 200, seed=seed))
        sampling = Sampling(max_tokens=6, ignore_eos=True)
        prompt = Prompt((DOCUMENT, *before, question))
        asked = Request(
            f"{seed}-{max_kl}",
            prompt,
            sampling,
            techniques=(Prefix(max_kl),),
            retention=Retention.SHARED,
        )
        stream = self.engine.submit(asked)
        while self.engine.step():
            pass
        events = list(stream)
        assert isinstance(events[-1], Finish)
        self.store.flush()
        return [e.token_id for e in events if isinstance(e, Token)], events[-1].usage


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache, "bfloat16")


@contextmanager
def desk(model: LoadedModel, folder: Path | None, loss: LossRule) -> Iterator[RequestContext]:
    with open_store(folder, memory_bytes=1 << 26, disk_bytes=1 << 27) as store:
        made = RequestContext(model, store, loss)
        yield made
        store.check()
        made.reuse.close()
        made.engine.close()


@pytest.mark.parametrize("codec", ["fp8", "int8", "int4", "entropy-1", "entropy-4"])
@pytest.mark.parametrize("with_disk", [True, False])
def test_lossy_blocks_serve_who_allows_it_and_nobody_else(
    tiny: LoadedModel, tmp_path: Path, codec: str, *, with_disk: bool
) -> None:
    with desk(tiny, tmp_path if with_disk else None, LossRule(codec)) as d:
        cold, first = d.ask(1)
        assert first.recomputed == first.prompt_tokens == 312
        _, second = d.ask(2)
        assert (second.lossy, second.exact, second.recomputed) == (300, 0, 12)
        assert second.cached_tokens == 300
        again, strict = d.ask(1, max_kl=0.0)
        assert (strict.lossy, strict.exact) == (0, 0)
        assert again == cold
        _, after = d.ask(3, max_kl=0.0)
        assert (after.lossy, after.exact) == (0, 300), "exact blocks were kept beside"


def test_a_lossy_block_is_smaller_and_read_back_after_a_restart(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    sizes = {}
    for codec in ("none", "lossless", "int8", "entropy-2"):
        with desk(tiny, tmp_path / codec, LossRule(codec)) as d:
            d.ask(1)
            sizes[codec] = d.store.stat().tiers["disk"].size_bytes
        with desk(tiny, tmp_path / codec, LossRule(codec)) as d:
            _, usage = d.ask(2)
            assert usage.cached_tokens == 300
            assert usage.tiers == {"disk": 300}
    assert sizes["none"] > sizes["lossless"] > sizes["int8"] > sizes["entropy-2"]


def test_lossless_blocks_answer_exactly_from_memory_and_from_disk(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    with desk(tiny, tmp_path, LossRule("lossless")) as d:
        cold, _ = d.ask(1)
        warm, usage = d.ask(1)
        assert (usage.exact, usage.tiers) == (300, {"memory": 300})
    with desk(tiny, tmp_path, LossRule()) as d:
        restarted, usage = d.ask(1)
        assert (usage.exact, usage.tiers) == (300, {"disk": 300})
    assert cold == warm == restarted


def test_what_is_computed_behind_lossy_kv_is_tainted(tiny: LoadedModel, tmp_path: Path) -> None:
    """Blend, chat on, reopen, ask exactly: equals a cold run."""
    more = Segment(Role.HISTORY, some_tokens(40, 200, seed=5))
    with desk(tiny, None, LossRule()) as d:
        cold, _ = d.ask(9, more)
    with desk(tiny, tmp_path, LossRule("int4")) as d:
        d.ask(1)
        _, usage = d.ask(2, more)
        assert usage.lossy == 300
    with desk(tiny, tmp_path, LossRule()) as d:
        found = d.store.match(
            tiny.decoder.fingerprint,
            lossy_recipe("int4"),
            "",
            (*DOCUMENT.token_ids, *more.token_ids),
        )
        assert found.num_tokens == 340
        exact, usage = d.ask(9, more)
        assert (usage.exact, usage.lossy) == (0, 0)
    assert exact == cold


def test_lossy_blocks_are_found_behind_an_exact_beginning(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """300 tokens were stored before the codec was set. A request that allows no loss finds these alone."""
    more, further = (Segment(Role.HISTORY, some_tokens(n, 200, seed=n)) for n in (40, 20))
    with desk(tiny, None, LossRule()) as d:
        cold, _ = d.ask(9, more)
    with desk(tiny, tmp_path, LossRule()) as d:
        d.ask(1)

    def counted(d: RequestContext, seed: int, *before: Segment) -> tuple[int, int, int]:
        usage = d.ask(seed, *before)[1]
        return usage.exact, usage.lossy, usage.recomputed

    with desk(tiny, tmp_path, LossRule("int8")) as d:
        assert counted(d, 2, more) == (300, 0, 52)
        assert counted(d, 3, more) == (300, 40, 12)
        assert counted(d, 4, more, further) == (300, 40, 32)
        strict, usage = d.ask(9, more, max_kl=0.0)
        assert (usage.exact, usage.lossy, strict) == (300, 0, cold)
        assert counted(d, 5, more, further) == (340, 20, 12), "exact blocks come first"
        tokens = (*DOCUMENT.token_ids, *more.token_ids, *further.token_ids)
        kept = d.store.match(tiny.decoder.fingerprint, EXACT, "", tokens)
        assert kept.num_tokens == 340, "what followed lossy KV is not exact"


def test_a_queue_that_is_full_refuses_and_counts(tiny: LoadedModel) -> None:
    from kdn.store import CODECS, MemoryTier
    from kdn.trace import NoTrace
    from tests.store.helpers import block_id, make_block

    with Store([MemoryTier(1 << 20, NoTrace())], write_behind_bytes=10) as store:
        block = make_block(block_id([1, 2, 3]))
        store.write_behind(block, CODECS["lossless"])
        assert store.stat().dropped == 1
        assert store.stat().blocks == 1, "memory has it all the same"
        lossy = replace(block, id=block_id([4, 5, 6], recipe=lossy_recipe("int8")))
        store.write_behind(lossy, CODECS["int8"])
        assert (store.stat().dropped, store.stat().blocks) == (2, 1)
