"""Published chat templates: programs of strangers, run with a deadline and a bound on memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import jinja2
from jinja2 import nodes

from kdn.clock import Clock
from kdn.errors import BadInput, WeightsError
from kdn.machine.bounded import BoundedProcess
from kdn.model.text import render
from kdn.model.text.render import new_environment

__all__ = ["PLAIN_TEMPLATE", "RENDER_DEADLINE_S", "Turn", "TurnRenderer"]

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For base models, which have no template: turns as `User: ...`, and `Assistant:` at the end."""

RENDER_DEADLINE_S = 5.0
"""A template that takes longer for one conversation is stopped."""
_MAX_SOURCE = 1 << 20
"""Characters of a template; published ones have some thousands."""

Turn = dict[str, str]
"""`role` and `content`, as templates want them."""


class TurnRenderer:
    """A chat template. What it runs cannot touch this process, its time or its memory."""

    def __init__(
        self, source: str | None, clock: Clock, *, bos_token: str = "", eos_token: str = ""
    ) -> None:
        """`source` None means a base model. Raises WeightsError for what is no template."""
        self._source = source or PLAIN_TEMPLATE
        self._clock = clock
        self.reads_clock = "strftime_now" in self._source
        """May it render the same conversation differently at another time?"""
        self._bos_token, self._eos_token = bos_token, eos_token
        if len(self._source) > _MAX_SOURCE:
            raise WeightsError(
                f"the model's chat template holds {len(self._source)} characters; it is damaged: fetch "
                "the model again"
            )
        self._variables: Mapping[str, object] = {}
        try:
            self._reads = _check(self._source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise WeightsError(f"the model's chat template cannot be read: {error}") from error

    @property
    def source(self) -> str:
        """The template's text."""
        return self._source

    def reads(self, name: str) -> bool:
        """Does the template look at a variable of that name?"""
        return name in self._reads

    def using(self, variables: Mapping[str, object]) -> TurnRenderer:
        """The same template with more variables to look at, such as `tools`."""
        other = copy.copy(self)
        vars(other)["_variables"] = {**self._variables, **variables}
        return other

    @cached_property
    def strips(self) -> bool:
        """Does the template cut white space off both ends of what users say?"""
        try:
            return " probe " not in self.render([{"role": "user", "content": " probe "}])
        except BadInput:
            return False  # it wants more than one turn; rendering a conversation will say so

    def render(self, turns: Sequence[Turn]) -> str:
        """The conversation up to where the assistant begins. Raises BadInput when it is refused."""
        asked = {
            "source": self._source,
            "messages": list(turns),
            "bos_token": self._bos_token,
            "eos_token": self._eos_token,
            "wall_s": self._clock.wall(),
            "variables": self._variables,
        }
        answer = _PROCESS.ask(asked, RENDER_DEADLINE_S)
        if "text" not in answer:
            raise BadInput(
                f"the model's chat template refuses the conversation: {answer.get('error')}"
            )
        text: str = answer["text"]
        return text


def _check(source: str) -> frozenset[str]:
    """The variables that a template reads, its own included. Raises TemplateError for what is no template.

    Nothing is run, and no constant is worked out (Jinja's own search does): that is for the other process.
    """
    environment = new_environment()
    parsed = environment.parse(source)
    for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests)):
        for node in parsed.find_all(kind):
            if node.name not in known:
                raise jinja2.TemplateError(f"it calls {node.name!r}, which is unknown")
    return frozenset(node.name for node in parsed.find_all(nodes.Name) if node.ctx == "load")


_PROCESS = BoundedProcess(Path(render.__file__), render.MEMORY_BYTES)
