"""Runs published chat templates, which are programs of strangers, in a process of its own.

Started by `kdn.model.text.template` as a script: a line of JSON comes in for every conversation, a line
goes out.  The process has little memory and no reason to live on: the parent ends it when it takes too
long.  It imports Jinja and nothing of kdn.
"""

from __future__ import annotations

import datetime as dt
import json
import resource
import sys
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["MEMORY_BYTES", "new_environment"]

MEMORY_BYTES = 512 << 20
"""Address space of the process."""
_MAX_OUTPUT = 64 << 20


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def new_environment() -> ImmutableSandboxedEnvironment:
    """Jinja as templates expect it: sandboxed, with the helpers that published ones call."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(value: Any, **options: Any) -> str:
    """Templates expect plain JSON, where Jinja's own filter escapes for HTML."""
    options.setdefault("ensure_ascii", False)
    return json.dumps(value, **options)


def _refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return new_environment().from_string(source)


def _rendered(asked: dict[str, Any]) -> str:
    moment = dt.datetime.fromtimestamp(asked["wall_s"], tz=dt.UTC).astimezone()
    text = _compiled(asked["source"]).render(
        **asked["variables"],
        messages=asked["messages"],
        add_generation_prompt=True,
        bos_token=asked["bos_token"],
        eos_token=asked["eos_token"],
        strftime_now=moment.strftime,
    )
    if len(text) > _MAX_OUTPUT:
        raise ValueError(f"it makes {len(text)} characters")
    return text


def _answer(line: str) -> dict[str, str]:
    try:
        return {"text": _rendered(json.loads(line))}
    except Exception as error:  # noqa: BLE001  whatever a template raises is told
        return {"error": str(error)[:500] or type(error).__name__}


def main() -> None:
    """Answer lines until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
