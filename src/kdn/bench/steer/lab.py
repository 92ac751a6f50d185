"""One context, stored once, and questions over it: what a way of steering does to their answers.

Plans run straight on the executor.  The context is the neutral prelude, the documents and the
instruction: all that a request shares with others.  Nothing here is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdn import api
from kdn.bench.steer.items import INSTRUCTIONS, SteerItem
from kdn.core import ColumnScale, LayerSource, Plan, Prompt, TokenIds
from kdn.engine import AloneRun, HeldKV, Pass, SequenceSlice, run_alone
from kdn.model import Document, Message, PlacedText
from kdn.reuse.steer import LookedAt, SentenceProbe, sentence_positions, steered_from

__all__ = ["GoldScore", "SteerContext", "SteerLab"]

T = TypeVar("T")
_MOST_TOKENS = 12
"""Of a generated answer."""


@dataclass(frozen=True)
class SteerContext:
    """Documents behind the prelude, with the instruction, as they are stored."""

    prompt: Prompt
    """Of the context with a question; only what stands before its last segment counts."""
    places: tuple[PlacedText, ...]
    held: HeldKV

    @property
    def since(self) -> int:
        return self.held.num_tokens

    @cached_property
    def sentences(self) -> tuple[range, ...]:
        return sentence_positions(self.places)

    @property
    def columns(self) -> range:
        """Those of the documents."""
        documents = [place for place in self.places if place.document is not None]
        return range(documents[0].start, documents[-1].positions.stop)


@dataclass(frozen=True)
class GoldScore:
    """How likely the right answer is, token by token."""

    nll: float
    """Mean over the answer's tokens, in nats."""
    logprobs: Tensor
    """[answer tokens, vocabulary] fp32."""


class SteerLab:
    """Runs plans on one model."""

    def __init__(self, service: api.Kdn) -> None:
        self.service = service
        self.num_layers = service.model.decoder.config.num_layers
        self.offline_rows = 0.0
        """Rows that were computed for `once`, counted at each use; callers set it back."""
        self._made_of: tuple[str, ...] = ()
        self._made: dict[str, tuple[Any, float]] = {}
        self._open: list[float] = []
        """Rows of what is being made, outermost first."""

    def prompt(self, item: SteerItem, wording: int = 0, question: str | None = None) -> Prompt:
        """The item as kdn asks it."""
        return self.service.prompts.segments(
            self._messages(item, wording, question), self._documents(item)
        )

    @torch.inference_mode()
    def context(self, item: SteerItem, wording: int = 0) -> SteerContext:
        """The item's context; the last one is remembered for the next item."""
        name = f"context {wording}"
        return self.once(item.documents, name, lambda: self.make_context(item, wording), cost=0.0)

    def once(
        self,
        documents: tuple[str, ...],
        name: str,
        make: Callable[[], T],
        cost: float | None = None,
    ) -> T:
        """What `make` makes of a context, remembered until another context's turn.

        Its rows, or `cost` in their place, count as computed beforehand, each time that it is asked for.
        """
        if documents != self._made_of:
            self._made_of, self._made = documents, {}
        if name not in self._made:
            self._open.append(0.0)
            made = make()
            rows = self._open.pop()
            self._made[name] = made, rows if cost is None else cost
        found: T
        found, rows = self._made[name]
        self._spend(rows)
        if not self._open:
            self.offline_rows += rows
        return found

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What runs inside is not counted: it is learned once for a model."""
        self._open.append(0.0)
        yield
        self._open.pop()

    def _spend(self, rows: float) -> None:
        if self._open:
            self._open[-1] += rows

    @torch.inference_mode()
    def store(self, tokens: TokenIds, scale: Sequence[ColumnScale], start: int) -> HeldKV:
        """The KV of tokens, computed with columns scaled for rows from `start` on."""
        plan = Plan(tokens, scale=tuple(scale), scale_from=start, logits=())
        return HeldKV(self.captured(plan))

    @torch.inference_mode()
    def score(
        self,
        prompt: Prompt,
        held: LayerSource,
        answer: str,
        scale: Sequence[ColumnScale] = (),
    ) -> GoldScore:
        """The answer's tokens after the prompt, whose beginning is stored."""
        wanted = self.service.model.tokenizer.encode(answer)
        whole = (*prompt.token_ids, *wanted)
        rows = tuple(range(prompt.num_tokens - 1, len(whole) - 1))
        plan = Plan(whole, prefix=held, scale=tuple(scale), scale_from=held.num_tokens, logits=rows)
        logprobs = torch.log_softmax(self.run(plan).logits.float(), dim=-1)
        picked = logprobs[torch.arange(len(wanted)), torch.tensor(wanted)]
        return GoldScore(float(-picked.mean()), logprobs)

    @torch.inference_mode()
    def look(self, context: SteerContext, prompt: Prompt) -> LookedAt | None:
        """The sentence that the question attends to most, by the product's own observer."""
        look = SentenceProbe(context.sentences, context.since, self.num_layers)
        self.run(Plan(prompt.token_ids, prefix=context.held, observers=(look,), logits=()))
        return look.found()

    @torch.inference_mode()
    def answer(
        self,
        prompt: Prompt,
        held: LayerSource,
        scale: Sequence[ColumnScale] = (),
        most: int = _MOST_TOKENS,
    ) -> str:
        """What is generated greedily."""
        tokenizer = self.service.model.tokenizer
        plan = Plan(prompt.token_ids, prefix=held, scale=tuple(scale), scale_from=held.num_tokens)
        ran = self.run(plan, spare_columns=most)
        tokens = [int(ran.logits[-1].argmax())]
        while len(tokens) < most and tokens[-1] not in tokenizer.eos_ids:
            step = Pass(
                self.service.model.decoder,
                self.service.parts.attention,
                [SequenceSlice.decode(ran.kv, tokens[-1:])],
            )
            while not step.advance():
                pass
            tokens.append(int(step.logits()[0][-1].argmax()))
            self._spend(1.0)
        return tokenizer.decode(tokens)

    @torch.inference_mode()
    def make_context(
        self, item: SteerItem, wording: int = 0, begun: SteerContext | None = None
    ) -> SteerContext:
        """The item's documents with the instruction, computed from where `begun` differs."""
        prompt, documents = self.prompt(item, wording), self._documents(item)
        messages = self._messages(item, wording, None)
        places = self.service.model.chat.places(prompt, messages, documents)
        tokens = prompt.token_ids[: steered_from(prompt, ())]
        if begun is None:
            kv = self.captured(Plan(tokens, logits=()))
        else:
            known = HeldKV(begun.held.kv[:, :, : _num_alike(begun.prompt.token_ids, tokens)])
            kv = torch.cat((known.kv, self.captured(Plan(tokens, prefix=known, logits=()))), dim=2)
        return SteerContext(prompt, tuple(places), HeldKV(kv))

    def captured(self, plan: Plan) -> Tensor:
        """The KV that a plan computes."""
        ran = self.run(plan, capture=True)
        assert ran.captured is not None, "asked for"
        return ran.captured.clone()

    @torch.inference_mode()
    def run(self, plan: Plan, *, capture: bool = False, spare_columns: int = 0) -> AloneRun:
        """The plan alone."""
        ran = run_alone(
            self.service.model,
            self.service.parts.attention,
            plan,
            capture=capture,
            spare_columns=spare_columns,
        )
        self._spend(ran.num_rows / self.num_layers)
        return ran

    def _messages(self, item: SteerItem, wording: int, question: str | None) -> list[Message]:
        asked = item.question if question is None else question
        return [Message("system", INSTRUCTIONS[wording]), Message("user", asked)]

    def _documents(self, item: SteerItem) -> list[Document]:
        return [Document(None, text) for text in item.documents]


def _num_alike(first: TokenIds, second: TokenIds) -> int:
    """Leading tokens that both have."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
