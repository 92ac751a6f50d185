"""The pairs of siblings that are measured, and the contexts of their jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdn import api
from kdn.bench.share.tasks import TASKS, Split
from kdn.calibration.share_profile import PairSide, ShareItem
from kdn.calibration.share_run import ShareQuestion, item_of
from kdn.errors import BadInput

__all__ = ["BASE", "SharePair", "adapters_in", "pairs_of", "task_items"]

BASE = "base"
PASSAGES = 4
"""Of one article together: contexts of 500 to 1,000 tokens."""


@dataclass(frozen=True)
class SharePair:
    """An ordered pair, and the job of the receiver."""

    sender: str
    receiver: str
    task: str

    @property
    def name(self) -> str:
        return f"{self.receiver} <- {self.sender}"

    def sides(self, opened: api.Kdn) -> tuple[PairSide, PairSide]:
        """The sender and the receiver."""
        model, attention = opened.model, opened.parts.attention
        sender, receiver = (
            PairSide(name, model, attention, None if name == BASE else model.adapters[name])
            for name in (self.sender, self.receiver)
        )
        return sender, receiver


def adapters_in(folder: Path | None) -> dict[str, Path]:
    """The adapters that `scripts/share/train.py` wrote: JOB-lora and JOB-alora. Raises BadInput."""
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


def pairs_of(adapters: Sequence[str], *, quick: bool) -> list[SharePair]:
    """Each job's LoRA over the base's KV, then over the KV of the other jobs' LoRAs."""
    own = [name for name in adapters if name.endswith("-lora")]
    pairs = [SharePair(BASE, name, name.removesuffix("-lora")) for name in own]
    crossed = [
        SharePair(other, name, name.removesuffix("-lora"))
        for name in own
        for other in own
        if other != name
    ]
    return pairs[:1] if quick else pairs + crossed


def task_items(
    opened: api.Kdn, data: Path, task: str, split: Split, most: int, *, quick: bool
) -> list[tuple[str, ShareItem]]:
    """Named items, one question a context, so that no two of them share what is read."""
    if task == "qa":
        from kdn.bench.share.tasks import qa_contexts

        contexts = qa_contexts(data, split, 1 if quick else PASSAGES)
    else:
        contexts = TASKS[task](data, split)
    return [
        (
            one.name,
            item_of(
                ShareQuestion(
                    context=one.document,
                    question=one.asked[0].question,
                    answer=one.asked[0].answer,
                ),
                opened.model,
            ),
        )
        for one in contexts
        if one.asked
    ][:most]
