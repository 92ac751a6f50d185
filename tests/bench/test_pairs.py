"""What a reranker learns from and is judged by: tiny sets in the published shapes, lists by hand."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from kdn.bench.common.kept import add_kept
from kdn.bench.common.records import read_records
from kdn.bench.rank.lab import RankOutcome, _passages
from kdn.bench.rank.ndcg import (
    Judged,
    _claims,
    _place,
    _questions,
    _read,
    _rows,
    _summary,
    ndcg,
)
from kdn.bench.rank.pairs import Bm25, held_out, labelled, scifact, unlabelled
from kdn.errors import BadInput

pytest.importorskip("bm25s")
TOPICS = ("salt", "copper", "granite", "barley", "herring", "amber", "timber", "wool")


def write(path: Path, records: Iterable[object]) -> None:
    path.parent.mkdir(exist_ok=True)
    text = "\n".join(map(json.dumps, records)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight abstracts and as many encyclopedia passages; claims, articles and hops by number."""
    abstracts = [
        {
            "_id": str(n),
            "title": f"On {topic}",
            "sentences": [f"Much {topic} is traded.", f"Ships bring {topic}.", "It is taxed."],
        }
        for n, topic in enumerate(TOPICS)
    ]
    write(tmp_path / "scifact" / "corpus.jsonl.gz", abstracts)
    claims = [
        {
            "_id": f"claim {n}",
            "text": f"Ships bring {topic}",
            "evidence": [{"doc_id": str(n)}] if n else [],
        }
        for n, topic in enumerate(TOPICS)
    ]
    write(tmp_path / "scifact" / "public.jsonl", claims)
    wiki = [{"title": f"{t} town", "text": f"The town sells {t}. Few live in it."} for t in TOPICS]
    write(tmp_path / "2wiki" / "corpus.jsonl.gz", wiki)
    articles = [
        {
            "title": f"article {n}",
            "paragraphs": [
                {"context": f"{n} {t}", "qas": [{"question": f"{n} {t}?"}]} for t in TOPICS[:4]
            ],
        }
        for n in range(6)
    ]
    write(tmp_path / "squad" / "public.jsonl", articles)
    hops = [
        {
            "id": f"hop {n}",
            "question": f"hop {n}?",
            "supporting_facts": {"title": ["salt", "salt", "wool"]},
            "context": {
                "title": list(TOPICS),
                "sentences": [[f"{t} {n}. ", "End."] for t in TOPICS],
            },
        }
        for n in range(6)
    ]
    write(tmp_path / "hotpotqa" / "public.jsonl", hops)
    return tmp_path


def test_a_question_is_held_out_by_its_name_alone() -> None:
    """CRC-32 of "123456789" is CBF43926, an even number, as every table of checks says."""
    assert held_out("123456789")
    kept = sum(held_out(str(number)) for number in range(1000))
    assert 400 < kept < 600


def test_groups_without_labels_use_every_passage_once(data: Path) -> None:
    """Sixteen passages in groups of four, of one set each; a query is the title or is not in the text."""
    groups = unlabelled(data, 4, seed=1)
    assert [len(group) for group in groups] == [4] * 4
    texts = [pair.text for group in groups for pair in group]
    assert len(set(texts)) == 16
    for group in groups:
        assert len({pair.text.count("town") for pair in group}) == 1, "neighbours are of one set"
        assert all(pair.query not in pair.text for pair in group)
    queries = {pair.query for group in groups for pair in group}
    assert {f"{topic} town" for topic in TOPICS} <= queries, "two sentences are too few to take one"
    assert groups == unlabelled(data, 4, seed=1)


def test_a_group_with_labels_begins_with_a_question_that_is_not_held_out(data: Path) -> None:
    groups = labelled(data, 3, seed=0)
    assert {len(group) for group in groups} == {3}
    asked = [group[0].query for group in groups]
    for n, topic in enumerate(TOPICS):
        trained = n > 0 and not held_out(f"claim {n}")
        assert asked.count(f"Ships bring {topic}") == (2 if trained else 0)
    for n in range(6):
        hops = [group for group in groups if group[0].query == f"hop {n}?"]
        assert len(hops) == (0 if held_out(f"hop {n}") else 4), "two titles, twice each"
        for right, *wrong in hops:
            assert right.text.startswith(("salt\nsalt", "wool\nwool"))
            assert not {"salt", "wool"} & {pair.query for pair in wrong}
        squad = [group for group in groups if group[0].text.startswith(f"{n} ")]
        assert len(squad) == (0 if held_out(f"article {n}") else 8)
        assert all(pair.query == f"{pair.text}?" for group in squad for pair in group)


def test_records_that_cannot_be_read_are_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file; give the folder"):
        read_records(tmp_path / "none.jsonl")
    for name, content in (
        ("a.jsonl", b'{"a": 1}\n{"b"'),
        ("b.jsonl.gz", b"no gzip"),
        ("c", b"\xff"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="not a JSON object a line"):
            read_records(tmp_path / name)


def test_bm25_gives_no_more_than_there_is() -> None:
    (found,) = Bm25(["salt and copper", "wool"]).top(["wool"], 10)
    assert [index for index, _ in found] == [1, 0]
    assert found[0][1] > found[1][1] == 0


def test_ndcg_of_a_short_list_by_hand() -> None:
    """Gains 2^g - 1 are 1, 0, 3; discounts log2 of 2, 3, 4: 1 + 3/2 over 3 + 1/log2(3)."""
    assert ndcg((1, 0, 2), (2, 1)) == pytest.approx(2.5 / (3 + 1 / math.log2(3)))
    assert ndcg((2, 1, 0), (2, 1)) == 1
    assert ndcg((0, 1), (1, 1), places=2) == pytest.approx(
        (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    ), "what is relevant and no candidate counts against"
    assert ndcg((0, 1), (1,), places=1) == 0
    assert ndcg((0, 0), ()) == 0


def test_among_equal_scores_the_first_order_stands() -> None:
    one = Judged("q", "?", ("a", "b", "c"), (1, 0, 0), (1,))
    assert _place(one, [0.0, 0.0, 0.0]) == 1
    assert _place(one, [0.5, 0.5, 0.7]) == pytest.approx(1 / math.log2(3))
    assert _place(one, [0.1, 0.2, 0.3]) == pytest.approx(1 / 2)


def test_claims_are_judged_over_bm25s_candidates(data: Path) -> None:
    """The abstract with both of the claim's words comes first of twenty, of which eight are there."""
    found = _claims(data, quick=False)
    names = {f"scifact/claim {n}" for n in range(1, 8) if held_out(f"claim {n}")}
    assert {one.name for one in found} == names
    assert names
    for one in found:
        assert (len(one.texts), one.gains, one.best) == (8, (1, *[0] * 7), (1,))
        assert one.texts[0].endswith("It is taxed.")


def test_novel_questions_have_their_own_passages_and_judgements(tmp_path: Path) -> None:
    records = [
        {
            "query": "salt",
            "hits": [
                {"content": text, "docid": f"{q}{n}", "qid": q}
                for n, text in enumerate(("wool", "salt", "salt and more of what is not asked"))
            ],
        }
        for q in ("7", "8")
    ]
    write(tmp_path / "noveleval" / "public.jsonl", records)
    qrels = "7 0 70 2\n7 0 71 0\n7 0 72 1\n8 0 80 0\n8 0 81 1\n8 0 82 2\n"
    (tmp_path / "noveleval" / "qrels.public.txt").write_text(qrels)
    first, second = _questions(tmp_path, quick=False)
    assert (first.name, second.name) == ("noveleval/7", "noveleval/8")
    assert first.gains == (0, 1, 2), "BM25 puts the shortest passage about salt first, wool last"
    assert second.gains == (1, 2, 0)
    assert first.best == second.best == (2, 1, 0)
    assert len(_questions(tmp_path, quick=True)) == 1


def test_differences_from_bm25_are_paired() -> None:
    """Means 0.5 and 0.6; the arm gains 0.1 on each query, so its interval has no width."""
    found = {("scifact/1", "bm25"): 0.2, ("scifact/2", "bm25"): 0.8}
    found |= {("scifact/1", "embeddings"): 0.3, ("scifact/2", "embeddings"): 0.9}
    found |= {("noveleval/1", arm): 1.0 for arm in ("bm25", "embeddings")}
    queries = ("scifact/1", "scifact/2", "noveleval/1")
    rows = list(_rows(found, queries, ("bm25", "embeddings")))
    assert [row["queries"] for row in rows] == [2, 2, 1, 1]
    row = rows[1]
    assert (row["ndcg@10"], row["low"], row["high"]) == pytest.approx((0.6, 0.3, 0.9))
    assert (row["over bm25"], row["gain low"], row["gain high"]) == pytest.approx((0.1, 0.1, 0.1))
    summary = _summary(rows)
    assert summary["ndcg_embeddings"] == pytest.approx(0.6), "SciFact's, not NovelEval's"
    assert summary["ndcg_document_first"] is None


def test_a_long_run_goes_on_from_its_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert _read(None) == _read(rows) == []
    for line in ({"query": "a", "arm": "bm25", "ndcg": 0.5}, {"query": "b", "answers": []}):
        add_kept(rows, line)
    assert [line["query"] for line in _read(rows)] == ["a", "b"]
    for other in ('{"name": "a"}\n', "[1]\n", "junk\n", "junk"):
        rows.write_text(other)
        with pytest.raises(BadInput, match="no rows of this benchmark"):
            _read(rows)
        assert rows.read_text() == other
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="is a device, a pipe or a socket"):
        _read(tmp_path / "pipe")


def test_half_a_row_of_a_run_that_was_killed_is_removed(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    for end, names in (('{"query": "b", "ar', ["a"]), ('{"query": "b"}', ["a", "b"])):
        rows.write_text('{"query": "a"}\n' + end)
        assert [line["query"] for line in _read(rows)] == names
        add_kept(rows, {"query": "c"})
        assert [line["query"] for line in _read(rows)] == [*names, "c"]


def test_documents_a_second_and_the_texts_of_the_corpus(data: Path) -> None:
    assert RankOutcome(0.5, (0.1, 0.2, 0.3), 10, 20, frozenset({"disk"})).per_s == 6
    assert next(one.whole for one in scifact(data)).startswith("On salt\nMuch salt")
    assert _passages(data)[0] == "On salt Much salt is traded. Ships bring salt. It is taxed."
    assert _passages(data / "none") == _passages(None) == []
