"""What can be known before a question is answered: stored chunks, free memory, times."""

from __future__ import annotations

from kdn.api.parts import Parts
from kdn.api.queries import QueryOptions
from kdn.core import Role
from kdn.rag import Part
from kdn.rag.metis import ChunkState, DemandModel, EngineLoad, Observed, RunningQueries
from kdn.rag.metis.synthesis import answer_call

__all__ = ["Foresight"]


class Foresight:
    """Looks at the store, the engine and what queries took lately. Safe from several threads."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        config, dtype = parts.model.decoder.config, parts.model.decoder.dtype
        self.token_bytes = config.kv_shape(str(dtype).removeprefix("torch.")).token_bytes
        """KV of one token."""
        self.max_context = config.max_position
        self.observed = Observed(parts.calibration.jct)
        self.running = RunningQueries()

    def chunk(self, part: Part, options: QueryOptions) -> ChunkState:
        """How many of the part's tokens are stored behind the prelude, and how long they load."""
        parts = self._parts
        prompt = parts.prompts.of_document(part.text, part.key, options.salt)
        spans = [(a, b) for s, a, b in prompt.spans() if s.role is Role.DOCUMENT]
        start, stop = spans[0][0], spans[-1][1]
        match = parts.prefix.match(prompt.token_ids[:stop], options.salt)
        load_s = sum(
            parts.speeds.load_s(hit.tier, hit.num_tokens * self.token_bytes)
            for hit in match.hits
            if hit.tier != "memory"
        )
        stored = max(match.num_tokens - start, 0)
        return ChunkState(stop - start, stored, load_s, part.score)

    def demand_model(self, question: str, first: Part, options: QueryOptions) -> DemandModel:
        """What counts demands for the question, whose prompts hold `first` or parts like it."""
        call = answer_call(question, [first], options.max_tokens)
        prompt = self._parts.prompts.segments(call.messages, call.documents, options.salt)
        sizes = dict.fromkeys(Role, 0)
        for segment in prompt.segments:
            sizes[segment.role] += segment.num_tokens
        blends = options.reuse == "blend"
        return DemandModel(
            token_bytes=self.token_bytes,
            prelude_tokens=sizes[Role.PRELUDE],
            frame_tokens=prompt.num_tokens - sizes[Role.PRELUDE] - sizes[Role.DOCUMENT],
            max_answer_tokens=options.max_tokens,
            answer_tokens=self.observed.answer_tokens(),
            jct=self._parts.calibration.jct,
            step_s=self.observed.step_s(),
            row_s=self.observed.row_s(),
            pass_tokens=self._parts.config.engine.max_batch_tokens,
            blend_ratio=(options.ratio or self._parts.config.blend.ratio) if blends else None,
            slowdown=self.observed.slowdown(),
            noted=self._parts.engine.may_retain,
        )

    def load(self, now_s: float) -> EngineLoad:
        """Free KV less what admitted, waiting and half-finished queries will still take; work ahead."""
        engine = self._parts.engine
        free = engine.free_kv() - engine.waiting_kv() - self.running.later_bytes()
        return EngineLoad(
            max(free, 0),
            self.running.ahead_s(now_s),
            self.observed.per_s(now_s),
            self.observed.mean_bytes(),
        )
