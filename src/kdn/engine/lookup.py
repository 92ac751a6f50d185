"""Guesses at the next tokens of an answer from what its prompt says, to be checked in one step.

Prompt lookup decoding, as vLLM's n-gram speculation has it: where the last tokens stood before, in the prompt
or the answer, what followed them there is guessed to follow again.  A guess costs rows in a step that reads
the weights anyway; a token is taken only if it is what would have been drawn, so answers do not change.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PromptLookup"]

_SIZES = (4, 3, 2)
"""Lengths of what must agree, tried in this order."""
_FIRST_GUESS = 3
_REST_AFTER = 3
"""So many guesses in a row of which nothing was right, and there are none for a while."""
_REST_TOKENS = 16


class PromptLookup:
    """Guesses for one sequence.  Longer ones after right ones, none for a while after wrong ones."""

    def __init__(self, token_ids: Sequence[int], max_tokens: int) -> None:
        """`max_tokens` is the longest guess."""
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        """By the tokens that agree, the place after where they stood last."""
        self._max_tokens = max_tokens
        self._length = min(_FIRST_GUESS, max_tokens)
        self._num_wrong = 0
        self._resting = 0
        self.num_guessed = 0
        self.num_right = 0
        self._extend(token_ids)

    def append(self, token_id: int) -> None:
        """The sequence goes on with this token."""
        self._extend((token_id,))
        self._resting = max(self._resting - 1, 0)

    def _extend(self, token_ids: Sequence[int]) -> None:
        """Only what is followed by something is a place to guess from, so an end enters with what follows."""
        tokens = self._tokens
        for token_id in token_ids:
            end = len(tokens)
            for size in _SIZES:
                if size <= end:
                    self._ends[tuple(tokens[end - size :])] = end
            tokens.append(token_id)

    def guess(self, max_tokens: int) -> tuple[int, ...]:
        """What may come next, at most `max_tokens`; empty without a place that the end repeats."""
        length = min(self._length, max_tokens)
        if length <= 0 or self._resting:
            return ()
        for size in _SIZES:
            at = self._ends.get(tuple(self._tokens[-size:]))
            if at is not None and len(self._tokens) >= size:
                return self._copied(at, length)
        return ()

    def _copied(self, at: int, length: int) -> tuple[int, ...]:
        """What follows `at`; past the end the guess itself goes on, as what repeats itself would."""
        guess = self._tokens[at : at + length]
        for place in range(len(guess), length):
            guess.append(guess[place - (len(self._tokens) - at)])
        return tuple(guess)

    def learn(self, num_guessed: int, num_right: int) -> None:
        """How a guess went: a right one is doubled, one of which nothing was right is cut to one token."""
        self.num_guessed += num_guessed
        self.num_right += num_right
        if num_right == num_guessed:
            self._length = min(2 * self._length, self._max_tokens)
        else:
            self._length = min(num_right + 1, self._max_tokens)
        self._num_wrong = 0 if num_right else self._num_wrong + 1
        if self._num_wrong >= _REST_AFTER:
            self._num_wrong, self._resting = 0, _REST_TOKENS
