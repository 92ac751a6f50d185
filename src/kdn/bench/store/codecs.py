"""How much smaller do codecs make KV, how fast, and what does the model lose by it?

KV of real text, in blocks as the store writes them: size with headers and padding, speed of one core,
KL as `kdn store calibrate` measures it.  Beside ours stand zstd on plain bytes, and CacheGen's published
bins (its scaling and its tables; the size is the entropy by layer and channel, which no coder beats).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import zstandard
from torch import Tensor

from kdn.bench.common.lines import lines_of
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.engine.lineup import opened
from kdn.calibration.codecs import Probe, calibrate, divergence, probes, read_texts
from kdn.clock import Clock
from kdn.core import BLOCK_TOKENS, KvShape
from kdn.corpus import corpus_files
from kdn.model import LoadedModel
from kdn.plot import Figure
from kdn.reuse.codec_quality import QualityRecord
from kdn.store import CODECS, Codec
from kdn.store.codecs import RunForm

__all__ = ["run"]

ENTROPY = "entropy-2"
"""The level that the summary speaks of."""
SECOND = "qwen2.5-coder-0.5b"
_NAMED = {"int8": "int8", "fp8": "fp8", "int4": "int4", "entropy": ENTROPY}


@dataclass(frozen=True)
class _Measured:
    """One model: its quality record, the speeds (MB/s of plain KV), and two published ways."""

    record: QualityRecord
    encode: dict[str, float]
    decode: dict[str, float]
    gain: dict[str, float]
    zstd_gain: float
    bins_gain: float
    bins_kl: float


def run(options: BenchOptions) -> Result:
    """Measure `options.model`, and the second model where its file is at hand."""
    texts = (
        read_texts(options.data)
        if options.data is not None
        else [path.read_text("utf-8") for path in corpus_files()]
    )
    found = {options.model: _measure(options, texts)}
    second = Path.home() / ".cache" / "kdn-eval" / f"{SECOND}.gguf"
    notes = [
        "Speeds are of one core, over layer runs of 256-token blocks, medians of interleaved rounds.",
        (
            "CacheGen itself runs on CUDA only. Its bins are computed here; their size is the entropy"
            " by layer and channel without tables, which no coder can beat."
        ),
    ]
    if second.exists() and not options.quick:
        found[SECOND] = _measure(replace(options, model=str(second)), texts)
    elif not options.quick:
        notes.append(f"{SECOND} was not at hand.")
    rows = [row for model, one in found.items() for row in _rows(model, one)]
    return Result(
        bench="codecs",
        model=options.model,
        config=options.describe(),
        rows=rows,
        summary=_summary(found[options.model]) | _second(found.get(SECOND)),
        notes=tuple(notes),
        figures=(figure_of(rows),),
    )


def _measure(options: BenchOptions, texts: Sequence[str]) -> _Measured:
    pieces, rounds = (2, 2) if options.quick else (6, options.pairs or 5)
    torch.set_num_threads(options.threads)
    with opened(options) as service:
        model = service.model
        options.say(f"{_short(options.model)}: quality")
        given = probes(model, texts, pieces=pieces, say=options.say)
        record = calibrate(model, given, options.clock, say=options.say)
        bins_gain, bins_kl = _bins(model, given)
    options.say(f"{_short(options.model)}: speed")
    shape = model.decoder.config.kv_shape(str(model.decoder.dtype).removeprefix("torch."))
    runs = _runs(given[0].kv)
    encode, decode, gain = _speeds(runs, shape, rounds, options.clock)
    return _Measured(record, encode, decode, gain, _zstd_gain(runs), bins_gain, bins_kl)


def _runs(kv: Tensor) -> list[memoryview]:
    """Each layer's run of the first block."""
    first = kv[:, :, :BLOCK_TOKENS].contiguous()
    return [layer.view(torch.uint8).reshape(-1).numpy().data for layer in first]


def _speeds(
    runs: Sequence[memoryview], shape: KvShape, rounds: int, clock: Clock
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """By codec MB/s of plain KV in and out, and how many times smaller the runs became."""
    forms = [RunForm(shape, layer, BLOCK_TOKENS) for layer in range(shape.num_layers)]
    size = sum(run.nbytes for run in runs)
    stored = {name: _encoded(codec, runs, forms) for name, codec in CODECS.items()}
    encode: dict[str, list[float]] = {name: [] for name in CODECS}
    decode: dict[str, list[float]] = {name: [] for name in CODECS}
    for _ in range(rounds):
        for name, codec in CODECS.items():
            encode[name].append(_seconds(clock, _encoded, codec, runs, forms))
            decode[name].append(_seconds(clock, _decoded, codec, stored[name], forms))
    return (
        {name: size / 1e6 / statistics.median(times) for name, times in encode.items()},
        {name: size / 1e6 / statistics.median(times) for name, times in decode.items()},
        {name: size / sum(run.nbytes for run in held) for name, held in stored.items()},
    )


def _encoded(
    codec: Codec, runs: Sequence[memoryview], forms: Sequence[RunForm]
) -> list[memoryview]:
    return [codec.encode(run, form) for run, form in zip(runs, forms, strict=True)]


def _decoded(
    codec: Codec, stored: Sequence[memoryview], forms: Sequence[RunForm]
) -> list[memoryview]:
    return [codec.decode(run, form) for run, form in zip(stored, forms, strict=True)]


def _seconds(
    clock: Clock,
    do: Callable[[Codec, Sequence[memoryview], Sequence[RunForm]], object],
    codec: Codec,
    runs: Sequence[memoryview],
    forms: Sequence[RunForm],
) -> float:
    started = clock.now()
    do(codec, runs, forms)
    return clock.now() - started


def _short(model: str) -> str:
    return Path(model).name.removesuffix(".gguf")


def _zstd_gain(runs: Sequence[memoryview]) -> float:
    packer = zstandard.ZstdCompressor(level=1)
    return sum(run.nbytes for run in runs) / sum(len(packer.compress(run)) for run in runs)


def _bins(model: LoadedModel, given: Sequence[Probe]) -> tuple[float, float]:
    """CacheGen's tables for 7B models: 32 bins for K in layers 0-9 and V in 0-1, 16 elsewhere."""
    bits, kls = [], []
    for probe in given:
        layers = probe.kv.shape[0]
        bins = torch.full((layers, 2, 1, 1, 1), 16.0)
        bins[: layers * 10 // 32, 0], bins[: max(1, layers * 2 // 32), 1] = 32.0, 32.0
        values = probe.kv.float()
        largest = values.abs().amax((-1, -2), keepdim=True).clamp_min(1e-9)
        numbers = (values * (bins / 2 - 1) / largest).round()
        bits.append(_entropy_bits(numbers[:, :, :BLOCK_TOKENS]))
        back = (numbers * largest / (bins / 2 - 1)).to(probe.kv.dtype)
        kls.append(float(divergence(model, probe, back)[0].mean()))
    return 8 * given[0].kv.element_size() / statistics.mean(bits), statistics.mean(kls)


def _entropy_bits(numbers: Tensor) -> float:
    """Mean over layers and channels of the entropy of [layers, 2, tokens, heads, dim], in bits."""
    tokens = numbers.shape[2]
    channels = numbers.permute(0, 1, 3, 4, 2).reshape(-1, tokens)
    total = torch.zeros(len(channels))
    for value in range(-16, 17):
        share = (channels == value).float().mean(1)
        total -= torch.where(share > 0, share * share.clamp_min(1e-9).log2(), 0.0)
    return float(total.mean())


def _rows(model: str, one: _Measured) -> list[Row]:
    rows: list[Row] = []
    for name, codec in CODECS.items():
        quality = one.record.codecs.get(name)
        rows.append(
            {
                "model": _short(model),
                "codec": name,
                "gain": one.gain[name] if quality is None else quality.gain,
                "encode, MB/s": one.encode[name] if codec.compresses else None,
                "decode, MB/s": one.decode[name] if codec.compresses else None,
                "mean KL": quality.kl if quality is not None else 0.0,
                "p99 KL": quality.kl_p99 if quality is not None else 0.0,
                "changed tokens": quality.changed_share if quality is not None else 0.0,
            }
        )
    who: Row = {"model": _short(model)}
    return [
        *rows,
        who | {"codec": "zstd-1 on plain bytes", "gain": one.zstd_gain, "mean KL": 0.0},
        who | {"codec": "CacheGen's bins", "gain": one.bins_gain, "mean KL": one.bins_kl},
        who | {"codec": "another document", "mean KL": one.record.kl_wrong_document},
        who | {"codec": "no document", "mean KL": one.record.kl_no_context},
    ]


def _summary(one: _Measured) -> dict[str, float | None]:
    found: dict[str, float | None] = {"lossless_gain": one.gain["lossless"]}
    for short, name in _NAMED.items():
        found[f"{short}_gain"] = one.record.codecs[name].gain
        found[f"kl_{short}"] = one.record.codecs[name].kl
    found["kl_wrong_document"] = one.record.kl_wrong_document
    found["kl_no_document"] = one.record.kl_no_context
    found["entropy_decode_mb_per_s"] = one.decode[ENTROPY]
    found["bins_gain"], found["kl_bins"] = one.bins_gain, one.bins_kl
    return found


def _second(one: _Measured | None) -> dict[str, float | None]:
    """The same of the second model, null where it was not measured."""
    names = ("lossless_gain", "int8_gain", "kl_int8", "entropy_gain", "kl_entropy")
    found = _summary(one) if one is not None else {}
    return {f"{name}_qwen": found.get(name) for name in names}


def figure_of(rows: Sequence[Row]) -> Figure:
    """What smaller costs: codecs without loss have no place on the axis, and are left out."""
    lossy = [row for row in rows if row.get("mean KL") and row.get("p99 KL") is not None]
    lossy.sort(key=lambda row: float(str(row["gain"])))
    named = [row | {"line": f"{row['model']}, {_kind(str(row['codec']))}"} for row in lossy]
    lines = lines_of(named, "line", "gain", "mean KL")
    return Figure("What smaller costs", "times smaller", "mean KL to the answer, nats", lines)


def _kind(codec: str) -> str:
    return "entropy-coded" if codec.startswith("entropy") else "fixed width"
