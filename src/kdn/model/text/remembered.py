"""Ids of generated text: a turn that a client sends back must hit, token for token."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from kdn.core import TokenIds
from kdn.model.text.chat import Message

__all__ = ["Remembered"]


class Remembered:
    """The last answers' ids by salt and text. Safe from several threads; about 1 KB an answer."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._answers: OrderedDict[tuple[str, str], TokenIds] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, salt: str, text: str, token_ids: TokenIds) -> None:
        """Keep an answer's ids; the oldest goes when there are too many."""
        with self._lock:
            self._answers[salt, text] = token_ids
            self._answers.move_to_end((salt, text))
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)

    def known(self, salt: str, messages: Sequence[Message]) -> dict[str, TokenIds]:
        """Text to ids for the assistant's turns among `messages`, as far as they are remembered."""
        with self._lock:
            turns = [(salt, message.content) for message in messages if message.role == "assistant"]
            return {turn[1]: self._answers[turn] for turn in turns if turn in self._answers}
