"""Writes the generated pages of docs/ from the code and the results. Run it after changing a command, a
public name, a setting, a body of the server, or a result of a benchmark.

python scripts/generate_docs.py           writes the pages
python scripts/generate_docs.py --check   writes nothing; exit code 1 if a page is not current
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from config_page import config_page
from http_page import http_page
from report import page as report_page
from typer.main import get_command

from kdn.cli import app

DOCS = Path(__file__).parents[1] / "docs"
ROOMS = ("kdn", "kdn.core", "kdn.config", "kdn.model", "kdn.engine", "kdn.schedule", "kdn.reuse",
         "kdn.store", "kdn.rag", "kdn.serve", "kdn.testing", "kdn.clock", "kdn.trace")  # fmt: skip
"""Where public names are: everything in these modules' `__all__`."""

_CLI_HEAD = """# The command line

Made from the program by `scripts/generate_docs.py`.

| exit code | meaning |
|---|---|
| 0 | done as asked; also `kdn serve`, `kdn node` and `kdn router` that SIGTERM ended while they served |
| 1 | it failed: the machine, a tier, another program, a model's files; `kdn store verify` found damage |
| 2 | what was asked for, or a setting, cannot be done so: the sentence on standard error says what to give |
| 130 | Ctrl-C ended it, a server too; what was finished before is kept |
| 143 | SIGTERM ended it, also a server that did not serve yet; what was finished before is kept |"""


def cli_page() -> str:
    """Every command with its arguments and options, in the order of `kdn --help`."""
    lines = [_CLI_HEAD]
    for name, command in _commands("kdn", get_command(app)):
        lines += ["", f"## {name}", "", _paragraph(command.help or "")]
        shown = [parameter for parameter in command.params if not _is_everywhere(parameter)]
        if shown:
            lines += ["", "| parameter | default | meaning |", "|---|---|---|"]
            lines += [_parameter(parameter) for parameter in shown]
    return "\n".join(lines) + "\n"


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    yield name, command
    for child in children:
        yield from _commands(f"{name} {child}", children[child])


def _is_everywhere(parameter: Any) -> bool:
    return parameter.name in ("help", "install_completion", "show_completion")


def _parameter(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    words = (*parameter.opts, *parameter.secondary_opts)
    name = ", ".join(words) if is_option else parameter.name.upper()
    default = (
        ""
        if parameter.default in (None, False) or callable(parameter.default)
        else parameter.default
    )
    required = "required" if parameter.required else default
    meaning = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    return f"| `{name}` | {required} | {meaning} |"


def api_page() -> str:
    """Every public name with its signature and the first sentence about it."""
    lines = ["# Public Python names", "", "Made from the code by `scripts/generate_docs.py`."]
    for room in ROOMS:
        module = importlib.import_module(room)
        lines += ["", f"## {room}", "", _first(module), ""]
        for name in module.__all__:
            lines += _entry(name, getattr(module, name))
    return "\n".join(lines) + "\n"


def _entry(name: str, thing: Any) -> list[str]:
    if inspect.isclass(thing):
        return [_line(name + _constructor(thing), _first(thing)), *_methods(thing)]
    if inspect.isfunction(thing):
        return [_line(name + _signature(thing), _first(thing))]
    return [f"- `{name}`"]


def _line(name: str, meaning: str) -> str:
    return f"- `{name}`" + (f": {meaning}" if meaning else "")


def _constructor(kind: type) -> str:
    """What the class is called with, for those that callers build."""
    if issubclass(kind, (Enum, BaseException)) or getattr(kind, "_is_protocol", False):
        return ""
    return _signature(kind).removesuffix(" -> None")


def _methods(kind: type) -> Iterator[str]:
    if issubclass(kind, (Enum, BaseException)):
        return
    for name, member in vars(kind).items():
        function = inspect.unwrap(getattr(member, "__func__", member))
        if not name.startswith("_") and inspect.isfunction(function):
            yield "  " + _line(name + _signature(function), _first(function))


def _signature(function: Any) -> str:
    text = str(inspect.signature(function)).replace("(self, ", "(").replace("(self)", "()")
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are kept as text
    return re.sub(r"<(?:function )?[^<>]*<?(\w+)>?[^<>]* at 0x[0-9a-f]+>", "...", text)


def _first(thing: Any) -> str:
    """The first paragraph of its own docstring, on one line; generated ones do not count."""
    text = inspect.cleandoc(vars(thing).get("__doc__") or "")
    generated = text.startswith(f"{getattr(thing, '__name__', '')}(")
    return "" if generated else _paragraph(text.split("\n\n")[0])


def _paragraph(text: str) -> str:
    return " ".join(text.split())


PAGES = {
    "cli.md": cli_page,
    "api.md": api_page,
    "http.md": http_page,
    "configuration.md": config_page,
    "benchmarks/index.md": report_page,
}


def main() -> int:
    """Write the pages, or compare them."""
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if "--check" not in sys.argv[1:]:
            DOCS.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"not current: {', '.join(stale)}; run python scripts/generate_docs.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
