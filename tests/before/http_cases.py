"""HTTP requests to a server over the tiny model, in an order that matters: later ones find what is stored."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from tests.before.cases import BOAT, HEN, TEXTS, TOWN

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Say a word."}]
MORE = [*HELLO, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]
PARTS = [
    {"type": "text", "text": HEN, "kdn": {"role": "document", "id": "hen"}},
    {"type": "text", "text": "Where is it?", "kdn": {"role": "question"}},
]
DOCUMENTS = [{"text": HEN, "id": "hen"}, {"text": BOAT}]
TURNED = [{"text": BOAT}, {"text": HEN, "id": "hen"}, {"text": TOWN}]
BLEND = {"reuse": "blend", "keep": "nothing"}
COUNTED = {"stream_options": {"include_usage": True}}
EMBEDDINGS = "/v1/embeddings"

Exchanges = tuple[tuple[str, dict[str, Any] | None], ...]
SEVERAL: Exchanges = (
    ("/v1/score", {"text_1": "Where is the boat?", "text_2": list(TEXTS)}),
    ("/v1/score", {"query": "Yes or no: ", "items": ["a", "b"], "label_token_ids": [121, 110]}),
    (
        "/v1/score",
        {"query": "?", "items": ["a"], "label_token_ids": [121, 110], "apply_softmax": True},
    ),
    ("/v1/classify", {"input": [HEN, BOAT], "labels": ["animal", "boat"]}),
    ("/v1/decisions", {"input": HEN, "questions": ["Is it a hen?", "Is it noon?"]}),
    ("/v1/rerank", {"query": "A clock?", "documents": [*TEXTS, ""], "top_n": 3}),
    ("/v2/rerank", {"query": "A clock?", "documents": [{"text": TOWN}, {"text": BOAT}]}),
    ("/rerank", {"query": "A clock?", "texts": list(TEXTS), "raw_scores": True}),
    ("/rerank", {"query": "A clock?", "documents": list(TEXTS), "layout": "query-first"}),
    ("/rerank", {"query": "A clock?", "documents": list(TEXTS), "model": "lora"}),
)
"""Several questions at once: whether one finds what another has just stored is a matter of time."""

EXCHANGES: Exchanges = (
    ("/v1/models", None),
    ("/v1/models/lora", None),
    ("/health", None),
    ("/version", None),
    # chat
    (CHAT, {"messages": HELLO, "max_tokens": 5}),
    (CHAT, {"messages": HELLO, "max_tokens": 5, "stream": True, **COUNTED}),
    (CHAT, {"messages": MORE, "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": MORE, "max_tokens": 3, "logprobs": True, "stream": True}),
    (CHAT, {"messages": HELLO, "max_tokens": 6, "n": 2, "temperature": 1.0, "seed": 7}),
    (
        CHAT,
        {"messages": HELLO, "max_tokens": 3, "n": 2, "temperature": 1.0, "seed": 7, "stream": True},
    ),
    (CHAT, {"messages": HELLO, "documents": DOCUMENTS, "max_tokens": 4}),
    (CHAT, {"messages": MORE, "documents": DOCUMENTS, "max_tokens": 4}),
    (CHAT, {"messages": [{"role": "user", "content": PARTS}], "max_tokens": 4}),
    (CHAT, {"messages": HELLO, "documents": DOCUMENTS, "max_tokens": 4, "cache_salt": "other"}),
    (CHAT, {"messages": HELLO, "documents": DOCUMENTS, "max_tokens": 4, "model": "lora"}),
    (CHAT, {"messages": HELLO, "documents": DOCUMENTS, "max_tokens": 4, "kdn": {"reuse": False}}),
    (CHAT, {"messages": HELLO, "max_tokens": 8, "stop": ["\u0000"], "ignore_eos": True}),
    (CHAT, {"messages": HELLO, "max_tokens": 3, "logit_bias": {"65": 100}}),
    # plain completions
    (PLAIN, {"prompt": "Once upon", "max_tokens": 5}),
    (PLAIN, {"prompt": "Once upon", "max_tokens": 5, "stream": True, **COUNTED}),
    (PLAIN, {"prompt": ["One", "Two"], "max_tokens": 3, "n": 1}),
    (PLAIN, {"prompt": [72, 101, 110], "max_tokens": 3, "logprobs": 2}),
    (PLAIN, {"prompt": [72, 101, 110], "max_tokens": 2, "logprobs": 1, "stream": True}),
    (PLAIN, {"prompt": "Echo", "max_tokens": 2, "echo": True}),
    # one token, rerank
    *SEVERAL,
    # once more: now all that they share is stored
    *SEVERAL,
    # a blend that leaves nothing to be done
    (
        CHAT,
        {"messages": HELLO, "documents": TURNED, "max_tokens": 4, "kdn": BLEND | {"ratio": 0.2}},
    ),
    (CHAT, {"messages": HELLO, "documents": TURNED, "max_tokens": 2, "kdn": BLEND, "stream": True}),
    # tokens and embeddings
    ("/tokenize", {"prompt": "Hen<|end|>", "return_token_strs": True}),
    ("/tokenize", {"messages": HELLO}),
    ("/detokenize", {"tokens": [72, 101, 110, 256]}),
    (EMBEDDINGS, {"input": ["A dog barks."], "model": "minilm-l6"}),
    (EMBEDDINGS, {"input": ["A dog barks."], "encoding_format": "float", "dimensions": 7}),
    # refusals
    (CHAT, {"messages": []}),
    (CHAT, {"messages": HELLO, "max_tokens": 0}),
    (CHAT, {"messages": HELLO, "model": "gpt-4"}),
    (CHAT, {"messages": HELLO, "max_tokens": 5000}),
    (CHAT, {"messages": HELLO, "max_tokens": 2, "max_completion_tokens": 3}),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}),
    (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}),
    (CHAT, {"messages": HELLO, "kdn": {"reuse": "perhaps"}}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    (CHAT, {"messages": HELLO, "unheard_of": 1}),
    (PLAIN, {"prompt": [5] * 5000, "max_tokens": 1}),
    (PLAIN, {"prompt": [9999], "max_tokens": 1}),
    (PLAIN, {"prompt": "x", "echo": True, "logprobs": 1, "stream": True}),
    ("/v1/score", {"text_1": "a"}),
    ("/v1/classify", {"input": "a", "labels": ["one"]}),
    ("/rerank", {"query": " ", "documents": ["a"]}),
    ("/rerank", {"query": "a", "documents": ["b"], "template": "none such"}),
    (EMBEDDINGS, {"input": [1, 2]}),
    ("/v1/nothing", {}),
    ("/v1/nothing", None),
)

WHOLE_VOCABULARY = 100_000
_ID = re.compile(r"^([a-z]+)-[0-9a-f]{24}$")
_TIMES = ("created", "queue_ms", "ttft_ms")


def exchanges(http: httpx.Client) -> list[dict[str, Any]]:
    """All of them, in order."""
    found: list[dict[str, Any]] = []
    for path, given in EXCHANGES:
        body = {"temperature": 0} | given if given and path in (CHAT, PLAIN) else given
        answer = _exchange(http, path, body)
        once = (path, given) in SEVERAL and not any(one["sent"] == body for one in found)
        found.append(_uncounted(answer) if once else answer)
    return found


def _uncounted(value: Any) -> Any:
    """The value without the number of tokens that were found stored."""
    if isinstance(value, dict):
        return {name: _uncounted(one) for name, one in value.items() if name != "cached_tokens"}
    return [_uncounted(one) for one in value] if isinstance(value, list) else value


def _exchange(http: httpx.Client, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Status, type and whole body of what comes back; ids and times read the same in every run."""
    sent = body
    if body is not None and body.get("temperature") == 1.0:
        # Without a bound nothing is sorted now, and the same seed draws other tokens.
        sent = body | {"top_k": WHOLE_VOCABULARY}
    answer = http.get(path) if body is None else http.post(path, json=sent)
    kind = answer.headers.get("content-type", "").split(";")[0]
    found: dict[str, Any] = {"path": path, "sent": body, "status": answer.status_code, "type": kind}
    if kind == "application/json":
        found["body"] = same_every_time(answer.json())
    elif kind == "text/event-stream":
        events = [same_every_time(_event(one)) for one in answer.text.split("\n\n") if one]
        found["events"] = sorted(events, key=_choice)
    else:
        found["body"] = answer.text
    return found


def same_every_time(value: Any) -> Any:
    """The value with ids as `chatcmpl-ID`, and times as 0."""
    if isinstance(value, dict):
        return {name: 0 if name in _TIMES else same_every_time(one) for name, one in value.items()}
    if isinstance(value, list):
        return [same_every_time(one) for one in value]
    if isinstance(value, float):
        return round(value, 5)
    return _ID.sub(r"\1-ID", value) if isinstance(value, str) else value


def _event(text: str) -> Any:
    assert text.startswith("data: "), text
    return text[6:] if text == "data: [DONE]" else json.loads(text[6:])


def _choice(event: Any) -> int:
    """Events of one choice come in order; whose come first is a matter of time."""
    of_one = isinstance(event, dict) and event.get("choices")
    return int(event["choices"][0]["index"]) if of_one else 99
