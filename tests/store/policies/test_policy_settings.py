"""Settings of the store and of prices reach what they name."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdn
from kdn.config import load_config
from kdn.errors import BadConfig, BadInput
from kdn.store.traces.recording import read_trace
from kdn.testing import write_tiny_model


def opened(tmp_path: Path, text: str) -> kdn.Kdn:
    (tmp_path / "kdn.toml").write_text(text)
    model = write_tiny_model(tmp_path / "model", "llama")
    return kdn.open(model, config=load_config({}, home=tmp_path))


def test_recorded_lookups_can_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "lookups.jsonl"
    with opened(tmp_path, f'[store]\nrecord = "{path}"\n') as service:
        service.generate("hello there, how are you?", sampling=kdn.Sampling(max_tokens=2))
        service.generate("hello there, how are you?", sampling=kdn.Sampling(max_tokens=2))
    first, again = read_trace(path)
    assert first.hash_ids == again.hash_ids
    assert "hello" not in path.read_text()


def test_a_use_is_worth_money_and_keeping_costs_some(tmp_path: Path) -> None:
    prices = '[store]\npolicy = "value"\n[cost]\nprices = "laptop"\nspeed = "smollm2-135m-cpu"\n'
    with opened(tmp_path, prices) as service:
        for _ in range(3):  # what is kept is written after the answer: the third time it is there
            service.generate("hello there, how are you?", sampling=kdn.Sampling(max_tokens=2))
            service.store.flush()
        assert service.cost.ledger().saved.value > 0
        assert service.cost.ledger().spent.value > 0
        service.check()


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="policy"):
        opened(tmp_path, '[store]\npolicy = "lfu"\n')
    with pytest.raises(BadConfig, match="ttl_s"):
        opened(tmp_path, "[store]\nttl_s = 0\n")
    with pytest.raises(BadInput, match="no price sheet 'moon'"):
        opened(tmp_path, '[store]\npolicy = "value"\n[cost]\nprices = "moon"\n')
