"""One context, stored once, and questions over it: what a way of steering does to their answers.

Plans run straight on the executor.  The context is the neutral prelude, the documents and the
instruction: all that a request shares with others.  Nothing here is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdn import api
from kdn.bench.steer.items import INSTRUCTIONS, SteerItem
from kdn.core import ColumnScale, LayerSource, Plan, Prompt, TokenIds
from kdn.engine import AloneRun, HeldKV, Pass, SequenceSlice, run_alone
from kdn.model import Document, Message, PlacedText
from kdn.reuse.steer import sentence_positions, steered_from

__all__ = ["GoldScore", "SteerContext", "SteerLab"]

_MOST_TOKENS = 12
"""Of a generated answer."""


@dataclass(frozen=True)
class SteerContext:
    """Documents behind the prelude, with the instruction, as they are stored."""

    documents: tuple[str, ...]
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
        self._contexts: dict[tuple[tuple[str, ...], int], SteerContext] = {}

    def prompt(self, item: SteerItem, wording: int = 0, question: str | None = None) -> Prompt:
        """The item as kdn asks it."""
        return self.service.prompts.segments(
            self._messages(item, wording, question), self._documents(item)
        )

    @torch.inference_mode()
    def context(self, item: SteerItem, wording: int = 0) -> SteerContext:
        """The item's context; the last one is remembered for the next item."""
        key = (item.documents, wording)
        if key not in self._contexts:
            self._contexts = {k: v for k, v in self._contexts.items() if k[0] == item.documents}
            self._contexts[key] = self._make(item, wording)
        return self._contexts[key]

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
        logprobs = torch.log_softmax(self._run(plan).logits.float(), dim=-1)
        picked = logprobs[torch.arange(len(wanted)), torch.tensor(wanted)]
        return GoldScore(float(-picked.mean()), logprobs)

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
        ran = self._run(plan, most)
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
        return tokenizer.decode(tokens)

    def _make(self, item: SteerItem, wording: int) -> SteerContext:
        prompt, documents = self.prompt(item, wording), self._documents(item)
        messages = self._messages(item, wording, None)
        chat, tokenizer = self.service.model.chat, self.service.model.tokenizer
        places = chat.places(prompt, messages, documents, tokenizer)
        since = steered_from(prompt, ())
        held = HeldKV(self.captured(Plan(prompt.token_ids[:since], logits=())))
        return SteerContext(item.documents, prompt, tuple(places), held)

    def captured(self, plan: Plan) -> Tensor:
        """The KV that a plan computes."""
        ran = run_alone(self.service.model, self.service.parts.attention, plan, capture=True)
        assert ran.captured is not None, "asked for"
        return ran.captured.clone()

    def _run(self, plan: Plan, spare_columns: int = 0) -> AloneRun:
        return run_alone(
            self.service.model, self.service.parts.attention, plan, spare_columns=spare_columns
        )

    def _messages(self, item: SteerItem, wording: int, question: str | None) -> list[Message]:
        asked = item.question if question is None else question
        return [Message("system", INSTRUCTIONS[wording]), Message("user", asked)]

    def _documents(self, item: SteerItem) -> list[Document]:
        return [Document(None, text) for text in item.documents]
