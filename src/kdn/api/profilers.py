"""Who profiles questions: what the settings name, and the open model itself as a profiler."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from kdn.api.parts import Parts
from kdn.core import (
    Finish,
    FinishReason,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Token,
    TokenIds,
)
from kdn.errors import BadInput, EngineFailed, ProfileFailed
from kdn.model import Message
from kdn.rag.endpoint import OpenAiEndpoint
from kdn.rag.metis import (
    ClassifierProfiler,
    EndpointProfileModel,
    ModelProfiler,
    Profiler,
    RuleProfiler,
    SpokenToken,
)

__all__ = ["OpenModelProfiles", "make_profiler"]


def make_profiler(parts: Parts) -> Profiler:
    """The profiler of the settings; the rules where the classifier's weights cannot be read."""
    ask = parts.config.ask
    match ask.profiler:
        case "rules":
            return RuleProfiler()
        case "model":
            return ModelProfiler(OpenModelProfiles(parts, ask.profile_timeout_s))
        case "endpoint":
            endpoint = OpenAiEndpoint(
                ask.endpoint_url or "", ask.endpoint_model, ask.endpoint_key, ask.profile_timeout_s
            )
            return ModelProfiler(EndpointProfileModel(endpoint))
        case "classifier":
            try:
                return ClassifierProfiler()
            except ProfileFailed as why:
                parts.trace.event("metis.classifier", why=str(why))
                return RuleProfiler()


class OpenModelProfiles:
    """The open model fills a form in: JSON of a flat schema whose values are all enumerated.

    What stands between values is fixed, so it is not generated.  Of each value every token is a
    one-token request among those that can go on, whose probabilities are shared among these: the
    JSON is always valid, and says how sure the model was.
    """

    def __init__(self, parts: Parts, timeout_s: float) -> None:
        self._parts = parts
        self._timeout_s = timeout_s

    @property
    def name(self) -> str:
        return self._parts.model.name

    def speak(
        self, messages: Sequence[Message], schema: Mapping[str, Any]
    ) -> Sequence[SpokenToken]:
        """The JSON as tokens. Raises EngineFailed when it takes too long, and what the engine raises."""
        encode = self._parts.model.tokenizer.encode
        ends_s = self._parts.clock.now() + self._timeout_s
        prompt = self._parts.prompts.segments(messages)
        written, said = list[int](), list[SpokenToken]()
        for before, values, after in _form(schema):
            written += encode(before)
            said.append(SpokenToken(before, 0.0))
            ways = [(*encode(value), *encode(after)[:1]) for value in values]
            text, spoken = self._value(prompt, tuple(written), values, ways, ends_s)
            said += spoken
            written += encode(text)
        said.append(SpokenToken("}", 0.0))
        return said

    def _value(
        self,
        prompt: Prompt,
        written: TokenIds,
        values: Sequence[str],
        ways: Sequence[TokenIds],
        ends_s: float,
    ) -> tuple[str, list[SpokenToken]]:
        """The likeliest value, a token at a time; a token that is the only one is not asked for."""
        left, at, spoken = list(range(len(ways))), 0, 0.0
        while len(left) > 1:
            choices = tuple(dict.fromkeys(ways[i][at] for i in left))
            token = choices[0]
            if len(choices) > 1:
                begun = (*written, *ways[left[0]][:at])
                drawn = self._one_token(prompt, begun, choices, ends_s)
                token, spoken = drawn.token_id, spoken + (drawn.logprob or 0.0)
            left = [i for i in left if ways[i][at] == token]
            at += 1
        value = values[left[0]]
        return value, [SpokenToken(value, spoken)]

    def _one_token(
        self, prompt: Prompt, begun: TokenIds, choices: TokenIds, ends_s: float
    ) -> Token:
        left_s = ends_s - self._parts.clock.now()
        if left_s <= 0:
            raise EngineFailed(f"no profile within {self._timeout_s:g} s")
        segments = (*prompt.segments, Segment(Role.QUESTION, begun))
        stream = self._parts.engine.submit(
            Request(
                self._parts.prompts.new_id("p"),
                Prompt(segments),
                Sampling(max_tokens=1, allowed=choices, logprobs=0),
                retention=Retention.SHARED,
            )
        )
        late = threading.Timer(left_s, stream.cancel)
        late.daemon = True
        late.start()
        try:
            events = list(stream)
        finally:
            late.cancel()
        finish = events[-1]
        if isinstance(finish, Finish) and finish.reason is FinishReason.CANCELLED:
            raise EngineFailed(f"no profile within {self._timeout_s:g} s")
        token = events[0]
        assert isinstance(token, Token), "an answer of one token begins with it"
        return token


def _form(schema: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """Each value's fixed text before it, the ways it can be written, and the text after it."""
    found, before = list[tuple[str, list[str], str]](), "{"
    for name, kind in schema["properties"].items():
        if "enum" not in kind:
            raise BadInput(f"{name} is not enumerated: the open model fills in enumerated values")
        values = [json.dumps(value) for value in kind["enum"]]
        before += f"{json.dumps(name)}: "
        if all(value.startswith('"') for value in values):
            # The quotes are fixed text too, so that a value is told apart by its first letters.
            found.append((f'{before}"', [value[1:-1] for value in values], '"'))
            before = '", '
        else:
            found.append((before, values, ","))
            before = ", "
    return found
