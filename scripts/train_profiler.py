"""Train the classifier that profiles questions, and say how often it is right on held-out ones.

    python scripts/train_profiler.py ../shared/data

Labels come from the structure of the data sets, not from any model:

    squad      one paragraph answers: not joint, 1 piece
    hotpotqa   joint; as many pieces as titles hold supporting facts
    musique    joint; 2 pieces at least, which the file does not tell: 2
    2wiki      joint; as many pieces as gold titles
    qmsum      a general query needs the whole meeting: joint, complex, 8 pieces, long; a specific one
               as many pieces of 1,000 words as its spans hold, complex, long; joint from 2 pieces on
    sec10q     joint unless a single chunk answers; pieces: files that the answer names, 2 at least;
               complex when several documents are compared

Questions of one article or meeting stand on one side of the split: every third group is held out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.rag.metis.classifier import HEADS, NUM_FEATURES, ProfileWeights, question_features
from kdn.rag.metis.profile import LibraryNote, RuleProfiler

_CHUNK_WORDS = 750
_LONG_WORDS = 25


@dataclass(frozen=True)
class Labelled:
    """A question with what its data set's structure says of it."""

    question: str
    group: str
    joint: int
    complex: int
    pieces: int
    long: int

    def of(self, head: str) -> int:
        """The class of a head, as an index."""
        value = int(getattr(self, head))
        classes = HEADS[head]
        return min(range(len(classes)), key=lambda i: abs(classes[i] - value))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        yield number, json.loads(line)


def _squad(path: Path) -> Iterator[Labelled]:
    for number, article in _lines(path):
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                yield Labelled(asked["question"], f"squad{number}", 0, 0, 1, 0)


def _hotpotqa(path: Path) -> Iterator[Labelled]:
    for number, row in _lines(path):
        pieces = len(set(row["supporting_facts"]["title"]))
        yield Labelled(row["question"], f"hotpotqa{number}", 1, 0, pieces, 0)


def _musique(path: Path) -> Iterator[Labelled]:
    for number, row in _lines(path):
        yield Labelled(row["question"], f"musique{number}", 1, 0, 2, 0)


def _2wiki(path: Path) -> Iterator[Labelled]:
    for number, row in _lines(path):
        yield Labelled(row["question"], f"2wiki{number}", 1, 0, len(row["gold_titles"]), 0)


def _qmsum(path: Path) -> Iterator[Labelled]:
    for number, meeting in _lines(path):
        turns = [len(str(turn["content"]).split()) for turn in meeting["meeting_transcripts"]]
        for asked in meeting["general_query_list"]:
            yield Labelled(asked["query"], f"qmsum{number}", 1, 1, 8, 1)
        for asked in meeting["specific_query_list"]:
            spans = [(int(first), int(last)) for first, last in asked["relevant_text_span"]]
            words = sum(sum(turns[first : last + 1]) for first, last in spans)
            pieces = max(round(words / _CHUNK_WORDS), len(spans), 1)
            long = int(len(asked["answer"].split()) > _LONG_WORDS)
            yield Labelled(asked["query"], f"qmsum{number}", int(pieces > 1), 1, pieces, long)


def _sec10q(path: Path) -> Iterator[Labelled]:
    for number, row in _lines(path):
        kind, answer = row["Question Type"], row["Answer"]
        named = len(set(re.findall(r"\d{4} Q\d \w+", answer)))
        joint = int("Single-Chunk" not in kind)
        several = int("Multi-Doc" in kind)
        long = int(len(answer.split()) > 2 * _LONG_WORDS)
        pieces = max(named, 2) if joint else 1
        yield Labelled(row["Question"], f"sec10q{number}", joint, several, pieces, long)


READERS: dict[str, Callable[[Path], Iterator[Labelled]]] = {
    "squad": _squad,
    "hotpotqa": _hotpotqa,
    "musique": _musique,
    "2wiki": _2wiki,
    "qmsum": _qmsum,
    "sec10q": _sec10q,
}


def labelled(data: Path) -> list[Labelled]:
    """Every question of the data sets, labelled."""
    return [one for name, read in READERS.items() for one in read(data / name / "public.jsonl")]


def is_held_out(group: str) -> bool:
    """Every third group of a data set."""
    return int(re.findall(r"\d+$", group)[0]) % 3 == 2


def fit(features: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> Any:
    """[features, classes] by Adam on the cross entropy, every class worth the same in all."""
    counts = np.bincount(labels, minlength=classes).clip(1)
    weight = np.sqrt(len(labels) / (classes * counts))[labels][:, None]
    target = np.eye(classes)[labels]
    found = np.zeros((features.shape[1], classes))
    mean, spread = np.zeros_like(found), np.zeros_like(found)
    for step in range(1, 801):
        scores = features @ found
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        slope = features.T @ (weight * (shares - target)) / len(labels) + 2e-3 * found
        mean += 0.1 * (slope - mean)
        spread += 0.01 * (slope**2 - spread)
        found -= 0.02 * (mean / (1 - 0.9**step)) / (np.sqrt(spread / (1 - 0.99**step)) + 1e-8)
    return found.astype(np.float16)


def main() -> None:
    """Train on two thirds, judge by the third, and write the weights of what was trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="where the weights go")
    given = parser.parse_args()
    out = given.out or Path(__file__).parents[1] / "src/kdn/rag/metis/trained/profile.npz"
    known = labelled(given.data)
    train = [one for one in known if not is_held_out(one.group)]
    held = [one for one in known if is_held_out(one.group)]
    x = np.stack([question_features(one.question) for one in train])
    assert x.shape[1] == NUM_FEATURES
    heads = {
        head: fit(x, np.array([one.of(head) for one in train]), len(classes))
        for head, classes in HEADS.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **heads)
    weights = ProfileWeights.read(out)
    print(f"{len(train)} questions trained, {len(held)} held out; {out.stat().st_size} bytes")
    _report(weights, held)


def _report(weights: ProfileWeights, held: list[Labelled]) -> None:
    rules, note = RuleProfiler(), LibraryNote("", 0)
    x = np.stack([question_features(one.question) for one in held])
    names = np.array([re.sub(r"\d+$", "", one.group) for one in held])
    ruled = [rules.profile(one.question, note) for one in held]
    by_rules = {
        "joint": [int(one.is_joint) for one in ruled],
        "complex": [int(one.is_complex) for one in ruled],
        "pieces": [
            min(range(5), key=lambda i: abs(HEADS["pieces"][i] - one.num_pieces)) for one in ruled
        ],
        "long": [int(one.summary_tokens[0] > 30) for one in ruled],
    }
    for head in HEADS:
        right = weights.probabilities(head, x).argmax(1) == [one.of(head) for one in held]
        rule = np.array(by_rules[head]) == [one.of(head) for one in held]
        each = {
            str(name): round(float(right[names == name].mean()), 2) for name in np.unique(names)
        }
        macro, rule_macro = (
            np.mean(list(each.values())),
            np.mean([rule[names == n].mean() for n in each]),
        )
        print(
            f"{head}: classifier {right.mean():.3f} (mean of sets {macro:.3f}), rules"
            f" {rule.mean():.3f} ({rule_macro:.3f}); classifier by set {each}"
        )
    shares = np.stack([weights.probabilities(head, x).max(1) for head in HEADS])
    sure = np.exp(np.log(shares).mean(0)) >= 0.9
    joint = weights.probabilities("joint", x).argmax(1) == [one.of("joint") for one in held]
    print(f"sure of {sure.mean():.2f}; joint right where sure {joint[sure].mean():.3f}")


if __name__ == "__main__":
    main()
