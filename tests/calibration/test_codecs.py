"""Calibration with a tiny model: the record, where it is kept, and what it then allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import kdn
from kdn.calibration.codecs import calibrate, probes, read_texts, through
from kdn.clock import ManualClock
from kdn.config import Config, StoreConfig
from kdn.core import Fingerprint, KvShape
from kdn.errors import BadConfig, BadInput, StoreError
from kdn.model import LoadedModel
from kdn.reuse.codec_quality import QualityRecord, load_record, save_record
from kdn.store import CODECS
from tests.cli.program import finish, start
from tests.cli.program import kdn as run_kdn
from tests.engine.runs import load_tiny

TEXT = "".join(
    f"Rule {number}: the {number * 7}th door opens at {number}. " for number in range(400)
)


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def tiny(folder: Path, model_cache: Path) -> LoadedModel:
    return load_tiny(folder, model_cache, "bfloat16")


@pytest.fixture(scope="module")
def record(tiny: LoadedModel) -> QualityRecord:
    return calibrate(tiny, probes(tiny, [TEXT]), ManualClock(wall_s=7.0))


def test_a_record_has_every_lossy_codec_and_its_scale(record: QualityRecord) -> None:
    assert record.positions == 576
    assert (record.context_tokens, record.wall_s) == (512, 7.0)
    assert set(record.codecs) == {name for name, codec in CODECS.items() if not codec.lossless}
    kl = {name: one.kl for name, one in record.codecs.items()}
    assert 0 < kl["int8"] < kl["int4"] < record.kl_wrong_document
    assert kl["entropy-1"] < kl["entropy-2"] < kl["entropy-3"] < kl["entropy-4"]
    assert all(one.kl <= one.kl_p99 * 10 for one in record.codecs.values())
    assert record.codecs["entropy-4"].gain > record.codecs["int8"].gain > 1


def test_kv_through_a_lossless_codec_is_the_same(tiny: LoadedModel) -> None:
    probe = probes(tiny, [TEXT], pieces=1)[0]
    shape = KvShape(2, 2, 16, "bfloat16")
    for name in ("none", "lossless"):
        back, _ = through(CODECS[name], probe.kv, shape, probe.token_ids)
        assert (back == probe.kv).all()


def test_too_little_text_is_said(tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="6 pieces of 608 tokens"):
        probes(tiny, ["short"])
    with pytest.raises(BadInput, match="holds no text"):
        read_texts(tmp_path)
    (tmp_path / "picture.txt").write_bytes(bytes(range(256)))
    with pytest.raises(BadInput, match=r"picture\.txt: not UTF-8 text"):
        read_texts(tmp_path)


def test_a_record_is_found_again_by_its_fingerprint_only(
    tmp_path: Path, record: QualityRecord
) -> None:
    path = save_record(tmp_path, record)
    assert load_record(tmp_path, Fingerprint(record.fingerprint)) == record
    assert load_record(tmp_path, Fingerprint("another")) is None
    path.with_name("another.json").write_bytes(path.read_bytes())
    assert load_record(tmp_path, Fingerprint("another")) is None, "it is about another model"
    path.write_text("{")
    assert load_record(tmp_path, Fingerprint(record.fingerprint)) is None
    with pytest.raises(StoreError, match="no model's fingerprint"):
        load_record(tmp_path, Fingerprint("../../etc/passwd"))


def opened(folder: Path, home: Path, store: StoreConfig) -> kdn.Kdn:
    return kdn.open(folder, dtype="bfloat16", config=Config(home=home, store=store))


def test_calibrate_then_auto_by_the_command_line(folder: Path, tmp_path: Path) -> None:
    home, text = tmp_path / "home", tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ("--model", folder, "--dtype", "bfloat16", "--data", text, "--json")
    done = finish(start(home, "store", "calibrate", *arguments))
    assert done.code == 0, done.err
    assert set(done.json["codecs"]) >= {"int8", "entropy-1"}
    stat = run_kdn(home, "store", "stat", "--json")
    assert stat.json["quality"][0]["fingerprint"] == done.json["fingerprint"]
    limit = done.json["codecs"]["int8"]["kl"]
    settings = StoreConfig(codec="auto", max_kl=limit, memory_bytes=1 << 24, disk_bytes=1 << 26)
    with opened(folder, home, settings) as k:
        k.generate("Which door?", [TEXT[:2000]], sampling=kdn.Sampling(max_tokens=1))
        k.store.flush()
        answer = k.generate("Which rule?", [TEXT[:2000]], sampling=kdn.Sampling(max_tokens=1))
        assert answer.usage.lossy > 1500
        assert answer.usage.exact == 0


def test_a_named_codec_beyond_the_limit_or_unmeasured_is_refused(
    folder: Path, tmp_path: Path, record: QualityRecord
) -> None:
    settings = StoreConfig(codec="int4", max_kl=1e-9, memory_bytes=1 << 24, disk_bytes=1 << 26)
    with pytest.raises(BadConfig, match="never measured; run: kdn store calibrate"):
        opened(folder, tmp_path, settings)
    plain = StoreConfig(memory_bytes=1 << 24, disk_bytes=1 << 26)
    with opened(folder, tmp_path, plain) as k:
        fingerprint = k.model.decoder.fingerprint_with(None)
    save_record(tmp_path, msgspec.structs.replace(record, fingerprint=fingerprint))
    with pytest.raises(BadConfig, match="more than max_kl"):
        opened(folder, tmp_path, settings)
