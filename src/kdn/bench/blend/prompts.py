"""Prompts for the blending benchmark: eight documents and a question, from the usual question sets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kdn.bench.common.records import read_records
from kdn.corpus import corpus_files
from kdn.errors import BadInput

__all__ = ["BlendPrompt", "Measure", "questions"]

Measure = Literal["words", "summary", "needles"]

_SHORTLY = "Answer the question from the documents, in at most five words."
_AT_LENGTH = "Answer from the meeting above, in two or three sentences."

_CHUNKS = 8
_WORDS = 200
"""Words of a chunk: about 270 tokens of English, so that eight of them are a prompt of 2,200."""


@dataclass(frozen=True)
class BlendPrompt:
    """A question over documents, with the answers that count as right."""

    name: str
    documents: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    instruction: str = _SHORTLY
    measure: Measure = "words"
    """How an answer is compared: a few words by F1, a summary by Rouge-L, needles by being there."""


def questions(data: Path | None, seed: int, limit: int) -> list[BlendPrompt]:
    """At most `limit` questions of a set, or of the shipped documents when `data` is None.

    `data` is a folder with `public.jsonl` (or that file) of MuSiQue, HotpotQA, QMSum or RULER's
    needles.  A set with fewer is gone through again, its documents in another order and others left
    out.  Equal arguments give equal questions.  Raises BadInput for another shape.
    """
    if data is None:
        return list(_shipped(seed, limit))
    file = data / "public.jsonl" if data.is_dir() else data
    if not file.is_file():
        raise BadInput(f"{data}: no public.jsonl in it; give a folder of a question set")
    records = [one for one in read_records(file)[:limit] if isinstance(one, dict)]
    shape = next((reader for key, reader in _SHAPES.items() if records and key in records[0]), None)
    if shape is None:
        raise BadInput(f"{file}: records of a shape that is not known ({', '.join(_SHAPES)})")
    draw = random.Random(seed)
    found: list[BlendPrompt] = []
    while len(found) < limit:
        turn, number = divmod(len(found), len(records))
        name = f"{file.parent.name}/{number}" + (f"/{turn}" if turn else "")
        asked = shape(name, records[number], draw)
        documents = list(asked.documents)
        if turn:
            draw.shuffle(documents)
        found.append(replace(asked, documents=tuple(documents)))
    return found


def _cut(text: str) -> str:
    return " ".join(text.split()[:_WORDS])


def _musique(name: str, record: dict[str, Any], draw: random.Random) -> BlendPrompt:
    """Passages that hold the answer stay; others are left out at random down to eight."""
    answers = tuple(record["answers"])
    texts = [_around(context["text"], answers) for context in record["ctxs"]]
    return BlendPrompt(name, _eight(texts, answers, draw), record["question"], answers)


def _around(text: str, answers: tuple[str, ...]) -> str:
    """As many words as a chunk has, with the answer among them if the text has it."""
    words = text.split()
    at = next((text.lower().find(a.lower()) for a in answers if a.lower() in text.lower()), 0)
    first = max(0, min(len(text[:at].split()) - _WORDS // 2, len(words) - _WORDS))
    return " ".join(words[first : first + _WORDS])


def _eight(texts: list[str], answers: tuple[str, ...], draw: random.Random) -> tuple[str, ...]:
    spare = [i for i, t in enumerate(texts) if not any(a.lower() in t.lower() for a in answers)]
    gone = set(draw.sample(spare, min(len(spare), max(len(texts) - _CHUNKS, 0))))
    return tuple(text for i, text in enumerate(texts) if i not in gone)[:_CHUNKS]


def _hotpot(name: str, record: dict[str, Any], draw: random.Random) -> BlendPrompt:
    """Each paragraph under its title, two to a chunk where they are short."""
    context = record["context"]
    pairs = zip(context["title"], context["sentences"], strict=True)
    texts = [_cut(f"{title}\n{''.join(sentences)}") for title, sentences in pairs]
    answers = (record["answer"],)
    return BlendPrompt(name, _eight(texts, answers, draw), record["question"], answers)


def _needles(name: str, record: dict[str, Any], _: random.Random) -> BlendPrompt:
    """The lines of one long text in eight equal parts; the last line asks."""
    *lines, asked = record["input"].splitlines()
    size = -(-len(lines) // _CHUNKS)
    texts = ["\n".join(lines[a : a + size]) for a in range(0, len(lines), size)]
    question = asked.split("?")[0] + "? Answer with it alone."
    return BlendPrompt(name, tuple(texts), question, tuple(record["outputs"]), measure="needles")


def _meeting(name: str, record: dict[str, Any], draw: random.Random) -> BlendPrompt:
    """What was said where a topic was discussed, from its beginning on, and the query about it."""
    about = draw.choice(record["specific_query_list"])
    first = int(about["relevant_text_span"][0][0])
    turns = record["meeting_transcripts"][first:]
    words = [word for turn in turns for word in f"{turn['speaker']}: {turn['content']}".split()]
    words = words[: _CHUNKS * _WORDS]
    texts = [" ".join(words[a : a + _WORDS]) for a in range(0, len(words), _WORDS)]
    return BlendPrompt(
        name, tuple(texts), about["query"], (about["answer"],), _AT_LENGTH, "summary"
    )


_SHAPES: dict[str, Callable[[str, dict[str, Any], random.Random], BlendPrompt]] = {
    "ctxs": _musique,
    "context": _hotpot,
    "outputs": _needles,
    "meeting_transcripts": _meeting,
}


def _shipped(seed: int, limit: int) -> Iterator[BlendPrompt]:
    """Eight passages of the shipped documents, and a question after one of their sentences."""
    draw = random.Random(seed)
    words = [text for file in corpus_files() for text in _passages(file)]
    for number in range(limit):
        documents = tuple(draw.sample(words, _CHUNKS))
        told = draw.choice(documents).split(". ")
        answer = max(told[:-1] or told, key=len)
        start = " ".join(answer.split()[:6])
        yield BlendPrompt(
            f"shipped/{number}", documents, f'How goes the text on behind "{start}"?', (answer,)
        )


def _passages(file: Path) -> list[str]:
    words = file.read_text("utf-8").split()
    return [" ".join(words[a : a + _WORDS]) for a in range(0, len(words) - _WORDS, _WORDS)]
