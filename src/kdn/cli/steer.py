"""kdn steer: recipes that steer texts beforehand, fitted and shown."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.grouped import grouped
from kdn.cli.options import (
    JsonOption,
    ModelChoice,
    output_file,
    read_settings,
)
from kdn.cli.show import emit, say, tell
from kdn.errors import BadInput
from kdn.machine.files import is_there
from kdn.machine.text import counted, read_bounded, read_json_lines, read_text

if TYPE_CHECKING:
    from kdn.api.steer_fit import FitStep
    from kdn.api.steered import ShownText
    from kdn.reuse.steer import SteerRecipe

__all__ = ["RecipeOption", "app", "find_recipe", "needed_recipe"]

app = typer.Typer(no_args_is_help=True, help="Recipes that steer texts beforehand.")

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--steer",
        metavar="RECIPE",
        help="Steer the texts by this recipe, a file or a name (kdn steer fit); requests with it then use"
        " that KV.",
    ),
]


def find_recipe(word: str, home: Path | None) -> SteerRecipe | None:
    """The recipe in a file, or of a name in the home; None where there is neither.

    Raises BadInput for one that cannot be read, naming it.
    """
    from kdn.reuse.steer import RecipeFolder

    file, recipes = Path(word), RecipeFolder(read_settings(home).home)
    if is_there(file) and not file.is_dir():
        return _read_recipe(file)
    return _read_recipe(recipes.file(word)) if word in recipes.names() else None


def needed_recipe(word: str, home: Path | None) -> SteerRecipe:
    """As `find_recipe`. Raises BadInput where there is none of that name, too."""
    from kdn.reuse.steer import RecipeFolder

    found = find_recipe(word, home)
    if found is None:
        known = ", ".join(RecipeFolder(read_settings(home).home).names()[:8]) or "none"
        raise BadInput(
            f"{word!r:.200} is neither a recipe's file nor the name of one in the home; the names there"
            f" are: {known}"
        )
    return found


def _read_recipe(file: Path) -> SteerRecipe:
    from kdn.reuse.steer import SteerRecipe

    return SteerRecipe.decode(read_bounded(file), str(file))


@app.command()
@grouped
def fit(
    data: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Lines of JSON with document, question and answer: the development split.",
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", callback=output_file, help="Where the recipe goes.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Keep it in the home under this name, by which requests ask for it."),
    ] = None,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Choose layers, heads and weight, coarse to fine, by how likely the right answers become."""
    from kdn.api.steer_fit import FitQuestion, fit_recipe
    from kdn.machine.files import publish_made
    from kdn.reuse.steer import SteerRecipe

    file = _kept_as(out, name, choice.home)
    questions = read_json_lines(data, FitQuestion)
    steps: list[FitStep] = []

    def told(step: FitStep) -> None:
        steps.append(step)
        say(f"{step.what}: NLL {step.nll:.4f}")

    with choice.open() as kdn:
        start = SteerRecipe(kdn.model.fingerprints.of(None))
        best = fit_recipe(kdn, questions, start, told)
    assert best.recipe is not None, "a recipe was among the candidates"
    publish_made(file, best.recipe.encode())
    plain, *_ = steps
    if as_json:
        emit(
            {
                "plain_nll": plain.nll,
                "best": best.what,
                "nll": best.nll,
                "questions": len(questions),
            }
        )
        return
    verdict = "lowers" if best.nll < plain.nll else "does not lower"
    tell(
        f"wrote {file}: {best.what} {verdict} the right answers' NLL on these {len(questions)}"
        f" questions, {plain.nll:.4f} to {best.nll:.4f}; judge it on others"
    )


@app.command()
@grouped
def show(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A text.")],
    recipe: Annotated[str, typer.Option("--recipe", help="A file or a name, from kdn steer fit.")],
    *,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", callback=output_file, help="Write a page in place of the terminal."),
    ] = None,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """What a recipe chooses in a text: the more layers choose a token, the stronger it is marked."""
    from kdn.api.steered import show_steered
    from kdn.machine.files import publish_file

    wanted = needed_recipe(recipe, choice.home)
    with choice.open() as kdn:
        shown = show_steered(kdn, read_text(file), wanted)
    if html_file is not None:
        publish_file(html_file, _page(file.name, shown).encode())
        say(f"wrote {html_file}")
    if as_json:
        emit({"chosen": shown.num_columns, "tokens": [list(piece) for piece in shown.pieces]})
    elif html_file is None:
        _print(shown)


def _kept_as(out: Path | None, name: str | None, home: Path | None) -> Path:
    """Where a fitted recipe goes. Raises BadInput where none of the two or both are given."""
    from kdn.reuse.steer import RecipeFolder

    if out is not None and name is None:
        return out
    if name is None or out is not None:
        raise BadInput(
            "a recipe goes to a file (--out) or into the home (--name): give one of them"
        )
    return RecipeFolder(read_settings(home).home).file(name)


def _print(shown: ShownText) -> None:
    """Marked in the terminal; where there is none, between brackets."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    if console.is_terminal:
        text = Text()
        for piece, share in shown.pieces:
            strong = "bold reverse" if share > 1 / 3 else "bold"
            text.append(piece, style=strong if share else "")
        console.print(text)
    else:
        tell("".join(f"[{piece}]" if share else piece for piece, share in shown.pieces))
    tell(f"{shown.num_columns} of {counted(len(shown.pieces), 'token')} are chosen in some layer")


def _page(name: str, shown: ShownText) -> str:
    pieces = "".join(
        f'<mark style="background:rgba(255,170,0,{share:.2f})">{html.escape(piece)}</mark>'
        if share
        else html.escape(piece)
        for piece, share in shown.pieces
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title>\n"
        f'<body style="white-space:pre-wrap;font:16px/1.6 serif;max-width:45em;margin:2em auto">\n'
        f"{pieces}</body>\n"
    )
