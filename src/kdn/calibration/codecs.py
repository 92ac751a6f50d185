"""What each lossy codec does to a model's answers, measured on real text.

    a piece of text    |-- context: its KV goes through the codec --|-- positions --|
    KL at each position between the next-token distributions with the KV as it is and as it came back

Beside it stand the KL of a context from another text, and of none: the scale on which to read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdn.clock import Clock
from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    BlockId,
    Fingerprint,
    KvShape,
    Plan,
    Recipe,
    TokenIds,
    chain_hash,
)
from kdn.engine import AloneRun, HeldKV, run_alone
from kdn.errors import BadInput
from kdn.machine.text import read_text
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse import lossy_recipe
from kdn.reuse.codec_quality import CodecQuality, QualityRecord
from kdn.store import CODECS, Block, Codec, encode_block

__all__ = ["Probe", "calibrate", "divergence", "probes", "read_texts", "through"]

CONTEXT_TOKENS = 512
POSITIONS = 96
PIECES = 6
_SUFFIXES = (".rst", ".txt", ".md")


@dataclass(frozen=True)
class Probe:
    """A piece of text: its KV, and what the model expects after each of the later positions."""

    token_ids: TokenIds
    kv: Tensor
    """[layers, 2, context tokens, kv heads, dim]: K without rotary position, and V."""
    expected: Tensor
    """[positions, vocabulary] log-probabilities with the context as it is."""

    @property
    def num_context(self) -> int:
        return self.kv.shape[2]


def calibrate(
    model: LoadedModel,
    found: Sequence[Probe],
    clock: Clock,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> QualityRecord:
    """Measure every lossy codec on these pieces of text: two at least."""
    others = [*found[1:], found[0]]
    wrong = [divergence(model, one, other.kv) for one, other in zip(found, others, strict=True)]
    none = [divergence(model, one, None) for one in found]
    codecs = {}
    for name, codec in CODECS.items():
        if not codec.lossless:
            say(f"codec {name}")
            codecs[name] = _quality(model, found, codec)
    return QualityRecord(
        model=model.name,
        fingerprint=model.decoder.fingerprint_with(None),
        positions=sum(one.expected.shape[0] for one in found),
        context_tokens=found[0].num_context,
        wall_s=clock.wall(),
        kl_wrong_document=float(torch.cat([kl for kl, _ in wrong]).mean()),
        kl_no_context=float(torch.cat([kl for kl, _ in none]).mean()),
        codecs=codecs,
    )


def read_texts(path: Path) -> list[str]:
    """A text file, or every text file in a folder. Raises BadInput when there is none, or it is no text."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _is_text(p))
    if not files:
        raise BadInput(f"{path} holds no text: give a folder with {', '.join(_SUFFIXES)} files")
    return [read_text(file) for file in files]


def probes(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    pieces: int = PIECES,
    say: Callable[[str], None] = lambda _: None,
) -> list[Probe]:
    """Pieces of different texts, or of different parts of them. Raises BadInput: too little text."""
    size = CONTEXT_TOKENS + POSITIONS
    cut = [ids[at : at + size] for ids in map(model.tokenizer.encode, texts)
           for at in range(size // 2, len(ids) - size, size)]  # fmt: skip
    if len(cut) < pieces:
        raise BadInput(f"{pieces} pieces of {size} tokens are needed, the text gives {len(cut)}")
    found = []
    for number, piece in enumerate(cut[:: len(cut) // pieces][:pieces], 1):
        say(f"text {number} of {pieces}")
        found.append(_probe(model, tuple(piece)))
    return found


def through(codec: Codec, kv: Tensor, shape: KvShape, token_ids: TokenIds) -> tuple[Tensor, int]:
    """KV as it comes back from stored blocks, and the size of these in bytes."""
    recipe = EXACT if codec.lossless else lossy_recipe(codec.name)
    back, size_bytes = kv.clone(), 0
    for start in range(0, kv.shape[2], BLOCK_TOKENS):
        part = back[:, :, start : start + BLOCK_TOKENS]
        block = _block(part, shape, token_ids[: start + part.shape[2]], start, recipe)
        encoded = encode_block(block, codec)
        size_bytes += encoded.size_bytes
        for layer in range(shape.num_layers):
            begin, end = encoded.header.layer_range(layer)
            run = encoded.header.layer(layer, encoded.data[begin:end], verify=False)
            values = torch.frombuffer(bytearray(run), dtype=kv.dtype)
            part[layer] = values.view(part[layer].shape)
    return back, size_bytes


def _is_text(path: Path) -> bool:
    return path.suffix in _SUFFIXES and path.is_file()


def _quality(model: LoadedModel, found: Sequence[Probe], codec: Codec) -> CodecQuality:
    divergences, changed, raw_bytes, size_bytes = [], [], 0, 0
    for probe in found:
        kv, stored_bytes = through(codec, probe.kv, _shape(model), probe.token_ids)
        raw_bytes += probe.kv.numel() * probe.kv.element_size()
        size_bytes += stored_bytes
        kl, other = divergence(model, probe, kv)
        divergences.append(kl)
        changed.append(other)
    kl = torch.cat(divergences)
    return CodecQuality(
        kl=float(kl.mean()),
        kl_p99=float(np.percentile(kl.numpy(), 99)),
        changed_share=float(torch.cat(changed).float().mean()),
        gain=raw_bytes / size_bytes,
    )


def divergence(model: LoadedModel, probe: Probe, kv: Tensor | None) -> tuple[Tensor, Tensor]:
    """By position the KL with `kv` as context (None: none), and whether the best token changed."""
    start = probe.num_context
    token_ids = probe.token_ids if kv is not None else probe.token_ids[start:]
    count = len(probe.token_ids) - start
    prefix = HeldKV(kv) if kv is not None else None
    plan = Plan(token_ids, prefix=prefix, logits=_last(len(token_ids), count))
    found = _logprobs(run_alone(model, TorchAttention(), plan))
    kl = (probe.expected.exp() * (probe.expected - found)).sum(-1).clamp_min(0)
    return kl, probe.expected.argmax(-1) != found.argmax(-1)


def _probe(model: LoadedModel, token_ids: TokenIds) -> Probe:
    plan = Plan(token_ids, logits=_last(len(token_ids), POSITIONS))
    ran = run_alone(model, TorchAttention(), plan, capture=True)
    assert ran.captured is not None, "asked for"
    return Probe(token_ids, ran.captured[:, :, :CONTEXT_TOKENS].clone(), _logprobs(ran))


def _last(num_tokens: int, count: int) -> tuple[int, ...]:
    return tuple(range(num_tokens - count, num_tokens))


def _logprobs(ran: AloneRun) -> Tensor:
    """[positions, vocabulary], on the CPU."""
    return torch.log_softmax(ran.logits.cpu(), -1)


def _block(part: Tensor, shape: KvShape, token_ids: TokenIds, start: int, recipe: Recipe) -> Block:
    after = chain_hash(token_ids[:start])
    name = BlockId(_CALIBRATION, recipe, "", after, start, token_ids[start:])
    runs = (layer.contiguous().view(torch.uint8).reshape(-1).numpy().data for layer in part)
    return Block(name, shape, tuple(runs))


def _shape(model: LoadedModel) -> KvShape:
    return model.decoder.config.kv_shape(str(model.decoder.dtype).removeprefix("torch."))


_CALIBRATION = Fingerprint("calibration")
