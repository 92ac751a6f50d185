"""Train document-first and query-first rerankers on the shared question sets, with one recipe.

python -m scripts.rank.train ../shared/data OUT [--steps N] [--labelled-steps N] [--layout ...]

OUT/unlabelled and OUT/all get the adapters after queries made from passages, and after questions
that people asked on top.  Questions that `held_out` names are never read.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.rank.training import RECIPE, Trainer, TrainStep, progress

import kdn
from kdn.bench.common.result import BenchOptions
from kdn.bench.engine.lineup import weights
from kdn.bench.rank.pairs import labelled, unlabelled
from kdn.clock import SystemClock
from kdn.core import Prompt
from kdn.model import Document
from kdn.rank import YES_NO, Layout, make_choices, relevance_question
from kdn.rank.pairs import Group


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--labelled-steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", type=Layout, nargs="*", default=list(Layout))
    options = parser.parse_args()
    trainer = make_trainer(options.steps + options.labelled_steps, options.seed, options.layout)
    size, clock, steps = (
        RECIPE.group_size,
        SystemClock(),
        {layout: list[TrainStep]() for layout in options.layout},
    )
    phases = (("unlabelled", unlabelled, options.steps), ("all", labelled, options.labelled_steps))
    for name, make, count in phases:
        groups = endless(make(options.data, size, options.seed))
        for _ in range(count):
            for step in trainer.step(list(itertools.islice(groups, RECIPE.groups_per_step))):
                steps[step.layout].append(step)
            if trainer.steps % 5 == 0:
                print(trainer.steps, progress(clock, steps), flush=True)
            if trainer.steps % 20 == 0:
                trainer.save(options.out / "latest")
        trainer.save(options.out / name)
        rows = [asdict(step) for some in steps.values() for step in some]
        (options.out / name / "steps.json").write_text(json.dumps(rows))


def make_trainer(num_steps: int, seed: int, layouts: Sequence[Layout]) -> Trainer:
    """A trainer whose prompts are those of `kdn.rerank`."""
    with kdn.open() as k:
        tokenizer, chat = k.model.tokenizer, k.model.chat
    _, folder = weights(BenchOptions(model="smollm2-135m"), "bfloat16")

    def ask(query: str, text: str, layout: Layout) -> Prompt:
        cut = tokenizer.decode(tokenizer.encode(text)[: RECIPE.text_tokens])
        told = relevance_question(query, Document(None, cut), layout)
        return chat.segments(told.messages, told.documents)

    yes, no = (choice.token_id for choice in make_choices(YES_NO, tokenizer.encode))
    return Trainer(folder, ask, (yes, no), RECIPE, num_steps, seed, layouts)


def endless(groups: Sequence[Group]) -> Iterator[Group]:
    """The groups over and over."""
    return itertools.chain.from_iterable(itertools.repeat(groups))


if __name__ == "__main__":
    main()
