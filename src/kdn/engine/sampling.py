"""From logits to a token. Pure: the only randomness is the generator that is handed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdn.core import Sampling

__all__ = ["DrawnToken", "Sampler"]


@dataclass(frozen=True)
class DrawnToken:
    """A token and, where asked for, natural-log probabilities before temperature and truncation."""

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws one request's tokens. Equal seeds give equal draws, whatever else is in the batch."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(
            sampling.seed if sampling.seed is not None else seed
        )

    def draw(self, logits: Tensor) -> DrawnToken:
        """From fp32 logits [vocabulary], or [allowed tokens] in their order. Does not change them."""
        wanted = self._biased(logits.cpu())
        chosen = int(wanted.argmax()) if self._sampling.temperature == 0 else self._random(wanted)
        if self._sampling.logprobs is None:
            return DrawnToken(self._token(chosen))
        raw = self._sampling.raw_logits
        logprobs = wanted if raw else torch.log_softmax(wanted, dim=-1)
        pairs = tuple(zip(*self._reported(logprobs), strict=True))
        return DrawnToken(self._token(chosen), float(logprobs[chosen]), pairs)

    def _reported(self, logprobs: Tensor) -> tuple[list[int], list[float]]:
        """Tokens and their log-probabilities: those asked for by name, or the likeliest."""
        ranked, allowed = self._sampling.ranked, self._sampling.allowed
        if ranked:
            places = [allowed.index(token) for token in ranked] if allowed else list(ranked)
            return list(ranked), logprobs[places].tolist()
        top = torch.topk(logprobs, min(self._sampling.logprobs or 0, logprobs.numel()))
        return list(map(self._token, top.indices.tolist())), top.values.tolist()

    def _token(self, place: int) -> int:
        """The token whose logit stands at `place`."""
        return self._sampling.allowed[place] if self._sampling.allowed else place

    def _biased(self, logits: Tensor) -> Tensor:
        if not self._sampling.logit_bias:
            return logits
        logits = logits.clone()
        allowed = self._sampling.allowed
        for token_id, bias in self._sampling.logit_bias.items():
            if not allowed:
                logits[token_id] += bias
            elif token_id in allowed:
                logits[allowed.index(token_id)] += bias
        return logits

    def _random(self, logits: Tensor) -> int:
        probs = torch.softmax(logits / self._sampling.temperature, dim=-1)
        values, order = torch.sort(probs, descending=True, stable=True)
        values = values * self._allowed(values)
        place = torch.multinomial(values / values.sum(), 1, generator=self._generator)
        return int(order[place])

    def _allowed(self, values: Tensor) -> Tensor:
        """Which of the sorted probabilities survive top-k, top-p and min-p; the first always does."""
        keep = torch.ones_like(values, dtype=torch.bool)
        if self._sampling.top_k > 0:
            keep[self._sampling.top_k :] = False
        if self._sampling.top_p < 1:
            keep &= values.cumsum(0) - values < self._sampling.top_p
        if self._sampling.min_p > 0:
            keep &= values >= self._sampling.min_p * values[0]
        keep[0] = True
        return keep
