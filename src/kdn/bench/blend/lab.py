"""One prompt, blended in any way, beside its full prefill: distributions, not timings.

Plans run straight on the executor, so that every way starts from the same stored chunks: KV that was
computed after the neutral prelude, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdn.core import ALL_ROWS, LayerSource, Plan, Prompt, Role, StoredRun, TokenIds
from kdn.engine import AloneRun, HeldKV, Pass, SequenceKV, SequenceSlice, run_alone
from kdn.model import LoadedModel
from kdn.model.attention import Attention
from kdn.reuse.blend import BlendLayout, KeyBias

__all__ = ["Case", "Lab", "SeenAttention", "kl", "true_deviation"]

_FORCED = 32
"""Tokens of the full prefill's own answer that every way is made to continue with."""


@dataclass(frozen=True)
class SeenAttention:
    """What a way of computing the prompt leads to."""

    logprobs: Tensor
    """[1 + forced, vocabulary] fp32: at the answer position, and after each forced token."""
    rows: int
    """Rows computed, summed over layers (attention and what follows it)."""
    kv: SequenceKV


@dataclass
class Case:
    """A prompt with its stored chunks and its full prefill."""

    tokens: TokenIds
    home: int
    """The position that every chunk was computed at: right after the prelude."""
    layout: BlendLayout
    stored: tuple[StoredRun, ...]
    prefix: LayerSource
    full: SeenAttention
    answer: TokenIds
    """What the full prefill goes on with, greedily."""
    true_kv: Tensor
    """[layers, 2, tokens, kv heads, dim]: what a full prefill computes."""


class Lab:
    """Runs plans on one model."""

    def __init__(self, model: LoadedModel, attention: Attention, bias: KeyBias) -> None:
        self._model = model
        self._bias = bias
        self._attention = attention
        decoder = model.decoder
        self._shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self._prelude: dict[TokenIds, Tensor] = {}

    @property
    def num_layers(self) -> int:
        return self._shape.num_layers

    @property
    def model(self) -> LoadedModel:
        return self._model

    @torch.inference_mode()
    def case(self, prompt: Prompt) -> Case:
        """Prefill everything once: each document after the prelude, and the whole prompt."""
        (_, _, head), *spans = prompt.spans()
        prelude = prompt.token_ids[:head]
        documents = [(a, b) for segment, a, b in spans if segment.role is Role.DOCUMENT]
        kept = {span: self._behind(prelude, prompt.token_ids[slice(*span)]) for span in documents}
        first, *others = documents
        prefix = HeldKV(torch.cat((self._prelude[prelude], kept[first]), dim=2), "first")
        runs = tuple(StoredRun(start, HeldKV(kept[start, stop])) for start, stop in others)
        layout = BlendLayout(prompt.num_tokens, first[1], tuple(others), documents[-1][1])
        ran = self._alone(Plan(prompt.token_ids), capture=True)
        assert ran.captured is not None, "asked for"
        answer, logprobs = self._greedy(ran.kv, prompt.num_tokens, ran.logits)
        full = SeenAttention(logprobs, prompt.num_tokens * self.num_layers, ran.kv)
        return Case(prompt.token_ids, head, layout, runs, prefix, full, answer, ran.captured)

    def base(self, case: Case, *, bias_share: float = 0.0) -> Plan:
        """The plan that rules refine: first chunk exact, the others as stored with that share
        of the key bias added."""
        stored = case.stored
        if bias_share:
            bias = self._bias.times(bias_share)
            stored = tuple(StoredRun(run.start, bias.over(run.source)) for run in stored)
        return Plan(
            case.tokens,
            prefix=case.prefix,
            stored=stored,
            rows=(ALL_ROWS,) * self.num_layers,
        )

    @torch.inference_mode()
    def run(self, case: Case, plan: Plan, attention: Attention | None = None) -> SeenAttention:
        """A plan for the case's prompt, then the full prefill's own answer forced after it."""
        ran = self._alone(plan, attention=attention)
        forced = self._forced(ran.kv, case.tokens, case.answer, ran.logits)
        return SeenAttention(forced, ran.num_rows, ran.kv)

    @torch.inference_mode()
    def gold_nll(self, case: Case, kv: SequenceKV, text: str) -> float:
        """Mean negative log-likelihood of an answer's tokens, in nats."""
        tokens = self._model.tokenizer.encode(text)
        start = case.layout.num_tokens
        whole = (*case.tokens, *tokens)
        rows = tuple(range(start - 1, len(whole) - 1))
        plan = Plan(whole, logits=rows)
        part = SequenceSlice.prefill(plan, kv, start - 1, len(whole))
        logprobs = torch.log_softmax(self._finish(part).float(), dim=-1)
        picked = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)]
        return float(-picked.mean())

    @torch.inference_mode()
    def answer(self, case: Case, seen: SeenAttention, most: int = 16) -> str:
        """What is generated greedily after the prompt, up to `most` tokens or the end."""
        stops = set(self._model.tokenizer.eos_ids)
        if seen is case.full and most <= len(case.answer):
            ends = (i for i, token in enumerate(case.answer) if token in stops)
            return self._model.tokenizer.decode(case.answer[: min(next(ends, most), most)])
        tokens = [int(seen.logprobs[0].argmax())]
        seen.kv.suffix.num_columns = case.layout.num_tokens - seen.kv.num_prefix
        while len(tokens) < most and tokens[-1] not in stops:
            tokens.append(
                int(self._finish(SequenceSlice.decode(seen.kv, tokens[-1:]))[-1].argmax())
            )
        return self._model.tokenizer.decode([t for t in tokens if t not in stops])

    def _behind(self, prelude: TokenIds, tokens: TokenIds) -> Tensor:
        """KV of `tokens` computed right after the prelude."""
        if prelude not in self._prelude:
            self._prelude[prelude] = self._captured(Plan(prelude, logits=()))
        held = HeldKV(self._prelude[prelude])
        return self._captured(Plan((*prelude, *tokens), prefix=held, logits=()))

    def _captured(self, plan: Plan) -> Tensor:
        ran = self._alone(plan, capture=True)
        assert ran.captured is not None, "asked for"
        return ran.captured.clone()

    def _alone(
        self, plan: Plan, *, capture: bool = False, attention: Attention | None = None
    ) -> AloneRun:
        """The plan, with room for what is forced after it."""
        chosen = attention or self._attention
        return run_alone(self._model, chosen, plan, capture=capture, spare_columns=_FORCED + 64)

    def _finish(self, part: SequenceSlice) -> Tensor:
        step = Pass(self._model.decoder, self._attention, [part])
        while not step.advance():
            pass
        return step.logits()[0]

    def _greedy(self, kv: SequenceKV, start: int, logits: Tensor) -> tuple[TokenIds, Tensor]:
        tokens, all_logits = list[int](), [logits[-1]]
        for _ in range(_FORCED):
            tokens.append(int(all_logits[-1].argmax()))
            all_logits.append(self._finish(SequenceSlice.decode(kv, tokens[-1:]))[-1])
        return tuple(tokens), torch.log_softmax(torch.stack(all_logits).float(), dim=-1)

    def _forced(
        self, kv: SequenceKV, prompt: TokenIds, answer: Sequence[int], logits: Tensor
    ) -> Tensor:
        whole = (*prompt, *answer)
        plan = Plan(whole, logits=tuple(range(len(prompt), len(whole))))
        part = SequenceSlice.prefill(plan, kv, len(prompt), len(whole))
        forced = self._finish(part)
        return torch.log_softmax(torch.cat((logits[-1:], forced)).float(), dim=-1)


def kl(full: Tensor, other: Tensor) -> Tensor:
    """KL(full || other) in nats, by position, from log-probabilities [positions, vocabulary]."""
    return (full.exp() * (full - other)).sum(dim=-1).clamp_min(0.0)


def true_deviation(case: Case, part: int) -> Tensor:
    """[layers, columns] fp32: squared error of the stored K (part 0) or V (part 1); 0 where exact."""
    found = torch.zeros((case.true_kv.shape[0], case.layout.num_tokens))
    for run in case.stored:
        assert isinstance(run.source, HeldKV), "the lab holds its chunks in memory"
        error = case.true_kv[:, part, run.start : run.stop].float() - run.source.kv[:, part].float()
        found[:, run.start : run.stop] = error.square().sum(dim=(2, 3))
    return found
