"""What a configuration needs: KV memory at its start and at most, and seconds.

The token counts are those of the reference's formula (METIS, arXiv 2412.10543 v3, section 4.3, which
gives the idea but no formula): with k chunks of C tokens, q tokens around them and an answer of o,

    stuff        one call of kC + q + o
    map_rerank   k calls of C + q + o each; one must fit to begin
    map_reduce   k calls of C + q + l each; one must fit to begin; then one of kl + q + o

What is stored changes them: a stored chunk that a call begins with is loaded, not computed, and no
memory is set aside to note its KV down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdn.core import JctModel
from kdn.rag.metis.configuration import Method, RagConfiguration

__all__ = ["BUFFER_PERCENT", "CallSize", "ChunkState", "Demand", "DemandModel", "stages_of"]

BUFFER_PERCENT = 2
"""The paper sets so much more aside than it counts."""


@dataclass(frozen=True)
class ChunkState:
    """A chunk as the store knows it."""

    num_tokens: int
    num_stored: int = 0
    """Its leading tokens whose KV is stored behind the prelude."""
    load_s: float = 0.0
    """Seconds to bring them from their tiers, beyond what a quick tier takes."""
    score: float = 0.0
    """How well the search found it: only ratios of scores mean anything."""


@dataclass(frozen=True)
class CallSize:
    """Tokens of one call: to compute, to reuse exactly, and to answer with at most."""

    num_new: int
    num_cached: int
    num_answer: int
    num_noted: int = 0
    """New tokens whose KV is noted down to be stored: they take memory twice."""
    load_s: float = 0.0
    num_probe: int = 0
    """Rows of a pass before the prefill, over what is reused, that finds which blended rows matter."""

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV that the engine sets aside for the call, for the worst case."""
        return self.num_new + self.num_cached + self.num_answer + self.num_noted


@dataclass(frozen=True)
class Demand:
    """What a configuration needs. Bytes are of KV, with the 2 % buffer."""

    start_bytes: int
    """Free memory with which its first call can begin."""
    total_bytes: int
    """The most that all its calls hold at one time when nothing holds them up."""
    last_bytes: int
    """What its last step takes when the step before is over; 0 for methods of one step."""
    seconds: float
    """From submitting it to its last token, on an engine that does nothing else."""
    busy_s: float
    """What it adds to an engine that decodes for others anyway: a decode step is theirs too."""


@dataclass(frozen=True)
class DemandModel:
    """Counts demands for one model on one machine."""

    token_bytes: int
    """KV of one token, all layers."""
    prelude_tokens: int
    """The neutral text before every document; stored after the first answer."""
    frame_tokens: int
    """Instruction, template and question beside the chunks, the prelude left out."""
    max_answer_tokens: int
    answer_tokens: float
    """How long answers have been; what the time is foreseen with."""
    jct: JctModel
    step_s: float
    """Seconds of one decode step of one sequence."""
    row_s: float | None = None
    """What each further sequence adds to a step, its columns left out: several times what a row of a
    prefill costs. None: as much as a further prompt adds to a prefill pass."""
    column_s: float | None = None
    """What each column of a further sequence adds to a step. None: as the time model says."""
    pass_tokens: int = 2048
    """Rows of one prefill pass."""
    blend_ratio: float | None = None
    """The share of a blended document that is recomputed; None: documents are not blended."""
    slowdown: float = 1.0
    """How much longer calls have taken than the time model says."""
    noted: bool = True
    """Is new KV noted down to be stored? The paper's system stores nothing."""

    def demand(self, configuration: RagConfiguration, chunks: Sequence[ChunkState]) -> Demand:
        """What the configuration needs over those of `chunks` that it reads."""
        stages = stages_of(configuration, chunks, self)
        sizes = [[self._bytes(call.kv_tokens) for call in stage] for stage in stages]
        return Demand(
            start_bytes=max(sizes[0], default=0),
            total_bytes=max((sum(stage) for stage in sizes), default=0),
            last_bytes=sum(sizes[-1]) if len(sizes) > 1 else 0,
            seconds=self.slowdown * sum(map(self._seconds, stages)),
            busy_s=self.slowdown * sum(map(self._busy_s, stages)),
        )

    def largest_call(self, configuration: RagConfiguration, chunks: Sequence[ChunkState]) -> int:
        """Positions of the longest prompt with its answer: what the model's context must hold."""
        stages = stages_of(configuration, chunks, self)
        return max(
            (
                call.num_new + call.num_cached + call.num_answer
                for stage in stages
                for call in stage
            ),
            default=0,
        )

    def _bytes(self, num_tokens: int) -> int:
        return -(-num_tokens * self.token_bytes * (100 + BUFFER_PERCENT) // 100)

    def _seconds(self, stage: Sequence[CallSize]) -> float:
        """The stage's prefills, one pass after the other, then its decode steps side by side."""
        if not stage:
            return 0.0
        steps = max(map(self._steps, stage))
        others_s = sum(map(self._row_s, stage[1:]))
        return self._prefill_s(stage) + steps * (self.step_s + others_s)

    def _busy_s(self, stage: Sequence[CallSize]) -> float:
        """The stage's prefills, and a further row with its columns for each token of each call."""
        if not stage:
            return 0.0
        return self._prefill_s(stage) + sum(self._steps(call) * self._row_s(call) for call in stage)

    def _prefill_s(self, stage: Sequence[CallSize]) -> float:
        new = sum(call.num_new for call in stage)
        passes = max(math.ceil(new / self.pass_tokens), 1)
        seconds = passes * self.jct.pass_s + (len(stage) - 1) * self.jct.prompt_s
        for call in stage:
            seconds += self.jct.share(call.num_new, call.num_cached) + call.load_s
            if call.num_probe:
                seconds += self.jct.seconds(call.num_probe, call.num_cached)
        return seconds

    def _row_s(self, call: CallSize) -> float:
        """What a further sequence, this call, adds to a step."""
        row_s = self.jct.prompt_s + self.jct.token_s if self.row_s is None else self.row_s
        column_s = self.jct.column_s if self.column_s is None else self.column_s
        return row_s + column_s * (call.num_new + call.num_cached)

    def _steps(self, call: CallSize) -> float:
        return min(self.answer_tokens, call.num_answer)


def stages_of(
    configuration: RagConfiguration, chunks: Sequence[ChunkState], model: DemandModel
) -> list[list[CallSize]]:
    """The calls of each step, in the order of `chunks`; a step begins when the one before is over."""
    chosen = configuration.ordered(chunks)
    answer = model.max_answer_tokens
    match configuration.method:
        case Method.EXTRACT:
            return [[]]
        case Method.STUFF:
            return [[_stuffed(chosen, model, answer)]]
        case Method.MAP_RERANK:
            return [[_stuffed([chunk], model, answer) for chunk in chosen]]
        case Method.MAP_REDUCE:
            length = configuration.summary_tokens
            notes = ChunkState(len(chosen) * length)
            mapped = [_stuffed([chunk], model, length) for chunk in chosen]
            return [mapped, [_stuffed([notes], model, answer)]]


def _stuffed(chunks: Sequence[ChunkState], model: DemandModel, answer: int) -> CallSize:
    """One prompt of these chunks: the first is reused as far as it is stored, others as they blend.

    Nothing after the first blended chunk is noted down.
    """
    first, *others = chunks
    noted = computed = first.num_tokens - first.num_stored
    cached, load_s, is_blended = model.prelude_tokens + first.num_stored, first.load_s, False
    for chunk in others:
        blended = 0
        if model.blend_ratio is not None and chunk.num_stored:
            blended = math.floor(chunk.num_stored * (1 - model.blend_ratio))
            load_s += chunk.load_s
            is_blended = True
        if not is_blended:
            noted += chunk.num_tokens
        cached += blended
        computed += chunk.num_tokens - blended
    return CallSize(
        num_new=computed + model.frame_tokens,
        num_cached=cached,
        num_answer=answer,
        num_noted=noted if model.noted else 0,
        load_s=load_s,
        num_probe=model.frame_tokens if is_blended else 0,
    )
