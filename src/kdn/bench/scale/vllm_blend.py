"""Blended prompts in vLLM: kdn computes them and hands them over, beside vLLM's full prefill.

Between the two stands what kdn computes whole and hands over: it tells the engines' speeds from blending.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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

FULL, WHOLE, HANDED = "full prefill", "handed over, not blended", "handed over"
RATIO = 0.15
_TOKENS = 2048
"""About so many in a prompt's eight documents."""


@dataclass
class TimedBlending:
    """Seconds to vLLM's first token, by way and round, and what became of the tokens."""

    samples: Samples = field(default_factory=dict)
    loading: Samples = field(default_factory=dict)
    """The part that is vLLM's own, where it loads."""
    num_tokens: list[int] = field(default_factory=list)
    num_blended: list[int] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """One for each way."""
        return [self._row(way) for way in self.samples]

    def _row(self, way: str) -> Row:
        row: Row = {"part": "blended prompts", "tokens": mean(self.num_tokens), "arm": way}
        row["ms"] = 1000 * (median(self.samples, way) or 0.0)
        if way != FULL:
            pairs = zip(self.tokens[FULL], self.tokens[way], strict=True)
            row["of it in vLLM ms"] = 1000 * (median(self.loading, way) or 0.0)
            row["blended tokens"] = mean(self.num_blended) if way == HANDED else 0
            row["same first token"] = f"{sum(a == b for a, b in pairs)} of {len(self.num_tokens)}"
        return row


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
        api.open(model, config=options.note(config), dtype=options.machine_dtype()) as kdn,
        open_store(scratch / "store", memory_bytes=0) as store,
    ):
        stand = _Stand(options, kdn, store, digest_weights(model), plain, loading, timed)
        sides: dict[str, Callable[[int], float]] = {
            FULL: stand.full_s,
            WHOLE: partial(stand.handed_s, WHOLE),
            HANDED: partial(stand.handed_s, HANDED),
        }
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

    def handed_s(self, way: str, number: int) -> float:
        prompt = self._prompt(number)
        name, blends = f"{way} {self.options.seed} {number}", way == HANDED
        request = Request(
            name,
            prompt,
            Sampling(max_tokens=1),
            reuse=blends,
            techniques=(Blend(RATIO),) if blends else (),
        )
        clock = self.options.clock
        started = clock.now()
        handed = hand_over(self.kdn, request, self.store, self.weights, lambda: name)
        answer = self.loading.ask(handed.token_ids, salt=handed.salt, params={"kdn_handoff": True})
        seconds = clock.now() - started
        self.loading.settle()
        if not answer.cached:
            raise EngineFailed("vLLM computed a prompt that was handed over to it")
        timed = self.timed
        timed.loading.setdefault(way, []).append(answer.seconds)
        timed.tokens.setdefault(way, []).append(answer.token_id)
        if blends:
            timed.num_tokens.append(len(handed.token_ids))
            timed.num_blended.append(handed.num_blended)
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
