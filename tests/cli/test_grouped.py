"""Options in groups: a command line that has them one by one, and a command that gets them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from kdn.cli.grouped import grouped


@dataclass(frozen=True)
class Size:
    """Two options, and a field that is none."""

    width: Annotated[int, typer.Option("--width", "-w", help="Metres.")] = 3
    height: Annotated[int, typer.Option(min=1)] = 2
    unit: str = "m"


app = typer.Typer()


@app.command()
@grouped
def area(
    name: Annotated[str, typer.Argument()],
    *,
    size: Size,
    twice: Annotated[bool, typer.Option("--twice")] = False,
) -> None:
    """Say an area."""
    typer.echo(f"{name} {size.width * size.height * (2 if twice else 1)} {size.unit}")


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(arguments))
    return found.exit_code, found.output.strip()


def test_a_group_is_given_as_one_with_the_defaults_of_its_fields() -> None:
    assert run("hall") == (0, "hall 6 m")
    assert run("hall", "-w", "5", "--height", "4", "--twice") == (0, "hall 40 m")


def test_the_options_of_a_group_are_checked_and_explained_like_others() -> None:
    assert run("hall", "--height", "0")[0] == 2
    assert run("hall", "--unit", "cm")[0] == 2, "a field without a note is no option"
    code, shown = run("--help")
    assert code == 0
    for word in ("--width", "Metres.", "--height", "--twice", "Say an area."):
        assert word in shown
