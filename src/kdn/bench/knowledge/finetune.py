"""A small real fine-tuning run: a LoRA adapter over the model's own weights, saved as PEFT has it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdn.clock import Clock
from kdn.errors import MissingExtra

__all__ = ["Example", "Trained", "train_adapter"]

_RANK = 16
_LEARNING_RATE = 1e-3
_BATCH = 8
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Example:
    """Tokens, of which the last `num_learnt` are to be predicted."""

    token_ids: tuple[int, ...]
    num_learnt: int


@dataclass(frozen=True)
class Trained:
    """What the run took."""

    steps: int
    seconds: float
    loss: float


def train_adapter(
    weights: Path,
    examples: Sequence[Example],
    folder: Path,
    clock: Clock,
    *,
    most_steps: int,
    most_s: float,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train until the loss is small, or steps or seconds are used up; the adapter goes to `folder`.

    `weights` is a Hugging Face folder.  Loading it is not counted.  Raises MissingExtra
    without transformers and peft.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise MissingExtra(
            "fine-tuning needs transformers and peft: pip install 'kdn[dev]'"
        ) from error
    torch.manual_seed(seed)
    disable_progress_bar()
    base = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.bfloat16)
    lora = LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=_MODULES, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=_LEARNING_RATE, weight_decay=0.0)
    rng, started = random.Random(seed), clock.now()
    steps, loss, smooth = 0, 0.0, 10.0
    while steps < most_steps and clock.now() - started < most_s and smooth > 0.05:
        batch = rng.sample(list(examples), min(_BATCH, len(examples)))
        token_ids, labels, mask = _padded(batch)
        found = model(input_ids=token_ids, attention_mask=mask, labels=labels).loss
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps, loss = steps + 1, float(found.detach())
        smooth = 0.9 * min(smooth, 5.0) + 0.1 * loss
        if steps % 10 == 0:
            say(f"fine-tuning: step {steps}, loss {loss:.3f}")
    seconds = clock.now() - started
    model.save_pretrained(folder)
    return Trained(steps, seconds, loss)


def _padded(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, labels (-100 where nothing is learnt) and mask, each [examples, longest]."""
    longest = max(len(example.token_ids) for example in batch)
    token_ids = torch.zeros((len(batch), longest), dtype=torch.int64)
    labels, mask = torch.full_like(token_ids, -100), torch.zeros_like(token_ids)
    for row, example in enumerate(batch):
        stop = len(example.token_ids)
        token_ids[row, :stop] = torch.tensor(example.token_ids)
        mask[row, :stop] = 1
        labels[row, stop - example.num_learnt : stop] = token_ids[
            row, stop - example.num_learnt : stop
        ]
    return token_ids, labels, mask
