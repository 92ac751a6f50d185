"""Fine-tune SmolLM2-135M for two jobs, each as a LoRA and as an aLoRA, equally long and on equal data.

python scripts/share/train.py ../shared/data OUT [--rounds N]

A round is one step of each adapter.  OUT/<job>-<kind> holds the adapter as PEFT writes it; OUT/state what
the next call goes on from, so the run may be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import kdn
from kdn.bench.common.result import BenchOptions
from kdn.bench.engine.lineup import weights
from kdn.bench.share.tasks import TASKS, SharedContext
from kdn.clock import SystemClock
from kdn.core import TokenIds
from kdn.machine.files import publish_file
from kdn.model import Document, Message
from kdn.rank.train import Tree, batch_trees, wide_attention

RANK, ALPHA = 16, 32
LEARNING_RATE, WARMUP, CONTEXTS = 1e-3, 8, 2
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
INVOCATIONS = {"qa": "Question:", "intent": "Message:"}
"""What the questions of a job begin with; its aLoRA begins there too."""
NAMES = tuple(f"{task}-{kind}" for task in TASKS for kind in ("lora", "alora"))


def main() -> None:
    """Parse, go on where the last call stopped, save every few rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=160)
    parser.add_argument("--save-every", type=int, default=10)
    options = parser.parse_args()
    trainer = ShareTrainer(options.data, options.out, options.rounds)
    clock = SystemClock()
    while trainer.rounds < options.rounds:
        started, losses = clock.now(), trainer.round()
        said = "; ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        print(f"round {trainer.rounds}: {said} ({clock.now() - started:.1f} s)", flush=True)
        if trainer.rounds % options.save_every == 0:
            trainer.save()


class ShareTrainer:
    """One frozen base with the four adapters; all see the same contexts in the same order."""

    def __init__(self, data: Path, out: Path, rounds: int) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with kdn.open() as opened:
            self._tokenizer, self._chat = opened.model.tokenizer, opened.model.chat
        _, folder = weights(BenchOptions(model="smollm2-135m"), "bfloat16")
        base = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation=wide_attention()
        )
        self._model: Any = None
        for name in NAMES:
            task, kind = name.split("-")
            ids = list(self._tokenizer.encode(INVOCATIONS[task])) if kind == "alora" else None
            lora = LoraConfig(
                r=RANK,
                lora_alpha=ALPHA,
                target_modules=MODULES,
                task_type="CAUSAL_LM",
                alora_invocation_tokens=ids,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self._model is None:
                    self._model = get_peft_model(base, lora, adapter_name=name)
                else:
                    self._model.add_adapter(name, lora)
        self._model.config.use_cache = False
        self._parameters = {
            name: {
                key: value.requires_grad_(True)
                for key, value in self._model.named_parameters()
                if f".{name}." in key
            }
            for name in NAMES
        }
        self._optimizers = {
            name: torch.optim.AdamW(found.values(), lr=LEARNING_RATE, weight_decay=0.0)
            for name, found in self._parameters.items()
        }
        self._contexts = {task: make(data, "train") for task, make in TASKS.items()}
        self._head = base.get_output_embeddings().weight.detach()
        self._out, self._all_rounds = out, rounds
        self.rounds, self._losses = 0, {name: list[float]() for name in NAMES}
        self._go_on()

    def round(self) -> dict[str, float]:
        """A step of every adapter; their losses."""
        found = {}
        for name in NAMES:
            task, _ = name.split("-")
            chance = random.Random(f"{task} {self.rounds}")
            found[name] = self._step(name, chance.sample(self._contexts[task], CONTEXTS))
            self._losses[name].append(found[name])
        self.rounds += 1
        return found

    def save(self) -> None:
        """The adapters in bf16, and the state of the run."""
        self._model.save_pretrained(self._out)
        for name, optimizer in self._optimizers.items():
            file = self._out / name / "adapter_model.safetensors"
            small = {key: t.to(torch.bfloat16) for key, t in load_file(file).items()}
            save_file(small, file, metadata={"format": "pt"})
            config = file.with_name("adapter_config.json")
            said = json.loads(config.read_text("utf-8"))
            said["base_model_name_or_path"] = "smollm2-135m"
            config.write_text(json.dumps(said, indent=1) + "\n", "utf-8")
            state = {}
            for key, parameter in self._parameters[name].items():
                state[key] = parameter.detach().contiguous()
                for part in ("exp_avg", "exp_avg_sq"):
                    state[f"{key}/{part}"] = optimizer.state[parameter][part].contiguous()
            folder = self._out / "state"
            folder.mkdir(exist_ok=True)
            save_file(state, folder / f"{name}.partial")
            (folder / f"{name}.partial").replace(folder / f"{name}.safetensors")
        said = {"rounds": self.rounds, "losses": self._losses}
        publish_file(self._out / "state" / "run.json", json.dumps(said).encode())

    def _go_on(self) -> None:
        """Take up the state that a former call left, if there is one."""
        folder = self._out / "state"
        if not (folder / "run.json").exists():
            return
        said = json.loads((folder / "run.json").read_text("utf-8"))
        self.rounds, self._losses = said["rounds"], said["losses"]
        for name, found in self._parameters.items():
            state = load_file(folder / f"{name}.safetensors")
            for key, parameter in found.items():
                parameter.data.copy_(state[key])
                self._optimizers[name].state[parameter] = {
                    "step": torch.tensor(float(self.rounds)),
                    "exp_avg": state[f"{key}/exp_avg"],
                    "exp_avg_sq": state[f"{key}/exp_avg_sq"],
                }

    def _step(self, name: str, contexts: list[SharedContext]) -> float:
        optimizer = self._optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * self._pace()
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
        behind = {"alora_offsets": [sum(map(len, tree.branches))]} if "alora" in name else {}
        with torch.autocast("cpu", torch.bfloat16):
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
        logits = out[at].to(torch.bfloat16) @ self._head.T
        return cross_entropy(logits.float(), token_ids[0][at + 1])

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

    def _pace(self) -> float:
        """Up to 1 over the warm-up, then down to a tenth in a straight line."""
        warm = min(1.0, (self.rounds + 1) / WARMUP)
        return warm * max(0.1, 1.0 - self.rounds / self._all_rounds)


if __name__ == "__main__":
    main()
