"""Blended prompts in vLLM: kdn computes them and hands them over, beside vLLM's full prefill."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from kdn import api
from kdn.bench.blend.prompts import BlendPrompt, questions
from kdn.bench.common.measure import Samples, interleave, median
from kdn.bench.common.result import BenchOptions, Row
from kdn.bench.scale.vllm_arms import VllmArm
from kdn.config import Config, EngineConfig, StoreConfig, home_folder
from kdn.core import Blend, Prompt, Request, Sampling
from kdn.errors import EngineFailed
from kdn.model import Document, Message
from kdn.scale.handoff import hand_over
from kdn.scale.identity import digest_weights
from kdn.store import Store, open_store

__all__ = ["TimedBlending", "time_blending"]

FULL, HANDED = "full prefill", "handed over"
RATIO = 0.15
_TOKENS = 2048
"""About so many in a prompt's eight documents."""


@dataclass
class TimedBlending:
    """Seconds to vLLM's first token, by way and round, and what became of the tokens."""

    samples: Samples = field(default_factory=dict)
    loading_s: list[float] = field(default_factory=list)
    """The part of `handed over` that is vLLM's own."""
    num_tokens: list[int] = field(default_factory=list)
    num_blended: list[int] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """One for each way."""
        shared: Row = {"part": "blended prompts", "tokens": mean(self.num_tokens)}
        loading = 1000 * mean(self.loading_s)
        alike = sum(a == b for a, b in zip(*self.tokens.values(), strict=True))
        blended = mean(self.num_blended)
        return [
            shared | {"arm": FULL, "ms": self._ms(FULL)},
            shared
            | {"arm": HANDED, "ms": self._ms(HANDED), "of it in vLLM ms": loading}
            | {"blended tokens": blended, "same first token": f"{alike} of {len(self.num_tokens)}"},
        ]

    def _ms(self, way: str) -> float:
        return 1000 * (median(self.samples, way) or 0.0)


def time_blending(
    options: BenchOptions, plain: VllmArm, loading: VllmArm, model: Path, scratch: Path, rounds: int
) -> TimedBlending:
    """Both ways in the same rounds, after one round of each; `loading` has its store in `scratch`.

    Documents are stored by kdn beforehand.  Raises EngineFailed when vLLM did not load what was handed over.
    """
    timed = TimedBlending()
    config = Config(
        home=options.home or home_folder(os.environ),
        engine=EngineConfig(threads=options.threads, fit_idle_s=0),
        store=StoreConfig(folder=scratch / "blend", disk_bytes=4 << 30, memory_bytes=1 << 30),
    )
    with (
        api.open(model, config=options.note(config), dtype="bfloat16") as kdn,
        open_store(scratch / "store", memory_bytes=0) as store,
    ):
        stand = _Stand(options, kdn, store, digest_weights(model), plain, loading, timed)
        sides: dict[str, Callable[[int], float]] = {FULL: stand.full_s, HANDED: stand.handed_s}
        if not options.quick:
            interleave(sides, 1, first=-1)
            stand.timed = timed = TimedBlending()
        timed.samples = interleave(sides, rounds)
    return timed


@dataclass
class _Stand:
    options: BenchOptions
    kdn: api.Kdn
    store: Store
    weights: str
    plain: VllmArm
    loading: VllmArm
    timed: TimedBlending
    prompts: dict[int, Prompt] = field(default_factory=dict)

    def full_s(self, number: int) -> float:
        answer = self.plain.ask(self._prompt(number).token_ids)
        self.plain.settle()
        self.timed.tokens.setdefault(FULL, []).append(answer.token_id)
        return answer.seconds

    def handed_s(self, number: int) -> float:
        prompt = self._prompt(number)
        name = f"blended {self.options.seed} {number}"
        request = Request(name, prompt, Sampling(max_tokens=1), techniques=(Blend(RATIO),))
        clock = self.options.clock
        started = clock.now()
        handed = hand_over(self.kdn, request, self.store, self.weights, lambda: name)
        answer = self.loading.ask(handed.token_ids, salt=handed.salt, params={"kdn_handoff": True})
        seconds = clock.now() - started
        self.loading.settle()
        if not answer.cached:
            raise EngineFailed("vLLM computed a prompt that was handed over to it")
        timed = self.timed
        timed.loading_s.append(answer.seconds)
        timed.num_tokens.append(len(handed.token_ids))
        timed.num_blended.append(handed.num_blended)
        timed.tokens.setdefault(HANDED, []).append(answer.token_id)
        return seconds

    def _prompt(self, number: int) -> Prompt:
        """A round's own prompt; its documents are computed and stored when it is first asked for."""
        if number not in self.prompts:
            asked = questions(None, self.options.seed, number + 2)[number + 1]
            texts = self._cut(asked)
            for text in texts:
                self.kdn.prefill(text)
            self.kdn.store.flush()
            turns = [Message("system", asked.instruction), Message("user", asked.question)]
            documents = [Document(None, text) for text in texts]
            self.prompts[number] = self.kdn.prompts.segments(turns, documents)
        return self.prompts[number]

    def _cut(self, asked: BlendPrompt) -> list[str]:
        """The documents, each of an equal share of the tokens at most."""
        most = _TOKENS // len(asked.documents)
        found = []
        for text in asked.documents:
            words = text.split()
            while (size := len(self.kdn.model.tokenizer.encode(" ".join(words)))) > most:
                words = words[: len(words) * most // size]
            found.append(" ".join(words))
        return found
