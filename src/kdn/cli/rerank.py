"""kdn rerank: which of these texts helps with a query?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.grouped import grouped
from kdn.cli.options import (
    AdapterOption,
    EngineChoice,
    JsonOption,
    ModelChoice,
    first_adapter,
)
from kdn.cli.show import emit, say, tell, time_text
from kdn.core import UnsoundJson, read_sound_json
from kdn.errors import BadInput
from kdn.machine.text import counted, lines_of, read_text, read_typed

if TYPE_CHECKING:
    from kdn.rank import RankedDocument, Ranking

__all__ = ["rerank"]

_SHOWN = 72
_NAMED = 5


@grouped
def rerank(
    query: Annotated[str, typer.Argument(help="What the texts are ranked by.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Text files, a document each.", exists=True)
    ] = None,
    *,
    documents: Annotated[
        str | None,
        typer.Option(
            "--documents",
            "-d",
            help="A .jsonl file of strings or {id, text} objects, or - for lines on stdin.",
        ),
    ] = None,
    top_n: Annotated[int | None, typer.Option(min=1, help="Only so many, the best.")] = None,
    layout: Annotated[
        str,
        typer.Option(help="document-first reuses documents; query-first is what most were taught."),
    ] = "document-first",
    template: Annotated[
        str | None, typer.Option(help="A published reranker's name, or a .toml file; see the docs.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What to ask about each text.")] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are longer than the context.")
    ] = False,
    choice: ModelChoice,
    adapter: AdapterOption = None,
    asked_at: EngineChoice,
    as_json: JsonOption = False,
) -> None:
    """Order texts by how well each belongs to a query; their KV is kept for the next query."""
    names, texts = _read(files or [], documents)
    if asked_at.engine is not None:
        unused = {"adapter": adapter, "truncate": truncate}
        started = perf_counter()
        with asked_at.open(choice, unused) as server:
            found = server.rerank(
                query, texts, top_n, layout=layout, template=template, instruction=instruction
            )
        _tell(query, found, names, perf_counter() - started, as_json=as_json)
        return
    with choice.using(None if adapter == ["none"] else adapter).open() as kdn:
        named = first_adapter(adapter)
        used = kdn.scoring.reranker(layout, template, named)
        if used is not None and named is None:
            say(
                f"ranked by the adapter {used} of {choice.model}; --adapter none takes the model alone"
            )
        started = perf_counter()
        found = kdn.rerank(
            query,
            texts,
            top_n,
            layout=layout,
            template=template,
            instruction=instruction,
            truncate=truncate,
            adapter=named,
        )
        seconds = perf_counter() - started
    _tell(query, found, names, seconds, as_json=as_json)
    if not as_json:
        _say_whose_blocks(template)


def _tell(query: str, found: Ranking, names: list[str], seconds: float, *, as_json: bool) -> None:
    if as_json:
        emit(_shape(query, found, names, seconds))
    else:
        _print(found, names, seconds)


def _read(files: list[Path], documents: str | None) -> tuple[list[str], list[str]]:
    """Names and texts. Raises BadInput when there are none, or what is there is no document."""
    names, texts = [str(path) for path in files], [read_text(path) for path in files]
    if documents is not None:
        source = read_typed() if documents == "-" else read_text(Path(documents))
        for number, line in enumerate(lines_of(source), 1):
            if line.strip():
                name, text = _document(line, f"{documents}:{number}")
                names.append(name)
                texts.append(text)
    if not texts:
        raise BadInput("there is nothing to rank: name text files, or --documents with lines in it")
    empty = [name for name, text in zip(names, texts, strict=True) if not text.strip()]
    if len(empty) == len(texts):
        raise BadInput(f"there is nothing to rank: no text in {_some(empty)}")
    if empty:
        say(f"no text in {_some(empty)}: ranked last, with score 0")
    return names, texts


def _some(names: list[str]) -> str:
    """The first few names, and how many there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _document(line: str, where: str) -> tuple[str, str]:
    """A string, an object with `text`, or a line that is no JSON and stands for itself."""
    try:
        told = read_sound_json(line)
    except UnsoundJson as error:
        raise BadInput(f"{where}: {error}") from error
    except json.JSONDecodeError:
        return where, line
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: no JSON that is read: {error}") from error
    if isinstance(told, str):
        return where, told
    if isinstance(told, dict) and isinstance(told.get("text"), str):
        return str(told.get("id", where)), told["text"]
    raise BadInput(f"{where}: a document is a string or has a `text`; this is {line[:40]!r}")


def _shape(query: str, found: Ranking, names: list[str], seconds: float) -> dict[str, Any]:
    return {
        "query": query,
        "results": [_result(one, names) for one in found],
        "prompt_tokens": found.prompt_tokens,
        "cached_tokens": found.cached_tokens,
        "seconds": round(seconds, 4),
    }


def _result(one: RankedDocument, names: list[str]) -> dict[str, Any]:
    odds = one.log_odds if math.isfinite(one.log_odds) else None
    name = names[one.index]
    return {"index": one.index, "name": name, "score": one.score, "log_odds": odds}


def _print(found: Ranking, names: list[str], seconds: float) -> None:
    for one in found:
        opening = " ".join(one.document.split())[:_SHOWN]
        tell(f"{one.score:.4f}  {names[one.index]}  {opening}")
    share = found.cached_tokens / found.prompt_tokens if found.prompt_tokens else 0.0
    say(
        f"\n{counted(len(names), 'document')} in {time_text(seconds)}; "
        f"{counted(found.prompt_tokens, 'prompt token')}, {share:.0%} reused"
    )


def _say_whose_blocks(template: str | None) -> None:
    from kdn.rank import find_template

    chosen = find_template(template)
    if chosen.has_own_prelude:
        say(f"the stored documents serve the template {chosen.name} alone, not answers")
