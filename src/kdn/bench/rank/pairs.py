"""Groups of queries and passages that belong together one to one: what a reranker learns from.

In a group every query has one passage, and the passages of the others are its hard negatives: they
were picked because they share its words.  `unlabelled` makes queries out of passages (a title, or a
sentence taken out); `labelled` takes those that people asked.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdn.bench.common.records import read_records
from kdn.errors import MissingExtra
from kdn.rank.pairs import Group, Pair, TrainingPassage

__all__ = ["Bm25", "held_out", "labelled", "unlabelled"]

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


class Bm25:
    """BM25 over passages, by the bm25s package (Lucene's variant, English stop words)."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises MissingExtra without bm25s."""
        try:
            import bm25s
        except ImportError as error:
            raise MissingExtra("BM25 baselines need bm25s: pip install 'kdn[dev]'") from error
        self._tokenize: Any = lambda lines: bm25s.tokenize(
            lines, stopwords="en", show_progress=False
        )
        self._index: Any = bm25s.BM25()
        self._index.index(self._tokenize(list(texts)), show_progress=False)
        self._size = len(texts)

    def top(self, queries: Sequence[str], count: int) -> list[list[tuple[int, float]]]:
        """For each query the `count` best texts, best first, each with its score."""
        count = min(count, self._size)
        found, scores = self._index.retrieve(
            self._tokenize(list(queries)), k=count, show_progress=False
        )
        return [
            [(int(i), float(s)) for i, s in zip(row, weights, strict=True)]
            for row, weights in zip(np.asarray(found), np.asarray(scores), strict=True)
        ]


def held_out(name: str) -> bool:
    """Is the question kept from training? Half of them are, by their names alone."""
    return zlib.crc32(name.encode()) % 2 == 0


def scifact(data: Path) -> list[TrainingPassage]:
    """The abstracts of SciFact."""
    records = read_records(data / "scifact" / "corpus.jsonl.gz")
    return [TrainingPassage(r["_id"], r["title"], " ".join(r["sentences"])) for r in records]


def unlabelled(data: Path, size: int, seed: int) -> list[Group]:
    """Groups of `size` made from the abstracts of SciFact and the passages of 2Wiki, each used once.

    Half of the queries are titles, half a sentence that is taken out of its passage.  No question
    that anybody asked is read.
    """
    draw = random.Random(seed)
    wiki = read_records(data / "2wiki" / "corpus.jsonl.gz")
    sets = [scifact(data), [TrainingPassage(r["title"], r["title"], r["text"]) for r in wiki]]
    groups = [group for passages in sets for group in _neighbours(passages, size, draw)]
    draw.shuffle(groups)
    return groups


def _neighbours(
    passages: Sequence[TrainingPassage], size: int, draw: random.Random
) -> Iterator[Group]:
    """Each passage with those nearest to it by words that are still free."""
    nearest = Bm25([p.whole for p in passages]).top([p.whole[:300] for p in passages], 12 * size)
    free = set(range(len(passages)))
    for first in draw.sample(range(len(passages)), len(passages)):
        if first not in free:
            continue
        near = [other for other, _ in nearest[first] if other in free and other != first]
        members = (first, *near[: size - 1])
        free.difference_update(members)
        if len(members) == size:
            yield tuple(_asked(passages[member], draw) for member in members)


def _asked(passage: TrainingPassage, draw: random.Random) -> Pair:
    """The title asks for the text, or a sentence for the rest."""
    sentences = _SENTENCE.split(passage.text)
    if passage.title and (len(sentences) < 3 or draw.random() < 0.5):
        return Pair(passage.title, passage.text)
    taken = sentences.pop(draw.randrange(len(sentences)))
    rest = " ".join(sentences) or passage.text
    return Pair(taken, f"{passage.title}\n{rest}" if passage.title else rest)


def labelled(data: Path, size: int, seed: int) -> list[Group]:
    """Groups of `size` from questions that people asked, without those that are `held_out`."""
    draw = random.Random(seed)
    groups = [*_claims(data, size, draw), *_paragraphs(data, size, draw), *_hops(data, size, draw)]
    draw.shuffle(groups)
    return groups


def _claims(data: Path, size: int, draw: random.Random) -> Iterator[Group]:
    """A SciFact claim and its evidence; the others are abstracts like the claim, asked by title."""
    passages = scifact(data)
    by_name = {p.name: i for i, p in enumerate(passages)}
    claims = read_records(data / "scifact" / "public.jsonl")
    known = [c for c in claims if c["evidence"] and not held_out(c["_id"])]
    near = Bm25([p.whole for p in passages]).top([c["text"] for c in known], 30)
    for claim, row in zip(known, near, strict=True):
        right = {by_name[e["doc_id"]] for e in claim["evidence"]}
        others = [i for i, _ in row if i not in right][: 3 * size]
        for answer in right:
            for _ in range(2):
                wrong = draw.sample(others, size - 1)
                pairs = [Pair(passages[i].title, passages[i].whole) for i in wrong]
                yield (Pair(claim["text"], passages[answer].whole), *pairs)


def _paragraphs(data: Path, size: int, draw: random.Random) -> Iterator[Group]:
    """Paragraphs of one SQuAD article, each with one of its questions."""
    for article in read_records(data / "squad" / "public.jsonl"):
        if held_out(article["title"]):
            continue
        for _ in range(8):
            some = [p for p in article["paragraphs"] if p["qas"]]
            if len(some) < size:
                break
            chosen = draw.sample(some, size)
            yield tuple(Pair(draw.choice(p["qas"])["question"], p["context"]) for p in chosen)


def _hops(data: Path, size: int, draw: random.Random) -> Iterator[Group]:
    """A HotpotQA question and one paragraph it rests on; distractors are asked by title."""
    for record in read_records(data / "hotpotqa" / "public.jsonl"):
        if held_out(record["id"]):
            continue
        titles, context = record["supporting_facts"]["title"], record["context"]
        texts = dict(zip(context["title"], map("".join, context["sentences"]), strict=True))
        wrong = [Pair(title, f"{title}\n{texts[title]}") for title in texts if title not in titles]
        for title in dict.fromkeys(titles):
            for _ in range(2):
                right = Pair(record["question"], f"{title}\n{texts[title]}")
                yield (right, *draw.sample(wrong, size - 1))
