"""A profile by a language model: constrained JSON, and how sure the model was of it.

The prompt asks what METIS's does (arXiv 2412.10543 v3, section 4.1): the model sees the question, a line
about the documents and the size of a chunk.  The paper does not say how the log-probabilities become one
confidence; ours is the geometric mean of the probabilities of the tokens that carry values, because what
stands around them is fixed by the schema.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from kdn.errors import BadInput, EndpointFailed, KdnError, ProfileFailed
from kdn.model import Message
from kdn.rag.endpoint import OpenAiEndpoint
from kdn.rag.metis.feedback import NUM_EXAMPLES, ProfileExample
from kdn.rag.metis.profile import (
    MAX_PIECES,
    MAX_SUMMARY_TOKENS,
    MIN_SUMMARY_TOKENS,
    LibraryNote,
    QuestionProfile,
)

__all__ = [
    "PROFILE_SCHEMA",
    "EndpointProfileModel",
    "ModelProfiler",
    "ProfileModel",
    "SpokenToken",
    "profile_messages",
    "read_profile",
]

PROFILE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "joint_reasoning": {"enum": ["Yes", "No"]},
        "complexity": {"enum": ["Low", "High"]},
        "pieces_of_information": {"enum": list(range(1, MAX_PIECES + 1))},
        "shortest_summary": {"enum": [30, 40, 50, 60, 80, 100]},
        "longest_summary": {"enum": [30, 50, 80, 100, 120, 150, 200]},
    },
    "required": [
        "joint_reasoning",
        "complexity",
        "pieces_of_information",
        "shortest_summary",
        "longest_summary",
    ],
    "additionalProperties": False,
}
_VALUE = re.compile(r'"\w+"\s*:\s*"?([A-Za-z]+|\d+)')


@dataclass(frozen=True)
class SpokenToken:
    """A generated token's text with the natural log of its probability."""

    text: str
    logprob: float


class ProfileModel(Protocol):
    """A model that answers in JSON of a schema and says how likely each token was."""

    @property
    def name(self) -> str: ...

    def speak(
        self, messages: Sequence[Message], schema: Mapping[str, Any]
    ) -> Sequence[SpokenToken]:
        """The answer's tokens. Raises KdnError when there is none in time."""


class _Said(msgspec.Struct, frozen=True):
    joint_reasoning: str
    complexity: str
    pieces_of_information: int
    shortest_summary: int
    longest_summary: int


class ModelProfiler:
    """Asks a model for each profile, with the last four examples from feedback in front of its prompt.

    Safe from several threads.
    """

    def __init__(self, model: ProfileModel) -> None:
        self._model = model
        self._examples: tuple[ProfileExample, ...] = ()
        self._lock = threading.Lock()
        """Of adding an example: golden runs end in threads of their own."""

    @property
    def name(self) -> str:
        return f"model {self._model.name}"

    def profile(self, question: str, note: LibraryNote) -> QuestionProfile:
        messages = profile_messages(question, note, self._examples)
        return replace(self._ask(messages), source=self.name)

    def learn(self, question: str, golden_answer: str, note: LibraryNote) -> ProfileExample | None:
        """The profile that the model gives once it has seen a golden answer; None when it gives none."""
        messages = profile_messages(question, note, self._examples, golden_answer)
        try:
            example = ProfileExample(question, self._ask(messages))
        except ProfileFailed:
            return None
        with self._lock:
            self._examples = (*self._examples, example)[-NUM_EXAMPLES:]
        return example

    def _ask(self, messages: Sequence[Message]) -> QuestionProfile:
        try:
            spoken = self._model.speak(messages, PROFILE_SCHEMA)
        except KdnError as error:
            raise ProfileFailed(f"{self.name} gave no profile: {error}") from error
        return read_profile(spoken)


def profile_messages(
    question: str,
    note: LibraryNote,
    examples: Sequence[ProfileExample] = (),
    golden_answer: str | None = None,
) -> list[Message]:
    """The prompt. With a `golden_answer` it asks which profile would have led there."""
    system = (
        "You analyse the language and the structure of a question that documents will answer, and say"
        " in JSON:\n"
        "joint_reasoning: must several pieces of information be reasoned over together? Yes or No.\n"
        "complexity: Low for a question about who, when, where, what or how much; High for why, how,"
        " opinions, summaries and comparisons over long stretches.\n"
        f"pieces_of_information: how many are needed to answer, 1 to {MAX_PIECES}.\n"
        "shortest_summary, longest_summary: how many words a useful summary of one chunk has, from"
        f" {MIN_SUMMARY_TOKENS} to {MAX_SUMMARY_TOKENS}.\n"
        f"The documents: {note.about} A chunk has about {note.chunk_tokens} tokens."
    )
    messages = [Message("system", system)]
    for example in examples:
        messages.append(Message("user", f"Question: {example.question}"))
        messages.append(Message("assistant", _as_json(example.profile)))
    asked = f"Question: {question.strip()}"
    if golden_answer is not None:
        asked += (
            f"\n\nA careful reading of many chunks gave this answer:\n{golden_answer.strip()}\n\n"
            "Which profile would have been right for the question?"
        )
    messages.append(Message("user", asked))
    return messages


def _as_json(profile: QuestionProfile) -> str:
    low, high = profile.summary_tokens
    said = _Said(
        "Yes" if profile.is_joint else "No",
        "High" if profile.is_complex else "Low",
        profile.num_pieces,
        low,
        high,
    )
    return msgspec.json.encode(said).decode()


def read_profile(spoken: Sequence[SpokenToken]) -> QuestionProfile:
    """The profile that tokens spell, with its confidence. Raises ProfileFailed for nonsense."""
    text = "".join(token.text for token in spoken)
    start, stop = text.find("{"), text.rfind("}") + 1
    if start < 0 or stop <= start:
        raise ProfileFailed(f"a profile in JSON was asked for; {text!r:.120} came")
    try:
        said = msgspec.json.decode(text[start:stop], type=_Said)
        low, high = sorted((said.shortest_summary, said.longest_summary))
        return QuestionProfile(
            is_joint=_one_of(said.joint_reasoning, "Yes", "No"),
            is_complex=_one_of(said.complexity, "High", "Low"),
            num_pieces=said.pieces_of_information,
            summary_tokens=(low, high),
            confidence=_confidence(spoken, text),
            source="model",
        )
    except (msgspec.DecodeError, BadInput, RecursionError) as error:
        raise ProfileFailed(f"{text[start:stop]!r:.120} is no profile: {error}") from error


def _one_of(said: str, yes: str, no: str) -> bool:
    if said not in (yes, no):
        raise BadInput(f"{said!r} is neither {yes} nor {no}")
    return said == yes


def _confidence(spoken: Sequence[SpokenToken], text: str) -> float:
    """The geometric mean of the probabilities of tokens that touch a value."""
    spans = [match.span(1) for match in _VALUE.finditer(text)]
    logprobs, at = [], 0
    for token in spoken:
        stop = at + len(token.text)
        if any(at < end and start < stop for start, end in spans):
            logprobs.append(min(token.logprob, 0.0))
        at = stop
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


class EndpointProfileModel:
    """A model behind an address: any server that has OpenAI's chat completions with logprobs."""

    def __init__(self, endpoint: OpenAiEndpoint) -> None:
        self._endpoint = endpoint

    @property
    def name(self) -> str:
        return self._endpoint.model

    def speak(
        self, messages: Sequence[Message], schema: Mapping[str, Any]
    ) -> Sequence[SpokenToken]:
        body = {
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "max_tokens": 128,
            "temperature": 0,
            "logprobs": True,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "profile", "strict": True, "schema": schema},
            },
        }
        answer = self._endpoint.call("chat/completions", body)
        try:
            tokens = answer["choices"][0]["logprobs"]["content"]
            return [SpokenToken(str(one["token"]), float(one["logprob"])) for one in tokens]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EndpointFailed(
                f"{self._endpoint.url} answered without logprobs of its tokens; a profile needs them"
            ) from error
