"""kdn store put, lookup and why: from text to stored KV, and what of a text is stored. These need the
model, but for a request that a server remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdn.cli.grouped import grouped
from kdn.cli.options import JsonOption, ModelChoice
from kdn.cli.show import emit, tell, tell_failures
from kdn.cli.steer import RecipeOption, needed_recipe
from kdn.cli.store import store
from kdn.core import read_sound_json
from kdn.machine.text import counted, read_text

__all__ = ["lookup", "put", "store", "why"]

FilesArgument = Annotated[
    list[Path], typer.Argument(help="Text files.", exists=True, dir_okay=False)
]
PublicOption = Annotated[
    bool, typer.Option("--public", help="For every tenant: under the public salt.")
]
TenantOption = Annotated[str, typer.Option("--salt", help="For this tenant.")]


def _salt(salt: str, public: bool) -> str:
    from kdn.core import PUBLIC_SALT
    from kdn.errors import BadInput

    if salt and public:
        raise BadInput("a text is put either for one tenant (--salt) or for all (--public)")
    return PUBLIC_SALT if public else salt


@store.command()
@grouped
def put(
    files: FilesArgument,
    *,
    salt: TenantOption = "",
    public: PublicOption = False,
    steer: RecipeOption = None,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Compute and store the KV of documents now, so that the first question about them is quick."""
    from kdn.api.steered import prefill_steered

    owner = _salt(salt, public)
    rows = []
    recipe = None if steer is None else needed_recipe(steer, choice.home)
    with choice.open() as kdn:
        try:
            for file in files:
                tokens = (
                    kdn.prefill(read_text(file), file.name, owner)
                    if recipe is None
                    else prefill_steered(kdn, read_text(file), recipe, file.name, owner)
                )
                rows.append({"file": str(file), "tokens": tokens})
                if not as_json:
                    tell(f"{file}: {counted(tokens, 'token')}")
        finally:  # a file that fails takes none before it away
            kdn.store.flush()
            failed = tell_failures(kdn.trace)
            if as_json:
                emit({"salt": owner, "files": rows})
    if failed:
        raise typer.Exit(1)


@store.command()
@grouped
def lookup(
    files: FilesArgument,
    *,
    salt: TenantOption = "",
    public: PublicOption = False,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Show how much of each document's KV would hit, and from which tier. Computes nothing."""
    from kdn.store.admin.shapes import lookup_shape

    owner = _salt(salt, public)
    shown = []
    with choice.open() as kdn:
        try:
            for file in files:
                match, wanted = kdn.lookup(read_text(file), file.name, owner)
                shown.append({"file": str(file), **lookup_shape(match, wanted)})
                if not as_json:
                    tiers = ", ".join(dict.fromkeys(hit.tier for hit in match.hits)) or "nowhere"
                    tell(f"{file}: {match.num_tokens:,} of {counted(wanted, 'token')} ({tiers})")
        finally:
            tell_failures(kdn.trace)
            if as_json:
                emit({"salt": owner, "files": shown})


@store.command()
@grouped
def why(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A text file, or a JSON file with `messages` and perhaps `documents`.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    *,
    request: Annotated[
        str | None, typer.Option(help="In place of a file: the id of a server's answer.")
    ] = None,
    url: Annotated[str, typer.Option(help="That server.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(envvar="KDN_SERVE_API_KEY", help="Its key, if it asks for one.")
    ] = None,
    salt: TenantOption = "",
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Show at which token a prompt leaves what is stored, and the likely reason. Computes nothing."""
    from kdn.errors import BadInput

    if (file is None) == (request is None):
        raise BadInput("give a file, or the id of an answer with --request")
    if file is None:
        found = _why_of_request(url, str(request), api_key)
    else:
        with choice.open() as kdn:
            messages, documents = _conversation(file)
            asked = kdn.prompts.request(messages, documents, salt=salt)
            found = _as_shown(kdn.parts.why.foresee(asked, lambda _: True))
    if as_json:
        emit(found)
    else:
        _show_why(found)


def _conversation(file: Path) -> tuple[Any, Any]:
    """Messages and documents of a JSON body, or the text as one document."""
    from kdn.errors import BadInput

    text = read_text(file)
    if file.suffix != ".json":
        return "?", [{"id": file.name, "text": text}]
    try:
        body = read_sound_json(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid JSON: {error}") from error
    if not isinstance(body, dict) or "messages" not in body:
        raise BadInput(f"{file} holds no `messages`; give the body of a chat, or a text file")
    return body["messages"], body.get("documents", ())


def _as_shown(found: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(found) | {"sentence": found.sentence, "advice": found.reason.advice}


def _why_of_request(url: str, request: str, api_key: str | None) -> dict[str, Any]:
    """What a running server says of one of its last requests. Raises BadInput, BadConfig, Unreachable."""
    from urllib.parse import quote

    from kdn.errors import BadInput
    from kdn.scale.remote.client import JsonClient

    with JsonClient(url, api_key, timeout_s=60, tries=1) as server:
        reply = server.get(f"/v1/kdn/requests/{quote(request, safe='')}")
    report = reply.body
    if reply.status != 200:
        raise BadInput(f"{url}: {reply.message}")
    if report.get("object") != "kdn.request":
        raise BadInput(f"{url} answers as no kdn does; give the address of a `kdn serve`")
    if "why" not in report:
        raise BadInput(f"{request} has not ended yet; ask again when it has")
    try:
        kept = {"num_tokens": report["prompt_tokens"], "reused": report["exact"] + report["lossy"]}
        return {**kept, **report["why"]}
    except (KeyError, TypeError) as error:
        raise BadInput(f"{url} answers as another kdn would; use the server's version") from error


def _show_why(found: dict[str, Any]) -> None:
    tell(f"{found['sentence']} [{found['reason']}]")
    tell(f"{found['reused']:,} of {counted(found['num_tokens'], 'token')} come from the store")
    if found["text"] or found["before"]:
        tell(f"before:   …{_line(found['before'])}")
        tell(f"here:     {_line(found['text'])}…")
    if found["stored_text"]:
        tell(f"stored:   {_line(found['stored_text'])}…")
    tell(f"advice:   {found['advice']}")


def _line(text: str) -> str:
    """Line breaks shown as such, on one line."""
    return text.replace("\n", "⏎")
