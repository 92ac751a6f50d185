"""Question sets in the shapes that they were published in, a record each, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdn.bench.blend.prompts import BlendPrompt, questions
from kdn.errors import BadInput


def read(folder: Path, *records: Any, limit: int = 1, seed: int = 0) -> list[BlendPrompt]:
    (folder / "public.jsonl").write_text("\n".join(map(json.dumps, records)))
    return questions(folder, seed, limit)


def test_musique_keeps_what_answers_and_the_words_around_it(tmp_path: Path) -> None:
    """The answer is word 500 of 1,000: 200 words are kept, a hundred of them before it."""
    words = [f"w{n}" for n in range(1000)]
    words[500] = "Bergen"
    texts = [{"text": f"nothing {n}"} for n in range(12)] + [{"text": " ".join(words)}]
    (asked,) = read(
        tmp_path, {"ctxs": texts, "question": "Where?", "answers": ["bergen", "Bryggen"]}
    )
    assert len(asked.documents) == 8
    kept = asked.documents[-1].split()
    assert (len(kept), kept[0], kept[100], kept[-1]) == (200, "w400", "Bergen", "w599")
    assert asked.answers == ("bergen", "Bryggen")
    assert (asked.name, asked.measure) == (f"{tmp_path.name}/0", "words")


def test_hotpotqa_has_a_paragraph_under_each_title(tmp_path: Path) -> None:
    context = {
        "title": [f"T{n}" for n in range(10)],
        "sentences": [[f"One {n}. ", "Two."] for n in range(10)],
    }
    record = {"context": context, "question": "Which?", "answer": "One 7"}
    (asked,) = read(tmp_path, record)
    assert len(asked.documents) == 8
    assert "T7 One 7. Two." in asked.documents, "two are left out, never the one that answers"
    (other,) = read(tmp_path, record, seed=1)
    assert set(other.documents) != set(asked.documents)


def test_needles_are_eight_equal_parts_and_a_question(tmp_path: Path) -> None:
    """Seventeen lines in parts of three: six parts, the last of two lines."""
    lines = [f"line {n}" for n in range(17)]
    record = {"input": "\n".join([*lines, "What is it? The answer is"]), "outputs": ["41"]}
    (asked,) = read(tmp_path, record)
    assert "\n".join(asked.documents).splitlines() == lines
    assert [len(part.splitlines()) for part in asked.documents] == [3, 3, 3, 3, 3, 2]
    assert asked.question == "What is it? Answer with it alone."


def test_a_meeting_begins_where_its_topic_was_discussed(tmp_path: Path) -> None:
    turns = [{"speaker": s, "content": f"{s} speaks."} for s in ("Ann", "Bo", "Cy")]
    query = {"query": "What of Bo?", "answer": "He spoke.", "relevant_text_span": [["1", "2"]]}
    (asked,) = read(tmp_path, {"meeting_transcripts": turns, "specific_query_list": [query]})
    assert asked.documents == ("Bo: Bo speaks. Cy: Cy speaks.",)
    assert (asked.answers, asked.measure) == (("He spoke.",), "summary")


def test_a_set_is_gone_through_again_under_other_names(tmp_path: Path) -> None:
    records = [
        {"ctxs": [{"text": f"{q} {n}"} for n in range(8)], "question": q, "answers": ["x"]}
        for q in ("a?", "b?")
    ]
    found = read(tmp_path, *records, limit=5)
    place = tmp_path.name
    assert [one.name for one in found] == [
        f"{place}/0", f"{place}/1", f"{place}/0/1", f"{place}/1/1", f"{place}/0/2",
    ]  # fmt: skip
    assert found[0].documents != found[2].documents
    assert set(found[0].documents) == set(found[2].documents)
    assert len(read(tmp_path, *records, limit=1)) == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "a shape that is not known"),
        ("[1, 2]", "a shape that is not known"),
        ('{"ctxs": [', "not a JSON object a line"),
    ],
)
def test_another_file_is_refused_in_one_sentence(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "public.jsonl").write_text(content)
    with pytest.raises(BadInput, match=why):
        questions(tmp_path, 0, 1)
    with pytest.raises(BadInput, match=r"no public\.jsonl in it"):
        questions(tmp_path / "elsewhere", 0, 1)
