"""What an answer must be, in the ways that OpenAI's and vLLM's clients say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdn.core import Constraint
from kdn.errors import BadInput
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_LABELS, Name, Text

__all__ = [
    "ConstrainedBody",
    "ResponseFormat",
    "SchemaFormat",
    "StructuredOutputs",
    "constraint_of",
]

Choices = Annotated[list[Text], Field(max_length=MAX_LABELS)]
_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)


class SchemaFormat(BaseModel):
    """A named JSON schema, as OpenAI's clients send it."""

    model_config = _STRICT
    name: Name | None = None
    """Not read."""
    description: Text | None = None
    """Not read: say in the prompt what is wanted."""
    body: dict[str, Any] = Field(alias="schema")
    """The schema. One that cannot be honoured is refused by its keyword, strict or not."""
    strict: bool | None = None
    """Not needed: every schema is kept to."""


class ResponseFormat(BaseModel):
    """OpenAI's way."""

    model_config = _STRICT
    type: Literal["text", "json_object", "json_schema"]
    """`json_object`: any JSON object; `json_schema`: what the schema allows."""
    json_schema: SchemaFormat | None = None
    """With the type `json_schema`: its `schema`; `name`, `description` and `strict` change nothing."""


class StructuredOutputs(BaseModel):
    """vLLM's way; exactly one of these."""

    model_config = _STRICT
    json_: Annotated[dict[str, Any] | Text | None, Field(alias="json")] = None
    """A JSON schema, as an object or as JSON text."""
    json_object: bool | None = None
    """True: any JSON object."""
    regex: Text | None = None
    """An expression that the whole answer matches; look-around and back references are refused."""
    choice: Choices | None = None
    """Texts, one of which is the answer."""
    grammar: Text | None = None
    """A context-free grammar in Lark's way, or in llama.cpp's (GBNF)."""


class ConstrainedBody(BaseModel):
    """Every way to say what an answer must be; at most one of them."""

    response_format: ResponseFormat | None = None
    """OpenAI's: `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": ...}}`."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's: an object with one of `json`, `json_object`, `regex`, `choice`, `grammar`."""
    guided_json: dict[str, Any] | Text | None = None
    """The older name of `structured_outputs.json`."""
    guided_regex: Text | None = None
    """The older name of `structured_outputs.regex`."""
    guided_choice: Choices | None = None
    """The older name of `structured_outputs.choice`."""
    guided_grammar: Text | None = None
    """The older name of `structured_outputs.grammar`."""


def constraint_of(body: ConstrainedBody) -> tuple[str, Constraint] | None:
    """What the body says, and the parameter that says it; None when it says nothing.

    Raises Refused when two parameters say it, and for what is no constraint.
    """
    asked = list(_asked(body))
    if not asked:
        return None
    if len(asked) > 1:
        names = " and ".join(name for name, _ in asked)
        raise Refused(f"{names} each say what the answer must be; keep one", param=asked[1][0])
    name, make = asked[0]
    try:
        return name, make()
    except BadInput as error:
        raise Refused(str(error), param=name) from error


_Asked = list[tuple[str, Callable[[], Constraint]]]


def _asked(body: ConstrainedBody) -> _Asked:
    older = StructuredOutputs.model_validate(
        {
            "json": body.guided_json,
            "regex": body.guided_regex,
            "choice": body.guided_choice,
            "grammar": body.guided_grammar,
        }
    )
    found = _by_openai(body.response_format) if body.response_format else []
    found += _by_vllm(body.structured_outputs or StructuredOutputs(), "structured_outputs.")
    return found + _by_vllm(older, "guided_")


def _by_openai(given: ResponseFormat) -> _Asked:
    if given.type == "text":
        return []
    if given.type == "json_object":
        return [("response_format", Constraint.json_object)]
    schema = given.json_schema
    if schema is None:
        raise Refused(
            "response_format of type json_schema needs json_schema.schema",
            param="response_format.json_schema",
        )
    return [("response_format.json_schema", lambda: Constraint.json_schema(schema.body))]


def _by_vllm(given: StructuredOutputs, prefix: str) -> _Asked:
    found: _Asked = []
    schema, regex, choice, grammar = given.json_, given.regex, given.choice, given.grammar
    if schema is not None:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        found.append((f"{prefix}json", lambda: Constraint.json_schema(text)))
    if given.json_object:
        found.append((f"{prefix}json_object", Constraint.json_object))
    if regex is not None:
        found.append((f"{prefix}regex", lambda: Constraint.regex(regex)))
    if choice is not None:
        found.append((f"{prefix}choice", lambda: Constraint.choice(choice)))
    if grammar is not None:
        found.append((f"{prefix}grammar", lambda: Constraint.grammar(grammar)))
    return found
