"""From logits to a token, and from tokens to text that may be shown.

Pure: the only randomness is the generator that is handed in.  Text is whole characters, and nothing of a
stop string.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdn.core import Sampling
from kdn.errors import EngineFailed

__all__ = ["DrawnToken", "Sampler", "Shown", "StopStrings"]

_GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy: logits divided by them would leave fp32."""
_LARGEST_BIAS = 1e30
"""A larger bias does the same, and would leave fp32."""


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
        """From fp32 logits [vocabulary], or [allowed tokens] in their order. Does not change them.

        Raises EngineFailed for logits that are not finite.
        """
        logits = logits.cpu()
        if not bool(torch.isfinite(logits).all()):
            raise EngineFailed(
                "the model computed logits that are not finite: its weights are damaged or its "
                "numbers outgrow the dtype; fetch the model again, or give dtype float32"
            )
        wanted = self._biased(logits)
        is_greedy = self._sampling.temperature < _GREEDY_BELOW
        chosen = int(wanted.argmax()) if is_greedy else self._random(wanted)
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
        for token_id, wished in self._sampling.logit_bias.items():
            bias = min(max(wished, -_LARGEST_BIAS), _LARGEST_BIAS)
            if not allowed:
                logits[token_id] += bias
            elif token_id in allowed:
                logits[allowed.index(token_id)] += bias
        return logits

    def _random(self, logits: Tensor) -> int:
        scaled = logits / self._sampling.temperature
        if not bool(torch.isfinite(scaled).all()):
            scaled = (logits - logits.max()) / self._sampling.temperature
        probs = torch.softmax(scaled, dim=-1)
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


@dataclass(frozen=True)
class Shown:
    """Text that is final, and the stop string that was met, if one was."""

    text: str
    stop: str | None = None


class StopStrings:
    """Holds text back as long as it could be the beginning of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> Shown:
        """Add generated text; what can no longer belong to a stop string comes back."""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            at, stop = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            shown, self._held = self._held[:at], ""
            return Shown(shown, stop)
        split = len(self._held) - self._held_back()
        shown, self._held = self._held[:split], self._held[split:]
        return Shown(shown)

    def _held_back(self) -> int:
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def flush(self) -> str:
        """What is still held when generation ends without a stop string."""
        held, self._held = self._held, ""
        return held
