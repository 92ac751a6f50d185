"""The two jobs that siblings are trained and judged on: questions over passages, intents of messages.

Every context comes with several questions, as agents have it.  Halves never share an article (questions)
or a message (intents).
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdn.bench.common.records import read_records

__all__ = [
    "TASKS",
    "Asked",
    "SharedContext",
    "Split",
    "intent_contexts",
    "qa_contexts",
]

Split = Literal["train", "profile", "test"]

_LABELS_TRAIN, _EXAMPLES = 10, 1
_MESSAGES = 4
"""How many messages are asked about one list of intents."""


@dataclass(frozen=True)
class Asked:
    """A question, as the last user message says it, and its gold answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class SharedContext:
    """A document that several agents read, and what is asked about it."""

    name: str
    document: str
    asked: tuple[Asked, ...]


def qa_contexts(
    data: Path, split: Split, num_passages: int = 1, seed: int = 0
) -> list[SharedContext]:
    """SQuAD paragraphs, `num_passages` of the article together, and HotpotQA's gold paragraphs.

    Of three articles the third is held out (`test`); `profile` is every fourth of the others, which
    training reads too: it is the profile's half, not the test's.
    """
    articles = read_records(data / "squad" / "public.jsonl")
    found = []
    for number, article in enumerate(articles):
        if _belongs(number, split):
            paragraphs = article["paragraphs"]
            for start in range(0, len(paragraphs), num_passages):
                some = paragraphs[start : start + num_passages]
                asked = [_squad(qa) for one in some for qa in one["qas"]]
                text = "\n\n".join(one["context"] for one in some)
                found.append(SharedContext(f"squad-{number}-{start}", text, tuple(asked)))
    for number, record in enumerate(read_records(data / "hotpotqa" / "public.jsonl")):
        if _belongs(number, split):
            found.append(_hotpot(number, record, num_passages))
    random.Random(seed).shuffle(found)
    return found


def intent_contexts(
    data: Path, split: Split, num_labels: int = _LABELS_TRAIN, seed: int = 0, most: int = 400
) -> list[SharedContext]:
    """Lists of intents with an example each, and messages to label; banking77's and CLINC150's in turn."""
    sources = [_banking(data, split), _clinc(data, split)]
    rng = random.Random(f"{seed} {split}")
    found = []
    for number in range(most):
        by_label = sources[number % len(sources)]
        labels = rng.sample(sorted(by_label), min(num_labels, len(by_label)))
        lines = [f"Intent: {label}. Example: {rng.choice(by_label[label])}" for label in labels]
        asked = []
        for label in rng.sample(labels, min(_MESSAGES, len(labels))):
            others = [one for one in by_label[label] if not any(one in line for line in lines)]
            if others:
                asked.append(Asked(f"Message: {rng.choice(others)}\nWhat is its intent?", label))
        found.append(SharedContext(f"intent-{number}", "\n".join(lines), tuple(asked)))
    return found


TASKS: dict[str, Callable[[Path, Split], list[SharedContext]]] = {
    "qa": qa_contexts,
    "intent": intent_contexts,
}


def _belongs(number: int, split: Split) -> bool:
    if split == "test":
        return number % 3 == 2
    return number % 3 != 2 and (split == "train" or number % 4 == 0)


def _squad(qa: dict[str, object]) -> Asked:
    answers = qa["answers"]
    assert isinstance(answers, list), "SQuAD's answers are a list"
    return Asked(f"Question: {qa['question']}", str(answers[0]["text"]))


def _hotpot(number: int, record: dict[str, object], num_passages: int) -> SharedContext:
    """The paragraphs that hold the answer, and as many others as make at least two in all."""
    context, facts = record["context"], record["supporting_facts"]
    assert isinstance(context, dict), "HotpotQA's context has titles and sentences"
    assert isinstance(facts, dict), "HotpotQA's facts have titles"
    pairs = list(zip(context["title"], context["sentences"], strict=True))
    gold = [pair for pair in pairs if pair[0] in facts["title"]]
    rest = [pair for pair in pairs if pair[0] not in facts["title"]]
    chosen = gold + rest[: max(0, num_passages - len(gold))]
    text = "\n\n".join(f"{title}: {''.join(sentences)}" for title, sentences in chosen)
    asked = Asked(f"Question: {record['question']}", str(record["answer"]))
    return SharedContext(f"hotpot-{number}", text, (asked,))


def _banking(data: Path, split: Split) -> dict[str, list[str]]:
    name = "test.csv" if split == "test" else "train.csv"
    with (data / "banking77" / name).open(encoding="utf-8", newline="") as file:
        rows = [(row["category"], row["text"]) for row in csv.DictReader(file)]
    return _by_label(rows)


def _clinc(data: Path, split: Split) -> dict[str, list[str]]:
    loaded = json.loads((data / "clinc150" / "data_small.json").read_text("utf-8"))
    part = {"train": "train", "profile": "val", "test": "test"}[split]
    return _by_label([(label, text) for text, label in loaded[part]])


def _by_label(rows: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for label, text in rows:
        found.setdefault(label.replace("_", " ").lower().strip("? "), []).append(
            " ".join(text.split())
        )
    return found
