"""Does steering help: the right sentence stressed, a look, or columns chosen without the question?

Quality (`--only fit`, `--only test`): the gold answer's negative log-likelihood (NLL) over stored KV, by
arm, on halves that share no article; settings are chosen on `fit`, and `test` is what the summary is of.
Timing (`--only timing`): time to the first token through the real engine, interleaved.  With `--rows
FILE` items and rounds are kept, and a later run goes on from them; `--only page` says what they say.
Answers are generated, which takes longest, where `--arms` names none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from kdn import api
from kdn.bench.common.kept import begin_kept
from kdn.bench.common.result import BenchOptions, Result, Row, model_name
from kdn.bench.common.scores import word_f1
from kdn.bench.engine.lineup import opened
from kdn.bench.steer.arms import ANSWERED, ARMS
from kdn.bench.steer.case import SteerCase, Steered
from kdn.bench.steer.fitted import SteerFit
from kdn.bench.steer.guards import guard_rows, guarded
from kdn.bench.steer.items import SETS, Half, SteerItem, steer_items
from kdn.bench.steer.lab import SteerLab
from kdn.bench.steer.rows import SteerRows
from kdn.bench.steer.sums import JudgedItem, arm_rows, passes_rows, steer_summary, time_rows
from kdn.bench.steer.timing import timing_rounds
from kdn.bench.steer.verdicts import steer_figures, steer_notes
from kdn.errors import BadInput, MissingExtra

__all__ = ["run"]

_PARTS = (None, "fit", "test", "timing", "page")
_PER_CONTEXT = 12
"""Questions over one context, where nobody says how many: more of one article say little that is new."""
_FITTED_ON = 12
_ANSWERED_EVERY = 4
"""Of so many contexts one has its first question answered: generating takes longer than all else."""
_UNRELATED = (
    " The kettle on the stove begins to whistle, and somebody in the next room closes a window"
    " against the rain."
)
"""What steering must not disturb: a continuation that has nothing to do with any document."""


def run(options: BenchOptions) -> Result:
    """Judge what is to be judged, time, and say all that the rows say."""
    if options.only not in _PARTS:
        parts = ", ".join(part for part in _PARTS if part)
        raise BadInput(f"steer has the parts {parts}, not {options.only!r}")
    arms, rows = _arms(options.arms), SteerRows(options.rows)
    if options.only == "page":
        if not (rows.of("fit") or rows.of("test") or rows.rounds):
            raise BadInput("a page is made of rows: --rows names the file that holds them")
        return _result(options, rows, total=None)
    if options.data is None:
        raise BadInput(
            "steer measures on data: --data names the folder with squad, hotpotqa, musique"
        )
    begin_kept(options, ())
    half: Half = "fit" if options.only == "fit" else "test"
    items = _chosen(options.data, half, _sets(options.sets), most=_most(options))
    rows.begin(model_name(options.model))
    torch.set_num_threads(options.threads)
    with opened(options) as service:
        if options.only != "timing":
            _judge(options, service, items, arms, rows)
        if options.only not in ("fit", "test"):
            timing_rounds(options, service, items, rows)
    return _result(options, rows, total=sum(map(len, items)))


def _result(options: BenchOptions, kept: SteerRows, total: int | None) -> Result:
    """The page of all rows; of a run on the half `fit` alone, its own arms."""
    judged, fit = guarded(kept.of("test")), guarded(kept.of("fit"))
    rounds = kept.rounds
    rows: list[Row] = [*arm_rows(judged)]
    rows += [row | {"part": f"fit: {row['part']}"} for row in arm_rows(fit)]
    rows += [*guard_rows(fit), *passes_rows(judged or fit, rounds), *time_rows(rounds)]
    counts = {"items": len(judged), "fit_items": len(fit), "items_wanted": total}
    model = kept.model or options.model
    return Result(
        bench="steer",
        model=model,
        config=options.describe_kept() | counts,
        rows=rows,
        summary=steer_summary(judged, fit, rounds),
        notes=steer_notes(judged, fit, rounds),
        figures=steer_figures(judged),
        page=f"steer-{model_name(model)}",
    )


def _arms(asked: tuple[str, ...] | None) -> tuple[str, ...]:
    unknown = [name for name in asked or () if name not in ARMS]
    if unknown:
        raise BadInput(f"steer has no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    return tuple(dict.fromkeys(("plain", *(asked or ARMS))))


def _sets(asked: tuple[str, ...] | None) -> tuple[str, ...]:
    unknown = [name for name in asked or () if name not in SETS]
    if unknown:
        raise BadInput(f"steer has no set {unknown[0]!r}; there are {', '.join(SETS)}")
    return asked or SETS


def _most(options: BenchOptions) -> int:
    """Questions over one context at most."""
    return 1 if options.quick else options.items or _PER_CONTEXT


def _chosen(data: Path, half: Half, sets: Sequence[str], *, most: int) -> list[list[SteerItem]]:
    """Items by context; the sets in turn, and the articles of a set in turn, so that an early end leaves
    some of each."""
    by_set = []
    for name in sets:
        contexts: dict[tuple[str, ...], list[SteerItem]] = {}
        for item in steer_items(data, name):
            if item.half == half:
                contexts.setdefault(item.documents, []).append(item)
        own = _clusters_in_turn(list(contexts.values()))
        by_set.append([one[:most] for one in own])
    longest = max(map(len, by_set))
    return [own[i] for i in range(longest) for own in by_set if i < len(own)]


def _clusters_in_turn(contexts: Sequence[list[SteerItem]]) -> list[list[SteerItem]]:
    """The first context of every cluster, then the second of every one that has two, and so on."""
    turns: list[int] = []
    seen = Counter[str]()
    for context in contexts:
        turns.append(seen[context[0].cluster])
        seen[context[0].cluster] += 1
    order = sorted(range(len(contexts)), key=lambda at: turns[at])
    return [contexts[at] for at in order]


def _fitted_on(options: BenchOptions) -> list[SteerItem]:
    """Questions of the other half, over different contexts, that heads and directions are learned on."""
    assert options.data is not None, "checked"
    contexts = _chosen(options.data, "fit", _sets(options.sets), most=_most(options))
    return [context[0] for context in contexts[:_FITTED_ON]]


def _judge(
    options: BenchOptions,
    service: api.Kdn,
    items: Sequence[Sequence[SteerItem]],
    arms: Sequence[str],
    rows: SteerRows,
) -> None:
    lab, embedder = SteerLab(service), None
    try:
        embedder = service.embedder
    except MissingExtra as missing:
        options.say(f"steer: {missing}; sentences are retrieved by words")
    fit = SteerFit(lab, _fitted_on(options))
    for number, context in enumerate(items):
        for index, item in enumerate(context):
            found: JudgedItem = rows.item(item.name) or {"arms": {}}
            lacking = [arm for arm in arms if arm not in found["arms"]]
            if lacking:
                options.say(f"steer: {item.name}, context {number + 1} of {len(items)}")
                case = SteerCase(lab, item, embedder, options.seed, fit)
                is_answered = not (options.arms or index or number % _ANSWERED_EVERY)
                rows.keep_item(_score(case, found, lacking, answers=is_answered))


def _score(
    case: SteerCase, before: JudgedItem, arms: Sequence[str], *, answers: bool
) -> JudgedItem:
    """What was known of the item, and these arms."""
    lab, item = case.lab, case.item
    plain = case.gold(Steered(case.context.held))
    scores = dict(before["arms"])
    for name in arms:
        lab.offline_rows = 0.0
        steered = ARMS[name](case)
        passes = lab.offline_rows / case.context.since
        prompt, score = steered.prompt or case.prompt, case.gold(steered)
        far = (plain.logprobs.exp() * (plain.logprobs - score.logprobs)).sum(dim=-1)
        scores[name] = {"nll": round(score.nll, 5), "kl": round(float(far.mean()), 5)}
        if passes:
            scores[name]["passes"] = round(passes, 2)
        if steered.columns:
            inside = len(steered.columns & case.oracle) / len(steered.columns)
            scores[name]["overlap"] = round(inside, 4)
        if steered.chosen is not None:
            scores[name]["chosen"] = steered.chosen
            scores[name]["sure"] = {key: round(one, 5) for key, one in steered.sure.items()}
        if answers and name in ANSWERED:
            said = lab.answer(prompt, steered.held, steered.scale)
            scores[name]["f1"] = word_f1(said, item.answers)
            harm = lab.score(prompt, steered.held, _UNRELATED, steered.scale)
            scores[name]["unrelated"] = round(harm.nll, 5)
    chance = len(case.oracle) / len(case.context.columns)
    return {
        "name": item.name,
        "cluster": item.cluster,
        "half": item.half,
        "tokens": case.prompt.num_tokens,
        "chance": round(chance, 4),
        "arms": scores,
    }
