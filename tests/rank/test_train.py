"""What a reranker learns from, the loss it learns by, and the measure it is judged by."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripts.rank.training import RECIPE, Trainer, Tree, group_loss, make_trees

from kdn.bench.rank.ndcg import ndcg
from kdn.bench.rank.pairs import held_out, labelled, unlabelled
from kdn.core import Prompt, Role, Segment
from kdn.errors import BadInput
from kdn.rank import Layout
from kdn.rank.pairs import Group, Pair

TINY = replace(RECIPE, first_layer=0, group_size=2, warmup_steps=1, learning_rate=5e-3)
TOPICS = ("frogs", "ships", "bread", "glass", "bees", "salt", "rope", "coal")


def test_the_measure_by_hand() -> None:
    """The only relevant text in second place is worth 1 / log2(3) of one in the first."""
    assert ndcg([1, 0], [1]) == 1.0
    assert ndcg([0, 1], [1]) == pytest.approx(1 / math.log2(3))
    assert ndcg([2, 1], [2, 1]) == 1.0
    assert ndcg([0, 0], [1, 1]) == 0.0
    assert ndcg([1], [2, 1]) < 0.5


def test_a_relevant_text_that_is_no_candidate_counts() -> None:
    assert ndcg([1, 0], [1, 1]) == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_the_loss_falls_as_the_right_pairs_rise() -> None:
    flat = float(group_loss(torch.zeros(3, 3)))
    assert flat > float(group_loss(4 * torch.eye(3) - 2)) > 0
    assert flat < float(group_loss(-4 * torch.eye(3)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Question sets of eight passages each, in the shapes of the real ones."""
    abstracts = [
        {"_id": str(n), "title": f"On {topic}", "sentences": [f"All about {topic}.", "It is old."]}
        for n, topic in enumerate(TOPICS)
    ]
    claims = [
        {"_id": str(n), "text": f"{topic} are old", "evidence": [{"doc_id": str(n)}]}
        for n, topic in enumerate(TOPICS)
    ]
    wiki = [{"title": t.title(), "text": f"{t} here. More {t}. Most {t}."} for t in TOPICS]
    articles = [
        {
            "title": f"article {n}",
            "paragraphs": [
                {"context": f"{t} in article {n}", "qas": [{"question": f"{t} in {n}?"}]}
                for t in TOPICS
            ],
        }
        for n in range(4)
    ]
    hops = [
        {
            "id": f"hop {n}",
            "question": f"hop {n}?",
            "supporting_facts": {"title": ["frogs"]},
            "context": {"title": list(TOPICS), "sentences": [[f"{t}."] for t in TOPICS]},
        }
        for n in range(4)
    ]
    write(tmp_path / "scifact" / "corpus.jsonl.gz", abstracts)
    write(tmp_path / "scifact" / "public.jsonl", claims)
    write(tmp_path / "2wiki" / "corpus.jsonl.gz", wiki)
    write(tmp_path / "squad" / "public.jsonl", articles)
    write(tmp_path / "hotpotqa" / "public.jsonl", hops)
    return tmp_path


def write(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True)
    data = "\n".join(map(json.dumps, records)).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_queries_made_from_passages_use_each_passage_once(data: Path) -> None:
    pytest.importorskip("bm25s", reason="bm25s is not installed")
    groups = unlabelled(data, 2, seed=1)
    texts = [pair.text for group in groups for pair in group]
    assert len(set(texts)) == len(texts)
    assert {len(group) for group in groups} == {2}
    assert unlabelled(data, 2, seed=1) == groups


def test_no_question_that_is_kept_for_judging_is_learnt(data: Path) -> None:
    pytest.importorskip("bm25s", reason="bm25s is not installed")
    asked = {pair.query for group in labelled(data, 2, seed=1) for pair in group}
    kept = {f"{topic} are old" for n, topic in enumerate(TOPICS) if held_out(str(n))}
    kept |= {f"hop {n}?" for n in range(4) if held_out(f"hop {n}")}
    kept |= {f"{t} in {n}?" for t in TOPICS for n in range(4) if held_out(f"article {n}")}
    assert kept
    assert not kept & asked
    assert asked & {f"{topic} are old" for topic in TOPICS}


def test_a_folder_without_the_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        labelled(tmp_path, 2, 0)


def ask(query: str, text: str, layout: Layout) -> Prompt:
    """A letter a token; what stands first is the trunk."""
    first, second = (text, query) if layout is Layout.DOCUMENT_FIRST else (query, text)
    role = Role.DOCUMENT if layout is Layout.DOCUMENT_FIRST else Role.INSTRUCTION
    ids = [tuple(ord(letter) % 60 + 3 for letter in words) for words in (first, second)]
    return Prompt((Segment(role, ids[0]), Segment(Role.QUESTION, ids[1])))


GROUP: Group = (Pair("frogs?", "the frogs croak"), Pair("ships?", "a ship sails away"))


def test_branches_see_the_trunk_and_themselves(tiny_model: Callable[..., Path]) -> None:
    """The odds of a tree are those of its paths one by one."""
    trainer = Trainer(tiny_model(), ask, (5, 6), TINY, 10, seed=0)
    trees = make_trees(GROUP, Layout.DOCUMENT_FIRST, ask)
    paths = [Tree((), (tree.trunk + branch,)) for tree in trees for branch in tree.branches]
    together = trainer.odds(Layout.DOCUMENT_FIRST, trees).flatten()
    apart = trainer.odds(Layout.DOCUMENT_FIRST, paths).flatten()
    assert torch.allclose(together, apart, atol=2e-2)
    assert together.std() > 0.05


def test_both_layouts_learn_from_the_same_groups(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    trainer = Trainer(tiny_model(), ask, (5, 6), TINY, 60, seed=0)
    first = trainer.step([GROUP])
    for _ in range(40):
        last = trainer.step([GROUP])
    assert [step.layout for step in last] == list(Layout)
    assert all(b.loss < 0.7 * a.loss for a, b in zip(first, last, strict=True))
    trainer.save(tmp_path)
    for layout in Layout:
        assert (tmp_path / layout.value / "adapter_model.safetensors").stat().st_size > 1000
        assert (tmp_path / layout.value / "adapter_config.json").exists()
