"""Does reranking order passages better, in which layout, what did training bring, and do answers gain?

Every arm gets the same candidates: the best of BM25 over all SciFact abstracts for claims that no
training read, and the twenty judged passages of each NovelEval question.  Rows are kept one a
(query, arm), so that a long run can be continued with --rows.  `--only ranking` leaves the answers
out, `--only answers` (a page of its own) the rest; the one model that comes with a trained adapter
ranks there, and `--model` answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from kdn import api
from kdn.bench.common.kept import add_kept, begin_kept, read_kept
from kdn.bench.common.records import read_records
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.common.scores import interval
from kdn.bench.rank.answers import Answered, answer_rows, answer_summary, answered, asked
from kdn.bench.rank.pairs import Bm25, held_out, scifact
from kdn.config import load_config
from kdn.errors import BadInput
from kdn.rank import MODEL_ALONE, Layout, packaged_adapters

__all__ = ["Judged", "ndcg", "run"]

PLACES = 10
_PARTS = (None, "ranking", "answers")
_RANKER = "smollm2-135m"
"""The model that comes with trained adapters."""
_BESIDE = Path(__file__).parents[5] / "shared" / "data"
_CANDIDATES, _QUICK_CANDIDATES = 20, 5
_TEXT_TOKENS = 192
"""Passages are cut here for every arm that reads them with a language model."""


@dataclass(frozen=True)
class Judged:
    """A query, its candidates in BM25's order, and how much each of all relevant texts is worth."""

    name: str
    query: str
    texts: tuple[str, ...]
    gains: tuple[int, ...]
    """Of the candidates."""
    best: tuple[int, ...]
    """Gains of everything relevant, candidates or not, in falling order."""


Arm = Callable[[Judged], Sequence[float]]
"""A score for each candidate."""


def ndcg(gains: Sequence[int], best: Sequence[int], places: int = PLACES) -> float:
    """Normalised discounted cumulative gain of gains in ranked order, with gains 2^g - 1."""

    def total(ranked: Sequence[int]) -> float:
        return sum((2.0**g - 1) / math.log2(place + 2) for place, g in enumerate(ranked[:places]))

    ideal = total(best)
    return total(gains) / ideal if ideal else 0.0


def run(options: BenchOptions) -> Result:
    """Every arm over both sets, then answers. Raises BadInput when the question sets are not there."""
    if options.only not in _PARTS:
        raise BadInput(f"ndcg has the parts ranking and answers, not {options.only!r}")
    begin_kept(options)
    data = options.data or _BESIDE
    rows = list(_ranking(options, data)) if options.only != "answers" else []
    answers = list(_answers(options, data)) if options.only != "ranking" else []
    return Result(
        bench="ndcg",
        model=options.model,
        config=options.describe() | {"candidates": _CANDIDATES, "text_tokens": _TEXT_TOKENS},
        rows=[*rows, *answers],
        summary=_summary(rows) | answer_summary(answers),
        notes=_NOTES,
        page="ndcg-answers" if options.only == "answers" else None,
    )


def _ranking(options: BenchOptions, data: Path) -> Iterator[Row]:
    judged = [*_claims(data, options.quick), *_questions(data, options.quick)]
    found = {
        (line["query"], line["arm"]): float(line["ndcg"])
        for line in _read(options.rows)
        if "ndcg" in line
    }
    with _opened(options, options.model, "none") as plain, _small(options) as small:
        for name, arm in _arms(plain, small).items():
            for number, one in enumerate(judged):
                if (one.name, name) not in found:
                    found[one.name, name] = value = _place(one, arm(one))
                    add_kept(options.rows, {"query": one.name, "arm": name, "ndcg": value})
                if number % 10 == 9:
                    options.say(f"{name}: {number + 1} of {len(judged)} queries")
        names = list(_arms(plain, small))
    yield from _rows(found, [one.name for one in judged], names)


def _answers(options: BenchOptions, data: Path) -> Iterator[Row]:
    """Every question in every way; the answering model may be another than the ranking one."""
    found = {
        line["query"]: [msgspec.convert(one, Answered) for one in line["answers"]]
        for line in _read(options.rows)
        if "answers" in line
    }
    with ExitStack() as stack:
        ranker = stack.enter_context(_opened(options, _RANKER, "none"))
        answerer = ranker
        if options.model != _RANKER:
            answerer = stack.enter_context(_opened(options, options.model, "none"))
        questions = asked(data, ranker.embedder.embed, options.quick)
        adapter = _best_adapter(ranker, Layout.DOCUMENT_FIRST)
        for number, one in enumerate(questions):
            if one.name not in found:
                found[one.name] = answered(ranker, answerer, options.clock, one, adapter)
                kept = [asdict(way) for way in found[one.name]]
                add_kept(options.rows, {"query": one.name, "answers": kept})
            options.say(f"answers: {number + 1} of {len(questions)} questions")
    yield from answer_rows({one.name: found[one.name] for one in questions})


def _claims(data: Path, quick: bool) -> list[Judged]:
    """SciFact claims with evidence that were kept from training, and BM25's best abstracts."""
    passages = scifact(data)
    by_name = {p.name: i for i, p in enumerate(passages)}
    claims = [
        c
        for c in read_records(data / "scifact" / "public.jsonl")
        if c["evidence"] and held_out(c["_id"])
    ]
    claims, count = (claims[:3], _QUICK_CANDIDATES) if quick else (claims, _CANDIDATES)
    near = Bm25([p.whole for p in passages]).top([c["text"] for c in claims], count)
    found = []
    for claim, row in zip(claims, near, strict=True):
        right = {by_name[e["doc_id"]] for e in claim["evidence"]}
        order = [index for index, _ in row]
        found.append(
            Judged(
                f"scifact/{claim['_id']}",
                claim["text"],
                tuple(passages[index].whole for index in order),
                tuple(int(index in right) for index in order),
                tuple(1 for _ in right),
            )
        )
    return found


def _questions(data: Path, quick: bool) -> list[Judged]:
    """NovelEval's questions with their twenty passages, judged 0, 1 or 2."""
    records = read_records(data / "noveleval" / "public.jsonl")
    lines = (data / "noveleval" / "qrels.public.txt").read_text("utf-8").splitlines()
    gains = {name: int(gain) for _, _, name, gain in map(str.split, lines)}
    everything = Bm25([hit["content"] for record in records for hit in record["hits"]])
    found = []
    for number, record in enumerate(records[:1] if quick else records):
        first = sum(len(other["hits"]) for other in records[:number])
        mine = range(first, first + len(record["hits"]))
        ranked = [i for i, _ in everything.top([record["query"]], 10_000)[0] if i in mine]
        hits = [record["hits"][i - first] for i in ranked]
        worth = tuple(gains[hit["docid"]] for hit in hits)
        texts = tuple(hit["content"] for hit in hits)
        best = tuple(sorted(worth, reverse=True))
        found.append(Judged(f"noveleval/{hits[0]['qid']}", record["query"], texts, worth, best))
    return found


def _opened(options: BenchOptions, model: str, codec: str) -> api.Kdn:
    """The model with the adapters that come with it, and a store in memory of its own."""
    config = load_config(
        {"KDN_STORE_CODEC": codec, "KDN_STORE_DISK_BYTES": "0", "KDN_STORE_MEMORY_BYTES": "2 GiB"},
        home=options.home,
    )
    return api.open(model, config=options.note(config), adapters=packaged_adapters(model))


def _small(options: BenchOptions) -> api.Kdn:
    return _opened(options, options.model, "int8")


def _arms(plain: api.Kdn, small: api.Kdn) -> dict[str, Arm]:
    """All arms that this model allows."""
    arms: dict[str, Arm] = {
        "bm25": lambda one: [-float(place) for place in range(len(one.texts))],
        "embeddings": lambda one: _nearness(plain, one),
    }
    for layout in Layout:
        arms[f"zero-shot {layout.value}"] = _reranker(plain, layout, MODEL_ALONE)
        for name in plain.model.adapters:
            if name.startswith(layout.value):
                arms[f"trained {name}"] = _reranker(plain, layout, name)
    arms[f"int8 {Layout.DOCUMENT_FIRST.value}"] = _reranker(
        small, Layout.DOCUMENT_FIRST, _best_adapter(small, Layout.DOCUMENT_FIRST)
    )
    return arms


def _best_adapter(kdn: api.Kdn, layout: Layout) -> str:
    return layout.value if layout.value in kdn.model.adapters else MODEL_ALONE


def _reranker(kdn: api.Kdn, layout: Layout, adapter: str) -> Arm:
    def score(one: Judged) -> Sequence[float]:
        texts = [_cut(kdn, text) for text in one.texts]
        ranking = kdn.rerank(one.query, texts, layout=layout, adapter=adapter)
        if kdn.config.store.codec != "none":
            kdn.store.flush()
            ranking = kdn.rerank(one.query, texts, layout=layout, adapter=adapter)
            assert ranking.cached_tokens > ranking.prompt_tokens // 2, "stored blocks are not used"
        scores = [0.0] * len(texts)
        for result in ranking:
            scores[result.index] = result.log_odds
        return scores

    return score


def _cut(kdn: api.Kdn, text: str) -> str:
    tokenizer = kdn.model.tokenizer
    return tokenizer.decode(tokenizer.encode(text)[:_TEXT_TOKENS])


def _nearness(kdn: api.Kdn, one: Judged) -> Sequence[float]:
    query, *texts = kdn.embedder.embed([one.query, *one.texts])
    return [float(query @ text) for text in texts]


def _place(one: Judged, scores: Sequence[float]) -> float:
    """nDCG of the candidates by score; among equals BM25's order stands."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return ndcg([one.gains[index] for index in order], one.best)


def _rows(
    found: Mapping[tuple[str, str], float], queries: Sequence[str], arms: Sequence[str]
) -> Iterator[Row]:
    """Means with intervals, and the paired difference from BM25."""
    for name in ("scifact", "noveleval"):
        mine = [query for query in queries if query.startswith(name)]
        for arm in arms:
            values = [found[query, arm] for query in mine]
            gains = [found[query, arm] - found[query, "bm25"] for query in mine]
            mean, low, high = interval(values)
            gain, worst, most = interval(gains)
            yield {
                "set": name,
                "arm": arm,
                "queries": len(mine),
                "ndcg@10": mean,
                "low": low,
                "high": high,
                "over bm25": gain,
                "gain low": worst,
                "gain high": most,
            }


def _summary(rows: Sequence[Row]) -> dict[str, float | None]:
    """SciFact's figures; what no adapter was there for is None."""
    figures = {row["arm"]: row["ndcg@10"] for row in rows if row["set"] == "scifact"}
    first, second = Layout.DOCUMENT_FIRST.value, Layout.QUERY_FIRST.value
    wanted = {
        "ndcg_bm25": "bm25",
        "ndcg_embeddings": "embeddings",
        "ndcg_zero_document_first": f"zero-shot {first}",
        "ndcg_zero_query_first": f"zero-shot {second}",
        "ndcg_document_first": f"trained {first}",
        "ndcg_query_first": f"trained {second}",
        "ndcg_int8": f"int8 {first}",
    }
    return {key: _number(figures.get(arm)) for key, arm in wanted.items()}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _read(rows: Path | None) -> list[dict[str, Any]]:
    """Lines of earlier runs. Raises BadInput for a file of something else."""
    lines: list[dict[str, Any]] = []
    read_kept(rows, lambda line: lines.append({"query": line["query"], **line}))
    return lines


_NOTES = (
    (
        "SciFact: claims with evidence whose ids `held_out` keeps from training, BM25's best over the"
        " whole corpus as candidates; a relevant abstract that is not among them counts against every"
        " arm. NovelEval: its twenty judged passages, never trained on. Gains are 2^judgement - 1."
    ),
    "Intervals are 95 % bootstrap intervals over queries; `over bm25` is paired.",
    (
        "Answers: the candidates' KV is stored, a delay is reranking and the time to the first token of"
        " the answer, and a reranked way is compared with the best retrieved one that is at most 10 %"
        " slower. F1 over a few dozen questions cannot resolve differences below 0.1."
    ),
    "Ranking: passages are cut to the same number of tokens for all arms that read them with the model.",
)
