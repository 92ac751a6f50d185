"""Judge a profiled pair on held-out contexts, and the price of an aLoRA beside a LoRA trained as long.

python scripts/share/evaluate.py ../shared/data ADAPTERS --task qa [--items N] [--rows FILE]

ADAPTERS is the folder that train.py wrote; the profile of base and TASK-lora is read from the home folder.
Rows are appended to FILE as they are measured, so that a run may be stopped; the summary is printed last.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import torch
from torch.nn.functional import log_softmax

import kdn
from kdn.bench.share.tasks import TASKS
from kdn.calibration.share_profile import PairSide, ShareItem, ShareProfiler
from kdn.calibration.share_run import ShareQuestion, item_of
from kdn.core import Plan
from kdn.engine.alone import run_alone
from kdn.reuse.share import ShareChoice

RANDOM = "random "


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("adapters", type=Path)
    parser.add_argument("--task", choices=list(TASKS), default="qa")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rows", type=Path, default=Path("share-rows.jsonl"))
    options = parser.parse_args()
    adapters = {kind: options.adapters / f"{options.task}-{kind}" for kind in ("lora", "alora")}
    with kdn.open(adapters=adapters) as opened:
        items = [
            item_of(
                ShareQuestion(context=one.document, question=a.question, answer=a.answer),
                opened.model,
            )
            for one in TASKS[options.task](options.data, "test")
            for a in one.asked[:1]
        ]
        for item in items[: options.items]:
            row = measure(opened, item)
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    summarize([json.loads(line) for line in options.rows.read_text("utf-8").splitlines()])


def measure(opened: kdn.Kdn, item: ShareItem) -> dict[str, float]:
    """KL and NLL of every arm on one item, by `arm kl` and `arm nll`."""
    model, attention = opened.model, opened.parts.attention
    sides = [PairSide("base", model, attention)]
    sides.append(PairSide("lora", model, attention, model.adapters["lora"]))
    profiler = ShareProfiler(*sides)
    sender, receiver = (side.fingerprint for side in sides)
    record = opened.calibration.shares.get(sender, receiver)
    assert record is not None, "run kdn share profile first"
    shape = model.decoder.config.kv_shape(str(model.decoder.dtype).removeprefix("torch."))
    made = opened.calibration.shares.map(sender, receiver, shape)
    half = min((p for p in record.usable("published") if p.work <= 0.51), key=lambda p: p.kl)
    choices = [ShareChoice(), half.choice]
    choices += [
        ShareChoice(ratio=ratio, mapped=mapped) for ratio in (0.1, 0.2) for mapped in (False, True)
    ]
    choices.append(ShareChoice(mapped=True))
    row = {"tokens": float(len(item.context)), "own nll": profiler.own_nll(item)}
    arms = [(choice.name, found) for choice, found in profiler.measure(item, choices, made)]
    drawn = profiler.measure(item, [ShareChoice(ratio=0.2)], random_rows=True)
    arms += [(RANDOM + choice.name, found) for choice, found in drawn]
    for name, found in arms:
        row |= {f"{name} kl": found.kl, f"{name} nll": found.nll, f"{name} work": found.work}
    row["alora nll"] = alora_nll(opened, item)
    return row


def alora_nll(opened: kdn.Kdn, item: ShareItem) -> float:
    """The answer's mean NLL by the aLoRA, over the base's context."""
    adapter = opened.model.adapters["alora"]
    prompt = (*item.context, *item.question)
    first = adapter.begins(prompt)
    assert first is not None, "questions of the task invoke it"
    wanted = tuple(range(len(prompt) - 1, len(prompt) + len(item.answer) - 1))
    plan = Plan((*prompt, *item.answer[:-1]), adapter_from=first, logits=wanted)
    logits = run_alone(opened.model, opened.parts.attention, plan, adapter=adapter).logits
    found = log_softmax(logits, -1).gather(1, torch.tensor(item.answer)[:, None])
    return -float(found.mean())


def summarize(rows: list[dict[str, float]]) -> None:
    """Means with 95 % intervals by bootstrap over items."""
    columns = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            columns[name].append(value)
        columns["alora price"].append(row["alora nll"] - row["own nll"])
    for name, values in columns.items():
        draw = random.Random(0)
        means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(1000))
        low, high = means[25], means[974]
        print(f"{name:28} {fmean(values):8.4f}  ({low:.4f}, {high:.4f})  n={len(values)}")


if __name__ == "__main__":
    main()
