"""Writes what README.md takes from elsewhere: the tree of the package and the table of times.

The tree stands in docs/architecture.md too.

The tree has the first words that every file says of itself; the table comes from the result that is
committed under docs/benchmarks, with its machine, commit and command.

python scripts/generate_readme.py           writes both
python scripts/generate_readme.py --check   writes nothing; exit code 1 if the page is not current
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DRAWING = ROOT / "docs" / "architecture.md"
RESULT = ROOT / "docs" / "benchmarks" / "engine.json"
CONTESTANTS = (
    "kdn",
    "kdn hit",
    "kdn resident hit",
    "transformers",
    "vllm",
    "vllm hit",
    "llama.cpp",
)
SHOWN = {"llama.cpp": "llama.cpp, Q4_1"}
"""It runs the file's own weights of four bits, where the others have 16."""
MEASURES = (
    "first token, ms",
    "decoding, tokens/s",
    "decoding with int8, tokens/s",
    "decoding with int4, tokens/s",
)
"""Of the page's rows those that a newcomer looks for: floors and shares stand there alone."""
LONGEST = 2048
# In the order of the drawing in docs/architecture.md, from the nouns to the interfaces.
ROOMS = ("core", "machine", "model", "engine", "schedule", "reuse", "store", "calibration", "cost", "rank",
         "rag", "api", "serve", "scale", "net", "plot", "bench", "integrations", "corpus", "cli")  # fmt: skip
GROUND = ("errors", "clock", "trace", "config", "testing")


def tree() -> str:
    """Rooms and their wings as an indented list with a caption each, in one fenced block."""
    package = ROOT / "src" / "kdn"
    lines = ["```", "src/kdn/"]
    lines += [_line(f"{name}.py", package / f"{name}.py", 2) for name in GROUND]
    for room in ROOMS:
        if (package / room).is_dir():
            lines += _room(package / room, indent=2)
    return "\n".join([*lines, "```", ""])


def _room(folder: Path, indent: int) -> Iterator[str]:
    yield _line(f"{folder.name}/", folder / "__init__.py", indent)
    if folder.name == "bench":
        return  # its wings are those of the rooms that they measure
    for wing in sorted(folder.glob("*/__init__.py")):
        yield _line(f"{wing.parent.name}/", wing, indent + 2)


def _line(name: str, module: Path, indent: int) -> str:
    return f"{' ' * indent}{name:<{22 - indent}} {_caption(module)}".rstrip()


def _caption(module: Path) -> str:
    """The first paragraph of a module's docstring: one sentence that says what is in it."""
    text = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def measured() -> str:
    """The committed result of the engine benchmark as a table."""
    if not RESULT.exists():
        return "No measurement has been committed yet; `make bench` makes one.\n"
    result = json.loads(RESULT.read_text("utf-8"))
    rows = [row for row in result["rows"] if row["measure"] in MEASURES and not _is_shorter(row)]
    names = [name for name in CONTESTANTS if any(name in row for row in rows)]
    shown = " | ".join(SHOWN.get(name, name) for name in names)
    lines = [
        f"| {result['model']}, {result['config']['dtype']} | {shown} |",
        f"|---|{'---:|' * len(names)}",
        *(_measured_row(row, names) for row in rows),
        "",
        _circumstances(result),
        *(f"Note: {note}." for note in result["notes"]),
    ]
    return "\n".join(lines) + "\n"


def _circumstances(result: dict[str, Any]) -> str:
    machine, config = result["machine"], result["config"]
    return (
        f"{machine['gpu'] or machine['cpu']}, {config['threads']} threads, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, torch {machine['torch']}; "
        f"commit `{result['commit']}`; `kdn bench engine{' --quick' if config['quick'] else ''}`. "
        "Medians of interleaved rounds; ratios with their spread are in "
        "[docs/benchmarks/engine.md](docs/benchmarks/engine.md)."
    )


def _is_shorter(row: dict[str, Any]) -> bool:
    """Quantized weights have one row each: that of the longest context."""
    return row["measure"].startswith("decoding with") and row["tokens"] < LONGEST


def _measured_row(row: dict[str, Any], names: Sequence[str]) -> str:
    what = f"{row['measure']}, {row['tokens']} tokens"
    what += f", batch {row['batch']}" if row["batch"] > 1 else ""
    cells = ("-" if row.get(name) is None else _short(row[name]) for name in names)
    return f"| {what} | {' | '.join(cells)} |"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _filled(page: str, mark: str, text: str) -> str:
    """The page with what stands between two marks replaced."""
    before, _, rest = page.partition(f"<!-- {mark} -->\n")
    after = rest.partition(f"<!-- /{mark} -->\n")[2]
    return f"{before}<!-- {mark} -->\n{text}<!-- /{mark} -->\n{after}"


def main() -> None:
    pages = {
        README: _filled(_filled(README.read_text("utf-8"), "measured", measured()), "tree", tree()),
        DRAWING: _filled(DRAWING.read_text("utf-8"), "tree", tree()),
    }
    for path, page in pages.items():
        if "--check" not in sys.argv:
            path.write_text(page, "utf-8")
        elif page != path.read_text("utf-8"):
            sys.exit(f"{path.name} is not current: run python scripts/generate_readme.py")


if __name__ == "__main__":
    main()
