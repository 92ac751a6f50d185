"""The loop of a rival's process: one JSON request a line on stdin, one JSON answer a line on stdout.

Requests:
  {"op": "first_token", "prompt": [ids]}                    -> {"seconds": s}
  {"op": "decode", "prompts": [[ids]], "num_tokens": n}     -> {"arrivals": [[s]]} or {"arrivals": null}
  {"op": "hit", "prefix": [ids], "prompt": [ids]}           -> {"seconds": s} or {"seconds": null}
  {"op": "label", "prompts": [[ids]], "allowed": [ids]}     -> {"seconds": s, "shares": [[p]]}

The first line is {"ready": name and version}.  A request that fails is answered {"error": text}.
Arrival times are on the rival's own clock; null means that the rival cannot do this.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any, Protocol


class Rival(Protocol):
    """What a rival must be able to do, or decline with None."""

    name: str

    def first_token(self, prompt: list[int]) -> float: ...

    def decode(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]] | None: ...

    def hit(self, prefix: list[int], prompt: list[int]) -> float | None: ...

    def label(
        self, prompts: list[list[int]], allowed: list[int]
    ) -> tuple[float, list[list[float]]]: ...


def take_stdout() -> IO[str]:
    """Standard output for answers alone: whatever the rival prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def serve(rival: Rival, answers: IO[str]) -> None:
    """Answer requests until stdin ends."""
    print(json.dumps({"ready": rival.name}), file=answers)
    for line in sys.stdin:
        try:
            answer = _answer(rival, json.loads(line))
        except Exception as error:  # noqa: BLE001 (whatever a rival raises is its answer)
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def _answer(rival: Rival, request: dict[str, Any]) -> dict[str, Any]:
    match request["op"]:
        case "first_token":
            return {"seconds": rival.first_token(request["prompt"])}
        case "decode":
            return {"arrivals": rival.decode(request["prompts"], request["num_tokens"])}
        case "label":
            seconds, shares = rival.label(request["prompts"], request["allowed"])
            return {"seconds": seconds, "shares": shares}
        case "hit":
            return {"seconds": rival.hit(request["prefix"], request["prompt"])}
    raise ValueError(f"no such request: {request['op']}")
