"""The pairs of siblings that are measured, and the contexts of their jobs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdn import api
from kdn.bench.common.result import model_name
from kdn.bench.share.tasks import TASKS, SharedContext, Split, qa_contexts
from kdn.calibration.share_profile import PairSide, ShareItem
from kdn.calibration.share_run import ShareQuestion, item_of
from kdn.core import TokenIds
from kdn.errors import BadInput
from kdn.model import Tokenizer

__all__ = [
    "BASE",
    "SharePair",
    "adapters_in",
    "between",
    "fitted_contexts",
    "lengthened_items",
    "pairs_of",
    "task_items",
]

BASE = "base"
PASSAGES = 4
"""Of one article together: contexts of 500 to 1,000 tokens."""
QUESTIONS = 30
"""Of one context at most: there are few articles, and intervals are drawn over contexts."""


@dataclass(frozen=True)
class SharePair:
    """An ordered pair, and the job of the receiver."""

    sender: str
    receiver: str
    task: str

    @property
    def name(self) -> str:
        return f"{self.receiver} <- {self.sender}"

    def name_at(self, num_tokens: int) -> str:
        """Names the rows of items behind contexts that were lengthened to so many tokens."""
        return f"{self.name}, {num_tokens} tokens"

    def sides(self, opened: api.Kdn) -> tuple[PairSide, PairSide]:
        """The sender and the receiver."""
        model, attention = opened.model, opened.parts.attention
        sender, receiver = (
            PairSide(name, model, attention, None if name == BASE else model.adapters[name])
            for name in (self.sender, self.receiver)
        )
        return sender, receiver


def adapters_in(folder: Path | None, model: str = "") -> dict[str, Path]:
    """The adapters that `scripts/share/train.py` wrote: JOB-lora and JOB-alora. Raises BadInput.

    Without a folder, those that kdn ships for the model.
    """
    shipped = Path(__file__).with_name("trained") / model_name(model)
    if folder is None and model and shipped.is_dir():
        folder = shipped
    if folder is None:
        raise BadInput(
            "share measures fine-tunes: --adapters names the folder that scripts/share/train.py wrote"
        )
    names = [f"{task}-{kind}" for task in TASKS for kind in ("lora", "alora")]
    found = {
        name: folder / name for name in names if (folder / name / "adapter_config.json").is_file()
    }
    if not any(name.endswith("-lora") for name in found):
        raise BadInput(f"{folder} holds none of {', '.join(names)}; run scripts/share/train.py")
    return found


def pairs_of(adapters: Sequence[str], *, quick: bool, crossed: bool = True) -> list[SharePair]:
    """Each job's LoRA over the base's KV, then, if `crossed`, over the KV of the other jobs' LoRAs."""
    own = [name for name in adapters if name.endswith("-lora")]
    pairs = [SharePair(BASE, name, name.removesuffix("-lora")) for name in own]
    others = [
        SharePair(other, name, name.removesuffix("-lora"))
        for name in own
        for other in own
        if crossed and other != name
    ]
    return pairs[:1] if quick else pairs + others


def task_items(
    opened: api.Kdn, data: Path, task: str, split: Split, most: int, *, quick: bool
) -> list[tuple[str, ShareItem]]:
    """Items named CONTEXT/QUESTION: the first question of every context, then the second, and so on."""
    contexts = _contexts(data, task, split, quick=quick)
    found = [
        (
            f"{one.name}/{turn}",
            ShareQuestion(context=one.document, question=asked.question, answer=asked.answer),
        )
        for turn in range(1 if quick else QUESTIONS)
        for one in contexts
        for asked in one.asked[turn : turn + 1]
    ]
    return [(name, item_of(asked, opened.model)) for name, asked in found[:most]]


def lengthened_items(
    opened: api.Kdn, data: Path, task: str, num_tokens: int, most: int
) -> list[tuple[str, ShareItem]]:
    """The first question of held-out contexts, each between other contexts of its job.

    The document stands anywhere among the others, whole; all together have `num_tokens`.
    """
    contexts = _contexts(data, task, "test", quick=False)
    tokenizer = opened.model.tokenizer
    longer = [between(tokenizer, one, contexts, num_tokens) for one in contexts[:most] if one.asked]
    return [
        (
            f"{one.name}/0",
            item_of(
                ShareQuestion(
                    context=one.document,
                    question=one.asked[0].question,
                    answer=one.asked[0].answer,
                ),
                opened.model,
            ),
        )
        for one in longer
    ]


def between(
    tokenizer: Tokenizer, one: SharedContext, contexts: Sequence[SharedContext], num_tokens: int
) -> SharedContext:
    """The context with others before and after it, drawn by its name: together `num_tokens`."""
    rng = random.Random(f"{one.name} {num_tokens}")
    others = [other.document for other in contexts if other.name != one.name]
    rng.shuffle(others)
    left = num_tokens - len(tokenizer.encode(one.document))
    chosen = []
    for text in others:
        if left <= 0:
            break
        token_ids = tokenizer.encode(text + "\n\n")[:left]
        chosen.append(tokenizer.decode(token_ids).strip())
        left -= len(token_ids)
    chosen.insert(rng.randint(0, len(chosen)), one.document)
    return replace(one, document="\n\n".join(chosen))


def fitted_contexts(opened: api.Kdn, data: Path, task: str, most: int) -> list[TokenIds]:
    """Contexts for a map: of the training half, and none that the profile has."""
    profiled = {one.document for one in _contexts(data, task, "profile", quick=False)}
    others = [
        one
        for one in _contexts(data, task, "train", quick=False)
        if one.asked and one.document not in profiled
    ]
    return [
        item_of(
            ShareQuestion(context=one.document, question=asked.question, answer=asked.answer),
            opened.model,
        ).context
        for one in others[:most]
        for asked in one.asked[:1]
    ]


def _contexts(data: Path, task: str, split: Split, *, quick: bool) -> list[SharedContext]:
    if task == "qa":
        return qa_contexts(data, split, 1 if quick else PASSAGES)
    return TASKS[task](data, split)
