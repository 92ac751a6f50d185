"""The release gate: on the real small model a blend begins sooner than a full prefill, and is closer
to it than naive reuse. And what the API says about a blended answer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kdn
from kdn.api import Reuse
from kdn.bench.blend.arms import NAIVE, OURS, chosen_arms
from kdn.bench.blend.lab import Lab, kl
from kdn.bench.blend.prompts import questions
from kdn.bench.common.measure import interleave
from kdn.clock import SystemClock
from kdn.config import BlendConfig, Config, StoreConfig
from kdn.core import Prompt, Retention, Sampling
from kdn.errors import BadInput
from kdn.model import Document, Message
from kdn.trace import Recorder

pytestmark = pytest.mark.model

ASKED = questions(None, seed=3, limit=2)
ONE = Sampling(max_tokens=1, ignore_eos=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    return tmp_path_factory.mktemp("home")


def opened(
    home: Path,
    work: Path,
    trace: Recorder | None = None,
    every: int = 0,
    ratio: float = 0.15,
    drift: float = 0.5,
) -> kdn.Kdn:
    store = StoreConfig(folder=work / "store", disk_bytes=1 << 29, memory_bytes=1 << 29)
    config = Config(
        home=home, store=store, blend=BlendConfig(guard_every=every, ratio=ratio, key_bias=drift)
    )
    return kdn.open(config=config, trace=trace)


@pytest.fixture(scope="module")
def k(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kdn.Kdn]:
    with opened(home, tmp_path_factory.mktemp("work")) as made:
        yield made
        made.check()


def prompt(k: kdn.Kdn, number: int, documents: int = 8) -> Prompt:
    asked = ASKED[number]
    texts = [Document(None, text) for text in asked.documents[:documents]]
    return k.prompts.segments([Message("user", asked.question)], texts)


def test_a_blend_is_closer_to_the_full_prefill_than_naive_reuse(k: kdn.Kdn) -> None:
    lab = Lab(k.model, k.parts.attention, k.calibration.learn_key_bias())
    found: dict[str, list[float]] = {}
    for number in range(2):
        case = lab.case(prompt(k, number, documents=6))
        for arm in chosen_arms(("naive", "ours"), (0.15,)):
            with torch.inference_mode():
                plan = arm.rule(arm.base(lab, case), case.layout, case.layout.budget(arm.ratio))
            seen = lab.run(case, plan)
            found.setdefault(arm.name, []).append(float(kl(case.full.logprobs, seen.logprobs)[0]))
    assert statistics.mean(found[OURS]) < 0.7 * statistics.mean(found[NAIVE])


@pytest.mark.alone
def test_a_blended_answer_begins_sooner_than_a_full_prefill(k: kdn.Kdn) -> None:
    """The least time of five each: what other programs take comes on top of either."""
    asked, clock = ASKED[0], SystemClock()
    for text in asked.documents:
        k.prefill(text)

    def seconds(reuse: Reuse, salt: str) -> float:
        started = clock.now()
        k.generate(
            asked.question,
            asked.documents,
            sampling=ONE,
            salt=salt,
            retention=Retention.NOTHING,
            reuse=reuse,
            ratio=0.15 if reuse == "blend" else None,
        )
        return clock.now() - started

    sides = {
        "full": lambda _: seconds("exact", "nothing is stored under this salt"),
        "blend": lambda _: seconds("blend", ""),
    }
    interleave(sides, 1)
    samples = interleave(sides, 5)
    assert min(samples["full"]) > 1.3 * min(samples["blend"]), samples


def test_an_answer_says_what_was_exact_blended_and_recomputed(home: Path, tmp_path: Path) -> None:
    """First nothing is stored; idle time stores each document; then all is reused, in any order."""
    documents = [text[:600] for text in ASKED[1].documents[:3]]
    with opened(home, tmp_path) as k:
        first = k.generate("What is said?", documents, sampling=ONE, reuse="blend")
        assert (first.usage.exact, first.usage.blended) == (0, 0)
        k.catch_up()
        exact = k.generate(
            "What is said?", documents[::-1], sampling=ONE, retention=Retention.NOTHING
        )
        assert exact.usage.blended == 0
        again = k.generate(
            "What else?", documents[::-1], sampling=ONE, reuse="blend", retention=Retention.NOTHING
        )
    usage = again.usage
    assert usage.blended > 100
    assert usage.exact > 100
    assert usage.exact + usage.blended + usage.recomputed == usage.prompt_tokens
    assert 0.1 < usage.recomputed / usage.prompt_tokens < 0.5


def test_the_guard_looks_at_one_in_so_many(home: Path, tmp_path: Path) -> None:
    documents = [text[:400] for text in ASKED[1].documents[:3]]
    trace = Recorder()
    with opened(home, tmp_path, trace, every=2) as k:
        for _ in range(2):
            k.generate("What is said?", documents, sampling=ONE, reuse="blend")
            k.catch_up()
        k.check()
    with opened(home, tmp_path, every=2) as k:
        stat = k.parts.guard.stats()[""]
    assert trace.count("blend.guard") == 1
    assert stat.samples == 1


def test_the_ratio_setting_is_what_a_request_without_one_gets(home: Path, tmp_path: Path) -> None:
    documents, reused = [text[:500] for text in ASKED[1].documents[:3]], []
    for ratio in (0.0, 0.5):
        with opened(home, tmp_path, ratio=ratio) as k:
            for text in documents:
                k.prefill(text)
            usage = k.generate(
                "What is said?", documents, sampling=ONE, reuse="blend", retention=Retention.NOTHING
            ).usage
            reused.append(usage.blended)
    assert reused[1] == pytest.approx(reused[0] / 2, abs=1)


def test_drift_is_learnt_in_idle_time_once_and_kept(home: Path, tmp_path: Path) -> None:
    """A second opening finds it; with the setting off nothing is learnt."""
    own = tmp_path / "home"
    own.mkdir()
    with opened(own, tmp_path / "a", drift=0.0) as k:
        k.generate("What is said?", ["One text."], sampling=ONE, reuse="blend")
        k.catch_up()
        assert not (own / "drift").exists()
    with opened(own, tmp_path / "b") as k:
        k.generate("What is said?", ["One text."], sampling=ONE, reuse="blend")
        k.catch_up()
        learnt = k.calibration.learn_key_bias()
    (kept,) = (own / "drift").iterdir()
    written = kept.stat().st_mtime_ns
    with opened(own, tmp_path / "c") as k:
        assert torch.equal(k.calibration.learn_key_bias().shift, learnt.shift)
    assert kept.stat().st_mtime_ns == written


def test_impossible_wishes_are_refused(k: kdn.Kdn) -> None:
    with pytest.raises(BadInput, match="'exact' or 'blend'"):
        k.generate("hello", reuse="perhaps")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="a share"):
        k.generate("hello", reuse="blend", ratio=3)
