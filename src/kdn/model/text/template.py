"""Published chat templates: Jinja programs, run in a sandbox, with the helpers they expect."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kdn.clock import Clock
from kdn.errors import BadInput, WeightsError

__all__ = ["PLAIN_TEMPLATE", "Turn", "TurnRenderer"]

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For base models, which have no template: turns as `User: ...`, and `Assistant:` at the end."""

Turn = dict[str, str]
"""`role` and `content`, as templates want them."""


class TurnRenderer:
    """A compiled template. What it runs cannot touch the process."""

    def __init__(
        self, source: str | None, clock: Clock, *, bos_token: str = "", eos_token: str = ""
    ) -> None:
        """`source` None means a base model. Raises WeightsError for what is no template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: _date(clock, form),
            "bos_token": bos_token,
            "eos_token": eos_token,
        }
        try:
            self._template = environment.from_string(source or PLAIN_TEMPLATE)
        except jinja2.TemplateError as error:
            raise WeightsError(f"the model's chat template cannot be read: {error}") from error
        self.strips = self._strips()
        """Does the template cut white space off both ends of what users say?"""

    def render(self, turns: Sequence[Turn]) -> str:
        """The conversation up to where the assistant begins. Raises BadInput when it is refused."""
        try:
            return self._template.render(messages=list(turns), add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise BadInput(
                f"the model's chat template refuses the conversation: {error}"
            ) from error

    def _strips(self) -> bool:
        try:
            return " probe " not in self.render([{"role": "user", "content": " probe "}])
        except BadInput:
            return False  # it wants more than one turn; rendering a conversation will say so


def _to_json(value: Any, **options: Any) -> str:
    """Templates expect plain JSON, where Jinja's own filter escapes for HTML."""
    options.setdefault("ensure_ascii", False)
    return json.dumps(value, **options)


def _refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def _date(clock: Clock, form: str) -> str:
    moment = dt.datetime.fromtimestamp(clock.wall(), tz=dt.UTC)
    return moment.astimezone().strftime(form)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
