"""Refuses prompts of one request that are too long before the first of them is computed."""

from __future__ import annotations

from collections.abc import Collection

from kdn.serve.errors import Refused
from kdn.serve.limits import check_length
from kdn.serve.service import ServedModel

__all__ = ["Lengths"]

_AT_ENDS = 16
"""By how many tokens, at most, a text may count more by itself than between those of its prompt."""


class Lengths:
    """The tokens of texts that stand in many prompts; each text is tokenised once.

    Nothing is tokenised for a prompt with no more characters than the model reads tokens.
    """

    def __init__(self, model: ServedModel, param: str) -> None:
        self._model, self._param = model, param
        self._known: dict[str, int] = {}

    def check(self, index: int, texts: Collection[str], num_ids: int = 0) -> None:
        """Raise Refused when `texts` and so many tokens surely leave no room for an answer together.

        `index` is the prompt's place in the request. Blanks around a text do not count in the sum.
        """
        most = self._model.max_context
        if sum(map(len, texts)) + num_ids < most:
            return
        num_tokens = sum(map(self._count, texts)) + num_ids
        if num_tokens >= most:
            raise Refused(
                f"the texts of number {index}, counted from 0, have {num_tokens} tokens or more together; "
                f"the context holds {most} with the answer: shorten one of them",
                param=self._param,
                code="context_length_exceeded",
            )

    def _count(self, text: str) -> int:
        if text not in self._known:
            vocabulary = self._model.vocabulary
            check_length([text], vocabulary, self._model.max_context, self._param, chars=1)
            self._known[text] = max(len(vocabulary.encode(text.strip())) - _AT_ENDS, 0)
        return self._known[text]
