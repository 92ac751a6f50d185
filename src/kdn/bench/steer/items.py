"""Questions over given documents, and the sentence that answers each: squad, hotpotqa, musique.

Items of one cluster (an article, else one question) are drawn together by the bootstrap, and belong to
one half: settings are chosen on `fit`, claims are made of `test`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdn.bench.common.records import read_records
from kdn.reuse.steer import sentence_spans

__all__ = ["INSTRUCTIONS", "SETS", "Half", "SteerItem", "steer_items"]

Half = Literal["fit", "test"]
SETS = ("squad", "hotpotqa", "musique")
INSTRUCTIONS = (
    "Answer the question from the passages above. Reply with the answer alone, in a few words.",
    "Reply to the query using only the texts given above. Give just the answer, no other words.",
)
"""Two wordings of one demand, as the two prompts of 2411.13009, appendix A."""
_PARAGRAPHS = 3
"""Paragraphs of an article that make one context."""
_AROUND = 600
"""Characters of each passage of musique, around the answer or from the beginning: whole ones are too
long for a CPU."""


@dataclass(frozen=True)
class SteerItem:
    """One question. `spans` are where its answer stands: document, and characters of a sentence."""

    name: str
    cluster: str
    half: Half
    documents: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int, int], ...]


def steer_items(data: Path, name: str) -> list[SteerItem]:
    """All items of a set. Raises BadInput for a folder without it."""
    records = read_records(data / name / "public.jsonl")
    make = {"squad": _squad, "hotpotqa": _hotpot, "musique": _musique}[name]
    return [item for number, one in enumerate(records) for item in make(number, one)]


def _half(number: int) -> Half:
    return "fit" if number % 2 else "test"


def _squad(number: int, article: dict[str, Any]) -> Iterator[SteerItem]:
    paragraphs = article["paragraphs"]
    for first in range(0, len(paragraphs), _PARAGRAPHS):
        group = paragraphs[first : first + _PARAGRAPHS]
        texts = tuple(paragraph["context"] for paragraph in group)
        for index, paragraph in enumerate(group):
            for asked in paragraph["qas"]:
                at = asked["answers"][0]["answer_start"]
                answers = tuple(dict.fromkeys(one["text"] for one in asked["answers"]))
                yield SteerItem(
                    name=f"squad/{asked['id']}",
                    cluster=f"article {number}",
                    half=_half(number),
                    documents=texts,
                    question=asked["question"],
                    answers=answers,
                    spans=((index, *_sentence_at(texts[index], at)),),
                )


def _hotpot(number: int, record: dict[str, Any]) -> Iterator[SteerItem]:
    titles, lists = record["context"]["title"], record["context"]["sentences"]
    texts = tuple(f"{title}\n{''.join(own)}" for title, own in zip(titles, lists, strict=True))
    facts = record["supporting_facts"]
    spans = []
    for title, sentence in zip(facts["title"], facts["sent_id"], strict=True):
        if title not in titles or sentence >= len(lists[titles.index(title)]):
            continue  # a known fault of the source: facts that its context lacks
        index = titles.index(title)
        start = len(title) + 1 + len("".join(lists[index][:sentence]))
        spans.append((index, start, start + len(lists[index][sentence])))
    if spans:
        yield SteerItem(
            name=f"hotpotqa/{record['id']}",
            cluster=f"question {number}",
            half=_half(number),
            documents=texts,
            question=record["question"],
            answers=(record["answer"],),
            spans=tuple(dict.fromkeys(spans)),
        )


def _musique(number: int, record: dict[str, Any]) -> Iterator[SteerItem]:
    """Those whose answer stands in a passage; the sentence that holds it first is the marked one."""
    answer = record["answers"][0]
    texts = tuple(_around(one["text"], answer) for one in record["ctxs"])
    holding = [i for i, text in enumerate(texts) if answer.lower() in text.lower()]
    if holding:
        index = holding[0]
        at = texts[index].lower().index(answer.lower())
        yield SteerItem(
            name=f"musique/{number}",
            cluster=f"question {number}",
            half=_half(number),
            documents=texts,
            question=record["question"],
            answers=tuple(record["answers"]),
            spans=((index, *_sentence_at(texts[index], at)),),
        )


def _around(text: str, answer: str) -> str:
    at = max(text.lower().find(answer.lower()), 0)
    start = max(min(at - _AROUND // 2, len(text) - _AROUND), 0)
    return text[start : start + _AROUND].strip()


def _sentence_at(text: str, at: int) -> tuple[int, int]:
    """The sentence that holds a character, or the last one before it."""
    return [span for span in sentence_spans(text) if span[0] <= at][-1]
