"""From logits to a token, and from tokens to text that may be shown.

Pure: the only randomness is the generator that is handed in.  Text is whole characters, and nothing of a
stop string.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdn.core import Sampling
from kdn.errors import BadInput, EngineFailed
from kdn.machine.text import counted
from kdn.model import GrammarMatcher

__all__ = ["DrawnToken", "Sampler", "Shown", "StopStrings", "check_tokens"]

_GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy: logits divided by them would leave fp32."""
_LARGEST_BIAS = 1e30
"""A larger bias does the same, and would leave fp32."""
_FIRST_SORTED = 128
"""So many are sorted first where top-p or min-p says who survives."""
_SUM_ERROR = 1e-5
"""More than rounding moves a sum of probabilities by."""


@dataclass(frozen=True)
class DrawnToken:
    """A token and, where asked for, natural-log probabilities before temperature and truncation."""

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    is_last: bool = False
    """The constraint is fulfilled, and nothing can follow."""


class Sampler:
    """Draws one request's tokens. Equal seeds give equal draws, whatever else is in the batch."""

    def __init__(
        self,
        sampling: Sampling,
        seed: int,
        constraint: GrammarMatcher | None = None,
        *,
        prompt_ids: Sequence[int] = (),
        end_ids: Iterable[int] = (),
    ) -> None:
        """`constraint` is the compiled one of `sampling`, at its beginning; `end_ids` end an answer."""
        self._sampling = sampling
        self._constraint = constraint
        self._biases = _biases(sampling)
        repeats = sampling.repetition_penalty != 1
        self._prompt_ids = torch.tensor(
            sorted(set(prompt_ids)) if repeats else [], dtype=torch.int64
        )
        self._end_ids = frozenset(end_ids)
        self._counts: Counter[int] = Counter()
        """How often each token was drawn."""
        self._generator = torch.Generator().manual_seed(
            sampling.seed if sampling.seed is not None else seed
        )

    def draw(self, logits: Tensor) -> DrawnToken:
        """From fp32 logits [vocabulary], or [allowed tokens] in their order. Does not change them.

        Raises EngineFailed for logits that are not finite, BadInput for a constraint that is too complex.
        """
        logits = logits.cpu()
        if not _are_finite(logits):
            raise EngineFailed(
                "the model computed logits that are not finite: its weights are damaged or its "
                "numbers outgrow the dtype; fetch the model again, or give dtype float32"
            )
        wanted = self._penalised(self._biased(logits))
        too_soon = self._counts.total() < self._sampling.min_tokens
        if self._constraint is None:
            if too_soon:
                wanted = _without(wanted, sorted(self._end_ids))
            drawn = self._drawn(wanted, self._sampling.allowed)
        else:
            drawn = self._constrained(wanted, self._constraint, too_soon=too_soon)
        self._counts[drawn.token_id] += 1
        return drawn

    def _constrained(
        self, wanted: Tensor, constraint: GrammarMatcher, *, too_soon: bool
    ) -> DrawnToken:
        tokens = constraint.allowed()
        if too_soon:
            ends = torch.tensor(sorted(self._end_ids), dtype=torch.int64)
            others = tokens[~torch.isin(tokens, ends)]
            tokens = others if others.numel() else tokens
        drawn = self._drawn(wanted[tokens], tokens)
        constraint.take(drawn.token_id)
        return replace(drawn, is_last=constraint.is_complete)

    def _drawn(self, wanted: Tensor, tokens: Tensor | Sequence[int]) -> DrawnToken:
        """From the logits of `tokens`, or of all when there are none.

        A tensor stays one: inside a text nearly the whole vocabulary is allowed, and as a list it costs more
        than the draw.
        """
        is_greedy = self._sampling.temperature < _GREEDY_BELOW
        chosen = int(wanted.numpy().argmax()) if is_greedy else self._random(wanted)
        assert len(tokens) in (0, wanted.numel()), "the logits are those of other tokens"
        token_id = int(tokens[chosen]) if len(tokens) else chosen
        if self._sampling.logprobs is None:
            return DrawnToken(token_id)
        raw = self._sampling.raw_logits
        logprobs = wanted if raw else torch.log_softmax(wanted, dim=-1)
        pairs = tuple(self._reported(logprobs, tokens))
        return DrawnToken(token_id, float(logprobs[chosen]), pairs)

    def _reported(
        self, logprobs: Tensor, tokens: Tensor | Sequence[int]
    ) -> Iterable[tuple[int, float]]:
        """Tokens and their log-probabilities: those asked for by name, or the likeliest."""
        ranked = self._sampling.ranked
        if ranked:
            known = list(map(int, tokens))
            places = [known.index(token) for token in ranked] if known else list(ranked)
            return zip(ranked, logprobs[places].tolist(), strict=True)
        top = torch.topk(logprobs, min(self._sampling.logprobs or 0, logprobs.numel()))
        places = top.indices.tolist()
        named = [int(tokens[place]) for place in places] if len(tokens) else places
        pairs = zip(named, top.values.tolist(), strict=True)
        return (pair for pair in pairs if pair[1] > -math.inf)  # those that `min_tokens` bars

    def _biased(self, logits: Tensor) -> Tensor:
        if not self._sampling.logit_bias:
            return logits
        logits = logits.clone()
        places, biases = self._biases
        logits[places] += biases
        return logits

    def _penalised(self, logits: Tensor) -> Tensor:
        """Penalties for what was said: by division for prompt and answer, by subtraction for the answer."""
        sampling = self._sampling
        if not sampling.is_penalising:
            return logits
        logits = logits.clone()
        said = torch.tensor(list(self._counts), dtype=torch.int64)
        if sampling.repetition_penalty != 1:
            seen = torch.cat((self._prompt_ids, said))  # what is in both gets one value, twice
            found, by = logits[seen], sampling.repetition_penalty
            logits[seen] = torch.where(found > 0, found / by, found * by)
        if self._counts:
            times = torch.tensor(list(self._counts.values()), dtype=logits.dtype)
            logits[said] -= sampling.frequency_penalty * times + sampling.presence_penalty
        return logits

    def _random(self, logits: Tensor) -> int:
        scaled = logits / self._sampling.temperature
        if not bool(torch.isfinite(scaled.max())):
            scaled = (logits - logits.max()) / self._sampling.temperature
        probs = torch.softmax(scaled, dim=-1)
        ranked = self._survivors(probs)
        if ranked is None:
            return int(torch.multinomial(probs, 1, generator=self._generator))
        values, order = ranked
        place = torch.multinomial(values / values.sum(), 1, generator=self._generator)
        return int(order[place])

    def _survivors(self, probs: Tensor) -> tuple[Tensor, Tensor] | None:
        """Probabilities that survive top-k, top-p and min-p, greatest first and zeros after them, and their
        places; None where all survive.

        Only as many are sorted as may survive: most of a vocabulary is never looked at. Bits are those of
        sorting all, since what follows the survivors is zero in both.
        """
        sampling = self._sampling
        if sampling.top_k <= 0 and sampling.top_p >= 1 and sampling.min_p <= 0:
            return None
        count = sampling.top_k if sampling.top_k > 0 else _FIRST_SORTED
        while True:
            values, order = _greatest(probs, count)
            if len(values) == len(probs) or self._holds_all(values):
                survivors = torch.zeros_like(probs)
                survivors[: len(values)] = values * self._allowed(values)
                return survivors, order
            count *= 8

    def _holds_all(self, values: Tensor) -> bool:
        """Do none survive but some of these, the greatest, in order?"""
        sampling = self._sampling
        if 0 < sampling.top_k <= len(values):
            return True
        if sampling.min_p > 0 and bool(values[-1] < sampling.min_p * values[0]):
            return True
        before = float(values.cumsum(0)[-1] - values[-1])
        return sampling.top_p < 1 and before >= sampling.top_p + _SUM_ERROR

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


def _biases(sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Places in the logits, and what is added there: a loop for every token would cost more than the draw."""
    places = {token: place for place, token in enumerate(sampling.allowed)}
    found = {
        places.get(token, token): min(max(wished, -_LARGEST_BIAS), _LARGEST_BIAS)
        for token, wished in sampling.logit_bias.items()
        if token in places or not places
    }
    at = torch.tensor(list(found), dtype=torch.int64)
    return at, torch.tensor(list(found.values()), dtype=torch.float32)


def _are_finite(logits: Tensor) -> bool:
    """Both ends are finite only where all is. NumPy looks at 49,152 in 6 us, `torch.isfinite` in 70 to 120,
    and the longest of it on one core."""
    values = logits.numpy()
    return math.isfinite(values.min()) and math.isfinite(values.max())


def _greatest(probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At least `count` of them, greatest first and equals by place, with their places; all that are equal to
    the last one are among them."""
    if count >= len(probs):
        values, order = torch.sort(probs, descending=True, stable=True)
        return values, order
    least = torch.topk(probs, count).values[-1]
    at = torch.nonzero(probs >= least).flatten()
    values, order = torch.sort(probs[at], descending=True, stable=True)
    return values, at[order]


def _without(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """The logits, with no chance for these tokens."""
    logits = logits.clone()
    logits[list(tokens)] = -math.inf
    return logits


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


def check_tokens(prompt_ids: Sequence[int], sampling: Sampling, vocab_size: int) -> None:
    """Raises BadInput for a token that the vocabulary lacks, and for a restriction that cannot be kept to.

    `prompt_ids` are not empty.
    """
    allowed = sampling.allowed
    for given, what in (
        ((min(prompt_ids), max(prompt_ids)), "the prompt holds"),
        (sampling.logit_bias, "logit_bias names"),
        (sampling.stop_token_ids, "stop_token_ids name"),
        (allowed, "`allowed` names"),
        (sampling.ranked, "`ranked` names"),
    ):
        outside = [token for token in given if not 0 <= token < vocab_size]
        if outside:
            raise BadInput(
                f"{what} token {outside[0]}, which the vocabulary does not have: ids are 0..{vocab_size - 1}"
            )
    if allowed and sampling.max_tokens != 1:
        raise BadInput(
            f"{counted(len(allowed), 'token')} are allowed in an answer of {sampling.max_tokens}: "
            "a restriction holds for answers of one token; set max_tokens to 1"
        )
    if len(set(allowed)) < len(allowed):
        raise BadInput("a token is allowed twice; name each once")
    if allowed and not set(sampling.ranked) <= set(allowed):
        raise BadInput("a token that is not allowed has no probability to report")
