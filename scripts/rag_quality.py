"""How often retrieval finds the passage with the answer: recall on the SQuAD articles.

python scripts/rag_quality.py ../shared/data/squad/public.jsonl [--questions 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tokenizers import Tokenizer

from kdn.clock import SystemClock
from kdn.rag import Library, Paragraph, ParsedDocument, SearchMode, compose
from kdn.rag.minilm import MiniLm, find_minilm

CONTEXT_TOKENS = 2000


@dataclass(frozen=True)
class Question:
    """A question, and the words around its answer in the article `source`."""

    text: str
    source: str
    clue: str


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    articles = [json.loads(line) for line in options.data.read_text().splitlines()]
    questions = spread([q for article in articles for q in ask(article)], options.questions)
    with tempfile.TemporaryDirectory() as folder:
        library = Library.open(
            Path(folder) / "library", MiniLm(find_minilm()), word_pieces(), SystemClock()
        )
        report = library.add(document(article) for article in articles)
        print(
            f"{report.num_passages} passages of {report.num_tokens} tokens, {report.seconds:.1f} s"
        )
        summary = dict(measure(library, questions))
    for name, value in summary.items():
        print(f"{name:24} {value:.3f}")
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1))


def document(article: dict[str, Any]) -> ParsedDocument:
    """An article with its paragraphs, without headings."""
    blocks = [Paragraph(paragraph["context"]) for paragraph in article["paragraphs"]]
    return compose(article["title"], article["title"].replace("_", " "), blocks)


def ask(article: dict[str, Any]) -> Iterator[Question]:
    """Every question of an article."""
    for paragraph in article["paragraphs"]:
        for qa in paragraph["qas"]:
            answer = qa["answers"][0]
            start = answer["answer_start"]
            clue = paragraph["context"][max(0, start - 15) : start + len(answer["text"]) + 15]
            yield Question(qa["question"], article["title"], clue)


def spread(questions: list[Question], count: int) -> list[Question]:
    """Evenly spaced ones."""
    step = max(1.0, len(questions) / count)
    return [questions[int(i * step)] for i in range(min(count, len(questions)))]


def measure(library: Library, questions: list[Question]) -> Iterator[tuple[str, float]]:
    """Recall of the answer's passage in the first 1 and 5, and in the parts of a prompt."""
    for mode in get_args(SearchMode):
        found = [library.search(question.text, 5, mode) for question in questions]
        holds = [
            [q.clue in hit.passage.text for hit in hits]
            for q, hits in zip(questions, found, strict=True)
        ]
        yield f"{mode}_recall_1", share(holds, lambda row: any(row[:1]))
        yield f"{mode}_recall_5", share(holds, any)
        parts = [
            [
                q.clue in part.text
                for part in library.context(q.text, max_tokens=CONTEXT_TOKENS, mode=mode)
            ]
            for q in questions
        ]
        yield f"{mode}_first_part", share(parts, lambda row: any(row[:1]))
        yield f"{mode}_context", share(parts, any)


def share(rows: list[list[bool]], counts: Callable[[list[bool]], bool]) -> float:
    """The fraction of rows that count."""
    return sum(map(counts, rows)) / len(rows)


def word_pieces() -> Callable[[str], list[int]]:
    """The embedder's own tokenizer as a stand-in for a generator's."""
    tokenizer = Tokenizer.from_file(str(find_minilm() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


if __name__ == "__main__":
    main()
