"""What all chunks' keys are off by: measured, kept, and added where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from kdn.bench.blend.lab import Lab
from kdn.calibration.key_bias import (
    key_bias_share,
    load_key_bias,
    measure_key_bias,
    save_key_bias,
    shipped_texts,
)
from kdn.core import Blend, Fingerprint, Prompt
from kdn.engine import HeldKV
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse.blend import KeyBias
from tests.engine.runs import load_tiny
from tests.reuse.blend.test_planner import ALL, ONE, PRELUDE, THREE, TWO, desk, question

TWO_LAYERS = KeyBias(torch.tensor([[[1.0, -2.0]], [[0.5, 0.0]]]))
FINGERPRINT = Fingerprint("0" * 32)


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama", num_hidden_layers=4), model_cache, "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layers_shift_is_added_to_keys_and_to_nothing_else(dtype: torch.dtype) -> None:
    """Two layers of three tokens, all ones: keys become (2, -1) in the first, (1.5, 1) in the other."""
    kv = torch.ones((2, 2, 3, 1, 2), dtype=dtype)
    source = TWO_LAYERS.over(HeldKV(kv))
    first, second = (source.take(layer)[0].shifted() for layer in (0, 1))
    assert first.k.tolist() == [[[2.0, -1.0]]] * 3
    assert second.k.tolist() == [[[1.5, 1.0]]] * 3
    assert first.v.tolist() == [[[1.0, 1.0]]] * 3
    assert first.k.dtype == dtype
    assert kv.min() == kv.max() == 1, "what is stored stays as it is"
    assert source.num_tokens == 3


def test_half_of_it_is_half_of_every_number() -> None:
    assert TWO_LAYERS.times(0.5).shift.tolist() == [[[0.5, -1.0]], [[0.25, 0.0]]]


def test_it_is_the_mean_difference_of_keys_behind_the_first_document(tiny: LoadedModel) -> None:
    """The dull twin: the laboratory's full prefill less its chunks, over 100 and 60 tokens."""
    prompt = Prompt((*ALL, question(1)))
    found, steps = None, 0
    measuring = measure_key_bias(tiny, TorchAttention(), prompt)
    while found is None:
        try:
            next(measuring)
            steps += 1
        except StopIteration as end:
            found = end.value
    case = Lab(tiny, TorchAttention(), found).case(prompt)
    errors = [
        case.true_kv[:, 0, run.start : run.stop] - run.source.kv[:, 0]
        for run in case.stored
        if isinstance(run.source, HeldKV)
    ]
    assert torch.allclose(found.shift, torch.cat(errors, dim=1).mean(dim=1), atol=1e-5)
    assert found.shift[0].abs().max() < 1e-5, "keys of layer 0 know only their token"
    assert steps == 4 * 3, "prelude, the whole, two documents: a layer a step, the last unseen"


def test_it_comes_back_from_disk_for_the_same_model_alone(tmp_path: Path) -> None:
    path = save_key_bias(tmp_path, FINGERPRINT, TWO_LAYERS)
    found = load_key_bias(tmp_path, FINGERPRINT)
    assert found is not None
    assert torch.equal(found.shift, TWO_LAYERS.shift)
    other = Fingerprint("1" * 32)
    path.with_name(f"{other}.msgpack").write_bytes(path.read_bytes())
    assert load_key_bias(tmp_path, other) is None, "it is about another model"
    path.write_bytes(path.read_bytes()[:-4])
    assert load_key_bias(tmp_path, FINGERPRINT) is None, "it is cut short"


@pytest.mark.parametrize(
    "change",
    [
        {"values": b"\xff" * 16},
        {"values": b"\x01" * 16},
        {"shape": (-1, 1, 2)},
        {"shape": (2, 1, 3)},
        {"digest": "0"},
    ],
)
def test_damaged_values_are_measured_again(tmp_path: Path, change: dict[str, object]) -> None:
    """Not a number, one bit off, another shape: none of them may reach stored keys."""
    path = save_key_bias(tmp_path, FINGERPRINT, TWO_LAYERS)
    path.write_bytes(msgspec.msgpack.encode(msgspec.msgpack.decode(path.read_bytes()) | change))
    assert load_key_bias(tmp_path, FINGERPRINT) is None


def test_files_of_earlier_releases_have_no_digest_and_are_read(tmp_path: Path) -> None:
    path = save_key_bias(tmp_path, FINGERPRINT, TWO_LAYERS)
    content = msgspec.msgpack.decode(path.read_bytes())
    del content["digest"]
    path.write_bytes(msgspec.msgpack.encode(content))
    found = load_key_bias(tmp_path, FINGERPRINT)
    assert found is not None
    assert torch.equal(found.shift, TWO_LAYERS.shift)


def test_chunks_from_behind_the_prelude_are_corrected_and_others_are_not(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """One and two were learnt alone; three stood behind two, where nothing has drifted."""
    shape = (tiny.decoder.config.num_layers, tiny.decoder.config.num_kv_heads)
    drift = KeyBias(torch.zeros(*shape, tiny.decoder.config.head_dim))
    with desk(tiny, tmp_path / "store", drift=drift) as d:
        d.learn(ONE, TWO)
        d.ask(PRELUDE, TWO, THREE, question(2))
        plan = d.reuse.plan(
            d.request(PRELUDE, ONE, TWO, THREE, question(1), techniques=(Blend(0.1),))
        ).plan
        kinds = {run.start: run.source.name.endswith("key bias corrected") for run in plan.stored}
        for run in plan.stored:
            run.source.close()
        assert plan.prefix is not None
        plan.prefix.close()
    assert kinds == {320: True, 420: False}


def test_the_shipped_texts_are_all_different_and_long_enough() -> None:
    texts = shipped_texts()
    assert len(set(texts)) == 8
    assert {len(text.split()) for text in texts} == {200}


def test_the_share_is_as_wished_else_as_measured_else_half() -> None:
    assert key_bias_share("smollm2-135m") == 1.0
    assert key_bias_share("never heard of") == 0.5
    assert key_bias_share("smollm2-135m", 0.25) == 0.25
