"""Measures an ordered pair of models: what each way to share a context does to the receiver's answers.

    context ─> sender: KV and layer inputs      receiver: its own KV
            └─> each way ─> question, then the gold answer's tokens ─> KL to the receiver's own, NLL

Rows are chosen by the question alone; the answer's tokens come after, as they would when decoded.
The linear map is fitted on contexts of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from kdn.core import Fingerprint, GivenRows, LayerSource, Plan, TokenIds
from kdn.engine.alone import AloneRun, HeldKV, run_alone
from kdn.engine.batch import SequenceSlice
from kdn.engine.executor import Pass
from kdn.errors import BadInput
from kdn.model import LoadedModel, LoraAdapter
from kdn.model.attention import Attention
from kdn.reuse.blend.question_attention import AttendedRows
from kdn.reuse.blend.recomputed_rows import BlendRule, RandomRows
from kdn.reuse.share.linear_map import LinearMap, MapFit
from kdn.reuse.share.pairs import PairRecord, SharePoint
from kdn.reuse.share.plans import MAP_WORK, ShareChoice, SharedSpan, share_plan
from kdn.reuse.share.states import StatesCapture

__all__ = [
    "PairSide",
    "ShareItem",
    "ShareOutcome",
    "ShareProfiler",
    "default_choices",
    "refuse_unequal",
]


@dataclass(frozen=True)
class ShareItem:
    """A context that both models read, a question about it, and the gold answer."""

    context: TokenIds
    question: TokenIds
    answer: TokenIds


@dataclass(frozen=True)
class PairSide:
    """The sender or the receiver: a model, perhaps with an adapter."""

    name: str
    model: LoadedModel
    attention: Attention
    adapter: LoraAdapter | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        return self.model.decoder.fingerprint_with(self.adapter)

    @property
    def weights(self) -> str:
        """Names the weights alone: quality depends on them, not on the kernels that a fingerprint names."""
        base = self.model.decoder.weights_digest[:12]
        return base if self.adapter is None else f"{base}+{self.adapter.digest[:12]}"

    def run(self, plan: Plan, *, capture: bool = False, spare_columns: int = 0) -> AloneRun:
        """The plan alone, with the side's adapter."""
        return run_alone(
            self.model,
            self.attention,
            plan,
            capture=capture,
            spare_columns=spare_columns,
            adapter=self.adapter,
        )


@dataclass(frozen=True)
class ShareOutcome:
    """What one way to share did to one item."""

    kl: float
    nll: float
    agrees: bool
    """Is the likeliest token the same before each token of the answer?"""
    work: float
    """Rows computed, those of the probe pass included, over those of a full prefill of the context."""
    is_right: bool = False
    """Is each token of the gold answer the likeliest one before it?"""


@dataclass(frozen=True)
class _HeldStates:
    """A layer's inputs in memory."""

    states: Tensor

    def start(self) -> None:
        return None

    def take(self, start: int, stop: int) -> Tensor:
        return self.states[start:stop]

    def close(self) -> None:
        return None


def refuse_unequal(sender: LoadedModel, receiver: LoadedModel) -> None:
    """Raises BadInput for models that cannot share: of different shapes, or with different tokenizers."""
    ours, theirs = (
        one.decoder.config.kv_shape(str(one.decoder.dtype).removeprefix("torch."))
        for one in (receiver, sender)
    )
    if ours != theirs:
        raise BadInput(
            f"{sender.name} has KV of shape {theirs} and {receiver.name} of {ours}: models of different"
            " shapes share nothing; choose two fine-tunes of one base"
        )
    if sender.tokenizer.digest != receiver.tokenizer.digest:
        raise BadInput(
            f"{sender.name} and {receiver.name} have different tokenizers, so equal tokens do not mean"
            " equal text; choose two fine-tunes of one base"
        )


def _begun_layers(choices: Sequence[ShareChoice]) -> list[int]:
    """The layers whose inputs the choices need."""
    return sorted({one.needs_states for one in choices if one.needs_states is not None})


def default_choices(num_layers: int, step: int) -> list[ShareChoice]:
    """Plain reuse, every contiguous group at a granularity of `step` layers, rows, the map, and both."""
    edges = [*range(0, num_layers, step), num_layers]
    groups = [
        ShareChoice((a, b - 1))
        for i, a in enumerate(edges[:-1])
        for b in edges[i + 1 :]
        if b - a < num_layers
    ]
    ratios = (0.05, 0.1, 0.2, 0.3)
    rows = [ShareChoice(ratio=ratio) for ratio in ratios]
    mapped = [ShareChoice(ratio=ratio, mapped=True) for ratio in (0.0, 0.05, 0.1, 0.2)]
    return [ShareChoice(), *groups, *rows, *mapped]


class ShareProfiler:
    """Runs items through an ordered pair. Not safe from several threads."""

    def __init__(self, sender: PairSide, receiver: PairSide) -> None:
        """Raises BadInput for models that cannot share."""
        refuse_unequal(sender.model, receiver.model)
        self.sender, self.receiver = sender, receiver
        config = receiver.model.decoder.config
        self.num_layers = config.num_layers
        self._width = 2 * config.kv_size
        self._last_sent: tuple[ShareItem, Tensor, dict[int, Tensor]] | None = None
        self._last_own: tuple[ShareItem, Tensor] | None = None

    def fit(
        self, contexts: Sequence[TokenIds], tell: Callable[[int], None] = lambda _: None
    ) -> LinearMap:
        """The map of the pair on these contexts. `tell` is told the tokens so far. Raises BadInput."""
        fit = MapFit(self.num_layers, self._width)
        for context in contexts:
            fit.add(*self._both(context))
            tell(fit.num_tokens)
        return fit.solve()

    def distance(self, context: TokenIds) -> float:
        """The squared difference of the sender's KV from the receiver's, over the square of the latter's.

        A mean over layers: 0 for equal models, above 1 where zeros would be nearer, about 2 for weights
        that have nothing to do with each other.
        """
        theirs, ours = self._both(context)
        apart = (theirs.float() - ours.float()).square().flatten(1).sum(1)
        return float((apart / ours.float().square().flatten(1).sum(1).clamp_min(1e-30)).mean())

    def _both(self, context: TokenIds) -> tuple[Tensor, Tensor]:
        """The KV of a context by the sender and by the receiver."""
        plan = Plan(context, logits=())
        theirs, ours = (
            side.run(plan, capture=True).captured for side in (self.sender, self.receiver)
        )
        assert theirs is not None, "captured"
        assert ours is not None, "captured"
        return theirs, ours

    def measure(
        self,
        item: ShareItem,
        choices: Sequence[ShareChoice],
        made: LinearMap | None = None,
        *,
        oracle: bool = False,
        random_rows: bool = False,
    ) -> Iterator[tuple[ShareChoice, ShareOutcome]]:
        """Each way on one item; those with a map are left out where there is none.

        `oracle` gives groups the receiver's own layer inputs; `random_rows` draws rows at random.
        """
        starts = _begun_layers(choices)
        sent, states = self._sent(item, starts)
        if oracle:
            seen = StatesCapture(starts)
            self.receiver.run(Plan(item.context, logits=(), observers=(seen,)))
            states = seen.states(0, len(item.context))
        own = self._own(item)
        full_rows = self.num_layers * len(item.context)
        rule: BlendRule = RandomRows(len(item.context)) if random_rows else AttendedRows()
        some = [one for one in choices if made is not None or not one.mapped]
        plans = [self._plan(item, choice, (sent, states), made, rule) for choice in some]
        extra = self.num_layers * len(item.question)
        for choice, (logprobs, num_rows) in zip(some, self._answered(item, plans), strict=True):
            yield choice, _compared(item, own, logprobs, (num_rows - extra) / full_rows)

    def readers(
        self, item: ShareItem, ways: Sequence[ShareChoice | None], made: LinearMap | None
    ) -> dict[ShareChoice | None, Callable[[], AloneRun]]:
        """Of each way a function that reads the context and the question; None is the own prefill.

        Ways with a map are left out where there is none.
        """
        choices = [one for one in ways if one is not None and (made is not None or not one.mapped)]
        starts = _begun_layers(choices)
        sent = self._sent(item, starts)
        found: dict[ShareChoice | None, Callable[[], AloneRun]] = {
            None: partial(self.receiver.run, Plan((*item.context, *item.question)))
        }
        for choice in choices:
            found[choice] = partial(self._read, item, choice, sent, made)
        return found

    def _read(
        self,
        item: ShareItem,
        choice: ShareChoice,
        sent: tuple[Tensor, dict[int, Tensor]],
        made: LinearMap | None,
    ) -> AloneRun:
        return self.receiver.run(self._plan(item, choice, sent, made, AttendedRows()))

    def _plan(
        self,
        item: ShareItem,
        choice: ShareChoice,
        sent: tuple[Tensor, dict[int, Tensor]],
        made: LinearMap | None,
        rule: BlendRule,
    ) -> Plan:
        """The context by `choice` over what the sender has computed, and the question after it."""
        source: LayerSource = HeldKV(sent[0])
        if choice.mapped and made is not None:
            source = made.over(source)
        layer = choice.needs_states
        span = SharedSpan(0, source, None if layer is None else _HeldStates(sent[1][layer]))
        base = Plan((*item.context, *item.question))
        return share_plan(base, choice, span, self.num_layers, rule)

    def own(self, item: ShareItem) -> ShareOutcome:
        """The receiver's own answer: no KL, all of the work."""
        own = self._own(item)
        return _compared(item, own, own, 1.0)

    def _sent(self, item: ShareItem, layers: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """The sender's KV of the context, and the inputs of at least these layers; kept for the last item."""
        if (
            self._last_sent is None
            or self._last_sent[0] != item
            or set(layers) - set(self._last_sent[2])
        ):
            seen = StatesCapture(layers)
            plan = Plan(item.context, logits=(), observers=(seen,))
            sent = self.sender.run(plan, capture=True).captured
            assert sent is not None, "captured"
            self._last_sent = item, sent, seen.states(0, len(item.context))
        return self._last_sent[1:]

    def _own(self, item: ShareItem) -> Tensor:
        """Log-probabilities of the receiver's own prefill; kept for the last item."""
        if self._last_own is None or self._last_own[0] != item:
            ((own, _),) = self._answered(item, [Plan((*item.context, *item.question))])
            self._last_own = item, own
        return self._last_own[1]

    def one_layer_each(self, item: ShareItem) -> Iterator[tuple[int, ShareOutcome]]:
        """The receiver's own KV with one layer of it the sender's, each layer in turn."""
        theirs, ours = self._both(item.context)
        own = self._own(item)
        base = Plan((*item.context, *item.question))
        plans = []
        for layer in range(self.num_layers):
            mixed = ours.clone()
            mixed[layer] = theirs[layer]
            span = SharedSpan(0, HeldKV(mixed))
            plans.append(share_plan(base, ShareChoice(), span, self.num_layers, AttendedRows()))
        for layer, (logprobs, _) in enumerate(self._answered(item, plans)):
            yield layer, _compared(item, own, logprobs, 1 - 1 / self.num_layers)

    def _answered(self, item: ShareItem, plans: Sequence[Plan]) -> list[tuple[Tensor, int]]:
        """Of each plan: log-probabilities [answer tokens, vocabulary] before each of the answer's, and the
        rows computed. The answers after all plans are one pass."""
        runs = [self.receiver.run(plan, spare_columns=len(item.answer)) for plan in plans]
        found = [[one.logits[-1:]] for one in runs]
        if len(item.answer) > 1 and runs:
            for logits, rest in zip(found, self._after(item, runs), strict=True):
                logits.append(rest)
        return [
            (log_softmax(torch.cat(logits), dim=-1), one.num_rows)
            for logits, one in zip(found, runs, strict=True)
        ]

    def _after(self, item: ShareItem, runs: Sequence[AloneRun]) -> list[Tensor]:
        """Logits before the answer's second token and each later one, after every run."""
        token_ids = (*item.context, *item.question, *item.answer[:-1])
        first, stop = len(item.context) + len(item.question), len(token_ids)
        rows = tuple(range(first, stop))
        after = Plan(token_ids, rows=(GivenRows(rows),), logits=rows)
        with torch.inference_mode():
            slices = [
                SequenceSlice.prefill(after, one.kv, first, stop, adapter=self.receiver.adapter)
                for one in runs
            ]
            step = Pass(self.receiver.model.decoder, self.receiver.attention, slices)
            while not step.advance():
                pass
            return list(step.logits())

    def record(
        self,
        items: Sequence[ShareItem],
        measured: Sequence[Sequence[tuple[ShareChoice, ShareOutcome]]],
        own_nll: float,
    ) -> PairRecord:
        """The profile of items that were measured, one list an item."""
        by_choice: dict[ShareChoice, list[ShareOutcome]] = {}
        for one in measured:
            for choice, found in one:
                by_choice.setdefault(choice, []).append(found)
        return PairRecord(
            sender=self.sender.fingerprint,
            receiver=self.receiver.fingerprint,
            sender_name=self.sender.name,
            receiver_name=self.receiver.name,
            num_layers=self.num_layers,
            contexts=len(measured),
            context_tokens=round(fmean(len(item.context) for item in items)),
            own_nll=own_nll,
            points=tuple(_point(choice, found) for choice, found in by_choice.items()),
        )

    def own_nll(self, item: ShareItem) -> float:
        """The receiver's own mean NLL of the answer's tokens."""
        return -float(_of_answer(item, self._own(item)).mean())


def _of_answer(item: ShareItem, logprobs: Tensor) -> Tensor:
    return logprobs.gather(1, torch.tensor(item.answer)[:, None].to(logprobs.device))[:, 0]


def _compared(item: ShareItem, own: Tensor, other: Tensor, work: float) -> ShareOutcome:
    """KL(own || other), averaged over the answer's tokens."""
    kl = float((own.exp() * (own - other)).sum(-1).mean())
    agrees = bool((own.argmax(-1) == other.argmax(-1)).all())
    gold = torch.tensor(item.answer).to(other.device)
    return ShareOutcome(
        max(kl, 0.0),
        -float(_of_answer(item, other).mean()),
        agrees,
        max(work, 0.0),
        bool((other.argmax(-1) == gold).all()),
    )


def _point(choice: ShareChoice, found: Sequence[ShareOutcome]) -> SharePoint:
    first, last = choice.group or (None, None)
    return SharePoint(
        first=first,
        last=last,
        ratio=choice.ratio,
        mapped=choice.mapped,
        work=fmean(one.work for one in found) + (MAP_WORK if choice.mapped else 0.0),
        kl=fmean(one.kl for one in found),
        nll=fmean(one.nll for one in found),
        contexts=len(found),
    )
