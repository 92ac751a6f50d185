"""Does reranking make answers better in the same time?  Retrieval alone with more passages in the
prompt, against fewer passages that the model itself picked from the same candidates.

The candidates' KV is stored, as `kdn ingest --rerank` leaves it.  A delay is the time to the first
token of the answer, with the reranking before it; the search is the same for all and left out.
Questions belong to articles and ids that no training read.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdn import api
from kdn.bench.common.records import read_records
from kdn.bench.common.result import Row
from kdn.bench.common.scores import interval, word_f1
from kdn.bench.rank.pairs import held_out
from kdn.clock import Clock
from kdn.core import Retention, Sampling
from kdn.model import Message

__all__ = [
    "WAYS",
    "Answered",
    "RankQuestion",
    "RankWay",
    "answer_rows",
    "answer_summary",
    "answered",
    "asked",
]

_CANDIDATES, _QUESTIONS = 20, 25
_ANSWER_TOKENS = 12
_SHORTLY = "Answer the question from the documents, in at most five words."


@dataclass(frozen=True)
class RankQuestion:
    """What is asked, what counts as right, and the passages that retrieval found, best first."""

    name: str
    text: str
    answers: tuple[str, ...]
    passages: tuple[str, ...]


@dataclass(frozen=True)
class RankWay:
    """So many passages in the prompt, as retrieved or as reranked."""

    reranked: bool
    passages: int

    def __str__(self) -> str:
        return f"{'reranked' if self.reranked else 'retrieved'}, {self.passages} in the prompt"


WAYS = (RankWay(False, 1), RankWay(False, 3), RankWay(False, 6), RankWay(True, 1), RankWay(True, 3))


@dataclass(frozen=True)
class Answered:
    """One question, answered in one way."""

    f1: float
    delay_s: float


def asked(
    data: Path, embed: Callable[[Sequence[str]], np.ndarray], quick: bool
) -> list[RankQuestion]:
    """Some of SQuAD's held-out questions, each on a paragraph of its own, and of HotpotQA's.

    Each set's passages are one library.  Raises BadInput without the files.
    """
    found = []
    for name, passages, everything in (_squad(data), _hotpot(data)):
        texts = list(dict.fromkeys(passages))
        questions = everything[:: len(everything) // (1 if quick else _QUESTIONS)]
        near = embed([text for text, _ in questions]) @ embed(texts).T
        for number, ((text, answers), scores) in enumerate(zip(questions, near, strict=True)):
            best = np.argsort(-scores)[:_CANDIDATES]
            found.append(
                RankQuestion(f"{name}/{number}", text, answers, tuple(texts[i] for i in best))
            )
    return found


_Set = tuple[str, list[str], list[tuple[str, tuple[str, ...]]]]


def _squad(data: Path) -> _Set:
    articles = read_records(data / "squad" / "public.jsonl")
    passages = [p["context"] for article in articles for p in article["paragraphs"]]
    first = [
        p["qas"][0]
        for article in articles
        if held_out(article["title"])
        for p in article["paragraphs"]
        if p["qas"]
    ]
    return "squad", passages, [(qa["question"], _texts(qa["answers"])) for qa in first]


def _texts(answers: object) -> tuple[str, ...]:
    """SQuAD's answers are a list of records, or a record of lists."""
    if isinstance(answers, dict):
        return tuple(answers["text"])
    assert isinstance(answers, list), "SQuAD's answers"
    return tuple(one["text"] if isinstance(one, dict) else one for one in answers)


def _hotpot(data: Path) -> _Set:
    records = read_records(data / "hotpotqa" / "public.jsonl")
    passages = [
        f"{title}\n{''.join(sentences)}"
        for record in records
        for title, sentences in zip(
            record["context"]["title"], record["context"]["sentences"], strict=True
        )
    ]
    kept = [record for record in records if held_out(record["id"])]
    return "hotpotqa", passages, [(r["question"], (r["answer"],)) for r in kept]


def answered(
    ranker: api.Kdn, answerer: api.Kdn, clock: Clock, question: RankQuestion, adapter: str | None
) -> list[Answered]:
    """The question in each of the WAYS. The first ranking only stores the candidates' KV."""
    ranker.rerank(question.text, question.passages, adapter=adapter)
    ranker.store.flush()
    started = clock.now()
    ranking = ranker.rerank(question.text, question.passages, adapter=adapter)
    ranking_s = clock.now() - started
    picked = [question.passages[result.index] for result in ranking]
    found = []
    for way in WAYS:
        passages = (picked if way.reranked else question.passages)[: way.passages]
        f1, delay_s = _answer(answerer, question, passages)
        found.append(Answered(f1, delay_s + (ranking_s if way.reranked else 0.0)))
    return found


def _answer(kdn: api.Kdn, question: RankQuestion, passages: Sequence[str]) -> tuple[float, float]:
    """F1 and seconds to the first token. Nothing is kept: no way finds what another computed."""
    answer = kdn.generate(
        [Message("system", _SHORTLY), Message("user", question.text)],
        passages,
        sampling=Sampling(max_tokens=_ANSWER_TOKENS),
        retention=Retention.NOTHING,
    )
    return word_f1(answer.text, question.answers), answer.usage.ttft_ms / 1000


def answer_rows(found: Mapping[str, Sequence[Answered]]) -> Iterator[Row]:
    """Means of every way over each set; the reranked beside the best that is no slower."""
    for name in sorted({question.split("/")[0] for question in found}):
        mine = [ways for question, ways in found.items() if question.startswith(f"{name}/")]
        rows = {way: [ways[i] for ways in mine] for i, way in enumerate(WAYS)}
        for way, values in rows.items():
            mean, low, high = interval([value.f1 for value in values])
            row: Row = {
                "set": name,
                "arm": str(way),
                "queries": len(values),
                "F1": mean,
                "low": low,
                "high": high,
                "delay, s": _delay(values),
            }
            yield row | (_beside(way, rows) if way.reranked else {})


def answer_summary(rows: Sequence[Row]) -> dict[str, float | None]:
    """Means over the sets: retrieval's best way in the same time, and the best reranked one."""
    best: dict[object, Row] = {}
    for row in rows:
        if "F1 gain" in row and _f1(row) >= _f1(best.get(row["set"], {"F1": -1.0})):
            best[row["set"]] = row
    if not best:
        return {"f1_reranked": None, "f1_gain": None}
    return {
        "f1_reranked": statistics.mean(_f1(row) for row in best.values()),
        "f1_gain": statistics.mean(float(str(row["F1 gain"])) for row in best.values()),
    }


def _f1(row: Row) -> float:
    return float(str(row["F1"]))


def _beside(way: RankWay, rows: Mapping[RankWay, Sequence[Answered]]) -> Row:
    """The paired difference from retrieval alone in the same time: its best way not slower by 10 %."""
    allowed = 1.1 * _delay(rows[way])
    rivals = [w for w in rows if not w.reranked and _delay(rows[w]) <= allowed]
    if not rivals:
        return {"in the same time": "nothing is as fast"}
    best = max(rivals, key=lambda w: statistics.mean(value.f1 for value in rows[w]))
    pairs = zip(rows[way], rows[best], strict=True)
    gain, low, high = interval([a.f1 - b.f1 for a, b in pairs])
    return {"in the same time": str(best), "F1 gain": gain, "gain low": low, "gain high": high}


def _delay(values: Sequence[Answered]) -> float:
    return statistics.median(value.delay_s for value in values)
