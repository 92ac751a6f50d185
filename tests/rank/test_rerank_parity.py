"""A score over stored documents is that of a full prefill: in every tier, length and batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import kdn
from kdn.config import Config, EngineConfig, StoreConfig
from kdn.core import Request, Retention
from kdn.rank import Asking, odds_of, one_token, read_logits, wanted

QUERY = "Which of these is about the harbour?"
LENGTHS = (1, 7, 8, 64, 127, 128, 129, 255, 256, 257, 512, 700)
"""Around the cuts of rows (128) and of blocks (256)."""
TEXTS = [("harbour boats at nine " * 40)[:length] for length in LENGTHS]


def opened(model: Path, work: Path, *, batch: int = 2048, **store: int | bool) -> kdn.Kdn:
    settings: dict[str, int | bool] = {"memory_bytes": 1 << 28, "disk_bytes": 1 << 28, **store}
    config = Config(
        home=work / "home",
        engine=EngineConfig(max_batch_tokens=batch),
        store=StoreConfig(folder=work / "store", **settings),  # type: ignore[arg-type]
    )
    return kdn.open(model, config=config, dtype="float32")


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=1200)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A folder in which every document was ranked once, by another query."""
    folder = tmp_path_factory.mktemp("work")
    with opened(model, folder) as k:
        k.rerank("Something else?", TEXTS)
        k.store.flush()
    return folder


def full(k: kdn.Kdn, asking: Asking, text: str) -> float:
    sampling = replace(wanted(asking.choices), raw_logits=True)
    request = Request(
        f"full-{len(text)}", asking.prompt(text), sampling, reuse=False, retention=Retention.NOTHING
    )
    token, _ = one_token(k.submit(request))
    return odds_of(read_logits(asking.choices, token))


@pytest.mark.parametrize("batch", [128, 300, 2048])
@pytest.mark.parametrize(
    "tier", [{}, {"memory_bytes": 0}, {"memory_bytes": 0, "disk_direct": True}],
    ids=["memory", "disk", "direct"],
)  # fmt: skip
def test_cached_scores_are_those_of_full_prefills(
    model: Path, work: Path, tier: dict[str, int | bool], batch: int
) -> None:
    with opened(model, work, batch=batch, **tier) as k:
        if not tier:
            k.rerank("And something else?", TEXTS)  # what the disk had lies in memory now
        found = k.rerank(QUERY, TEXTS)
        asking = k.scoring.asking(QUERY)
        odds = {text: full(k, asking, text) for text in TEXTS}
        assert found.cached_tokens > sum(LENGTHS)
        for one in found:
            assert one.log_odds == pytest.approx(odds[one.document], abs=1e-4)
            likely = 1 / (1 + math.exp(-odds[one.document]))
            assert one.score == pytest.approx(likely, abs=1e-5)
        order = sorted(range(len(TEXTS)), key=lambda index: -odds[TEXTS[index]])
        assert [one.index for one in found] == order
        k.check()


def test_in_bf16_on_the_real_model_the_kernel_reads_one_layer_heads(
    smollm2: Path, model_cache: Path, tmp_path: Path
) -> None:
    texts = ["The boat leaves at nine. " * n for n in (1, 6, 30, 60)]
    config = Config(home=model_cache, store=StoreConfig(folder=tmp_path / "store"))
    with kdn.open(smollm2, config=config) as k:
        k.rerank("Something else?", texts)
        found = k.rerank(QUERY, texts)
        asking = k.scoring.asking(QUERY)
        assert found.cached_tokens > 0.5 * found.prompt_tokens
        for one in found:
            assert one.log_odds == pytest.approx(full(k, asking, one.document), abs=1e-3)
