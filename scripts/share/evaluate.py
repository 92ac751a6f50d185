"""What a receiver has learnt, and what plain reuse and chosen rows cost it: a first look, without a profile.

python scripts/share/evaluate.py ../shared/data ADAPTERS --task qa [--model NAME] [--items N] [--rows FILE]

ADAPTERS is the folder that train.py wrote.  Held-out items are those of `kdn bench share`, which also
profiles a pair, fits its map and judges all ways.  Rows are appended to FILE, so that a run may be stopped.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import kdn
from kdn.bench.common.scores import interval
from kdn.bench.share.pair import BASE, task_items
from kdn.bench.share.tasks import TASKS
from kdn.calibration.share_profile import PairSide, ShareItem, ShareOutcome, ShareProfiler
from kdn.reuse.share import ShareChoice

WAYS = (ShareChoice(), ShareChoice(ratio=0.1), ShareChoice(ratio=0.2))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("adapters", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", choices=list(TASKS), default="qa")
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--rows", type=Path, default=Path("share-first-look.jsonl"))
    options = parser.parse_args()
    rows = [json.loads(line) for line in read_lines(options.rows)]
    done = {row["item"] for row in rows}
    name = f"{options.task}-lora"
    with kdn.open(options.model, adapters={name: options.adapters / name}) as opened:
        model, attention = opened.model, opened.parts.attention
        base = PairSide(BASE, model, attention)
        receiver = PairSide(name, model, attention, model.adapters[name])
        held = task_items(opened, options.data, options.task, "test", options.items, quick=False)
        for at, item in held:
            if at not in done:
                row = {"item": at, "tokens": len(item.context)} | measure(base, receiver, item)
                rows.append(row)
                with options.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    summarize(rows)


def read_lines(file: Path) -> list[str]:
    """Of a file that may not be there yet."""
    return file.read_text("utf-8").splitlines() if file.exists() else []


def measure(base: PairSide, receiver: PairSide, item: ShareItem) -> dict[str, float]:
    """NLL and rightness of the base, of the receiver, and of it by each way; KL of the ways."""
    profiler = ShareProfiler(base, receiver)
    found = {"base": ShareProfiler(receiver, base).own(item), "own": profiler.own(item)}
    found |= {choice.name: outcome for choice, outcome in profiler.measure(item, WAYS)}
    drawn = profiler.measure(item, WAYS[-1:], random_rows=True)
    found |= {f"random {choice.name}": outcome for choice, outcome in drawn}
    return {f"{name} {what}": value for name, one in found.items() for what, value in told(one)}


def told(outcome: ShareOutcome) -> list[tuple[str, float]]:
    """What is kept of an outcome."""
    return [
        ("kl", round(outcome.kl, 6)),
        ("nll", round(outcome.nll, 6)),
        ("right", float(outcome.is_right)),
        ("work", round(outcome.work, 4)),
    ]


def summarize(rows: list[dict[str, float | str]]) -> None:
    """Means with 95 % intervals by bootstrap over contexts."""
    columns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        context = str(row["item"]).rsplit("/", 1)[0]
        for name, value in row.items():
            if name != "item":
                columns[name][context].append(float(value))
    for name, by_context in columns.items():
        mean, low, high = interval([fmean(values) for values in by_context.values()])
        print(f"{name:22} {mean:8.4f}  ({low:.4f}, {high:.4f})  n={len(rows)}")


if __name__ == "__main__":
    main()
