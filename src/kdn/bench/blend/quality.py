"""What blending does to the answers: every arm against a full prefill, prompt by prompt.

Nothing here is timed.  A finished prompt is a line of a file; a run that is begun again goes on
after the last line.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
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
from kdn.model import Document, Message

__all__ = [
    "Judged",
    "case_of",
    "geometric",
    "holds_all",
    "interval",
    "judge",
    "judged_before",
    "rouge_l",
    "word_f1",
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
    read_kept(rows, lambda judged: known.update({judged["name"]: judged}))
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


def word_f1(answer: str, gold: Sequence[str]) -> float:
    """The best F1 of words over the right answers, as SQuAD has it; the first line counts."""
    said = _words(answer.strip().split("\n")[0])
    return round(max(_f1(said, _words(one)) for one in gold), 4)


def rouge_l(answer: str, gold: Sequence[str]) -> float:
    """The best F1 of the longest common subsequence of words over the right answers."""
    said = _words(answer)
    return round(max(_common_f1(said, _words(one)) for one in gold), 4)


def _common_f1(said: list[str], right: list[str]) -> float:
    longest = [0] * (len(right) + 1)
    for word in said:
        before = list(longest)
        for i, other in enumerate(right, 1):
            longest[i] = before[i - 1] + 1 if word == other else max(before[i], longest[i - 1])
    return 2 * longest[-1] / max(len(said) + len(right), 1)


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(said: list[str], right: list[str]) -> float:
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right)) if shared else float(said == right)


def holds_all(answer: str, gold: Sequence[str]) -> float:
    """The share of the right answers that stand in what was said (RULER, 2404.06654, section 3)."""
    said = answer.lower()
    return sum(one.lower() in said for one in gold) / len(gold)


_MEASURES: dict[Measure, tuple[Callable[[str, Sequence[str]], float], int]] = {
    "words": (word_f1, 12),
    "summary": (rouge_l, 64),
    "needles": (holds_all, 48),
}
"""By measure: the score, and the tokens that an answer has. A needle of 36 hexadecimal digits is some 30."""


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean with its 95 % bootstrap interval, drawn over prompts."""
    x = torch.tensor(values, dtype=torch.float64)
    random = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(x), (2000, len(x)), generator=random)
    means = x[picks].mean(dim=1).sort().values
    return float(x.mean()), float(means[50]), float(means[1949])


def geometric(ratios: Sequence[tuple[float, float]], floor: float = 1e-4) -> tuple[float, ...]:
    """Geometric mean of paired ratios a / b, with its 95 % interval; both are held above `floor`."""
    logs = [math.log(max(a, floor) / max(b, floor)) for a, b in ratios]
    return tuple(math.exp(x) for x in interval(logs))
