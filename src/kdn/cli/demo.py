"""kdn demo: real documents, real questions, and what keeping their KV saves."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.ask import answer_shape, print_sources
from kdn.cli.options import (
    HomeOption,
    JsonOption,
    ModelChoice,
    ModelOption,
    output_file,
    read_settings,
)
from kdn.cli.show import (
    emit,
    progress_bar,
    say,
    say_for_trying,
    table,
    tell,
    time_text,
    to_json,
    write_piece,
)
from kdn.errors import StoreError
from kdn.machine.files import make_private, publish_file, system_errors, try_lock
from kdn.machine.text import counted

if TYPE_CHECKING:
    from kdn.api import Answer, Kdn
    from kdn.config import Config

__all__ = ["QUESTIONS", "DemoAnswer", "demo", "play"]

QUESTIONS = (
    "What is the maximum line length in PEP 8?",
    "Who wrote the Zen of Python?",
    "What should a multi-line docstring consist of?",
    "What does a wildcard pattern match?",
    "Why was PEP 380 proposed?",
)
BETTER_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
ROUNDS = ("cold", "warm", "restart")


@dataclass
class DemoAnswer:
    """One question and its answers, by round: cold, warm, restart."""

    question: str
    answers: dict[str, Answer] = field(default_factory=dict)

    def ttft_ms(self, name: str) -> float:
        return self.answers[name].usage.ttft_ms

    def speedup(self, name: str) -> float:
        return self.ttft_ms("cold") / self.ttft_ms(name)


def demo(
    model: ModelOption = "smollm2-135m",
    home: HomeOption = None,
    output: Annotated[
        Path, typer.Option(help="Where the result goes.", callback=output_file)
    ] = Path("demo.json"),
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Answer five questions over shipped documents: cold, warm, and after a restart.

    The packaged model only quotes the passage that was found; a larger one answers in its own words.
    """
    from kdn.corpus import corpus_files

    with _alone(read_settings(home)) as config:
        asked = play(
            ModelChoice(model, home), config, corpus_files(), QUESTIONS, max_tokens, quiet=as_json
        )
    shape = _shape(model, asked)
    publish_file(output, to_json(shape, indent=2) + b"\n")
    if as_json:
        emit(shape)
        return
    _print_times(asked)
    tell(f"written to {output}")
    say_for_trying(model)
    tell(
        f"A better model, once: kdn models get {BETTER_MODEL}   "
        f"then: kdn demo --model {BETTER_MODEL}"
    )


@contextmanager
def _alone(config: Config) -> Iterator[Config]:
    """The same settings with an empty store and library of the demo's own.

    Raises StoreError while another demo uses them: its store would be removed under it.
    """
    own = config.home / "demo"
    with system_errors(f"making {config.home}"):
        make_private(config.home)
        lock = try_lock(config.home / "demo.lock")
    if lock is None:
        raise StoreError(
            f"{own}: another kdn demo runs there; wait for it to end, or give --home another folder"
        )
    with lock:
        shutil.rmtree(own, ignore_errors=True)
        yield _with_own(config, own)


def _with_own(config: Config, own: Path) -> Config:
    import msgspec

    return msgspec.structs.replace(
        config,
        store=msgspec.structs.replace(config.store, folder=own / "store"),
        library=msgspec.structs.replace(config.library, folder=own / "library"),
    )


def play(
    choice: ModelChoice,
    config: Config,
    files: Sequence[Path],
    questions: Sequence[str],
    max_tokens: int,
    *,
    quiet: bool,
) -> list[DemoAnswer]:
    """Ingest `files`, ask everything cold and warm, open the store again and ask once more."""
    asked = [DemoAnswer(question) for question in questions]
    with choice.open(config) as kdn:
        _ingest(kdn, files)
        _warm_up(kdn)
        for one in asked:
            one.answers["cold"] = _ask_aloud(kdn, one.question, max_tokens, quiet=quiet)
        say("\nasking again, now that the documents' KV is kept")
        for one in asked:
            one.answers["warm"] = kdn.ask(one.question, max_tokens=max_tokens)
    say("closing the store, and opening it again")
    with choice.open(config) as kdn:
        _warm_up(kdn)
        for one in asked:
            one.answers["restart"] = kdn.ask(one.question, max_tokens=max_tokens)
    return asked


def _ingest(kdn: Kdn, files: Sequence[Path]) -> None:
    with progress_bar() as bar:
        task = bar.add_task("ingesting", total=None)
        report = kdn.ingest(
            files, on_progress=lambda p: bar.update(task, total=p.num_bytes, completed=p.bytes_done)
        )
    say(
        f"{counted(len(report.added), 'document')}, {counted(report.num_tokens, 'token')}, "
        f"in {time_text(report.seconds)}"
    )


def _warm_up(kdn: Kdn) -> None:
    """A process's first pass also pays for its memory and threads: not what is compared here."""
    from kdn.core import Retention, Sampling

    words = "one two three four five six seven eight nine ten " * 20
    kdn.generate(words, sampling=Sampling(max_tokens=2), retention=Retention.NOTHING)


def _ask_aloud(kdn: Kdn, question: str, max_tokens: int, *, quiet: bool) -> Answer:
    if quiet:
        return kdn.ask(question, max_tokens=max_tokens)
    write_piece(f"\n> {question}\n")
    answer = kdn.ask(question, max_tokens=max_tokens, stream=write_piece)
    write_piece("\n")
    print_sources(answer.sources[:1])
    return answer


def _print_times(asked: list[DemoAnswer]) -> None:
    rows: list[tuple[str, ...]] = [
        (
            one.question,
            *(time_text(one.ttft_ms(name) / 1000) for name in ROUNDS),
            f"{one.speedup('warm'):.1f}x",
            f"{one.answers['warm'].usage.cached_tokens}/{one.answers['warm'].usage.prompt_tokens}",
        )
        for one in asked
    ]
    tell("")
    columns = ("time to first token", "cold", "warm", "restarted", "warm is", "tokens reused")
    table("", columns, rows)


def _shape(model: str, asked: list[DemoAnswer]) -> dict[str, Any]:
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
