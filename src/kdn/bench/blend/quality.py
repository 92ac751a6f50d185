"""What blending does to the answers: every arm against a full prefill, prompt by prompt.

Nothing here is timed.  A finished prompt is a line of a file; a run that is begun again goes on
after the last line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kdn import api
from kdn.bench.blend.arms import FULL, HKVD, OURS, RANDOM, RATIO, Arm, arms, chosen_arms
from kdn.bench.blend.lab import Case, Lab, SeenAttention, kl, true_deviation
from kdn.bench.blend.prompts import BlendPrompt, Measure
from kdn.bench.common.kept import add_kept, read_kept
from kdn.bench.common.scores import holds_all, rouge_l, word_f1
from kdn.model import Document, Message

__all__ = [
    "Judged",
    "case_of",
    "judge",
    "judged_before",
]

_EVERY = 10
"""One prompt in so many runs every arm."""
_ANSWERED = tuple(
    (arm.name, arm.ratio)
    for arm in chosen_arms(("naive", "ours", "whole", "anchors", "whole-anchors"), (RATIO,))
)
_JUDGED_BY_GOLD = (*_ANSWERED, (HKVD, RATIO), (RANDOM, RATIO), (OURS, 0.3))

Which = Literal["main", "noise", "every"]
Judged = dict[str, Any]
"""One prompt: `name`, `tokens`, `reused`, `arms` ({"arm@ratio": {...}}) and, sometimes, `ranks`."""


def judge(
    service: api.Kdn,
    lab: Lab,
    questions: Sequence[BlendPrompt],
    rows: Path | None,
    say: Callable[[str], None],
    *,
    quick: bool,
    lean: Sequence[Arm] | None = None,
) -> list[Judged]:
    """Every question judged, those in the file `rows` (made if need be) as they stand there.

    One in ten runs every arm, or, if `quick`, the noise floor only.  With `lean` every prompt runs
    these arms and no other; a prompt in the file that lacks some of them gets those besides.
    """
    known = _read(rows)
    found: list[Judged] = []
    for number, question in enumerate(questions):
        before = known.get(question.name)
        lacking = [arm for arm in lean or () if before is None or arm.key not in before["arms"]]
        if before is not None and not lacking:
            found.append(before)
            continue
        say(f"quality: {question.name}, {number + 1} of {len(questions)}")
        which: Which = "main" if number % _EVERY else "noise" if quick else "every"
        judged = _judge(service, lab, question, which if lean is None else lacking)
        if before is not None:
            judged = before | {"arms": before["arms"] | judged["arms"]}
        found.append(judged)
        add_kept(rows, judged)
    return found


def judged_before(questions: Sequence[BlendPrompt], rows: Path | None) -> list[Judged]:
    """What the file holds of these questions. Judges nothing. Raises BadInput for another file."""
    known = _read(rows)
    return [known[question.name] for question in questions if question.name in known]


def _read(rows: Path | None) -> dict[str, Judged]:
    known: dict[str, Judged] = {}
    read_kept(rows, lambda one: known.update({one["name"]: one | {"arms": dict(one["arms"])}}))
    return known


def case_of(service: api.Kdn, lab: Lab, question: BlendPrompt) -> Case:
    """The question's prompt with its stored chunks and its full prefill."""
    turns = [Message("system", question.instruction), Message("user", question.question)]
    documents = [Document(None, text) for text in question.documents]
    return lab.case(service.prompts.segments(turns, documents))


def _judge(
    service: api.Kdn, lab: Lab, question: BlendPrompt, which: Which | Sequence[Arm]
) -> Judged:
    """One full prefill and one set of stored chunks; every arm is a pass over them."""
    case = case_of(service, lab, question)
    compared = arms(lab, case, which) if isinstance(which, str) else which
    found = {arm.key: _score(lab, case, arm, question) for arm in compared}
    full: dict[str, float] = {"nll": lab.gold_nll(case, case.full.kv, _gold(question))}
    full["f1"] = _worth(lab, case, case.full, question)
    judged: Judged = {
        "name": question.name,
        "tokens": case.layout.num_tokens,
        "reused": case.layout.num_reused,
        "arms": {f"{FULL}@1.0": full, **found},
    }
    if which == "every":
        judged["ranks"] = _ranks(true_deviation(case, 1)[:, case.layout.reused])
    return judged


def _score(lab: Lab, case: Case, arm: Arm, question: BlendPrompt) -> dict[str, float]:
    with torch.inference_mode():
        plan = arm.rule(arm.base(lab, case), case.layout, case.layout.budget(arm.ratio))
    seen = lab.run(case, plan, arm.attention)
    far = kl(case.full.logprobs, seen.logprobs)
    same = seen.logprobs[0].argmax() == case.full.logprobs[0].argmax()
    found = {
        "kl": round(float(far[0]), 6),
        "kl32": round(float(far[1:].mean()), 6),
        "agree": int(same),
        "rows": round(seen.rows / case.full.rows, 4),
    }
    if (arm.name, arm.ratio) in _ANSWERED:
        found["f1"] = _worth(lab, case, seen, question)
    if (arm.name, arm.ratio) in _JUDGED_BY_GOLD:
        found["nll"] = round(lab.gold_nll(case, seen.kv, _gold(question)), 5)
    return found


def _gold(question: BlendPrompt) -> str:
    return question.answers[0]


def _worth(lab: Lab, case: Case, seen: SeenAttention, question: BlendPrompt) -> float:
    """By the question's own measure; `f1` is its name among judged rows, whichever it is."""
    measure, num_tokens = _MEASURES[question.measure]
    return measure(lab.answer(case, seen, num_tokens), question.answers)


def _ranks(deviation: Tensor) -> dict[str, list[float]]:
    """Spearman's correlation of the rows' true deviation: neighbouring layers, and layer 1 with all."""
    order = deviation[1:].argsort(dim=1).argsort(dim=1).float()
    centred = order - order.mean(dim=1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True)
    rho = unit @ unit.T
    neighbours = rho.diagonal(offset=1).tolist()
    return {
        "neighbours": [round(x, 3) for x in neighbours],
        "with_first": [round(x, 3) for x in rho[0].tolist()],
    }


_MEASURES: dict[Measure, tuple[Callable[[str, Sequence[str]], float], int]] = {
    "words": (word_f1, 12),
    "summary": (rouge_l, 64),
    "needles": (holds_all, 48),
}
"""By measure: the score, and the tokens that an answer has. A needle of 36 hexadecimal digits is some 30."""
