"""Prompt pieces, and which passages an answer is traced to."""

from __future__ import annotations

from kdn.core import Role
from kdn.rag import Hit, Part, Passage, answer_instruction, answer_pieces, cite


def passage(key: str, text: str) -> Passage:
    return Passage(key, "s", "Title", (), text, len(text.split()))


RIPE = passage("ripe", "Bananas ripen faster in a paper bag because of ethylene.")
GREEN = passage("green", "Green bananas hold more starch than yellow bananas.")
BOATS = passage("boats", "Boats float in water.")


def part(*passages: Passage, hits: tuple[Hit, ...] = ()) -> Part:
    text = "\n".join(p.text for p in passages)
    return Part("part", "s", "Title", text, 30, passages, hits)


def test_documents_stand_first_and_unchanged() -> None:
    pieces = answer_pieces(" Why? ", [part(RIPE), part(BOATS)])
    assert [piece.role for piece in pieces] == [
        Role.DOCUMENT,
        Role.DOCUMENT,
        Role.INSTRUCTION,
        Role.QUESTION,
    ]
    assert pieces[0].text == RIPE.text
    assert pieces[0].source == "part"
    assert pieces[2].text.startswith(answer_instruction())
    assert pieces[3].text == "Question: Why?"


def test_an_answer_is_traced_to_the_passage_with_its_words() -> None:
    cited = cite("They ripen faster thanks to ethylene.", [part(BOATS, GREEN, RIPE)])
    assert [citation.passage.key for citation in cited] == ["ripe"]
    assert cited[0].score == 0.75  # all its known words, but the search had not found it


def test_between_equal_passages_the_one_the_question_found_wins() -> None:
    twin = passage("twin", RIPE.text)
    cited = cite("Ethylene ripens them in a bag.", [part(RIPE, twin, hits=(Hit(twin, 0.4),))])
    assert [citation.passage.key for citation in cited] == ["twin", "ripe"]


def test_nothing_supports_ignorance_or_invention() -> None:
    assert cite("I do not know.", [part(RIPE)]) == []
    assert cite("I don't know the answer.", [part(RIPE)]) == []
    assert cite("Zebras!", [part(RIPE)]) == []
    assert cite("Bananas.", []) == []
