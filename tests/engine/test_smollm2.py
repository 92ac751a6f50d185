"""The engine on SmolLM2 against transformers' logits: prefill, chunks, reuse, decode, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdn.core import Plan, TokenIds
from kdn.corpus import corpus_files
from kdn.model import LoadedModel, load_adapter, load_model
from kdn.model.attention import Attention, TorchAttention
from kdn.model.gguf.file import unpack_gguf
from kdn.model.kernels import KernelAttention
from tests.engine.runs import HeldSource, decode, run

NUM_TOKENS = 700


@pytest.fixture(scope="module")
def smol(smollm2: Path, model_cache: Path) -> LoadedModel:
    return load_model(smollm2, cache_dir=model_cache, dtype="float32", device="cpu")


@pytest.fixture(scope="module", params=["torch", "kernels"])
def smol_bf16(request: pytest.FixtureRequest, smollm2: Path, model_cache: Path) -> LoadedModel:
    kernels = request.getfixturevalue("kernels") if request.param == "kernels" else None
    return load_model(
        smollm2, cache_dir=model_cache, dtype="bfloat16", device="cpu", find_kernels=lambda: kernels
    )


@pytest.fixture(scope="module")
def text(smol: LoadedModel) -> TokenIds:
    """The beginning of a PEP."""
    page = corpus_files()[0].read_text(encoding="utf-8")
    return smol.tokenizer.encode(page)[:NUM_TOKENS]


@pytest.fixture(scope="module")
def transformers_model(smollm2: Path, model_cache: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = unpack_gguf(smollm2, model_cache / "unpacked", torch.float32)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def reference(model: Any, tokens: TokenIds) -> Tensor:
    logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def test_full_and_chunked_prefill_give_transformers_logits(
    smol: LoadedModel, transformers_model: Any, text: TokenIds
) -> None:
    expected = reference(transformers_model, text)
    whole = run(smol, Plan(text, logits=tuple(range(NUM_TOKENS))))
    chunked = run(smol, Plan(text), cuts=(256, 512))
    assert (whole.logits - expected).abs().max() < 1e-3
    assert (chunked.logits[-1] - expected[-1]).abs().max() < 1e-3


def test_a_reused_prefix_and_decoding_give_transformers_logits(
    smol: LoadedModel, transformers_model: Any, text: TokenIds
) -> None:
    expected = reference(transformers_model, text)
    first = run(smol, Plan(text[:500]))
    plan = Plan(text[:690], prefix=HeldSource(first.captured))
    reused = run(smol, plan)
    assert (reused.logits[-1] - expected[689]).abs().max() < 1e-3
    for position in range(690, NUM_TOKENS):
        logits = decode(smol, [(reused.kv, text[position])])[0][0]
        assert (logits - expected[position]).abs().max() < 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_gives_the_logits_of_peft(
    smol: LoadedModel, transformers_model: Any, text: TokenIds, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    wrapped = peft.get_peft_model(transformers_model, config)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    wrapped.save_pretrained(tmp_path / "adapter")
    tokens = text[:200]
    expected = reference(wrapped, tokens)
    wrapped.unload()
    adapter = load_adapter(
        tmp_path / "adapter", "tuned", smol.decoder.config, torch.float32, torch.device("cpu")
    )
    adapted = run(smol, Plan(tokens, logits=tuple(range(200))), adapter=adapter)
    assert (adapted.logits - expected).abs().max() < 1e-3
    assert (run(smol, Plan(tokens)).logits[-1] - expected[-1]).abs().max() > 1e-2


@pytest.fixture(params=["plain", "kernel"])
def attention(request: pytest.FixtureRequest) -> Attention:
    if request.param == "plain":
        return TorchAttention()
    return KernelAttention(request.getfixturevalue("kernels"))


@pytest.mark.parametrize("num_prefix", [1, 255, 640, 699])
def test_in_bf16_reuse_equals_a_full_prefill_bit_for_bit(
    num_prefix: int, smol_bf16: LoadedModel, text: TokenIds, attention: Attention
) -> None:
    whole = run(smol_bf16, Plan(text), attention=attention)
    source = HeldSource(whole.captured[:, :, :num_prefix])
    reused = run(smol_bf16, Plan(text, prefix=source), attention=attention)
    assert torch.equal(reused.logits, whole.logits)
    assert torch.equal(reused.captured, whole.captured[:, :, num_prefix:])


def test_bf16_stays_near_fp32(smol: LoadedModel, smol_bf16: LoadedModel, text: TokenIds) -> None:
    """Distance of next-token distributions, in nats: the noise that all bf16 results live with."""
    everywhere = Plan(text, logits=tuple(range(400, NUM_TOKENS)))
    exact = torch.log_softmax(run(smol, everywhere).logits, dim=-1)
    rounded = torch.log_softmax(run(smol_bf16, everywhere).logits, dim=-1)
    divergence = (exact.exp() * (exact - rounded)).sum(-1)
    assert divergence.mean() < 0.01
