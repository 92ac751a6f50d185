"""kdn demo: real documents, real questions, and what keeping their KV saves."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.ask import answer_shape, print_sources
from kdn.cli.options import HomeOption, JsonOption, ModelChoice, ModelOption, read_settings
from kdn.cli.show import emit, progress_bar, say, table, time_text, to_json, write_piece

if TYPE_CHECKING:
    from kdn.api import Answer
    from kdn.config import Config

__all__ = ["QUESTIONS", "demo"]

QUESTIONS = (
    "What does the walrus operator := do?",
    "How many spaces per indentation level does PEP 8 recommend?",
    "What is the with statement for?",
    "What does yield from do?",
    "What should the first line of a docstring be?",
)
BETTER_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
ROUNDS = ("cold", "warm", "restart")


@dataclass
class _Asked:
    """One question and its answers, by round."""

    question: str
    answers: dict[str, Answer] = field(default_factory=dict)

    def ttft_ms(self, name: str) -> float:
        return self.answers[name].usage.ttft_ms

    def speedup(self, name: str) -> float:
        return self.ttft_ms("cold") / self.ttft_ms(name)


def demo(
    model: ModelOption = "smollm2-135m",
    home: HomeOption = None,
    output: Annotated[Path, typer.Option(help="Where the result goes.")] = Path("demo.json"),
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Answer five questions over shipped documents: cold, warm, and after a restart."""
    config = _fresh(read_settings(home))
    choice = ModelChoice(model, home)
    asked = [_Asked(question) for question in QUESTIONS]
    _first_process(choice, config, asked, max_tokens, quiet=as_json)
    say("closing the store and opening it again")
    with choice.open(config) as kdn:
        for one in asked:
            one.answers["restart"] = kdn.ask(one.question, max_tokens=max_tokens)
    shape = _shape(model, asked)
    output.write_bytes(to_json(shape, indent=2) + b"\n")
    if as_json:
        emit(shape)
        return
    _print_times(asked)
    typer.echo(f"written to {output}")
    typer.echo(
        f"A better model, once: kdn models get {BETTER_MODEL}   "
        f"then: kdn demo --model {BETTER_MODEL}"
    )


def _fresh(config: Config) -> Config:
    """The same settings with an empty store and library of the demo's own."""
    import msgspec

    own = config.home / "demo"
    shutil.rmtree(own, ignore_errors=True)
    return msgspec.structs.replace(
        config,
        store=msgspec.structs.replace(config.store, folder=own / "store"),
        library=msgspec.structs.replace(config.library, folder=own / "library"),
    )


def _first_process(
    choice: ModelChoice, config: Config, asked: list[_Asked], max_tokens: int, *, quiet: bool
) -> None:
    """Ingest, then ask everything twice: cold, and with the KV that the first time left."""
    from kdn.corpus import corpus_files

    with choice.open(config) as kdn:
        with progress_bar() as bar:
            task = bar.add_task("ingesting", total=None)
            report = kdn.ingest(
                corpus_files(),
                on_progress=lambda p: bar.update(task, total=p.num_bytes, completed=p.bytes_done),
            )
        say(
            f"{len(report.added)} documents, {report.num_tokens:,} tokens, "
            f"in {time_text(report.seconds)}"
        )
        for one in asked:
            if not quiet:
                write_piece(f"\n> {one.question}\n")
            one.answers["cold"] = kdn.ask(
                one.question, max_tokens=max_tokens, stream=None if quiet else write_piece
            )
            if not quiet:
                write_piece("\n")
                print_sources(one.answers["cold"].sources[:1])
        say("\nasking again, now that the documents' KV is kept")
        for one in asked:
            one.answers["warm"] = kdn.ask(one.question, max_tokens=max_tokens)


def _print_times(asked: list[_Asked]) -> None:
    rows: list[tuple[str, ...]] = [
        (
            one.question,
            *(time_text(one.ttft_ms(name) / 1000) for name in ROUNDS),
            f"{one.speedup('warm'):.1f}x",
            f"{one.answers['warm'].usage.cached_tokens}/{one.answers['warm'].usage.prompt_tokens}",
        )
        for one in asked
    ]
    typer.echo("")
    columns = ("time to first token", "cold", "warm", "restarted", "warm is", "tokens reused")
    table("", columns, rows)


def _shape(model: str, asked: list[_Asked]) -> dict[str, Any]:
    return {
        "model": model,
        "questions": [
            {
                "question": one.question,
                **{name: answer_shape(answer) for name, answer in one.answers.items()},
            }
            for one in asked
        ],
        "summary": {
            **{
                f"{name}_ttft_ms": round(statistics.median(one.ttft_ms(name) for one in asked), 1)
                for name in ROUNDS
            },
            "warm_speedup": round(statistics.median(one.speedup("warm") for one in asked), 2),
            "restart_speedup": round(statistics.median(one.speedup("restart") for one in asked), 2),
        },
    }
