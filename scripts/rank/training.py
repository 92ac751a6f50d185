"""Trains rerankers for both layouts with one recipe: LoRA over the model's own weights.

Document first, what is shared is computed once here too: a document with all queries of its group behind
it is one sequence, in which a branch sees the trunk and itself.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    scaled_dot_product_attention,
)

from kdn.clock import Clock
from kdn.core import Prompt, TokenIds
from kdn.errors import MissingExtra
from kdn.rank import Layout
from kdn.rank.pairs import Group

__all__ = [
    "RECIPE",
    "TrainStep",
    "Trainer",
    "TrainingRecipe",
    "Tree",
    "batch_trees",
    "group_loss",
    "make_small",
    "make_trees",
    "wide_attention",
]


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides what is learnt, but the groups."""

    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    groups_per_step: int = 1
    group_size: int = 4
    text_tokens: int = 80
    """Passages are cut here for training."""
    first_layer: int = 14
    """Layers before it stay as they are, so that nothing is propagated back through them."""
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


RECIPE = TrainingRecipe()
"""What the packaged adapters were trained with."""


@dataclass(frozen=True)
class Tree:
    """A trunk, and branches that each go on from its end without seeing one another."""

    trunk: TokenIds
    branches: tuple[TokenIds, ...]


@dataclass(frozen=True)
class TrainStep:
    """One step of one layout: its loss, and the share of queries whose own text came first."""

    layout: Layout
    loss: float
    right: float
    num_tokens: int


Ask = Callable[[str, str, Layout], Prompt]
"""The prompt for a query and a text."""


def make_trees(group: Group, layout: Layout, ask: Ask) -> list[Tree]:
    """Document first, a tree for each text, with all queries; query first, a path for each pair."""
    if layout is Layout.QUERY_FIRST:
        asked = [ask(one.query, other.text, layout) for one in group for other in group]
        return [Tree((), (prompt.token_ids,)) for prompt in asked]
    trees = []
    for one in group:
        prompts = [ask(other.query, one.text, layout) for other in group]
        trunk = tuple(t for segment in prompts[0].segments[:-1] for t in segment.token_ids)
        trees.append(Tree(trunk, tuple(prompt.segments[-1].token_ids for prompt in prompts)))
    return trees


def group_loss(odds: Tensor) -> Tensor:
    """The loss of log-odds [query, text] of one group, where query i belongs to text i.

    Half of it ranks the texts of each query (softmax), half says yes or no to every pair, so that
    the odds mean something by themselves.
    """
    target = torch.eye(len(odds))
    ranking = cross_entropy(odds, torch.arange(len(odds)))
    weight = torch.where(target.bool(), float(len(odds) - 1), 1.0)
    return 0.5 * ranking + 0.5 * binary_cross_entropy_with_logits(odds, target, weight=weight)


class Trainer:
    """One frozen model with an adapter for each layout; both learn from the same groups in turn."""

    def __init__(
        self,
        weights: Path,
        ask: Ask,
        yes_no: tuple[int, int],
        recipe: TrainingRecipe,
        num_steps: int,
        seed: int,
        layouts: Sequence[Layout] = tuple(Layout),
    ) -> None:
        """`weights` is a Hugging Face folder. Raises MissingExtra without transformers and peft."""
        try:
            from peft import LoraConfig, get_peft_model
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise MissingExtra(
                "training needs transformers and peft: pip install 'kdn[dev]'"
            ) from error
        torch.manual_seed(seed)
        self._name = weights.name
        base = AutoModelForCausalLM.from_pretrained(
            weights, dtype=torch.bfloat16, attn_implementation=wide_attention()
        )
        layers = base.config.num_hidden_layers
        lora = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules=list(recipe.modules),
            layers_to_transform=list(range(recipe.first_layer, layers)),
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            self._model: Any = get_peft_model(base, lora, adapter_name=layouts[0].value)
            for other in layouts[1:]:
                self._model.add_adapter(other.value, lora)
        self._ask, self._recipe, self._num_steps = ask, recipe, num_steps
        head = base.get_output_embeddings().weight.detach().float()
        self._direction = head[yes_no[0]] - head[yes_no[1]]
        self._optimizers = {layout: self._optimizer(layout) for layout in layouts}
        self.steps = 0

    def step(self, groups: Sequence[Group]) -> list[TrainStep]:
        """Every layout learns from these groups."""
        self.steps += 1
        return [self._learn(layout, groups) for layout in self._optimizers]

    def save(self, folder: Path) -> None:
        """The adapters, in bf16, as PEFT writes them: `folder/<layout>/adapter_model.safetensors`."""
        self._model.save_pretrained(folder)
        for layout in self._optimizers:
            make_small(folder / layout.value, self._name)

    def odds(self, layout: Layout, trees: Sequence[Tree]) -> Tensor:
        """Log-odds of Yes over No at the end of each branch: [tree, branch]."""
        token_ids, positions, mask, ends = batch_trees(trees)
        self._model.set_adapter(layout.value)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self._model.base_model.model.model(
                input_ids=token_ids,
                position_ids=positions,
                attention_mask=mask,
                use_cache=False,
            ).last_hidden_state
        rows = torch.arange(len(trees))[:, None]
        odds: Tensor = hidden[rows, ends].float() @ self._direction
        return odds

    def _learn(self, layout: Layout, groups: Sequence[Group]) -> TrainStep:
        optimizer = self._optimizers[layout]
        for wheel in optimizer.param_groups:
            wheel["lr"] = self._recipe.learning_rate * self._pace()
        losses, right, num_tokens = [], 0, 0
        for group in groups:
            trees = make_trees(group, layout, self._ask)
            odds = self.odds(layout, trees).view(len(group), len(group))
            if layout is Layout.DOCUMENT_FIRST:
                odds = odds.T
            loss = group_loss(odds)
            torch.autograd.backward(loss / len(groups))
            losses.append(float(loss.detach()))
            right += int((odds.argmax(1) == torch.arange(len(odds))).sum())
            num_tokens += sum(len(t.trunk) + sum(map(len, t.branches)) for t in trees)
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        asked = sum(map(len, groups))
        return TrainStep(layout, sum(losses) / len(losses), right / asked, num_tokens)

    def _pace(self) -> float:
        """Up to 1 over the warm-up, then down to nothing in a straight line."""
        warm = min(1.0, self.steps / self._recipe.warmup_steps)
        return warm * max(0.02, 1.0 - self.steps / self._num_steps)

    def _optimizer(self, layout: Layout) -> torch.optim.AdamW:
        mine = [
            p.requires_grad_(True)
            for name, p in self._model.named_parameters()
            if f".{layout.value}." in name
        ]
        return torch.optim.AdamW(mine, lr=self._recipe.learning_rate, weight_decay=0.0)


def wide_attention() -> str:
    """The name of an attention for transformers that is as quick backwards as forwards.

    In bf16, torch's on CPU takes up to nine times as long backwards.
    """
    from transformers import AttentionInterface

    def attend(
        _module: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **_: object
    ) -> tuple[Tensor, None]:
        dtype = q.dtype
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).float() for x in (k, v))
        with torch.autocast("cpu", enabled=False):
            out = scaled_dot_product_attention(q.float(), k, v, mask, is_causal=mask is None)
        return out.to(dtype).transpose(1, 2).contiguous(), None

    AttentionInterface.register("kdn-wide", attend)
    return "kdn-wide"


def batch_trees(trees: Sequence[Tree]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Ids and positions [tree, longest], what rows see (None: all before), branch ends."""
    lengths = [len(t.trunk) + sum(map(len, t.branches)) for t in trees]
    longest = max(lengths)
    token_ids = torch.zeros((len(trees), longest), dtype=torch.int64)
    positions = torch.zeros_like(token_ids)
    part = torch.full_like(token_ids, -1)
    ends = torch.zeros((len(trees), len(trees[0].branches)), dtype=torch.int64)
    for row, tree in enumerate(trees):
        at = 0
        for number, ids in enumerate((tree.trunk, *tree.branches)):
            stop, begin = at + len(ids), 0 if number == 0 else len(tree.trunk)
            token_ids[row, at:stop] = torch.tensor(ids)
            positions[row, at:stop] = torch.arange(begin, begin + len(ids))
            part[row, at:stop] = number
            if number:
                ends[row, number - 1] = stop - 1
            at = stop
    same = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    mask = same & torch.ones((longest, longest), dtype=torch.bool).tril()
    return token_ids, positions, None if ends.shape[1] == 1 else mask[:, None], ends


def make_small(adapter: Path, base: str) -> None:
    """Put an adapter that PEFT wrote into bf16, under its base's name in place of a path."""
    file, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    small = {name: t.to(torch.bfloat16) for name, t in load_file(file).items()}
    save_file(small, file, metadata={"format": "pt"})
    said = json.loads(config.read_text("utf-8")) | {"base_model_name_or_path": base}
    config.write_text(json.dumps(said, indent=1) + "\n", "utf-8")


def progress(clock: Clock, steps: Mapping[Layout, Sequence[TrainStep]]) -> str:
    """The last fifty steps of each layout in a line."""
    said = [f"{clock.now():.0f} s"]
    for layout, some in steps.items():
        last = some[-50:]
        loss = sum(s.loss for s in last) / len(last)
        right = sum(s.right for s in last) / len(last)
        said.append(f"{layout.value} loss {loss:.3f}, right {right:.2f}")
    return "; ".join(said)
