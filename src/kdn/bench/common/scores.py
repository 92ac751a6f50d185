"""How right an answer is, and how sure a mean of such scores."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

import torch

__all__ = ["geometric", "holds_all", "interval", "rouge_l", "word_f1"]


def word_f1(answer: str, gold: Sequence[str]) -> float:
    """The best F1 of words over the right answers, as SQuAD has it; the first line counts."""
    said = _words(answer.strip().split("\n")[0])
    return round(max((_f1(said, _words(one)) for one in gold), default=0.0), 4)


def rouge_l(answer: str, gold: Sequence[str]) -> float:
    """The best F1 of the longest common subsequence of words over the right answers."""
    said = _words(answer)
    return round(max((_common_f1(said, _words(one)) for one in gold), default=0.0), 4)


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
