"""kdn ask and kdn chat: answers in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.grouped import grouped
from kdn.cli.options import (
    AdapterOption,
    JsonOption,
    ModelChoice,
    ShareOption,
    first_adapter,
)
from kdn.cli.show import emit, say, say_for_trying, time_text, write_piece
from kdn.cli.steer import find_recipe
from kdn.errors import BadInput
from kdn.machine.text import counted, read_text, read_typed

if TYPE_CHECKING:
    from kdn.api import Answer, Kdn, QueryOptions, Source
    from kdn.core import Usage

__all__ = ["answer_shape", "ask", "chat", "print_sources"]

_STRESSED, _MUTED = 3.0, 0.1
"""Weights of --stress and --mute."""
_QUOTED = "quoted from your documents, no model was asked; --method stuff has the model answer"
_FAST_PARTS = 3
"""Parts cost little to read once they are stored."""

MaxTokensOption = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")]
StressOption = Annotated[
    list[str] | None,
    typer.Option("--stress", metavar="TEXT", help="Words to attend to more; may be repeated."),
]
MuteOption = Annotated[
    list[str] | None,
    typer.Option("--mute", metavar="TEXT", help="Words to attend to less; may be repeated."),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        help="0 always takes the likeliest; by default as the model's publisher says.",
    ),
]


@grouped
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know; - reads stdin.")],
    *,
    max_tokens: MaxTokensOption = 256,
    max_parts: Annotated[
        int | None,
        typer.Option(
            min=1, help="Parts of documents (about 1,000 tokens each) to read: 1, or 3 with --fast."
        ),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Reuse parts wherever they stand; approximates the answer."),
    ] = False,
    rerank: Annotated[
        int,
        typer.Option(
            min=0, help="Retrieve so many parts and let the model choose among them; 0: do not."
        ),
    ] = 0,
    stress: StressOption = None,
    mute: MuteOption = None,
    steer: Annotated[
        str | None,
        typer.Option(
            help="Stress the sentence that the question looks at, where one is clear (look) or in any"
            " case (look-always), or the passage that was found first (retrieved), or use texts that were"
            " steered by a recipe (its file or name)."
        ),
    ] = None,
    steer_report: Annotated[
        bool,
        typer.Option("--steer-report", help="Say what steering did: the answer without it, too."),
    ] = False,
    always: Annotated[
        bool,
        typer.Option("--always", help="Answer even where the documents do not seem to say it."),
    ] = False,
    auto: Annotated[
        bool | None,
        typer.Option(
            "--auto/--no-auto",
            help="Choose for the question how many parts are read and how the answer is made of them;"
            " so it is unless --max-parts, --fast, --rerank or steering say it and no option of --auto is"
            " given.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Of --auto: extract, stuff, map_rerank or map_reduce, not chosen."),
    ] = None,
    quality: Annotated[
        str, typer.Option(help="Of --auto: fast, balanced or best, among what is good enough.")
    ] = "balanced",
    deadline_ms: Annotated[
        float | None, typer.Option(min=1, max=1e9, help="Of --auto: when the answer is wanted.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the profile, the choice and its reasons.")
    ] = False,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from the ingested documents, and show where the answer stands."""
    question = read_typed() if question == "-" else question
    steered = bool(steer is not None or stress or mute or steer_report)
    chosen = bool(auto) or method is not None or deadline_ms is not None or quality != "balanced"
    _refuse_beside(
        {"--auto, --method, --quality and --deadline-ms": chosen},
        {"--rerank": rerank > 0, "steering": steered, "--no-auto": auto is False},
    )
    said = max_parts is not None or fast or rerank > 0 or steered
    options = None
    if chosen or (auto is None and not said):
        options = _options(max_tokens, max_parts, method, quality, deadline_ms, always, fast)
    show = None if as_json else write_piece
    spans = _steering(steer, stress, mute, choice.home)
    with choice.open() as kdn:
        if options is not None:
            _refuse_empty(kdn, question)
            answer = kdn.answering.answer(question, options, show)
        else:
            answer = kdn.ask(
                question,
                max_tokens=max_tokens,
                max_parts=max_parts or (_FAST_PARTS if fast else 1),
                rerank=rerank,
                stream=show,
                reuse="blend" if fast else "exact",
                steer=spans,
                steer_report=steer_report,
                always=always,
            )
        _show(question, answer, as_json=as_json, explain=explain)
        if answer.in_documents and answer.usage.completion_tokens and not as_json:
            say_for_trying(kdn.name)
        if fast:
            kdn.catch_up()


def _refuse_beside(automatic: Mapping[str, bool], others: Mapping[str, bool]) -> None:
    """Raises BadInput where an option would not be heeded, since another one says how to answer."""
    for name, is_given in automatic.items():
        clash = next((one for one, is_other in others.items() if is_other), None)
        if is_given and clash is not None:
            raise BadInput(
                f"{name} let kdn choose how to answer, which {clash} says already: leave one out"
            )


def _steering(
    word: str | None, stress: list[str] | None, mute: list[str] | None, home: Path | None
) -> Any:
    """What --steer, --stress and --mute say together. Raises BadInput for a word and spans."""
    weights = ((stress or (), _STRESSED), (mute or (), _MUTED))
    spans = [{"text": text, "weight": weight} for texts, weight in weights for text in texts]
    if word is None:
        return spans
    if spans:
        raise BadInput(f"--steer {word} chooses what to stress: leave out --stress and --mute")
    from kdn.reuse.steer import LOOKS

    words = (*LOOKS, "retrieved")
    if word in words:
        return word
    recipe = find_recipe(word, home)
    if recipe is None:
        raise BadInput(
            f"--steer is {word!r}; it can be {', '.join(words)}, or a recipe's file or its name"
        )
    return recipe


def _options(
    max_tokens: int,
    max_parts: int | None,
    method: str | None,
    quality: str,
    deadline_ms: float | None,
    always: bool,
    fast: bool,
) -> QueryOptions:
    from kdn.api import QueryOptions
    from kdn.rag.metis import method_of, preference_of

    return QueryOptions(
        max_tokens=max_tokens,
        method=None if method is None else method_of(method),
        max_chunks=max_parts,
        quality=preference_of(quality),
        deadline_ms=deadline_ms,
        reuse="blend" if fast else "exact",
        always=always,
    )


def _refuse_empty(kdn: Kdn, question: str) -> None:
    """At a terminal nothing ingested is a mistake to be told by the exit code."""
    if not question.strip():
        raise BadInput("the question is empty; ask something")
    if not kdn.library.num_sources:
        raise BadInput("the library is empty; take documents in first: kdn ingest PATH")


def _show(question: str, answer: Answer, *, as_json: bool, explain: bool) -> None:
    report = answer.report
    if as_json:
        configuration = None if report is None else report.as_json()
        emit({"question": question, **answer_shape(answer), "configuration": configuration})
        return
    write_piece("\n")
    if report is not None:
        for line in report.lines() if explain else report.notes:
            say(line)
    if not answer.in_documents:
        say("\nnothing in the documents speaks for an answer; --always asks the model nevertheless")
        return
    print_sources(answer.sources)
    if answer.steering is not None:
        say(
            f"\nwithout steering (KL {answer.steering.kl:.3f} nats over {answer.steering.num_compared}"
            f" tokens): {answer.steering.plain_text}"
        )
    say(usage_line(answer.usage) if answer.usage.prompt_tokens else f"\n{_QUOTED}")


def answer_shape(answer: Answer) -> dict[str, Any]:
    """An answer as --json shows it."""
    return {
        "answer": answer.text,
        "finish_reason": str(answer.finish_reason),
        "in_documents": answer.in_documents,
        "sources": [
            {
                "source": s.source,
                "title": s.title,
                "heading": s.heading,
                "text": s.text,
                "score": s.score,
            }
            for s in answer.sources
        ],
        "steering": None if answer.steering is None else asdict(answer.steering),
        "usage": usage_shape(answer.usage),
    }


def usage_shape(usage: Usage) -> dict[str, Any]:
    """Where the prompt's tokens came from, as --json shows it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "exact": usage.exact,
        "blended": usage.blended,
        "shared": usage.shared,
        "lossy": usage.lossy,
        "recomputed": usage.recomputed,
        "ttft_ms": round(usage.ttft_ms, 3),
        "total_ms": round(usage.total_ms, 3),
        "tiers": dict(usage.tiers),
        "levels": dict(usage.levels),
    }


def print_sources(sources: Sequence[Source]) -> None:
    """Each source with its path and its passage, indented."""
    for number, source in enumerate(sources, 1):
        where = " > ".join(part for part in (source.title, source.heading) if part)
        write_piece(f"\n[{number}] {where}\n    {source.source}\n")
        for line in source.text.strip().splitlines():
            write_piece(f"    {line}\n")


def usage_line(usage: Usage) -> str:
    """One line: what was reused, what was computed, how long the first token took."""
    return (
        f"\n{counted(usage.prompt_tokens, 'prompt token')}: {_reused(usage)}, "
        f"{usage.recomputed} computed; first token after {time_text(usage.ttft_ms / 1000)}; "
        f"{counted(usage.completion_tokens, 'token')} in {time_text(usage.total_ms / 1000)}"
    )


def _reused(usage: Usage) -> str:
    if not (usage.blended or usage.shared):
        return f"{usage.cached_tokens} reused"
    kinds = {"blended": usage.blended, "shared": usage.shared}
    others = ", ".join(f"{tokens} {kind}" for kind, tokens in kinds.items() if tokens)
    return f"{usage.exact} reused exactly, {others}"


@grouped
def chat(
    *,
    system: Annotated[str | None, typer.Option(help="What the assistant is told first.")] = None,
    document: Annotated[
        list[Path] | None,
        typer.Option("--document", "-d", exists=True, dir_okay=False, help="A text to talk about."),
    ] = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Answers are JSON of the schema in this file."
        ),
    ] = None,
    choice: ModelChoice,
    adapter: AdapterOption = None,
    stress: StressOption = None,
    mute: MuteOption = None,
    share: ShareOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk with the model; what was said before is reused. /new begins again, /quit ends."""
    from kdn.core import Constraint

    documents = [read_text(path) for path in document or ()]
    schema = None if json_schema is None else Constraint.json_schema(read_text(json_schema))
    opening = [{"role": "system", "content": system}] if system else []
    history, turns = list(opening), list[dict[str, Any]]()
    with choice.using(adapter).open() as kdn:
        try:
            for text in _lines("" if as_json else "> "):
                if text == "/new":
                    history = list(opening)
                    continue
                history.append({"role": "user", "content": text})
                answer = kdn.generate(
                    history,
                    documents,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    schema=schema,
                    adapter=first_adapter(adapter),
                    steer=_steering(None, stress, mute, choice.home),
                    share=share,
                    stream=None if as_json else write_piece,
                )
                history.append({"role": "assistant", "content": answer.text})
                if as_json:
                    turns.append({"question": text, **answer_shape(answer)})
                else:
                    write_piece("\n")
                    say(usage_line(answer.usage) + "\n")
        finally:  # a turn that fails takes none before it away
            if as_json:
                emit({"turns": turns})


def _lines(prompt: str) -> Iterator[str]:
    """What the user types, line by line, until /quit or the end of input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - importing it gives input() a history and line editing
    while True:
        try:
            text = input(prompt if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if text in ("/quit", "/exit"):
            return
        if text:
            yield text
