"""Does steering help: the right sentence stressed, a look, or columns chosen without the question?

Quality (`--only fit`, `--only test`): the gold answer's negative log-likelihood (NLL) over stored KV, by
arm, on halves that share no article; settings are chosen on `fit`, and `test` is what the summary is of.
Timing (`--only timing`): time to the first token through the real engine, interleaved.  With `--rows
FILE` judged items are kept, and a later run goes on from them.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kdn import api
from kdn.bench.blend.quality import word_f1
from kdn.bench.common.measure import median, ratio
from kdn.bench.common.result import BenchOptions, Result, Row
from kdn.bench.engine.lineup import opened
from kdn.bench.steer.arms import ANSWERED, ARMS
from kdn.bench.steer.case import SteerCase
from kdn.bench.steer.fitted import SteerFit
from kdn.bench.steer.items import SETS, Half, SteerItem, steer_items
from kdn.bench.steer.lab import SteerLab
from kdn.bench.steer.sums import JudgedItem, arm_rows, steer_notes, steer_summary
from kdn.bench.steer.timing import PLAIN, ttft_samples
from kdn.errors import BadInput, MissingExtra
from kdn.machine.facts import describe_machine

__all__ = ["run"]

_PARTS = (None, "fit", "test", "timing")
_PER_CONTEXT = 6
"""Questions over one context: more of one article say little that is new."""
_FITTED_ON = 12
_ANSWERED_EVERY = 4
"""Of so many contexts one has its first question answered: generating takes longer than all else."""
_UNRELATED = (
    " The kettle on the stove begins to whistle, and somebody in the next room closes a window"
    " against the rain."
)
"""What steering must not disturb: a continuation that has nothing to do with any document."""


def run(options: BenchOptions) -> Result:
    """Judge what is to be judged, time, and say both together."""
    if options.only not in _PARTS:
        raise BadInput(f"steer has the parts fit, test and timing, not {options.only!r}")
    if options.data is None:
        raise BadInput(
            "steer measures on data: --data names the folder with squad, hotpotqa, musique"
        )
    arms = _arms(options.arms)
    half: Half = "fit" if options.only == "fit" else "test"
    items = _chosen(options.data, half, quick=options.quick)
    torch.set_num_threads(options.threads)
    with (
        tempfile.TemporaryDirectory(prefix="kdn-bench-") as folder,
        opened(options, Path(folder)) as service,
    ):
        judged = (
            _judged_before(items, options.rows)
            if options.only == "timing"
            else _judge(options, service, items, arms)
        )
        timed = {} if options.only in ("fit", "test") else ttft_samples(options, service, items)
    costs = {way: ratio(timed, PLAIN, way) for way in timed if way != PLAIN}
    rows: list[Row] = [*arm_rows(judged)]
    for way, samples in timed.items():
        found = costs.get(way)
        rows.append(
            {
                "part": "time to first token",
                "way": way,
                "ms": 1000 * (median(timed, way) or 0.0),
                "of plain": None if found is None else found.median,
                "rounds": len(samples),
            }
        )
    return Result(
        bench="steer",
        model=options.model,
        machine=describe_machine(),
        config=options.describe() | {"half": half, "items": len(judged)},
        rows=rows,
        summary=steer_summary(
            judged, {way: one.median for way, one in costs.items() if one is not None}
        ),
        notes=steer_notes(judged),
        page=f"steer-{Path(options.model).stem}-{half}",
    )


def _arms(asked: tuple[str, ...] | None) -> tuple[str, ...]:
    unknown = [name for name in asked or () if name not in ARMS]
    if unknown:
        raise BadInput(f"steer has no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    return tuple(dict.fromkeys(("plain", *(asked or ARMS))))


def _chosen(data: Path, half: Half, *, quick: bool) -> list[list[SteerItem]]:
    """Items by context; the sets in turn, so that an early end leaves some of each."""
    by_set = []
    for name in SETS:
        contexts: dict[tuple[str, ...], list[SteerItem]] = {}
        for item in steer_items(data, name):
            if item.half == half:
                contexts.setdefault(item.documents, []).append(item)
        by_set.append([own[: 1 if quick else _PER_CONTEXT] for own in contexts.values()])
    longest = 1 if quick else max(map(len, by_set))
    return [own[i] for i in range(longest) for own in by_set if i < len(own)]


def _fitted_on(options: BenchOptions) -> list[SteerItem]:
    """Questions of the other half, over different contexts, that heads and directions are learned on."""
    assert options.data is not None, "checked"
    contexts = _chosen(options.data, "fit", quick=options.quick)
    return [context[0] for context in contexts[:_FITTED_ON]]


def _judge(
    options: BenchOptions,
    service: api.Kdn,
    items: Sequence[Sequence[SteerItem]],
    arms: Sequence[str],
) -> list[JudgedItem]:
    known = {one["name"]: one for one in _judged_before(items, options.rows)}
    lab, embedder = SteerLab(service), None
    try:
        embedder = service.embedder
    except MissingExtra as missing:
        options.say(f"steer: {missing}; sentences are retrieved by words")
    fit = SteerFit(lab, _fitted_on(options))
    judged = []
    for number, context in enumerate(items):
        for index, item in enumerate(context):
            found: JudgedItem = known.get(item.name, {"arms": {}})
            lacking = [arm for arm in arms if arm not in found["arms"]]
            if lacking:
                options.say(f"steer: {item.name}, context {number + 1} of {len(items)}")
                case = SteerCase(lab, item, embedder, options.seed, fit)
                found = _score(
                    case, found, lacking, answers=not (index or number % _ANSWERED_EVERY)
                )
                _keep(options.rows, found)
            judged.append(found)
    return judged


def _score(
    case: SteerCase, before: JudgedItem, arms: Sequence[str], *, answers: bool
) -> JudgedItem:
    """What was known of the item, and these arms."""
    lab, item, gold = case.lab, case.item, case.item.answers[0]
    plain = lab.score(case.prompt, case.context.held, gold)
    scores = dict(before["arms"])
    for name in arms:
        lab.offline_rows = 0.0
        steered = ARMS[name](case)
        passes = lab.offline_rows / case.context.since
        prompt = steered.prompt or case.prompt
        score = lab.score(prompt, steered.held, gold, steered.scale)
        far = (plain.logprobs.exp() * (plain.logprobs - score.logprobs)).sum(dim=-1)
        scores[name] = {"nll": round(score.nll, 5), "kl": round(float(far.mean()), 5)}
        if passes:
            scores[name]["passes"] = round(passes, 2)
        if steered.columns:
            inside = len(steered.columns & case.oracle) / len(steered.columns)
            scores[name]["overlap"] = round(inside, 4)
        if answers and name in ANSWERED:
            said = lab.answer(prompt, steered.held, steered.scale)
            scores[name]["f1"] = word_f1(said, item.answers)
            harm = lab.score(prompt, steered.held, _UNRELATED, steered.scale)
            scores[name]["unrelated"] = round(harm.nll, 5)
    chance = len(case.oracle) / len(case.context.columns)
    return {
        "name": item.name,
        "cluster": item.cluster,
        "tokens": case.prompt.num_tokens,
        "chance": round(chance, 4),
        "arms": scores,
    }


def _judged_before(items: Sequence[Sequence[SteerItem]], rows: Path | None) -> list[JudgedItem]:
    """What the file holds of these items. Raises BadInput for another file."""
    if rows is None or not rows.exists():
        return []
    try:
        lines: list[dict[str, Any]] = [*map(json.loads, rows.read_text("utf-8").splitlines())]
        known = {one["name"]: one for one in lines if "arms" in one}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{rows}: no rows of this benchmark; give another file") from error
    names = Counter(item.name for context in items for item in context)
    return [one for name, one in known.items() if name in names]


def _keep(rows: Path | None, judged: JudgedItem) -> None:
    if rows is not None:
        rows.parent.mkdir(parents=True, exist_ok=True)
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(judged) + "\n")
