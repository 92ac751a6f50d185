"""From the body of a request to the names of its chunks, without a tokenizer.

Prompts that begin with the same text begin with the same names. The text is the body's own, not the
model's template; what stands equally in front of every prompt of a model changes no comparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from kdn.scale.router.fleet import RoutedPrompt

__all__ = ["CHUNK_BYTES", "CHUNK_TOKENS", "prompt_of"]

CHUNK_BYTES = 512
"""Of UTF-8: scripts differ less in bytes a token than in letters a token."""
_BYTES_PER_TOKEN = 4
"""English text. A wrong guess scales all predictions alike, and the measured slowdown undoes it."""
CHUNK_TOKENS = CHUNK_BYTES // _BYTES_PER_TOKEN
_FIRST = ("tools", "documents", "system", "instructions")
"""Parts that stand before the messages in a model's prompt."""
_AFTER = ("messages", "prompt", "input", "text_1", "text_2", "query")


def prompt_of(body: Mapping[str, Any]) -> RoutedPrompt:
    """The prompt of a body of any of OpenAI's, Jina's or Cohere's routes.

    The model and the salt are part of every name: nothing is shared across them.
    """
    pieces = (piece for part in (*_FIRST, *_AFTER) for piece in _texts(body.get(part)))
    text = "\n".join(pieces).encode("utf-8", "surrogatepass")
    state = xxhash.xxh3_128(repr((body.get("model"), body.get("cache_salt"))).encode())
    names = list[str]()
    for start in range(0, len(text) - CHUNK_BYTES + 1, CHUNK_BYTES):
        state.update(text[start : start + CHUNK_BYTES])
        names.append(state.hexdigest())
    return RoutedPrompt(tuple(names), max(1, len(text) // _BYTES_PER_TOKEN), CHUNK_TOKENS)


def _texts(part: Any) -> Sequence[str]:
    """The part's texts in order. One more item changes nothing of what stands before it."""
    if part is None:
        return ()
    if isinstance(part, str):
        return (part,)
    if isinstance(part, list) and all(isinstance(one, str) for one in part):
        return part
    # once: there may be a million items
    written = json.dumps(part, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return (written[:-1],)  # without the bracket that closes it
