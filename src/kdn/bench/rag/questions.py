"""Questions with the documents that answer them: SQuAD, HotpotQA, MuSiQue, QMSum and quarterly filings.

The right profile of a question (the oracle's) follows from the structure of its data set.  A part of a
document is gold when it holds what the data set marks as evidence; where nothing is marked the
question has no gold, and counts for delays only.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdn.bench.common.records import read_records
from kdn.errors import BadInput
from kdn.rag import Paragraph, ParsedDocument, Part, compose
from kdn.rag.metis import QuestionProfile

__all__ = ["SETS", "BenchQuestion", "QuestionSet", "load_sets"]

_SHORT, _LONG = (30, 80), (60, 150)
_CHUNK_WORDS = 190
"""Words of a part of the benchmark's libraries."""


@dataclass(frozen=True)
class BenchQuestion:
    """A question, its right profile, its gold answers, and texts of which each gold part holds one."""

    text: str
    profile: QuestionProfile
    answers: tuple[str, ...]
    evidence: tuple[str, ...]

    def is_gold(self, part: Part) -> bool:
        """Does the part hold evidence?"""
        text = _flat(part.text)
        return any(_flat(one) in text for one in self.evidence)


@dataclass(frozen=True)
class QuestionSet:
    """Documents and questions about them."""

    name: str
    documents: tuple[ParsedDocument, ...]
    questions: tuple[BenchQuestion, ...]


def load_sets(data: Path | None, most: int) -> list[QuestionSet]:
    """Every set that lies in `data`, with at most `most` questions each. Raises BadInput for none."""
    if data is None or not data.is_dir():
        raise BadInput("rag measures over question sets; name their folder: --data ../shared/data")
    found = [read(data / name, most) for name, read in SETS.items() if (data / name).is_dir()]
    if not found:
        raise BadInput(f"{data} holds none of {', '.join(SETS)}; name the folder that does")
    return found


def _flat(text: str) -> str:
    return " ".join(text.lower().split())


def _document(source: str, title: str, texts: Sequence[str]) -> ParsedDocument:
    blocks = [Paragraph(text) for text in texts if text.strip()]
    return compose(source, title, blocks)


def _squad(folder: Path, most: int) -> QuestionSet:
    """One paragraph answers; its words around the answer are the evidence."""
    documents, questions = list[ParsedDocument](), list[BenchQuestion]()
    for number, article in enumerate(read_records(folder / "public.jsonl")):
        if len(questions) >= most:
            break
        title = str(article["title"]).replace("_", " ")
        contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
        documents.append(_document(f"squad-{number}", title, contexts))
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"][:1]:
                start = asked["answers"][0]["answer_start"]
                clue = paragraph["context"][max(start - 30, 0) : start + 30]
                gold = tuple(answer["text"] for answer in asked["answers"])
                profile = QuestionProfile(False, False, 1, _SHORT)
                questions.append(BenchQuestion(asked["question"], profile, gold, (clue.strip(),)))
    return QuestionSet("squad", tuple(documents), tuple(questions[:most]))


def _hotpotqa(folder: Path, most: int) -> QuestionSet:
    """Two paragraphs or more are joined; their supporting sentences are the evidence."""
    documents, questions = dict[str, ParsedDocument](), list[BenchQuestion]()
    for row in read_records(folder / "public.jsonl")[:most]:
        sentences = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
        for title, texts in sentences.items():
            documents.setdefault(title, _document(f"hotpotqa-{title}", title, ["".join(texts)]))
        facts = zip(
            row["supporting_facts"]["title"], row["supporting_facts"]["sent_id"], strict=True
        )
        evidence = [
            sentences[title][at].strip()[:60]
            for title, at in facts
            if title in sentences and at < len(sentences[title])
        ]
        pieces = len(set(row["supporting_facts"]["title"]))
        profile = QuestionProfile(True, False, pieces, _SHORT)
        questions.append(BenchQuestion(row["question"], profile, (row["answer"],), tuple(evidence)))
    return QuestionSet("hotpotqa", tuple(documents.values()), tuple(questions))


def _musique(folder: Path, most: int) -> QuestionSet:
    """Several passages are joined; the file marks none, so that answers in words are the evidence."""
    documents, questions = dict[str, ParsedDocument](), list[BenchQuestion]()
    for row in read_records(folder / "public.jsonl")[:most]:
        for passage in row["ctxs"]:
            text, title = passage["text"], passage["title"] or passage["text"][:40]
            source = f"musique-{len(documents)}"
            documents.setdefault(text, _document(source, title, [text]))
        answers = tuple(str(answer) for answer in row["answers"])
        profile = QuestionProfile(True, False, 2, _SHORT)
        questions.append(BenchQuestion(row["question"], profile, answers, answers))
    return QuestionSet("musique", tuple(documents.values()), tuple(questions))


def _qmsum(folder: Path, most: int) -> QuestionSet:
    """Stretches of a meeting are summarised; the beginnings of their turns are the evidence."""
    documents, questions = list[ParsedDocument](), list[BenchQuestion]()
    for number, meeting in enumerate(read_records(folder / "public.jsonl")):
        if len(questions) >= most:
            break
        turns = [f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"]]
        documents.append(_document(f"qmsum-{number}", f"Meeting {number}", turns))
        for asked in meeting["specific_query_list"]:
            spans = [(int(first), int(last)) for first, last in asked["relevant_text_span"]]
            inside = [turn for first, last in spans for turn in turns[first : last + 1]]
            words = sum(len(turn.split()) for turn in inside)
            pieces = min(max(round(words / _CHUNK_WORDS), 1), 10)
            profile = QuestionProfile(pieces > 1, True, pieces, _LONG)
            evidence = tuple(turn[:60] for turn in inside if len(turn) >= 60)
            questions.append(BenchQuestion(asked["query"], profile, (asked["answer"],), evidence))
    return QuestionSet("qmsum", tuple(documents), tuple(questions[:most]))


def _sec10q(folder: Path, most: int) -> QuestionSet:
    """Filings by the questions' own names for them; which lines answer is not marked."""
    rows = read_records(folder / "public.jsonl")[:most]
    wanted = {str(row["Source Docs"]).strip("*") for row in rows}
    files = [
        path
        for path in sorted((folder / "docs").glob("*.txt"))
        if any(fnmatch.fnmatch(path.stem, f"*{name}*") for name in wanted)
    ]
    documents = tuple(
        _document(f"sec10q-{path.stem}", path.stem, re.split(r"\n\s*\n", path.read_text("utf-8")))
        for path in files[: max(most // 4, 1)]
    )
    questions = tuple(
        BenchQuestion(row["Question"], _filing_profile(row), (str(row["Answer"]),), evidence=())
        for row in rows
    )
    return QuestionSet("sec10q", documents, questions)


def _filing_profile(row: dict[str, Any]) -> QuestionProfile:
    kind = str(row["Question Type"])
    is_joint, several = "Single-Chunk" not in kind, "Multi-Doc" in kind
    named = len(set(re.findall(r"\d{4} Q\d \w+", str(row["Answer"]))))
    pieces = min(max(named, 2), 10) if is_joint else 1
    return QuestionProfile(is_joint, several, pieces, _LONG if several else _SHORT)


SETS: dict[str, Callable[[Path, int], QuestionSet]] = {
    "squad": _squad,
    "hotpotqa": _hotpotqa,
    "musique": _musique,
    "qmsum": _qmsum,
    "sec10q": _sec10q,
}
"""By the folder's name."""
