"""Fine-tune a model for two jobs, each as a LoRA and as an aLoRA, equally long and on equal data.

python -m scripts.share.train ../shared/data OUT [--model NAME] [--kinds lora] [--long 0.3] [--rounds N]

A round is one step of each adapter.  OUT/<job>-<kind> holds the adapter as PEFT writes it; OUT/state what
the next call goes on from, so the run may be stopped at any time, and jobs may be trained one after another.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scripts.rank.training import Tree, batch_trees, make_small, wide_attention
from torch import Tensor
from torch.nn.functional import cross_entropy

import kdn
from kdn.bench.common.result import BenchOptions, model_name
from kdn.bench.engine.lineup import weights
from kdn.bench.share.pair import between
from kdn.bench.share.tasks import TASKS, SharedContext
from kdn.clock import SystemClock
from kdn.core import TokenIds
from kdn.errors import BadInput
from kdn.model import Document, Message

LEARNING_RATE, WARMUP = 1e-3, 8
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
KINDS = ("lora", "alora")
INVOCATIONS = {"qa": "Question:", "intent": "Message:"}
"""What the questions of a job begin with; its aLoRA begins there too."""
LONG_TOKENS = (500, 2000)
"""A lengthened context has a length between these, drawn evenly."""

WHOLE_TOKENS = 500
"""Of longer contexts each layer is computed again on the way back: a 0.5B model would hold 10 GB."""


@dataclass(frozen=True)
class ShareRecipe:
    """Everything that decides what is learnt, but the data."""

    model: str = "smollm2-135m"
    tasks: tuple[str, ...] = tuple(TASKS)
    kinds: tuple[str, ...] = KINDS
    rank: int = 16
    contexts: int = 2
    """Of one step."""
    long: float = 0.0
    """The share of contexts that stand between others of their job."""
    rounds: int = 160
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters: a job and a kind each."""
        return tuple(f"{task}-{kind}" for task in self.tasks for kind in self.kinds)

    def of_each(self) -> dict[str, Any]:
        """What one adapter depends on: without its neighbours, and without the place of the model."""
        named = {key: value for key, value in asdict(self).items() if key not in ("tasks", "kinds")}
        return named | {"model": model_name(self.model)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, go on where the last call stopped, save every few rounds."""
    usual = ShareRecipe()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=usual.model)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=usual.tasks)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=usual.kinds)
    parser.add_argument("--rank", type=int, default=usual.rank)
    parser.add_argument("--contexts", type=int, default=usual.contexts)
    parser.add_argument("--long", type=float, default=usual.long)
    parser.add_argument("--rounds", type=int, default=usual.rounds)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--save-every", type=int, default=10)
    options = vars(parser.parse_args(arguments))
    data, out, every = (options.pop(name) for name in ("data", "out", "save_every"))
    options |= {name: tuple(options[name]) for name in ("tasks", "kinds")}
    trainer = ShareTrainer(data, out, ShareRecipe(**options))
    clock = SystemClock()
    while trainer.rounds < trainer.recipe.rounds:
        started, losses = clock.now(), trainer.round()
        said = "; ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        print(f"round {trainer.rounds}: {said} ({clock.now() - started:.1f} s)", flush=True)
        if trainer.rounds % every == 0 or trainer.rounds == trainer.recipe.rounds:
            trainer.save()


def quick_dtype() -> torch.dtype:
    """bf16 where the processor multiplies it; elsewhere torch takes 50 times as long backwards as in fp32."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return torch.bfloat16 if supported else torch.float32


class ShareTrainer:
    """One frozen base with the adapters; those of one job see the same contexts in the same order."""

    def __init__(self, data: Path, out: Path, recipe: ShareRecipe) -> None:
        """Raises BadInput where `out` holds a run of another recipe."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(recipe.seed)
        self.recipe, self._out = recipe, out
        with kdn.open(recipe.model) as opened:
            self._tokenizer, self._chat = opened.model.tokenizer, opened.model.chat
        _, folder = weights(BenchOptions(model=recipe.model), "bfloat16")
        base = AutoModelForCausalLM.from_pretrained(
            folder, dtype=quick_dtype(), attn_implementation=wide_attention()
        )
        self._model, self._saves_memory = self._with_adapters(base).train(), False
        self._model.config.use_cache = False
        self._parameters = {
            name: {
                key: value.requires_grad_(True)
                for key, value in self._model.named_parameters()
                if f".{name}." in key
            }
            for name in recipe.names
        }
        self._optimizers = {
            name: torch.optim.AdamW(found.values(), lr=LEARNING_RATE, weight_decay=0.0)
            for name, found in self._parameters.items()
        }
        self._contexts = {task: TASKS[task](data, "train") for task in recipe.tasks}
        self._head = base.get_output_embeddings().weight.detach()
        self.losses = {name: list[float]() for name in recipe.names}
        """Of every step so far."""
        self._go_on()

    @property
    def rounds(self) -> int:
        """Those that every adapter has done."""
        return min(map(len, self.losses.values()))

    def round(self) -> dict[str, float]:
        """A step of every adapter that is not ahead; their losses."""
        done, found = self.rounds, {}
        for name, losses in self.losses.items():
            if len(losses) == done:
                found[name] = self._step(name, self._drawn(name.split("-")[0], done), done)
                losses.append(found[name])
        return found

    def save(self) -> None:
        """The adapters in bf16, and the state of the run."""
        self._model.save_pretrained(self._out)
        for name, optimizer in self._optimizers.items():
            make_small(self._out / name, model_name(self.recipe.model))
            state = {}
            for key, parameter in self._parameters[name].items():
                state[key] = parameter.detach().contiguous()
                for part in ("exp_avg", "exp_avg_sq"):
                    state[f"{key}/{part}"] = optimizer.state[parameter][part].contiguous()
            folder = self._out / "state"
            folder.mkdir(exist_ok=True)
            run = json.dumps({"losses": self.losses[name], "recipe": self.recipe.of_each()})
            save_file(state, folder / f"{name}.partial", metadata={"run": run})
            (folder / f"{name}.partial").replace(folder / f"{name}.safetensors")

    def _go_on(self) -> None:
        """Take up the states that former calls left."""
        for name, found in self._parameters.items():
            path = self._out / "state" / f"{name}.safetensors"
            if not path.exists():
                continue
            with safe_open(path, "pt") as file:
                run = json.loads(file.metadata()["run"])
            if run["recipe"] != self.recipe.of_each():
                raise BadInput(f"{path} was trained by another recipe; give another folder")
            self.losses[name], state = run["losses"], load_file(path)
            for key, parameter in found.items():
                parameter.data.copy_(state[key])
                self._optimizers[name].state[parameter] = {
                    "step": torch.tensor(float(len(run["losses"]))),
                    "exp_avg": state[f"{key}/exp_avg"],
                    "exp_avg_sq": state[f"{key}/exp_avg_sq"],
                }

    def _with_adapters(self, base: Any) -> Any:
        """The base with a fresh adapter of each name."""
        from peft import LoraConfig, get_peft_model

        made: Any = None
        for name in self.recipe.names:
            task, kind = name.split("-")
            ids = list(self._tokenizer.encode(INVOCATIONS[task])) if kind == "alora" else None
            lora = LoraConfig(
                r=self.recipe.rank,
                lora_alpha=2 * self.recipe.rank,
                target_modules=MODULES,
                task_type="CAUSAL_LM",
                alora_invocation_tokens=ids,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if made is None:
                    made = get_peft_model(base, lora, adapter_name=name)
                else:
                    made.add_adapter(name, lora)
        return made

    def _drawn(self, task: str, number: int) -> list[SharedContext]:
        """The contexts of a round's step, some of them between others."""
        rng = random.Random(f"{self.recipe.seed} {task} {number}")
        found = []
        for one in rng.sample(self._contexts[task], self.recipe.contexts):
            is_long, num_tokens = rng.random() < self.recipe.long, rng.randint(*LONG_TOKENS)
            others = self._contexts[task]
            found.append(between(self._tokenizer, one, others, num_tokens) if is_long else one)
        return found

    def _step(self, name: str, contexts: list[SharedContext], number: int) -> float:
        optimizer = self._optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * self._pace(number)
        self._model.set_adapter(name)
        losses = []
        for context in contexts:
            loss = self._loss(name, context)
            torch.autograd.backward(loss / len(contexts))
            losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(self._parameters[name].values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return sum(losses) / len(losses)

    def _loss(self, name: str, context: SharedContext) -> Tensor:
        """Mean NLL of the answers' tokens; the questions are branches over one trunk."""
        tree, lengths = self._tree(context)
        token_ids, positions, mask, ends = batch_trees([tree])
        self._save_memory(wanted=token_ids.shape[1] > WHOLE_TOKENS)
        behind = {"alora_offsets": [sum(map(len, tree.branches))]} if "alora" in name else {}
        with torch.autocast("cpu", torch.bfloat16, enabled=self._head.dtype == torch.bfloat16):
            hidden = self._model.base_model.model.model
            hooked = self._model.base_model._enable_peft_forward_hooks  # noqa: SLF001
            with hooked(token_ids, **behind):
                out = hidden(
                    input_ids=token_ids,
                    position_ids=positions,
                    attention_mask=mask,
                    use_cache=False,
                ).last_hidden_state[0]
        spans = zip(ends[0].tolist(), lengths, strict=True)
        at = torch.cat([torch.arange(end - length, end) for end, length in spans])
        logits = out[at].to(self._head.dtype) @ self._head.T
        return cross_entropy(logits.float(), token_ids[0][at + 1])

    def _save_memory(self, *, wanted: bool) -> None:
        if wanted == self._saves_memory:
            return
        self._saves_memory, base = wanted, self._model.base_model.model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # other names only in version 6
            if wanted:
                base.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                base.gradient_checkpointing_disable()

    def _tree(self, context: SharedContext) -> tuple[Tree, list[int]]:
        """The context with its questions and answers, and the answers' lengths, end of turn included."""
        ends = self._tokenizer.encode("<|im_end|>", special=True)
        trunk: TokenIds = ()
        branches, lengths = [], []
        for asked in context.asked:
            turns, documents = [Message("user", asked.question)], [Document(None, context.document)]
            prompt = self._chat.segments(turns, documents)
            trunk = tuple(t for segment in prompt.segments[:-1] for t in segment.token_ids)
            answer = (*self._tokenizer.encode(asked.answer), *ends)
            branches.append((*prompt.segments[-1].token_ids, *answer))
            lengths.append(len(answer))
        return Tree(trunk, tuple(branches)), lengths

    def _pace(self, number: int) -> float:
        """Up to 1 over the warm-up, then down to a tenth in a straight line."""
        warm = min(1.0, (number + 1) / WARMUP)
        return warm * max(0.1, 1.0 - number / self.recipe.rounds)


if __name__ == "__main__":
    main()
