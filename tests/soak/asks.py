"""What the traffic asks: a fixed set of requests by seed, and how an answer is compared."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

__all__ = ["Ask", "compared", "draw_asks", "stored_text"]

WORDS = [
    *("lamp", "harbour", "seven", "gate", "winter", "ledger", "copper", "bridge", "quiet", "paper"),
    *("sailor", "orchard", "signal", "stone", "morning", "barrel", "thread", "window", "captain"),
    *("number", "lantern", "river", "market", "engine", "letter"),
]
LABELS = ["yes", "no", "both"]


@dataclass(frozen=True)
class Ask:
    """One HTTP request that has one right answer."""

    name: str
    path: str
    body: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]


def _text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=num_words)).capitalize() + "."


def draw_asks(seed: int) -> list[Ask]:
    """Some two hundred greedy requests of every kind; many share beginnings, so that stored KV is reused."""
    rng = random.Random(seed)
    preludes = [_text(rng, 60) for _ in range(6)]
    documents = [_text(rng, 70) for _ in range(24)]
    asks: list[Ask] = []

    def add(kind: str, path: str, **body: Any) -> None:
        asks.append(Ask(f"{kind}-{len(asks)}", path, body))

    for _ in range(40):
        messages = [
            {"role": "system", "content": rng.choice(preludes)},
            {"role": "user", "content": _text(rng, 12)},
        ]
        add(
            "chat",
            "/v1/chat/completions",
            messages=messages,
            temperature=0,
            max_tokens=rng.randint(1, 24),
        )
    for _ in range(40):
        prompt = f"{rng.choice(preludes)} {_text(rng, 20)}"
        add(
            "completion",
            "/v1/completions",
            prompt=prompt,
            temperature=0,
            max_tokens=rng.randint(1, 32),
            ignore_eos=True,
        )
    for _ in range(40):
        chosen = rng.sample(documents, 3)
        messages = [{"role": "user", "content": _text(rng, 10)}]
        add(
            "rag",
            "/v1/chat/completions",
            messages=messages,
            documents=chosen,
            temperature=0,
            max_tokens=16,
        )
    for _ in range(16):
        add("rerank", "/rerank", query=_text(rng, 6), documents=rng.sample(documents, 6))
    for _ in range(16):
        add(
            "label",
            "/classify",
            input=[_text(rng, 20) for _ in range(4)],
            labels=LABELS,
            instruction=rng.choice(preludes),
        )
    for _ in range(8):
        add("decide", "/v1/decisions", input=_text(rng, 50), questions=[_text(rng, 6)] * 3)
    for number in range(8):  # light requests: their latency is what overload must bound
        add("light", "/v1/completions", prompt=f"{number}?", temperature=0, max_tokens=1)
    return asks


def stored_text(seed: int, number: int) -> str:
    """The text that is put as number `number`."""
    return _text(random.Random(f"{seed}/{number}"), 40)


def compared(answer: dict[str, Any]) -> Any:
    """What of an answer has to be the same, to the last bit, whatever happens around it."""
    if "results" in answer:
        return [(one["index"], one["relevance_score"]) for one in answer["results"]]
    if "data" in answer:
        return [one.get("probs") or one.get("probability") for one in answer["data"]]
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return [text, choice["finish_reason"]]
