"""Questions about ingested documents: which parts enter the prompt, and what it asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdn.core import Role
from kdn.errors import BadInput
from kdn.model import Document, Message
from kdn.rag import Library, Part, answer_instruction, answer_pieces
from kdn.rank import Ranking

__all__ = ["FRAME_TOKENS", "find_parts", "put_question"]

FRAME_TOKENS = 256
"""Room for the prelude, the instruction and the template around a question."""


def find_parts(
    library: Library,
    question: str,
    room: int,
    max_parts: int,
    *,
    candidates: int = 0,
    rank: Callable[[Sequence[str]], Ranking],
) -> list[Part]:
    """The parts that fit `question` best, best first, of at most `room` tokens together.

    With `candidates` so many are retrieved, and `rank` orders them.  Raises BadInput when nothing was
    ingested or found and for a `max_parts` below 1, PromptTooLong when no part that was found fits.
    """
    if max_parts < 1:
        raise BadInput(f"max_parts must be at least 1, not {max_parts}")
    if not library.num_sources:
        raise BadInput("the library is empty; take documents in first: kdn ingest PATH")
    room = max(room, 1)
    if candidates:
        parts = _reranked(library, question, room, max_parts, max(candidates, max_parts), rank)
    else:
        parts = library.context(question, max_tokens=room, max_parts=max_parts)
    if not parts:
        raise BadInput(f"nothing in the library has to do with {question!r}; ask in other words")
    return parts


def _reranked(
    library: Library,
    question: str,
    room: int,
    max_parts: int,
    candidates: int,
    rank: Callable[[Sequence[str]], Ranking],
) -> list[Part]:
    found = library.context(question, max_tokens=room * candidates, max_parts=candidates)
    fitting = [part for part in found if part.num_tokens <= room] or library.context(
        question, max_tokens=room, max_parts=candidates
    )
    chosen: list[Part] = []
    for one in rank([part.text for part in fitting]):
        part = fitting[one.index]
        if len(chosen) < max_parts and part.num_tokens <= room:
            chosen.append(part)
            room -= part.num_tokens
    return chosen


def put_question(question: str, parts: Sequence[Part]) -> tuple[list[Message], list[Document]]:
    """The messages and documents of a prompt that asks `question` about `parts`."""
    asked = next(p.text for p in answer_pieces(question, parts) if p.role is Role.QUESTION)
    messages = [Message("system", answer_instruction()), Message("user", asked)]
    return messages, [Document(part.key, part.text) for part in parts]
