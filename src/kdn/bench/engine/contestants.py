"""Who runs in the engine benchmark: kdn, transformers in this process, rivals in their own.

All get the same token ids, decode greedily, use the same number of threads and time themselves by
the wall clock from handing over the prompt to having the token's id.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from kdn.bench.common.measure import decode_rate
from kdn.clock import Clock
from kdn.core import (
    Finish,
    Generator,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    StreamEvent,
    Token,
    TokenIds,
    Usage,
)
from kdn.errors import EngineFailed
from kdn.machine.threads import give_up_workers

__all__ = [
    "Contestant",
    "KdnContestant",
    "Listener",
    "RivalProcess",
    "Transformers",
    "rate_together",
]

Arrivals = list[list[float]]


class Contestant(Protocol):
    """Anything whose time to first token and decoding can be measured."""

    name: str

    def first_token_s(self, prompt: TokenIds) -> float:
        """Seconds to the first token of a prompt it has never seen."""

    def arrivals_s(self, prompts: Sequence[TokenIds], num_tokens: int) -> Arrivals | None:
        """When each token of prompts run together arrived; None when it cannot run so many."""


_LENGTHENED = (1, 4, 16, 16, 16)
"""How many times the asked tokens an answer has, one after the other, until all answers decode at once.

The longest comes three times: a busy machine may hold up the thread that submits for an answer's whole time.
"""


def rate_together(contestant: Contestant, prompts: Sequence[TokenIds], num_tokens: int) -> float:
    """Tokens a second while all decode; answers grow, for a quick one may end before the next begins.

    Raises EngineFailed when no length was enough.
    """
    for times in _LENGTHENED:
        arrivals = contestant.arrivals_s(prompts, num_tokens * times)
        assert arrivals is not None
        if (rate := decode_rate(arrivals)) is not None:
            return rate
    raise EngineFailed(
        f"{len(prompts)} answers of {num_tokens * _LENGTHENED[-1]} tokens never ran side by side; "
        "free the machine of other work and run the benchmark again"
    )


class Listener:
    """Notes when tokens arrive, in the engine's thread, and lets another thread wait for the end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._done = threading.Event()
        self.times_s: list[float] = []
        self.token_ids: list[int] = []
        self.usage: Usage | None = None
        self.error: Exception | None = None

    def __call__(self, event: StreamEvent | Exception | None) -> None:
        if isinstance(event, Token):
            self.times_s.append(self._clock.now())
            self.token_ids.append(event.token_id)
        elif isinstance(event, Finish):
            self.usage = event.usage
        elif isinstance(event, Exception):
            self.error = event
        else:
            self._done.set()

    def wait(self) -> Usage:
        """The usage, once the stream has ended. Raises EngineFailed when it ended badly."""
        self._done.wait()
        if self.usage is None or not self.times_s:
            raise EngineFailed(f"a benchmark request gave no token: {self.error}") from self.error
        return self.usage


class KdnContestant:
    """Our engine, through the public API."""

    name = "kdn"

    def __init__(
        self, generator: Generator, clock: Clock, settle: Callable[[], object] = bool
    ) -> None:
        """`settle` waits until what was kept is written out, so that no writer disturbs a timing."""
        self._generator = generator
        self._clock = clock
        self._settle = settle
        self._serial = 0

    def first_token_s(self, prompt: TokenIds) -> float:
        started = self._clock.now()
        listener = self._submit((prompt,), 1, reuse=False, retention=Retention.NOTHING)
        listener.wait()
        return listener.times_s[0] - started

    def arrivals_s(self, prompts: Sequence[TokenIds], num_tokens: int) -> Arrivals | None:
        running = [
            self._submit((prompt,), num_tokens, reuse=False, retention=Retention.NOTHING)
            for prompt in prompts
        ]
        for listener in running:
            listener.wait()
        return [listener.times_s for listener in running]

    def keep(self, prefix: TokenIds) -> None:
        """Have the KV of `prefix` stored, and settled."""
        self._submit((prefix, prefix[:1]), 1, reuse=False, retention=Retention.SHARED).wait()
        self._settle()

    def hit_s(self, prefix: TokenIds, rest: TokenIds) -> tuple[float, Usage]:
        """Seconds to the first token of `rest` after a stored `prefix`, and where tokens came from."""
        started = self._clock.now()
        listener = self._submit((prefix, rest), 1, reuse=True, retention=Retention.NOTHING)
        usage = listener.wait()
        return listener.times_s[0] - started, usage

    def _submit(
        self, pieces: Sequence[TokenIds], num_tokens: int, *, reuse: bool, retention: Retention
    ) -> Listener:
        self._serial += 1
        roles = [Role.DOCUMENT] * (len(pieces) - 1) + [Role.QUESTION]
        segments = tuple(Segment(role, ids) for role, ids in zip(roles, pieces, strict=True))
        request = Request(
            id=f"bench-{self._serial}",
            prompt=Prompt(segments),
            sampling=Sampling(max_tokens=num_tokens, ignore_eos=True),
            reuse=reuse,
            retention=retention,
        )
        listener = Listener(self._clock)
        self._generator.submit(request).on_event(listener)
        return listener


class Transformers:
    """The reference implementation with its fastest attention, driven without `generate`.

    Its own generation loop would only add to its time.  Raises ImportError when it is not installed.
    """

    def __init__(self, folder: Path, device: str, dtype: str, clock: Clock) -> None:
        import torch
        import transformers

        self.name = "transformers"
        transformers.utils.logging.disable_progress_bar()
        self._torch, self._device = torch, device
        self._clock = clock
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
        self._model = model.to(device).eval()

    def first_token_s(self, prompt: TokenIds) -> float:
        started = self._clock.now()
        times_s, _ = self._greedy((prompt,), 1)
        return times_s[0] - started

    def arrivals_s(self, prompts: Sequence[TokenIds], num_tokens: int) -> Arrivals | None:
        times_s, count = self._greedy(prompts, num_tokens)
        return [times_s] * count

    def label(
        self, prompts: Sequence[TokenIds], allowed: Sequence[int]
    ) -> tuple[float, list[list[float]]]:
        """Seconds for all prompts, and how each shares its next token among `allowed`.

        Padded on the left to batches of 16, prompts of like length together, as its users do.
        """
        torch, shares = self._torch, [list[float]() for _ in prompts]
        started = self._clock.now()
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        with torch.inference_mode():
            for first in range(0, len(order), 16):
                members = order[first : first + 16]
                width = max(len(prompts[i]) for i in members)
                padded = [[0] * (width - len(prompts[i])) + list(prompts[i]) for i in members]
                mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in members]
                ids = torch.tensor(padded, device=self._device)
                seen = torch.tensor(mask, device=self._device)
                places = (seen.cumsum(-1) - 1).clamp(min=0)
                output = self._model(
                    ids, attention_mask=seen, position_ids=places, logits_to_keep=1, use_cache=False
                )
                found = output.logits[:, -1, list(allowed)].float().softmax(-1).tolist()
                for i, row in zip(members, found, strict=True):
                    shares[i] = row
        return self._clock.now() - started, shares

    def _greedy(self, prompts: Sequence[TokenIds], num_tokens: int) -> tuple[list[float], int]:
        """Arrival times of the tokens of equally long prompts, which run in step."""
        tokens, cache = self._torch.tensor(prompts, device=self._device), None
        times_s: list[float] = []
        with self._torch.inference_mode():
            for _ in range(num_tokens):
                # By position, in and out: the name of the cache differs between versions.
                output = self._model(tokens, None, None, cache, use_cache=True, logits_to_keep=1)
                tokens, cache = output[0][:, -1].argmax(-1, keepdim=True), output[1]
                tokens.tolist()  # waits for a GPU too
                times_s.append(self._clock.now())
        give_up_workers()  # asleep in this process, they would slow the engine's down in its turn
        return times_s, len(prompts)


class RivalProcess:
    """A rival in the environment of `make rivals`, spoken to in lines of JSON.

    Raises EngineFailed when it does not come up or does not answer.
    """

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._log = log
        self._is_working = True
        try:
            self.name = str(self._read()["ready"])
        except BaseException:  # a stop, too: nobody else knows the process yet
            self.close()
            raise

    def first_token_s(self, prompt: TokenIds) -> float:
        return float(self._ask(op="first_token", prompt=prompt)["seconds"])

    def arrivals_s(self, prompts: Sequence[TokenIds], num_tokens: int) -> Arrivals | None:
        answer: Arrivals | None = self._ask(op="decode", prompts=prompts, num_tokens=num_tokens)[
            "arrivals"
        ]
        return answer

    def hit_s(self, prefix: TokenIds, rest: TokenIds) -> float | None:
        """Seconds to the first token of `rest` after a prefix just computed; None if it cannot."""
        seconds = self._ask(op="hit", prefix=prefix, prompt=prefix + rest)["seconds"]
        return None if seconds is None else float(seconds)

    def label(
        self, prompts: Sequence[TokenIds], allowed: Sequence[int]
    ) -> tuple[float, list[list[float]]]:
        """Seconds for all prompts, and how each shares its next token among `allowed`."""
        answer = self._ask(op="label", prompts=prompts, allowed=list(allowed))
        return float(answer["seconds"]), answer["shares"]

    def close(self) -> None:
        """End the process; at once where nobody waits any more for what it is doing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._is_working:
            self._process.terminate()
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._is_working = True
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self._is_working = False
        if not line:
            raise EngineFailed(f"a rival ended; its last words: {_last_line(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineFailed(f"a rival failed: {answer['error']}")
        return answer


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "(none)"
