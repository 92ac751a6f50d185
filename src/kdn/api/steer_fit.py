"""Which layers, heads and weight of a steering recipe help: coarse to fine, on given questions.

thirds of the layers ─> halves of the best ─> key-value groups of heads ─> weights

As AutoPASTA's profile (2409.10790) ranks layers first and then heads inside the best.  What is chosen
fits the given questions; whether it helps others is for questions that were not given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kdn.api.kdn import Kdn
from kdn.api.steered import captured_by, scoring_heads
from kdn.core import Plan, Prompt, Role, TokenIds
from kdn.engine import HeldKV, run_alone
from kdn.errors import BadInput, PromptTooLong
from kdn.machine.text import counted
from kdn.model import Document, Message
from kdn.reuse.steer import SteerRecipe, recipe_scales, score_text, steered_from, top_columns

__all__ = ["FitQuestion", "FitStep", "fit_recipe"]

_WEIGHTS = (1.25, 1.5, 3.0)


@dataclass(frozen=True)
class FitQuestion:
    """A document, a question about it, and the right answer."""

    document: str
    question: str
    answer: str


@dataclass(frozen=True)
class FitStep:
    """One candidate: the recipe, and the right answers' mean NLL with it, in nats."""

    what: str
    nll: float
    recipe: SteerRecipe | None
    """None: not steered."""


def fit_recipe(
    kdn: Kdn,
    questions: Sequence[FitQuestion],
    start: SteerRecipe,
    on_step: Callable[[FitStep], None],
) -> FitStep:
    """The best candidate, `start` among them; the plain answers' step is told first.

    Raises BadInput for a question without a document or an answer, PromptTooLong, both before a step.
    """
    config = kdn.model.decoder.config
    bench = _Fit(kdn, questions, on_step)
    longest_head = max(map(len, scoring_heads(kdn, start)))
    for number, one in enumerate(questions, 1):
        if not (one.document.strip() and one.answer.strip()):
            raise BadInput(f"question {number} has an empty document or answer; give both")
        prompt, answer = bench.written(one)
        sizes = {
            f"question {number}, its document and its answer": prompt.num_tokens + len(answer),
            f"question {number}'s document and the recipe's prompt": longest_head
            + len(_document(prompt)),
        }
        for what, num_tokens in sizes.items():
            if num_tokens > config.max_position:
                raise PromptTooLong(
                    f"{what} hold {counted(num_tokens, 'token')} and the model's context"
                    f" {config.max_position}; shorten the document"
                )
    on_step(FitStep("plain", bench.nll(None), None))
    best = bench.best("", [("all layers", start)])
    layers = tuple(range(config.num_layers))
    best = bench.best("layers", _parts(start, layers, 3), best)
    if best.recipe is not None and best.recipe.layers is not None:
        best = bench.best("layers", _parts(best.recipe, best.recipe.layers, 2), best)
    group = config.num_heads // config.num_kv_heads
    groups = [tuple(range(a, a + group)) for a in range(0, config.num_heads, group)]
    chosen = best.recipe or start
    best = bench.best(
        "heads", [(f"{own[0]}-{own[-1]}", replace(chosen, heads=own)) for own in groups], best
    )
    chosen = best.recipe or start
    weights = [(f"{w:g}", replace(chosen, weight=w)) for w in _WEIGHTS if w != chosen.weight]
    return bench.best("weight", weights, best)


def _document(prompt: Prompt) -> TokenIds:
    return next(one.token_ids for one in prompt.segments if one.role is Role.DOCUMENT)


def _parts(
    recipe: SteerRecipe, layers: Sequence[int], count: int
) -> Iterator[tuple[str, SteerRecipe]]:
    """The recipe in each of `count` runs of the layers."""
    for part in range(count):
        low, high = part * len(layers) // count, (part + 1) * len(layers) // count
        if low < high:
            own = tuple(layers[low:high])
            yield f"{own[0]}-{own[-1]}", replace(recipe, layers=own)


@dataclass
class _Fit:
    """Scores recipes on the questions; the passes that score a document run once."""

    kdn: Kdn
    questions: Sequence[FitQuestion]
    on_step: Callable[[FitStep], None]
    sums: dict[str, list[Tensor]] = field(default_factory=dict)

    def best(
        self,
        what: str,
        candidates: Sequence[tuple[str, SteerRecipe]] | Iterator[tuple[str, SteerRecipe]],
        so_far: FitStep | None = None,
    ) -> FitStep:
        """The candidate with the least NLL, or what was best before."""
        for name, recipe in candidates:
            step = FitStep(f"{what} {name}".strip(), self.nll(recipe), recipe)
            self.on_step(step)
            if so_far is None or step.nll < so_far.nll:
                so_far = step
        assert so_far is not None, "there is a candidate"
        return so_far

    @torch.inference_mode()
    def nll(self, recipe: SteerRecipe | None) -> float:
        """Mean over the questions of the right answer's NLL by token."""
        held: dict[str, tuple[HeldKV, Plan]] = {}
        return sum(self._nll(one, recipe, held) for one in self.questions) / len(self.questions)

    def written(self, one: FitQuestion) -> tuple[Prompt, Sequence[int]]:
        """The question's prompt, and the tokens of its right answer."""
        prompt = self.kdn.prompts.segments(
            [Message("user", one.question)], [Document(None, one.document)]
        )
        return prompt, self.kdn.model.tokenizer.encode(one.answer)

    def _nll(
        self,
        one: FitQuestion,
        recipe: SteerRecipe | None,
        held: dict[str, tuple[HeldKV, Plan]],
    ) -> float:
        prompt, answer = self.written(one)
        if one.document not in held:
            held[one.document] = self._stored(prompt, one.document, recipe)
        context, made = held[one.document]
        whole = (*prompt.token_ids, *answer)
        rows = tuple(range(prompt.num_tokens - 1, len(whole) - 1))
        plan = Plan(whole, prefix=context, scale=made.scale, logits=rows)
        logits = run_alone(self.kdn.model, self.kdn.parts.attention, plan).logits
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        return -float(logprobs[torch.arange(len(answer)), torch.tensor(answer)].mean())

    def _stored(
        self, prompt: Prompt, document: str, recipe: SteerRecipe | None
    ) -> tuple[HeldKV, Plan]:
        """KV of all before the question, and the plan that made it."""
        run, since = captured_by(self.kdn), steered_from(prompt, ())
        plan = Plan(prompt.token_ids[:since], logits=())
        if recipe is not None:
            prelude = prompt.segments[0].num_tokens
            if document not in self.sums:
                heads = scoring_heads(self.kdn, recipe)
                num_layers = self.kdn.model.decoder.config.num_layers
                self.sums[document] = score_text(run, num_layers, heads, _document(prompt))
            columns = top_columns(self.sums[document], recipe)
            plan = replace(plan, scale=recipe_scales(columns, recipe, prelude), scale_from=prelude)
        return HeldKV(run(plan).clone()), plan
