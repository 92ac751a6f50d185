"""How long may a prompt be under a fixed memory budget, if one token is all that is asked for?

Four ways to prefill the same prompt, the logits of the last token only in every one of them, so that
what differs is what they hold: KV of all layers, all rows of the MLP together, both or neither.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from kdn.bench.common.lines import Lines, over
from kdn.bench.common.measure import interleave
from kdn.bench.common.memory import peak_bytes
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.engine.lineup import opened
from kdn.clock import Clock
from kdn.core import Plan, Prompt, Request, Role, Sampling, Segment, TokenIds
from kdn.engine import (
    Engine,
    EngineLimits,
    JobMemory,
    Pass,
    SequenceKV,
    SequenceSlice,
    SuffixKV,
    counted_memory,
    kv_shape,
    measured_memory,
    plain,
)
from kdn.errors import PromptTooLong
from kdn.model import LoadedModel, ModelConfig
from kdn.model.attention import Attention
from kdn.plot import Figure

__all__ = ["ARMS", "LengthArm", "LengthProbe", "run"]

BUDGET_BYTES = 40 * 2**20
ROW_CHUNK = EngineLimits(0).row_chunk
"""Rows of position-wise work at a time, in the arm that does so."""
PREFILL_CHUNK = 512
"""Tokens of a chunk of chunked prefill: the fastest of 256, 512 and 1,024 here."""
_LENGTHS = (6144, 8192)
"""Long enough that rows decide the peak in every arm, and not one chunk of position-wise work: from
2,048 tokens a straight line would promise more than fits."""
_TIMED = 2048
"""Tokens whose time is taken by rows a chunk: twice as many are sixty prefills of 12 s on two cores without
bf16, and attention would hide what chunks cost."""
_CHUNKS = (64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class LengthArm:
    """A way to prefill: which KV outlives its layer, and how much is computed at a time."""

    name: str
    one_layer: bool = False
    row_chunk: int | None = None
    """Rows of position-wise work at a time."""
    pass_tokens: int | None = None
    """Tokens of a pass; None takes the prompt as one."""


WHOLE = LengthArm("whole KV")
CHUNKED = LengthArm("chunked prefill", pass_tokens=PREFILL_CHUNK)
DROP = LengthArm("drop KV only", one_layer=True)
HYBRID = LengthArm("hybrid", one_layer=True, row_chunk=ROW_CHUNK)
ARMS = (WHOLE, CHUNKED, DROP, HYBRID)


def run(options: BenchOptions) -> Result:
    """Bytes per token of every arm, the longest input it predicts, and a run at that length."""
    torch.set_num_threads(options.threads)
    with opened(options) as service:
        probe = LengthProbe(service.model, service.parts.attention, options.clock, options.seed)
        rows, lines = [], {}
        for arm in ARMS:
            options.say(f"memory of {arm.name}")
            memory = measured_memory(partial(probe.peak, arm), *_LENGTHS)
            lines[arm.name] = memory
            rows.append(_row(probe, arm, memory))
        refused = probe.refusal(lines[HYBRID.name])
        times, cost = _chunk_times(options, probe)
    rows += [{"way": f"hybrid, {size} rows a chunk", "seconds": s} for size, s in times.items()]
    largest = {name: memory.largest(BUDGET_BYTES) for name, memory in lines.items()}
    return Result(
        bench="mil",
        model=options.model,
        config=options.describe()
        | {"budget_bytes": BUDGET_BYTES, "row_chunk": ROW_CHUNK, "prefill_chunk": PREFILL_CHUNK},
        rows=rows,
        summary={
            "mil_gain_paged": largest[HYBRID.name] / largest[WHOLE.name],
            "mil_gain_chunked": largest[HYBRID.name] / largest[CHUNKED.name],
            "mil_gain_drop": largest[HYBRID.name] / largest[DROP.name],
            "chunk_cost": cost,
            "model_error": max(abs(float(str(row["model error"]))) for row in rows[: len(ARMS)]),
        },
        notes=(
            f"The budget is the weights and {BUDGET_BYTES / 2**20:.0f} MiB; last-token logits everywhere.",
            f"One more block of tokens than the hybrid arm's maximum was refused: {refused}",
        ),
        figures=(figure_of(rows),),
        dtype=probe.shape.dtype,
    )


class LengthProbe:
    """One model, and prompts of random tokens put through it in different ways."""

    def __init__(self, model: LoadedModel, attention: Attention, clock: Clock, seed: int) -> None:
        self.model = model
        self.config = model.decoder.config
        self._attention = attention
        self._clock = clock
        self._random = random.Random(seed)
        self.shape = kv_shape(model)

    def tokens(self, count: int) -> TokenIds:
        return tuple(self._random.choices(range(min(self.config.vocab_size, 30_000)), k=count))

    def peak(self, arm: LengthArm, num_tokens: int) -> int:
        """Bytes at the worst moment of a prompt of so many tokens."""
        tokens, suffix = self.tokens(num_tokens), self._suffix(arm, num_tokens)
        device = str(self.model.decoder.device)
        # K and V lie outside of what the tensor library counts, or before it begins to.
        return peak_bytes(lambda: self.forward(arm, tokens, suffix), device) + suffix.size_bytes

    def seconds(self, arm: LengthArm, num_tokens: int) -> float:
        tokens = self.tokens(num_tokens)
        started = self._clock.now()
        self.forward(arm, tokens, self._suffix(arm, num_tokens))
        return self._clock.now() - started

    def _suffix(self, arm: LengthArm, num_tokens: int) -> SuffixKV:
        decoder = self.model.decoder
        device = str(decoder.device)
        return SuffixKV(self.shape, decoder.dtype, device, num_tokens, one_layer=arm.one_layer)

    @torch.inference_mode()
    def forward(self, arm: LengthArm, tokens: TokenIds, suffix: SuffixKV) -> torch.Tensor:
        """Logits of the last token."""
        decoder = self.model.decoder
        plan = Plan(tokens, row_chunk=arm.row_chunk, one_layer=arm.one_layer)
        kv = SequenceKV(suffix)
        logits = torch.empty(0)
        size = arm.pass_tokens or len(tokens)
        for first in range(0, len(tokens), size):
            part = SequenceSlice.prefill(plan, kv, first, min(first + size, len(tokens)))
            step = Pass(decoder, self._attention, [part])
            while not step.advance():
                pass
            logits = step.logits()[0]
        return logits

    def refusal(self, memory: JobMemory) -> str:
        """What an engine with the budget says to a prompt just beyond its maximum."""
        limits = EngineLimits(BUDGET_BYTES, row_chunk=ROW_CHUNK, memory=memory)
        engine = Engine(
            self.model, self._attention, _NoReuse(), limits, self._clock, threaded=False
        )
        prompt = Prompt((Segment(Role.QUESTION, self.tokens(engine.most_tokens() + 1)),))
        try:
            engine.submit(Request("long", prompt, Sampling(max_tokens=1)))
        except PromptTooLong as refused:
            return str(refused)
        finally:
            engine.close()
        return "it was not refused"


class _NoReuse:
    """A planner without a store."""

    plan = staticmethod(plain)

    def cached_tokens(self, request: Request) -> int:
        return 0

    def retain(self, request: Request, kept: object) -> None:
        return None


def _row(probe: LengthProbe, arm: LengthArm, memory: JobMemory) -> Row:
    most = memory.largest(BUDGET_BYTES)
    runs = min(most, probe.config.max_position)
    used = probe.peak(arm, runs)
    fused = probe.model.decoder.fused
    fused_bytes = None if fused is None else fused.row_bytes
    counted = _counted(probe.config, arm, probe.shape.value_bytes, fused_bytes)
    return {
        "way": arm.name,
        "KiB a token": memory.token_bytes / 1024,
        "counted": counted / 1024,
        "model error": memory.token_bytes / counted - 1,
        "fixed MiB": memory.fixed_bytes / 2**20,
        "longest input": most,
        "ran": runs,
        "took MiB": used / 2**20,
        "within": used <= BUDGET_BYTES,
    }


def _counted(
    config: ModelConfig, arm: LengthArm, value_bytes: int, fused_bytes: float | None = None
) -> float:
    """Bytes a token that must coexist, from the shapes alone.

    Layers in one call have room for all that a row becomes, `fused_bytes`.  Computed part by part, whole
    rows take most while the MLP's result is multiplied down: hidden state, attention's output, the sum of
    both, its norm and the layer's output; the inner values twice, as they are and as tiles.  Against them
    stands what exists while queries are rotated.
    """
    kv_layer = 2 * config.kv_size * value_bytes
    all_layers = kv_layer * config.num_layers
    hybrid = counted_memory(config, value_bytes, 1).token_bytes
    tables = 2 * config.head_dim * 4 + 2 * 8
    if arm is HYBRID:
        return hybrid
    if arm is CHUNKED:
        return all_layers
    hidden = config.hidden_size
    rows: float = (4 * hidden + config.q_size + 2 * config.intermediate_size) * value_bytes
    if fused_bytes is not None:
        rows = hidden * value_bytes + fused_bytes
    kept = kv_layer if arm.one_layer else all_layers
    return kept + max(rows + tables, hybrid - kv_layer)


def _chunk_times(options: BenchOptions, probe: LengthProbe) -> tuple[dict[int, float], float]:
    """Median seconds of one length by rows a chunk, and what our size costs against the best one.

    Rounds go over all sizes; the cost is the median over rounds of our time over another size's in the
    same round, for the size that looks best so.
    """
    length = 1024 if options.quick else _TIMED
    sizes = [size for size in _CHUNKS if size <= length]
    sides: dict[str, Callable[[int], float]] = {
        str(size): lambda _, size=size: probe.seconds(  # type: ignore[misc]
            LengthArm("hybrid", one_layer=True, row_chunk=size), length
        )
        for size in sizes
    }
    options.say(f"time of {length} tokens by rows a chunk")
    interleave(sides, 1)
    rounds = options.pairs or (2 if options.quick else 9)
    samples = interleave(sides, rounds)
    ours = samples[str(ROW_CHUNK)]
    ratios = {
        size: statistics.median(a / b for a, b in zip(ours, samples[str(size)], strict=True))
        for size in sizes
    }
    times = {size: statistics.median(samples[str(size)]) for size in sizes}
    return times, max(ratios.values()) - 1


def figure_of(rows: Sequence[Row]) -> Figure:
    """Memory of every arm over the hybrid's, for prompts of 512 to 8,192 tokens."""
    lengths = [512 * 2**n for n in range(5)]
    mib: Lines = {
        str(row["way"]): [
            (float(n), float(str(row["fixed MiB"])) + n * float(str(row["KiB a token"])) / 1024)
            for n in lengths
        ]
        for row in rows
        if "KiB a token" in row
    }
    title = "Memory of a one-token prompt beside the weights"
    others = {name: points for name, points in mib.items() if name != HYBRID.name}
    lines = over(others, mib[HYBRID.name])
    return Figure(title, "prompt tokens", "times the hybrid's memory", lines, level=1.0)
