"""Who profiles questions: what the settings name, and the open model itself as a profiler."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdn.api.parts import Parts
from kdn.core import Constraint, FinishReason, Retention, Sampling, StreamEvent, Token
from kdn.errors import EngineFailed, ProfileFailed
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
from kdn.trace import GuardedTrace

__all__ = ["OpenModelProfiles", "make_profiler"]

_MOST_TOKENS = 512
"""A profile in JSON has some fifty, or as many as it has letters where a token is a letter."""


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
                GuardedTrace(parts.trace).event("metis.classifier", why=str(why))
                return RuleProfiler()


class OpenModelProfiles:
    """The open model as a profiler: its answer keeps to the schema, token by token.

    The probability of each token is its share among those that the schema allows there, so the fixed
    text of the JSON is certain and the values say how sure the model is.
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
        """Stores no KV of anybody's question. Raises EngineFailed when it takes too long, and what the
        engine raises."""
        sampling = Sampling(
            max_tokens=_MOST_TOKENS, logprobs=0, constraint=Constraint.json_schema(schema)
        )
        request = self._parts.prompts.request(messages, sampling=sampling)
        if any(message.role == "assistant" for message in messages):
            # Examples are what other callers asked, under salts that are not known here.
            request = replace(request, retention=Retention.NOTHING)
        stream = self._parts.engine.submit(request)
        late = threading.Timer(self._timeout_s, stream.cancel)
        late.daemon = True
        late.start()
        try:
            return self._spoken(stream)
        finally:
            late.cancel()

    def _spoken(self, stream: Iterable[StreamEvent]) -> list[SpokenToken]:
        spoken: list[SpokenToken] = []
        for event in stream:
            if isinstance(event, Token):
                spoken.append(SpokenToken(event.text, event.logprob or 0.0))
            elif event.reason is FinishReason.CANCELLED:
                raise EngineFailed(f"{self.name} took longer than {self._timeout_s:g} s")
            else:
                spoken.append(SpokenToken(event.tail, 0.0))
        return spoken
