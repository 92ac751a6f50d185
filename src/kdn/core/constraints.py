"""What an answer must be: JSON, JSON of a schema, a regular expression, one of some texts, a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kdn.core.prompts import read_sound_json
from kdn.errors import BadInput

__all__ = ["MAX_CONSTRAINT_BYTES", "Constraint", "ConstraintKind"]

MAX_CONSTRAINT_BYTES = 1 << 16
"""The longest text of a constraint: what takes longer to compile than a second is mostly longer."""


class ConstraintKind(StrEnum):
    """In which way a constraint is written."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


@dataclass(frozen=True)
class Constraint:
    """Only tokens that keep to it are drawn, so that an answer that is not cut off fulfils it.

    Make one by `json_object`, `json_schema`, `regex`, `choice` or `grammar`.  Equal ones are compiled
    once.  Raises BadInput for a text that is empty where there must be one, or too long; whether it can
    be honoured is known when it is compiled.
    """

    kind: ConstraintKind
    text: str = ""
    """The schema as JSON, the expression, the choices as a JSON list, or the grammar."""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise BadInput(f"a {self.kind} is given as a text, not {self.text!r:.60}")
        size_bytes = len(self.text.encode(errors="surrogatepass"))
        if size_bytes > MAX_CONSTRAINT_BYTES:
            raise BadInput(
                f"the {self.kind} has {size_bytes} bytes; at most {MAX_CONSTRAINT_BYTES} are compiled: "
                "shorten it"
            )
        if not self.text and self.kind is not ConstraintKind.JSON_OBJECT:
            raise BadInput(f"the {self.kind} is empty; say what the answer must be")

    @staticmethod
    def json_object() -> Constraint:
        """Any JSON object."""
        return Constraint(ConstraintKind.JSON_OBJECT)

    @staticmethod
    def json_schema(schema: Mapping[str, object] | str) -> Constraint:
        """JSON that a schema allows, given as a value or as JSON. The order of properties is the schema's."""
        return Constraint(ConstraintKind.JSON_SCHEMA, _as_json(schema))

    @staticmethod
    def regex(pattern: str) -> Constraint:
        """A text that the whole expression matches; look-around and back references are refused."""
        return Constraint(ConstraintKind.REGEX, pattern)

    @staticmethod
    def choice(texts: Sequence[str]) -> Constraint:
        """One of these texts, letter by letter."""
        if isinstance(texts, str) or not texts or not all(isinstance(one, str) for one in texts):
            raise BadInput(f"choice takes one text or more in a list, not {texts!r:.60}")
        if "" in texts:
            raise BadInput("one of the choices is empty; leave it out")
        return Constraint(ConstraintKind.CHOICE, json.dumps(list(texts)))

    @staticmethod
    def grammar(text: str) -> Constraint:
        """A text of a context-free grammar, in Lark's way or in llama.cpp's (GBNF)."""
        return Constraint(ConstraintKind.GRAMMAR, text)


def _as_json(schema: Mapping[str, object] | str) -> str:
    try:
        found = read_sound_json(schema) if isinstance(schema, str) else schema
        text = json.dumps(found, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"the JSON schema is no JSON ({error}); send a JSON object") from error
    if not isinstance(found, Mapping):
        raise BadInput(f"a JSON schema is an object, not {text:.60}")
    return text
