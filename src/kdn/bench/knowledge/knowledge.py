"""What does knowledge cost, and how well is it used: fine-tuned in, in the prompt, or as stored KV?

The table of the KDN paper, with quality: the
same invented facts are brought to the same model in three ways; then the same questions are asked, in
a wording that was not trained on.  The paper (arXiv 2409.13761, table 1) compares the time to add
knowledge, the cost of a request and its delay; whether the answers are right it leaves out.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from kdn import api
from kdn.api.answers import collect
from kdn.bench.common.lines import lines_of
from kdn.bench.common.measure import interleave
from kdn.bench.common.result import BenchOptions, Result, Row, model_name, scratch_folder
from kdn.bench.knowledge.facts import Fact, document, invent, judge
from kdn.bench.knowledge.finetune import Example, Trained, train_adapter
from kdn.config import Config, EngineConfig, StoreConfig, home_folder
from kdn.core import Retention, Sampling
from kdn.errors import MissingExtra
from kdn.model import Document, Message, resolve
from kdn.model.gguf.file import unpack_gguf
from kdn.plot import Figure

__all__ = ["run"]

NOTHING, TUNED, PROMPT, STORED = "nothing added", "fine-tuning", "in the prompt", "stored KV"
_ADAPTER = "facts"
_USUAL = BenchOptions().model
_SAMPLING = Sampling(max_tokens=16)
_DOLLARS_PER_HOUR = 0.10
"""An assumed price of this machine; only ratios of it enter the summary."""
_STORE_BYTES = 1 << 30


@dataclass
class _Way:
    """What one way of adding knowledge took and gave."""

    added_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)


def run(options: BenchOptions) -> Result:
    """Add the facts in every way, then ask about them in turns."""
    torch.set_num_threads(options.threads)
    facts = invent(6 if options.quick else 30, options.seed)
    asked = facts[:3] if options.quick else facts
    ways = {way: _Way() for way in (NOTHING, TUNED, PROMPT, STORED)}
    with scratch_folder() as folder:
        trained, notes = _tune(options, facts, folder)
        with _opened(options, folder, trained is not None) as service:
            if trained is None:
                del ways[TUNED]
            else:
                ways[TUNED].added_s = trained.seconds
            started = options.clock.now()
            service.prefill(document(facts), _ADAPTER)
            service.store.flush()
            ways[STORED].added_s = options.clock.now() - started
            _ask_all(options, service, facts, asked, ways)
    rows = [_row(name, way) for name, way in ways.items()]
    return Result(
        bench="kdn",
        model=options.model,
        config=options.describe() | {"facts": len(facts), "dollars_per_hour": _DOLLARS_PER_HOUR},
        rows=rows,
        summary=_summary(ways),
        notes=notes,
        figures=(figure_of(rows),),
        page=None if options.model == _USUAL else f"kdn-{model_name(options.model)}",
    )


def _tune(
    options: BenchOptions, facts: Sequence[Fact], folder: Path
) -> tuple[Trained | None, tuple[str, ...]]:
    """The adapter in `folder`, and what to say of it; None where it cannot be trained."""
    weights = _weights(options)
    with _opened(options, folder, tuned=False) as service:
        examples = _examples(service, facts)
    steps, seconds = (4, 15.0) if options.quick else (400, 160.0)
    options.say("fine-tuning: loading the model")
    try:
        trained = train_adapter(
            weights, examples, folder / _ADAPTER, options.clock,
            most_steps=steps, most_s=seconds, seed=options.seed, say=options.say,
        )  # fmt: skip
    except MissingExtra as missing:
        return None, (f"{TUNED} was left out: {missing}",)
    told = (
        f"LoRA of rank 16 on every matrix: {trained.steps} steps of 8 examples (each fact's sentence, and"
        f" a question about it in another wording than is asked), last loss {trained.loss:.2f};"
        f" it ends at a loss of 0.05, {steps} steps or {seconds:.0f} s."
    )
    return trained, (
        told,
        "Costs are the seconds a request keeps the machine busy, at an assumed price.",
    )


def _weights(options: BenchOptions) -> Path:
    """The model as a Hugging Face folder; kdn has turned a GGUF file into one already."""
    home = options.home or home_folder(os.environ)
    place = Path(options.model)
    found = place if place.exists() else resolve(options.model, home)
    if found.is_dir():
        return found
    return unpack_gguf(found, Config(home=home).models_folder / "unpacked", torch.bfloat16)


def _examples(service: api.Kdn, facts: Sequence[Fact]) -> list[Example]:
    encode, examples = service.model.tokenizer.encode, []
    for fact in facts:
        sentence = tuple(encode(fact.sentence))
        examples.append(Example(sentence, len(sentence) - 1))
        answer = tuple(encode(fact.answer))
        question = service.prompts.segments([Message("user", fact.question)]).token_ids
        end = service.model.tokenizer.eos_ids[:1]
        examples.append(Example((*question, *answer, *end), len(answer) + len(end)))
    return examples


def _opened(options: BenchOptions, folder: Path, tuned: bool) -> api.Kdn:
    home = options.home or home_folder(os.environ)
    store = StoreConfig(
        folder=folder / "store",
        disk_bytes=_STORE_BYTES,
        memory_bytes=_STORE_BYTES,
        prefill_tokens_per_s=1.0,  # what is stored is loaded, whether it pays or not
    )
    config = Config(
        home=home, engine=EngineConfig(threads=options.threads, fit_idle_s=0), store=store
    )
    adapters = {_ADAPTER: folder / _ADAPTER} if tuned else None
    return api.open(options.model, config=options.note(config), adapters=adapters)


def _ask_all(
    options: BenchOptions,
    service: api.Kdn,
    facts: list[Fact],
    asked: Sequence[Fact],
    ways: dict[str, _Way],
) -> None:
    text = document(facts)

    def side(name: str) -> Callable[[int], float]:
        return lambda number: _ask(service, name, asked[number], text, ways[name])

    options.say(f"{len(asked)} questions in {len(ways)} ways")
    interleave({name: side(name) for name in ways}, len(asked), rest_s=0.0)


def _ask(service: api.Kdn, name: str, fact: Fact, text: str, way: _Way) -> float:
    documents = [Document(_ADAPTER, text)] if name in (PROMPT, STORED) else []
    request = service.prompts.request(
        [Message("user", fact.asked)],
        documents,
        sampling=_SAMPLING,
        adapter=_ADAPTER if name == TUNED else None,
    )
    request = replace(request, reuse=name == STORED, retention=Retention.NOTHING)
    answer = collect(service.submit(request), None)
    found, f1 = judge(answer.text, fact.answer)
    way.found.append(found)
    way.f1.append(f1)
    way.first_s.append(answer.usage.ttft_ms / 1000)
    way.total_s.append(answer.usage.total_ms / 1000)
    return answer.usage.total_ms / 1000


def _row(name: str, way: _Way) -> Row:
    return {
        "way": name,
        "time to add, s": way.added_s,
        "first token, ms": 1000 * statistics.median(way.first_s),
        "whole answer, ms": 1000 * statistics.median(way.total_s),
        "cost, $ per 1000 requests": _cost(way) * 1000,
        "answers found": statistics.mean(way.found),
        "F1": statistics.mean(way.f1),
    }


def _cost(way: _Way) -> float:
    return statistics.mean(way.total_s) / 3600 * _DOLLARS_PER_HOUR


def _summary(ways: dict[str, _Way]) -> dict[str, float | None]:
    tuned, prompt, stored = ways.get(TUNED), ways[PROMPT], ways[STORED]
    pairs = zip(prompt.first_s, stored.first_s, strict=True)
    return {
        "add_speedup": tuned.added_s / stored.added_s if tuned else None,
        "delay_speedup": statistics.median(p / s for p, s in pairs),
        "request_cost_saving": 1 - _cost(stored) / _cost(prompt),
        "f1_nothing": statistics.mean(ways[NOTHING].f1),
        "f1_tuned": statistics.mean(tuned.f1) if tuned else None,
        "f1_prompt": statistics.mean(prompt.f1),
        "f1_stored": statistics.mean(stored.f1),
        "found_tuned": statistics.mean(tuned.found) if tuned else None,
        "found_prompt": statistics.mean(prompt.found),
        "found_stored": statistics.mean(stored.found),
    }


def figure_of(rows: Sequence[Row]) -> Figure:
    """How right answers are by how long their first token takes."""
    lines = lines_of(rows, "way", "first token, ms", "F1")
    return Figure("What each way gives", "ms to the first token", "F1", lines, joined=False)
