"""Profilers: rules by words, the trained classifier, a model's JSON with its confidence, the oracle."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdn.errors import BadConfig, BadInput, EndpointFailed, ProfileFailed
from kdn.model import Message
from kdn.rag.endpoint import OpenAiEndpoint
from kdn.rag.metis import (
    AnswerLevel,
    ClassifierProfiler,
    EndpointProfileModel,
    LibraryNote,
    ModelProfiler,
    OracleProfiler,
    QuestionProfile,
    RuleProfiler,
    SpokenToken,
    answer_level,
)
from kdn.rag.metis.classifier import NUM_FEATURES, ProfileWeights, question_features
from kdn.rag.metis.model_profile import profile_messages, read_profile

WHO = 385
NOTE = LibraryNote("Chunks of quarterly reports.", 1000)
GOOD = (
    '{"joint_reasoning": "Yes", "complexity": "High", "pieces_of_information": 3,'
    ' "shortest_summary": 40, "longest_summary": 100}'
)


@pytest.mark.parametrize(
    ("question", "joint", "complexity"),
    [
        ("Where is the brass key?", False, False),
        ("How many crowns does a ticket cost?", False, False),
        ("Who is the mother of the director who was born in Rome?", True, False),
        ("Which is older, the Eiffel Tower or Big Ben? Are both in Paris?", True, False),
        ("Summarize the discussion about the budget.", True, True),
        ("How have the revenues of all companies changed over time?", True, True),
    ],
)
def test_rules_read_the_words(question: str, joint: bool, complexity: bool) -> None:
    found = RuleProfiler().profile(question, NOTE)
    assert (found.is_joint, found.is_complex) == (joint, complexity)
    assert found.num_pieces == 1 if not joint else found.num_pieces >= 2
    assert found.source == "rules"


@pytest.mark.parametrize("question", ["", "?", "\ue000" * 9, "who " * 5000, "Ω 東京 \x00"])
def test_rules_and_classifier_take_any_text(question: str) -> None:
    assert RuleProfiler().profile(question, NOTE).num_pieces >= 1
    assert ClassifierProfiler().profile(question, NOTE).num_pieces >= 1


@pytest.mark.parametrize(
    ("pieces", "summaries", "confidence"),
    [
        (0, (30, 200), 1.0),
        (11, (30, 200), 1.0),
        (1, (20, 90), 1.0),
        (1, (90, 40), 1.0),
        (1, (30, 30), 1.1),
    ],
)
def test_a_profile_keeps_to_the_papers_ranges(
    pieces: int, summaries: tuple[int, int], confidence: float
) -> None:
    with pytest.raises(BadInput):
        QuestionProfile(True, True, pieces, summaries, confidence)


def test_the_oracle_knows_what_it_was_told() -> None:
    known = QuestionProfile(True, False, 2, (30, 60))
    oracle = OracleProfiler({"a?": known})
    assert oracle.profile("a?", NOTE) == known
    with pytest.raises(ProfileFailed):
        oracle.profile("b?", NOTE)


# --- the classifier --------------------------------------------------------------------------


def test_the_packaged_weights_tell_plain_kinds_apart() -> None:
    classifier = ClassifierProfiler()
    plain = classifier.profile("In what year did the Panthers win the title?", NOTE)
    meeting = classifier.profile("Summarize the whole meeting.", NOTE)
    assert not plain.is_joint
    assert plain.num_pieces == 1
    assert meeting.is_joint
    assert meeting.is_complex
    assert meeting.num_pieces > 2
    assert 0 < plain.confidence <= 1


def test_weights_written_by_hand_give_the_probabilities_they_say() -> None:
    """Only the constant counts: odds of e to 1, so a share of e / (1 + e)."""
    heads = {}
    for name, classes in (("joint", 2), ("complex", 2), ("pieces", 5), ("long", 2)):
        heads[name] = np.zeros((NUM_FEATURES, classes), np.float32)
    heads["joint"][0, 1] = 1.0
    found = ClassifierProfiler(ProfileWeights(heads)).profile("Where?", NOTE)
    assert found.is_joint
    shares = math.e / (1 + math.e) * 0.5 * 0.2 * 0.5
    assert found.confidence == pytest.approx(shares**0.25, rel=1e-5)


def test_features_are_the_same_in_every_process() -> None:
    """Hashes that change with the process would make trained weights noise."""
    said = ("who", "is", "it", "who is", "is it", "^who", "^who is")
    places = {zlib.crc32(text.encode()) % (NUM_FEATURES - 16) for text in said}
    assert set(map(int, np.flatnonzero(question_features("Who is it?")[16:]))) == places
    assert zlib.crc32(b"who") % (NUM_FEATURES - 16) == WHO


def test_torn_weights_are_told(tmp_path: Path) -> None:
    path = tmp_path / "profile.npz"
    path.write_bytes(b"PK\x03\x04torn")
    with pytest.raises(ProfileFailed, match="holds no weights"):
        ProfileWeights.read(path)
    np.savez(
        path, joint=np.zeros((3, 2)), complex=np.zeros(1), pieces=np.zeros(1), long=np.zeros(1)
    )
    with pytest.raises(ProfileFailed, match="joint have the form"):
        ProfileWeights.read(path)


# --- a model ---------------------------------------------------------------------------------


def spoken(text: str, logprob: float = 0.0) -> list[SpokenToken]:
    return [SpokenToken(sign, logprob) for sign in text]


def test_confidence_is_the_geometric_mean_over_value_tokens() -> None:
    tokens = [
        SpokenToken('{"joint_reasoning": "', -9.0),  # the schema's own text does not count
        SpokenToken("Yes", math.log(0.9)),
        SpokenToken('", "complexity": "', -9.0),
        SpokenToken("High", math.log(0.4)),
        SpokenToken('", "pieces_of_information": ', -9.0),
        SpokenToken("3", math.log(0.5)),
        SpokenToken(', "shortest_summary": ', -9.0),
        SpokenToken("40", 0.0),
        SpokenToken(', "longest_summary": ', -9.0),
        SpokenToken("100", 0.0),
        SpokenToken("}", -9.0),
    ]
    found = read_profile(tokens)
    assert (found.is_joint, found.is_complex, found.num_pieces) == (True, True, 3)
    assert found.summary_tokens == (40, 100)
    assert found.confidence == pytest.approx((0.9 * 0.4 * 0.5) ** (1 / 5))


@pytest.mark.parametrize(
    "said",
    [
        "",
        "I cannot say.",
        '{"joint_reasoning": "Yes"}',
        GOOD.replace("3", "12"),
        GOOD.replace("Yes", "Maybe"),
        GOOD.replace("40", "4"),
        "[" * 3000 + "{" * 3000 + "}",
    ],
)
def test_nonsense_is_no_profile(said: str) -> None:
    with pytest.raises(ProfileFailed):
        read_profile(spoken(said))


class Recited:
    """Says one thing, and remembers what it was asked."""

    name = "recited"

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[Sequence[Message]] = []

    def speak(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> list[SpokenToken]:
        self.asked.append(messages)
        assert set(schema["required"]) == set(json.loads(GOOD))
        return spoken(self.text)


def test_a_example_stands_in_front_of_the_next_prompt() -> None:
    model = Recited(GOOD)
    profiler = ModelProfiler(model)
    assert profiler.profile("a?", NOTE).source == "model recited"
    example = profiler.learn("a?", "The golden answer.", NOTE)
    assert example is not None
    assert example.profile.num_pieces == 3
    assert "The golden answer." in model.asked[1][-1].content
    profiler.profile("b?", NOTE)
    roles = [message.role for message in model.asked[2]]
    assert roles == ["system", "user", "assistant", "user"]
    assert model.asked[2][1].content == "Question: a?"
    assert json.loads(model.asked[2][2].content) == json.loads(GOOD)


def test_the_last_four_examples_stand_in_front() -> None:
    model = Recited(GOOD)
    profiler = ModelProfiler(model)
    for number in range(6):
        profiler.learn(f"q{number}?", "gold", NOTE)
    profiler.profile("b?", NOTE)
    asked = [message.content for message in model.asked[-1] if message.role == "user"]
    assert asked == [f"Question: {one}?" for one in ("q2", "q3", "q4", "q5", "b")]


def test_an_example_may_come_while_a_prompt_is_written() -> None:
    """As from the thread of a golden run: the prompt has those that there were at its beginning."""

    coming = ["c?"]

    class Interrupted(str):
        __slots__ = ()

        def __format__(self, _spec: str) -> str:
            while coming:
                profiler.learn(coming.pop(), "gold", NOTE)
            return str(self)

    model = Recited(GOOD)
    profiler = ModelProfiler(model)
    profiler.learn(Interrupted("a?"), "gold", NOTE)
    profiler.profile("b?", NOTE)
    asked = [message.content for message in model.asked[-1] if message.role == "user"]
    assert asked == ["Question: a?", "Question: b?"]


def test_a_model_that_learns_nothing_keeps_no_example() -> None:
    model = Recited("no idea")
    profiler = ModelProfiler(model)
    assert profiler.learn("a?", "gold", NOTE) is None
    with pytest.raises(ProfileFailed):
        profiler.profile("b?", NOTE)
    assert len(model.asked[1]) == 2


def test_the_prompt_says_what_the_documents_are_and_how_large_a_chunk_is() -> None:
    system, asked = profile_messages(" Why? ", NOTE)
    assert "quarterly reports" in system.content
    assert "1000 tokens" in system.content
    assert asked.content == "Question: Why?"


# --- an endpoint -----------------------------------------------------------------------------


def answering(body: object) -> OpenAiEndpoint:
    def send(url: str, sent: bytes, headers: Mapping[str, str], timeout_s: float) -> bytes:
        assert url == "http://models:1/v1/chat/completions"
        assert json.loads(sent)["model"] == "m"
        assert headers["authorization"] == "Bearer k"
        if isinstance(body, OSError):
            raise body
        return body if isinstance(body, bytes) else json.dumps(body).encode()

    return OpenAiEndpoint("http://models:1/v1/", "m", "k", send=send)


def test_an_endpoints_tokens_are_a_profile() -> None:
    tokens = [{"token": sign, "logprob": -0.01} for sign in GOOD]
    endpoint = answering({"choices": [{"logprobs": {"content": tokens}}]})
    found = ModelProfiler(EndpointProfileModel(endpoint)).profile("a?", NOTE)
    assert found.confidence == pytest.approx(math.exp(-0.01))


@pytest.mark.parametrize(
    "body",
    [
        TimeoutError("timed out"),
        ConnectionRefusedError("refused"),
        b"<html>",
        {"error": "busy"},
        {"choices": []},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": [{"token": "x"}]}}]},
        {"choices": [{"logprobs": {"content": [{"token": "x", "logprob": "much"}]}}]},
    ],
)
def test_an_endpoint_that_fails_gives_no_profile(body: object) -> None:
    model = EndpointProfileModel(answering(body))
    with pytest.raises(EndpointFailed):
        model.speak([Message("user", "?")], {})
    with pytest.raises(ProfileFailed, match="gave no profile"):
        ModelProfiler(model).profile("a?", NOTE)


def test_an_address_is_one_of_http() -> None:
    with pytest.raises(BadConfig, match="must begin with http"):
        OpenAiEndpoint("file:///etc/passwd", "m")


def test_a_model_that_was_measured_to_be_too_small_quotes() -> None:
    packaged = answer_level("smollm2-135m")
    assert packaged is not None
    assert not packaged.is_enough
    assert AnswerLevel(0.75, 60).is_enough
    assert answer_level("some-other-model") is None
