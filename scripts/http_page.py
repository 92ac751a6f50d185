"""docs/http.md: every route of the server with its parameters, from the shapes that check them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from kdn.serve.batch.routes import BatchBody
from kdn.serve.openai.rag import RagQueryBody
from kdn.serve.openai.requests import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    DecisionBody,
    DetokenizeBody,
    DocumentBody,
    EmbeddingBody,
    JobBody,
    KdnOptions,
    MessageBody,
    RerankBody,
    SamplingBody,
    ScoreBody,
    TokenizeBody,
)
from kdn.serve.openai.response_items import ResponsesBody
from kdn.serve.openai.structured import ConstrainedBody
from kdn.serve.openai.tools import TemplateBody

INTRODUCTION = """# The HTTP API

Made from the program by `scripts/generate_docs.py`. `kdn serve` speaks OpenAI's API, so that its clients
work as they are; what differs is said here. `/openapi.json` and `/docs` of a running server have the same
in full.

- **Unknown parameters are refused** (400), and so are known ones that kdn cannot honour: nothing that
  would change an answer is ignored. `user`, `metadata` and other labels are let through.
- **Sampling that is not said** is the model's own (generation_config.json), as in Python and on the
  command line; greedy where the model says nothing.
- **Log-probabilities** are those of what is drawn from, before temperature and truncation: after biases and
  penalties, and among the tokens that a constraint allows ([structured.md](structured.md)).
- **Evaluation harnesses** ask `echo` with `logprobs` and `max_tokens: 0`; `prompt_logprobs` has vLLM's shape,
  with a rank for alternatives only. The prompt is computed again as a whole for them.
- **Documents** come as a string, `{"text", "title", "id"}` or LangChain's `{"page_content", "metadata"}`.
- **Errors** have OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. 400: the request;
  401, 403: the key; 404: no such model; 413, 431: too large; 429, 503: too much at one time, with
  `Retry-After`; 501: an optional part is not installed. An error after a stream has begun is the last
  event before `[DONE]`. Bounds, keys and salts: [security.md](security.md).
- **Every answer** has `usage.prompt_tokens_details.cached_tokens` and, beside it, `kdn`: prompt tokens by
  kind of reuse, tiers that supplied them, times.
- **Steering** ([steer.md](steer.md)): `"kdn": {"steer": ...}` takes marked spans, `look`, or the name of a
  recipe in the server's home; a name that is not there and a recipe of another model are refused (400).
  With `"steer_report": true` the answer has `kdn.steering`: `kl`, `nll`, `plain_nll`, `tokens` and
  `plain_text` beside the model that is not steered.
- **Embeddings** are the installed sentence embedder's. Token ids are its own: LangChain's
  `OpenAIEmbeddings` sends those of another tokenizer unless it is made with
  `check_embedding_ctx_length=False`. A text that is too long is refused unless `truncate_prompt_tokens`
  is -1.

| route | what it does |
|---|---|
| `GET /v1/models`, `/v1/models/NAME` | models with digests; answers tell them as `system_fingerprint` |
| `GET /health`, `/ping` | 200 while the engine runs, else 503 |
| `GET /metrics` | Prometheus: vLLM's names for what is measured, and kdn's own |
| `GET /version` | the version |
| `/v1/files`, `/v1/files/ID`, `/v1/files/ID/content` | files of requests and of answers |
| `/v1/batches`, `/v1/batches/ID`, `/v1/batches/ID/cancel` | [batches](#batches) |
| `/v1/store/...` | blocks and management, for keys of the store (see [store.md](store.md)) |

"""
BATCHES = """
## Batches

A file of requests, a JSON line each, is answered when nobody waits for the engine:

```python
file = client.files.create(file=open("in.jsonl", "rb"), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
)
batch = client.batches.retrieve(batch.id)  # until batch.status is completed
print(client.files.content(batch.output_file_id).text)
```

A line is `{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}`; its `body` is
that of the route, and means there what it means for one request.

- **Endpoints**: `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`; one a batch.
- **Order**: eight lines of all batches are under way at one time. Those that wait are let in after every
  request that somebody waits for, under every policy of the engine.
- **Answers** stand in `output_file_id`; lines that were refused stand in `error_file_id`, as do lines
  without an answer after 24 hours (`batch_expired`). A file with a line that is no request fails the batch
  before it begins, and `errors` name the lines.
- **Cancelling** keeps the answers that are there; lines under way are given up.
- **A stopped server** loses no answer that was written: the next one on the same home goes on with the lines
  that have none. A batch whose API key is gone by then has `failed` (`key_revoked`).
- **Bounds** of one key: 1,000 files of 1 GiB together, 64 batches that have not ended, 50,000 lines in each;
  of one upload the server's largest body (`serve.max_body_bytes`).
- **Whose**: a key sees its own files and batches. They lie in `batches` below the home, readable by its
  owner. One server works on a home's batches at a time.
"""
ROUTES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("POST /v1/chat/completions", ChatBody),
    ("POST /v1/completions", CompletionBody),
    ("POST /v1/responses", ResponsesBody),
    ("POST /v1/embeddings", EmbeddingBody),
    ("POST /rerank, /v1/rerank, /v2/rerank", RerankBody),
    ("POST /v1/rag/query", RagQueryBody),
    ("POST /v1/batches", BatchBody),
    ("POST /score, /v1/score", ScoreBody),
    ("POST /classify, /v1/classify", ClassifyBody),
    ("POST /v1/decisions", DecisionBody),
    ("POST /tokenize", TokenizeBody),
    ("POST /detokenize", DetokenizeBody),
)
PARTS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("All that ask the model", JobBody),
    ("Chat and completions", SamplingBody),
    ("What an answer must be", ConstrainedBody),
    ("Tools and the template", TemplateBody),
    ("A message", MessageBody),
    ("A document", DocumentBody),
    ("`kdn`", KdnOptions),
)


def http_page() -> str:
    """Shared parameters first, then those of each route."""
    lines = [INTRODUCTION]
    for title, body in (*PARTS, *ROUTES):
        lines += [f"## {title}", "", *_table(body), ""]
    return "\n".join(lines).rstrip() + "\n" + BATCHES


def _table(body: type[BaseModel]) -> Iterator[str]:
    inherited = {name for base in body.__mro__[1:] for name in getattr(base, "model_fields", ())}
    yield "| parameter | values | meaning |"
    yield "|---|---|---|"
    shown = body.model_json_schema()["properties"]
    for name in body.model_fields:
        if name not in inherited:
            meaning = " ".join(shown[name].get("description", "").split()).replace("|", "\\|")
            needed = ", needed" if body.model_fields[name].is_required() else ""
            yield f"| `{name}` | {_values(shown[name])}{needed} | {meaning} |"


def _values(shape: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in shape:
        found = dict.fromkeys(_values(one) for one in shape["anyOf"] if one.get("type") != "null")
        return " or ".join(found)
    if "$ref" in shape:
        return "object"
    if "enum" in shape:
        return ", ".join(f"`{one}`" for one in shape["enum"])
    if "const" in shape:
        return f"`{shape['const']}`"
    if shape.get("type") == "array":
        most = f", at most {shape['maxItems']:,}" if "maxItems" in shape else ""
        return f"list of {_values(shape['items'])}{most}"
    kind = {"integer": "integer", "number": "number", "boolean": "true, false"}.get(
        shape.get("type", ""), "text" if shape.get("type") == "string" else "object"
    )
    return kind + _bounds(shape)


def _bounds(shape: dict[str, Any]) -> str:
    low, high = shape.get("minimum", shape.get("exclusiveMinimum")), shape.get("maximum")
    if low is not None and high is not None and abs(high) < 2**31 - 1:
        return f" {low:g} to {high:g}"
    return f" from {low:g}" if low is not None and abs(low) < 2**31 - 1 else ""
