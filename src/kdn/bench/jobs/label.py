"""How many rows a second can be labelled, and with the same probabilities as everybody else?

Customer messages of banking77 are asked a yes/no question, those of clinc150 which of ten domains they
belong to.  Which of banking77's 77 intents a message has is a third question, whose answers begin
alike: there only kdn's own rate is taken, because the rivals are asked for one token.  Every
contestant gets the same token ids in the same order, and shares the probability among the same
tokens; each batch is new to all of them but for the instruction.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch

from kdn import api
from kdn.bench.common.measure import interleave, median, ratio
from kdn.bench.common.result import BenchOptions, Result, Row, scratch_folder
from kdn.bench.engine.contestants import RivalProcess, Transformers
from kdn.bench.engine.lineup import REFERENCE, VLLM, Lineup, assemble, opened
from kdn.core import Prompt
from kdn.rank import Choice, RowTemplate, make_choices

__all__ = ["run"]

OURS = "kdn"
_YES_NO = (
    "You read messages of a bank's customers. Say whether a message is about a payment card. "
    "Answer with Yes or No only.\n\n{text}"
)
_INTENT = (
    "What does a message of a bank's customer want? Answer with the intent only, such as"
    " card arrival or lost or stolen card.\n\n{text}"
)
_SHIPPED_INTENTS = (
    "card arrival", "card linking", "card swallowed", "lost or stolen card", "top up failed",
    "top up limits", "exchange rate",
)  # fmt: skip
_DOMAINS = (
    "banking", "credit cards", "dining", "home", "auto", "travel", "utility", "work", "talk", "meta",
)  # fmt: skip
_WHICH = (
    "Which domain is a message to an assistant about? The domains are "
    + ", ".join(_DOMAINS)
    + ". Answer with the domain only.\n\n{text}"
)
_SHIPPED = (
    "where is the card I ordered", "book a table for two", "how old are you", "my tyre is flat",
    "what is my balance", "turn the lights off", "I need a flight to Oslo", "explain my bill",
)  # fmt: skip

Shares = list[list[float]]


@dataclass(frozen=True)
class _Task:
    """A question, the tokens it may be answered with, and an endless supply of batches."""

    name: str
    choices: tuple[Choice, ...]
    batches: Iterator[list[Prompt]]
    seen: dict[int, list[Prompt]] = field(default_factory=dict)

    @property
    def allowed(self) -> tuple[int, ...]:
        return tuple(choice.token_id for choice in self.choices)

    @property
    def is_one_token(self) -> bool:
        """Does the first token tell the answers apart?"""
        return all(not choice.rest for choice in self.choices)

    def batch(self, number: int) -> list[Prompt]:
        """The prompts of a round, the same for every contestant."""
        while number not in self.seen:
            self.seen[len(self.seen)] = next(self.batches)
        return self.seen[number]


def run(options: BenchOptions) -> Result:
    """Interleaved rounds of one batch each, and how far the probabilities are apart."""
    torch.set_num_threads(options.threads)
    size, rounds = (16, 2) if options.quick else (64, options.pairs or 5)
    rivals = () if options.quick else (REFERENCE, VLLM)
    rows: list[Row] = []
    summary: dict[str, float | None] = {}
    with (
        scratch_folder() as scratch,
        assemble(options, _made(scratch / "others"), rivals) as lineup,
    ):
        with opened(options, scratch) as service:
            for task in _tasks(options, service, size):
                rows += _measure(options, service, lineup, task, size, rounds, summary)
        absent, dtype = dict(lineup.absent), lineup.dtype
    absent |= {} if rivals else {REFERENCE: "left out by --quick", VLLM: "left out by --quick"}
    return Result(
        bench="label",
        model=options.model,
        config=options.describe() | {"batch": size, "rounds": rounds},
        rows=rows,
        summary=summary,
        notes=tuple(f"{name} is absent: {why}" for name, why in absent.items()),
        dtype=dtype,
    )


def _measure(
    options: BenchOptions,
    service: api.Kdn,
    lineup: Lineup,
    task: _Task,
    size: int,
    rounds: int,
    summary: dict[str, float | None],
) -> list[Row]:
    options.say(f"{task.name}: {rounds} rounds of {size} rows")
    shares: dict[str, Shares] = {}
    sides = _sides(options, service, lineup, task, shares)
    interleave(sides, 1)
    rounds = rounds if task.is_one_token else 1
    samples = interleave(sides, rounds, first=1)
    rows: list[Row] = []
    for name in sides:
        seconds = median(samples, name) or 0.0
        away = _apart(shares[OURS], shares[name])
        row: Row = {
            "data": task.name,
            "who": name,
            "rows/s": len(task.batch(1)) / seconds,
            "apart, most": away,
        }
        rows.append(row)
    for rival in (REFERENCE, VLLM) if task.is_one_token else ():
        found = ratio(samples, OURS, rival)
        summary[f"{task.name}_{rival}_speedup"] = found.median if found else None
        summary[f"{task.name}_{rival}_diff"] = (
            _apart(shares[OURS], shares[rival]) if rival in shares else None
        )
    summary[f"{task.name}_rows_per_s"] = len(task.batch(1)) / (median(samples, OURS) or 1.0)
    return rows


def _sides(
    options: BenchOptions,
    service: api.Kdn,
    lineup: Lineup,
    task: _Task,
    shares: dict[str, Shares],
) -> dict[str, Callable[[int], float]]:
    """Seconds of a round's batch; the shares of the last round stay in `shares`."""
    judge, clock = service.scoring.judge(), options.clock

    def ours(number: int) -> float:
        started = clock.now()
        answers = list(judge.ask(task.batch(number), task.choices))
        elapsed = clock.now() - started
        shares[OURS] = [list(answer.probabilities) for answer in answers]
        return elapsed

    def reference(number: int) -> float:
        prompts = [prompt.token_ids for prompt in task.batch(number)]
        rival = cast("Transformers", lineup.others[REFERENCE])
        seconds, shares[REFERENCE] = rival.label(prompts, task.allowed)
        return seconds

    def vllm(number: int) -> float:
        prompts = [prompt.token_ids for prompt in task.batch(number)]
        rival = cast("RivalProcess", lineup.others[VLLM])
        seconds, shares[VLLM] = rival.label(prompts, task.allowed)
        return seconds

    if not task.is_one_token:
        return {OURS: ours}
    everybody: Mapping[str, Callable[[int], float]] = {REFERENCE: reference, VLLM: vllm}
    return {OURS: ours} | {n: side for n, side in everybody.items() if n in lineup.others}


def _apart(ours: Shares, theirs: Shares) -> float:
    """The largest difference of a probability."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))


# --- the data --------------------------------------------------------------------------------


def _tasks(options: BenchOptions, service: api.Kdn, size: int) -> list[_Task]:
    encode = service.model.tokenizer.encode
    banking, clinc = _banking(options.data), _clinc(options.data)
    yes_no, domains = (
        make_choices(("Yes", "No"), encode),
        make_choices(_DOMAINS, encode, whole=True),
    )
    intents = make_choices(_intents(options.data), encode, whole=True)
    return [
        _Task("intents", intents, _batches(service, _INTENT, banking, min(size, 16), options.seed)),
        _Task("banking77", yes_no, _batches(service, _YES_NO, banking, size, options.seed)),
        _Task("clinc150", domains, _batches(service, _WHICH, clinc, size, options.seed)),
    ]


def _batches(
    service: api.Kdn, template: str, texts: Sequence[str], size: int, seed: int
) -> Iterator[list[Prompt]]:
    rng, filled = random.Random(seed), RowTemplate(template)
    serial = 0
    while True:
        batch = []
        for text in rng.sample(texts, min(size, len(texts))):
            serial += 1
            said = text if len(texts) > size else f"{text} ({serial})"
            batch.append(service.prompts.question(filled.fill({"text": said})))
        while len(batch) < size:
            serial += 1
            said = f"{rng.choice(texts)} ({serial})"
            batch.append(service.prompts.question(filled.fill({"text": said})))
        yield batch


def _banking(data: Path | None) -> Sequence[str]:
    path = data / "banking77" / "test.csv" if data else None
    if path is None or not path.is_file():
        return _SHIPPED
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def _intents(data: Path | None) -> list[str]:
    """The labels as words; none begins with all of another's tokens but for a full stop after each."""
    path = data / "banking77" / "test.csv" if data else None
    if path is None or not path.is_file():
        return list(_SHIPPED_INTENTS)
    with path.open(encoding="utf-8", newline="") as file:
        names = sorted({row["category"] for row in csv.DictReader(file)})
    return [f"{name}={name.replace('_', ' ')}." for name in names]


def _clinc(data: Path | None) -> Sequence[str]:
    path = data / "clinc150" / "data_small.json" if data else None
    if path is None or not path.is_file():
        return _SHIPPED
    return [text for text, _ in json.loads(path.read_text("utf-8"))["test"]]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
