"""How often a model answers rightly where retrieval was right: the level below which `ask` quotes.

    python scripts/rag_answers.py ../shared/data/squad/public.jsonl --model smollm2-135m [--questions 100]

Each question of SQuAD is asked about the paragraph that holds its answer.  An answer is right when it
holds one of the gold answers, word by word.  `kdn/rag/metis/level.py` keeps what was found.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import kdn
from kdn.config import load_config
from kdn.core import Sampling
from kdn.rag import answer_instruction


def questions(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Each question with its paragraph and its gold answers."""
    for line in path.read_text("utf-8").splitlines():
        for paragraph in json.loads(line)["paragraphs"]:
            for asked in paragraph["qas"]:
                gold = [answer["text"] for answer in asked["answers"]]
                yield asked["question"], paragraph["context"], gold


def is_right(answer: str, gold: list[str]) -> bool:
    """Does the answer hold one of the gold ones as whole words?"""
    said = f" {_words(answer)} "
    return any(f" {_words(one)} " in said for one in gold)


def _words(text: str) -> str:
    return " ".join(word.strip(".") for word in re.findall(r"[\w.%$]+", text.lower()))


def main() -> None:
    """Ask, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=100)
    given = parser.parse_args()
    known = list(questions(given.data))
    step = max(len(known) // given.questions, 1)
    chosen = known[::step][: given.questions]
    right = 0
    with tempfile.TemporaryDirectory() as folder:
        config = load_config({}, home=Path(folder))
        with kdn.open(given.model, config=config) as k:
            for number, (question, context, gold) in enumerate(chosen, 1):
                messages = [
                    {"role": "system", "content": answer_instruction()},
                    {"role": "user", "content": f"Question: {question}"},
                ]
                answer = k.generate(messages, [context], sampling=Sampling(max_tokens=48))
                right += is_right(answer.text, gold)
                if number % 10 == 0:
                    print(f"{right} of {number} right", flush=True)
    print(f"{given.model}: {right / len(chosen):.3f} of {len(chosen)} questions")


if __name__ == "__main__":
    main()
