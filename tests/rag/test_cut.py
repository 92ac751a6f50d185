"""Passages and parts: nothing lost, nothing too large, and an edit moves only what is near it."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.rag import Cutting, Heading, Paragraph, ParsedDocument, compose
from kdn.rag.cut import CutDocument, cut
from tests.rag.helpers import words

SMALL = Cutting(passage_tokens=20, part_tokens=60)


def essay(seed: int, sections: int = 12, paragraphs: int = 6) -> list[list[str]]:
    """Sections of paragraphs of 5 to 18 words, no two alike."""
    draw = random.Random(seed)
    return [
        [
            " ".join(f"w{draw.randrange(10_000)}" for _ in range(draw.randint(5, 18))) + "."
            for _ in range(paragraphs)
        ]
        for _ in range(sections)
    ]


def laid_out(text: list[list[str]], *, headings: bool = True) -> ParsedDocument:
    blocks: list[Heading | Paragraph] = []
    for number, section in enumerate(text):
        blocks += [Heading(f"Section {number}", 1)] if headings else []
        blocks += [Paragraph(paragraph) for paragraph in section]
    return compose("s", "Title", blocks)


def keys(pieces: CutDocument) -> tuple[set[str], set[str]]:
    return {p.key for p in pieces.passages}, {p.key for p in pieces.parts}


def test_a_short_document_is_one_part_under_its_title_and_headings() -> None:
    document = compose(
        "s", "Title", [Heading("A", 1), Paragraph("one two"), Heading("B", 2), Paragraph("three")]
    )
    (part,) = cut(document, words, SMALL).parts
    assert part.text == "Title\n\nA\none two\n\nA > B\nthree\n\n"
    assert part.num_tokens == len(words(part.text))
    assert [(p.headings, p.text, p.num_tokens) for p in part.passages] == [
        (("A",), "one two", 2),
        (("A", "B"), "three", 1),
    ]


def test_a_long_paragraph_is_cut_between_sentences_then_between_words() -> None:
    sentences = [f"The {number} sentence has seven words here." for number in range(6)]
    endless = " ".join(["word"] * 50)
    document = compose("s", "t", [Paragraph(" ".join(sentences)), Paragraph(endless)])
    passages = cut(document, words, SMALL).passages
    assert passages[0].text == " ".join(sentences[:2])
    assert all(passage.num_tokens <= 20 for passage in passages)
    assert sum(passage.num_tokens for passage in passages) == 6 * 8 + 50


def test_one_endless_word_is_cut_by_letters() -> None:
    def letters(text: str) -> list[int]:
        return list(map(ord, text))

    passages = cut(compose("s", "t", [Paragraph("x" * 1000)]), letters, SMALL).passages
    assert "".join(passage.text for passage in passages) == "x" * 1000
    assert all(passage.num_tokens <= 20 for passage in passages)


def test_the_same_paragraph_twice_has_two_keys() -> None:
    document = laid_out([["same words"], ["same words"]], headings=False)
    twice = compose("s", "t", [Heading("H", 1), Paragraph("x"), Heading("H", 1), Paragraph("x")])
    assert len(cut(document, words, SMALL).passages) == 1  # one section, gathered
    assert len({p.key for p in cut(twice, words, SMALL).passages}) == 2


def test_an_edit_changes_the_pieces_near_it_and_no_others() -> None:
    kept_passages, kept_parts, all_passages, all_parts = 0, 0, 0, 0
    for seed in range(10):
        text = essay(seed)
        before = keys(cut(laid_out(text), words, SMALL))
        text[2].insert(1, "a paragraph that was not there before.")
        after = keys(cut(laid_out(text), words, SMALL))
        kept_passages += len(before[0] & after[0])
        kept_parts += len(before[1] & after[1])
        all_passages += len(before[0])
        all_parts += len(before[1])
    assert kept_passages / all_passages > 0.95  # one or two of about fifty
    assert kept_parts / all_parts > 0.85  # two or three of about eighteen


def test_an_edit_in_text_without_headings_is_forgotten_after_a_few_parts() -> None:
    kept, total = 0, 0
    for seed in range(10):
        text = essay(seed, sections=1, paragraphs=100)
        before = keys(cut(laid_out(text, headings=False), words, SMALL))[1]
        text[0].insert(3, "a paragraph that was not there before.")
        after = keys(cut(laid_out(text, headings=False), words, SMALL))[1]
        kept += len(before & after)
        total += len(before)
    assert kept / total > 0.7


BODY = st.text(st.sampled_from("ab .\n"), max_size=400)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.booleans(), BODY), max_size=12))
def test_nothing_is_lost_doubled_or_too_large(pieces: list[tuple[bool, str]]) -> None:
    blocks = [Heading(text[:10], 1) if head else Paragraph(text) for head, text in pieces]
    document = compose("s", "t", blocks)
    result = cut(document, words, SMALL)
    sections = [document.text[s.start : s.stop] for s in document.sections]
    assert "".join("".join(p.text for p in result.passages).split()) == "".join(
        "".join(sections).split()
    )
    assert all(p.num_tokens <= 20 for p in result.passages)
    assert all(part.num_tokens <= 60 or len(part.passages) == 1 for part in result.parts)
    assert all(p.text in part.text for part in result.parts for p in part.passages)
    assert len(keys(result)[0]) == len(result.passages)
    assert result == cut(document, words, SMALL)
