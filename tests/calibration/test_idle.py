"""Measured when nobody asks, kept, and given up when somebody does."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import kdn
from kdn.calibration.idle import IdleFit
from kdn.calibration.times import jct_path
from kdn.config import load_config
from kdn.core import JctModel
from kdn.cost import load_jct
from kdn.testing import write_tiny_model
from kdn.trace import NoTrace

FOUND = JctModel(0.01, 0.001, 0.0, 0.0, 0.05, "fit")


@dataclass
class CountingMeter:
    points: list[tuple[int, int, int]] = field(default_factory=lambda: [(1, 0, 1), (2, 0, 1)])
    measured: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    def measure(self, point: tuple[int, int, int]) -> None:
        self.measured += 1

    def fit(self) -> JctModel:
        return FOUND

    def close(self) -> None:
        self.closed.set()


def test_two_points_are_measured_four_times_once_it_is_quiet() -> None:
    """One round to warm up and three that count."""
    meter, kept, done = CountingMeter(), list[JctModel](), threading.Event()

    def keep(found: JctModel) -> None:
        kept.append(found)
        done.set()

    fit = IdleFit(lambda: meter, lambda: 1, lambda: True, keep, 0.01, NoTrace())
    assert done.wait(30)
    fit.close()
    assert (meter.measured, kept) == (8, [FOUND])
    assert meter.closed.is_set()


def test_nothing_is_measured_before_the_first_request_or_among_others() -> None:
    meter = CountingMeter()
    looked = threading.Event()
    looks = iter(range(100))

    def never_quiet() -> int:
        count = next(looks)
        if count == 30:
            looked.set()
        return count

    fit = IdleFit(lambda: meter, never_quiet, lambda: True, lambda _: None, 0.01, NoTrace())
    assert looked.wait(30)
    fit.close()
    fit.close()
    assert meter.measured == 0


def test_a_service_that_answered_and_rests_has_its_fit(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "llama", max_position_embeddings=2048)
    (tmp_path / "kdn.toml").write_text("[engine]\nfit_idle_s = 0.05\n")
    with kdn.open(model, config=load_config({}, home=tmp_path)) as service:
        path = jct_path(service.model.decoder, tmp_path)
        assert service.calibration.jct.source == "flops"
        service.generate("hello", sampling=kdn.Sampling(max_tokens=1))
        waiting = threading.Event()
        for _ in range(600):
            if waiting.wait(0.1) or path.exists():
                break
        assert load_jct(path) is not None
    with kdn.open(model, config=load_config({}, home=tmp_path)) as service:
        assert service.calibration.jct.source == "fit"


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "llama")
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path)
    assert config.engine.fit_idle_s == 0
    with kdn.open(model, config=config) as service:
        assert not [t for t in threading.enumerate() if t.name == "kdn-idle-fit"]
        assert service.calibration.jct.source == "flops"
