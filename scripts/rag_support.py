"""How well do two plain signs tell questions that the documents answer from questions that they do not?

python scripts/rag_support.py ../shared/data [--questions 400] [--json FILE]

Three libraries (SQuAD articles, quarterly filings, PEPs) are asked the questions about themselves, which
they answer, and those about the others and of two further sets, which they do not.  Half of all, drawn
by chance, chooses the weights of `kdn.rag.support` and the threshold at which both errors are alike; the
other half is judged.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rag_quality import ask, document, spread, word_pieces

from kdn.clock import SystemClock
from kdn.rag import Library
from kdn.rag.minilm import MiniLm, find_minilm
from kdn.rag.support import coverage

PEPS = """
What is the maximum line length?|What does the walrus operator do?|What are exception groups?
Which special methods must a context manager have?|What is structural pattern matching?
How does yield from delegate to a subgenerator?|What is a wildcard pattern in a match statement?
What does except* do?|How can the global interpreter lock be disabled at build time?
What is a Protocol class?|What is the build backend interface?|What is biased reference counting?
How are docstrings formatted over several lines?|Which builtin collections support generics?
What does the Zen of Python say about namespaces?|How should imports be ordered in a module?
Can an assignment expression be used in a comprehension?|What is a type alias statement?
When is GeneratorExit raised?|Which build requirements does pyproject.toml name?
"""


@dataclass(frozen=True)
class Asked:
    """One question put to one library."""

    library: str
    about: str
    similarity: float
    covered: float

    @property
    def is_answered(self) -> bool:
        return self.library == self.about


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--questions", type=int, default=400, help="Of each set, at most.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    questions = {
        name: spread(found, options.questions) for name, found in _questions(options.data).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        asked = [
            one
            for name, library in _libraries(options.data, Path(folder))
            for one in _put(name, library, questions)
        ]
    summary = judge(asked)
    for name, value in summary.items():
        print(f"{name:24} {value:.3f}")
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def _questions(data: Path) -> dict[str, list[Any]]:
    return {
        "squad": [q.text for a in _lines(data / "squad/public.jsonl") for q in ask(a)],
        "sec10q": [one["Question"] for one in _lines(data / "sec10q/public.jsonl")],
        "peps": [one for line in PEPS.strip().split("\n") for one in line.split("|")],
        "hotpotqa": [one["question"] for one in _lines(data / "hotpotqa/public.jsonl")],
        "2wiki": [one["question"] for one in _lines(data / "2wiki/public.jsonl")],
    }


def _libraries(data: Path, folder: Path) -> Iterator[tuple[str, Library]]:
    embedder, encode = MiniLm(find_minilm()), word_pieces()
    for name in ("squad", "sec10q", "peps"):
        library = Library.open(folder / name, embedder, encode, SystemClock())
        if name == "squad":
            library.add(document(article) for article in _lines(data / "squad/public.jsonl"))
        else:
            library.ingest(data / name / ("docs" if name == "sec10q" else ""))
        yield name, library


def _put(name: str, library: Library, questions: dict[str, list[str]]) -> Iterator[Asked]:
    for about, texts in questions.items():
        for text in texts:
            nearest = library.search(text, 1, "vector")
            parts = library.context(text, max_tokens=1_000_000, max_parts=1)
            inside = [passage.index_text for part in parts for passage in part.passages]
            yield Asked(name, about, nearest[0].score, coverage(text, inside))


def judge(asked: list[Asked], seed: int = 0) -> dict[str, float]:
    """The weights that one half gives, and both errors on the other."""
    signs = np.array([[one.similarity, one.covered, 1.0] for one in asked])
    answered = np.array([one.is_answered for one in asked])
    chosen = np.random.default_rng(seed).random(len(asked)) < 0.5
    weights = logistic(signs[chosen], answered[chosen])
    total = signs @ weights
    _, threshold = min(
        (max(errors(total[chosen], answered[chosen], at)), at)
        for at in np.quantile(total, np.linspace(0, 1, 400))
    )
    foreign, own = errors(total[~chosen], answered[~chosen], threshold)
    return {
        "similarity": float(weights[0]),
        "coverage": float(weights[1]),
        "constant": float(weights[2]),
        "threshold": float(threshold),
        "foreign_answered": foreign,
        "own_refused": own,
        "questions_judged": float((~chosen).sum()),
    }


def errors(total: NDArray[Any], answered: NDArray[Any], threshold: float) -> tuple[float, float]:
    """The share of foreign questions answered, and of own questions refused."""
    enough = total >= threshold
    return float(enough[~answered].mean()), float((~enough[answered]).mean())


def logistic(signs: NDArray[Any], answered: NDArray[Any]) -> NDArray[Any]:
    """Newton's method; both kinds of question weigh the same in all, however many there are."""
    share = np.where(answered, 1 / answered.sum(), 1 / (~answered).sum())
    weights = np.zeros(signs.shape[1])
    for _ in range(100):
        probability = 1 / (1 + np.exp(-signs @ weights))
        slope = signs.T @ ((probability - answered) * share)
        curve = (signs.T * (probability * (1 - probability) * share)) @ signs
        weights -= np.linalg.solve(curve + 1e-6 * np.eye(len(weights)), slope)
    return weights


if __name__ == "__main__":
    main()
