"""How likely each token of a prompt is after those before it: what evaluation harnesses ask for."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kdn.core import Token, TokenIds, TokenProb
from kdn.model import Tokenizer

__all__ = ["SCORED_ROWS", "PromptScores"]

SCORED_ROWS = 256
"""So many rows of such prompts share a pass: each has logits of the whole vocabulary."""


class PromptScores:
    """Collects natural-log probabilities as a prompt is computed, a range of positions at a time."""

    def __init__(self, token_ids: TokenIds, num_alternatives: int) -> None:
        self._token_ids = token_ids
        self._num_alternatives = num_alternatives
        self._found: dict[int, tuple[float, tuple[tuple[int, float], ...]]] = {}

    def note(self, first: int, logits: Tensor) -> None:
        """fp32 logits [positions, vocabulary] from position `first` on; each tells of the next token."""
        following = self._token_ids[first + 1 : first + 1 + logits.shape[0]]
        logprobs = torch.log_softmax(logits[: len(following)].cpu(), dim=-1)
        top = torch.topk(logprobs, min(self._num_alternatives, logprobs.shape[-1]))
        for row, token_id in enumerate(following):
            pairs = zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            self._found[first + row + 1] = (float(logprobs[row, token_id]), tuple(pairs))

    def tokens(self, tokenizer: Tokenizer) -> tuple[Token, ...]:
        """The prompt's tokens, special ones with their text; the first has no probability.

        From any thread, once all is noted: it takes too long for the engine's.
        """
        text = cache(tokenizer.token_text)
        detokenizer = tokenizer.detokenizer(special=True)
        found = []
        for position, token_id in enumerate(self._token_ids):
            logprob, pairs = self._found.get(position, (None, ()))
            named = tuple(TokenProb(one, text(one), value) for one, value in pairs)
            found.append(Token(token_id, detokenizer.push(token_id), logprob, named))
        return tuple(found)
