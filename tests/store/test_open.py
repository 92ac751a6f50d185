"""Settings of tiers across a network arrive where they act."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import kdn
from kdn.api.store import open_configured_store
from kdn.calibration.times import jct_path
from kdn.config import Config, StoreConfig
from kdn.core import JctModel
from kdn.cost import save_jct
from kdn.store import RemoteCallSettings, RemoteSettings, RemoteTier


def test_every_far_setting_reaches_its_tier(tmp_path: Path) -> None:
    config = StoreConfig(
        objects_url=f"file://{tmp_path}/objects",
        far_bytes=123_456,
        far_timeout_s=7.0,
        far_attempts=3,
        far_read_bytes=4096,
        objects_poll_s=11.0,
    )
    with open_configured_store(Config(home=tmp_path, store=config)) as store:
        tier = store.tiers.named("objects")
        assert isinstance(tier, RemoteTier)
        line = RemoteCallSettings(timeout_s=7.0, attempts=3)
        assert tier._settings == RemoteSettings(line, 123_456, 4096, 11.0)
        assert tier.usage().capacity_bytes == 123_456


def test_a_quick_prefill_leaves_a_slow_tier_alone(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """With a tier known to give a byte a second, loading pays only where computing is slower."""
    document = "The lamp is lit at dusk. " * 8
    for rate, reused in [(None, True), (1e6, False), (1e-6, True)]:
        home = tmp_path / str(rate)
        config = Config(home=home, store=StoreConfig(prefill_tokens_per_s=rate))
        with kdn.open(tiny_model(), config=config) as one:
            one.prefill(document)
            one.store.flush()
            one.store.links.note("memory", 1, 1.0)
            answer = one.generate("Lit?", [document])
            assert one.lookup(document)[0].num_tokens > 0
            assert (answer.usage.cached_tokens > 0) is reused


def test_a_fitted_prefill_is_weighed_without_being_asked(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    document = "The lamp is lit at dusk. " * 8
    quick = JctModel(pass_s=0.0, token_s=1e-9, pair_s=0.0, cached_s=0.0, error=0.0, source="fit")
    for fitted in (False, True):
        config = Config(home=tmp_path / str(fitted))
        with kdn.open(tiny_model(), config=config) as one:
            path = jct_path(one.model.decoder, config.home)
        if fitted:
            save_jct(quick, path)
        with kdn.open(tiny_model(), config=config) as one:
            one.prefill(document)
            one.store.flush()
            one.store.links.note("memory", 1, 1.0)
            assert (one.generate("Lit?", [document]).usage.cached_tokens == 0) is fitted
