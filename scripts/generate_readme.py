"""Writes what README.md takes from elsewhere: the tree of the package and the table of times.

The tree has the first words that every file says of itself; the table comes from the result that is
committed under docs/benchmarks, with its machine, commit and command.

python scripts/generate_readme.py           writes both
python scripts/generate_readme.py --check   writes nothing; exit code 1 if the page is not current
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULT = ROOT / "docs" / "benchmarks" / "engine.json"
LONGEST = 72
CONTESTANTS = ("kdn", "kdn hit", "transformers", "vllm", "vllm hit", "llama.cpp")
# In the order of the drawing in docs/architecture.md, from the nouns to the doors.
ROOMS = ("model", "engine", "schedule", "reuse", "store", "rag", "corpus", "serve", "cli", "bench")


def tree() -> str:
    """The package as an indented list, in one fenced block."""
    package = ROOT / "src" / "kdn"
    lines = ["```", "src/kdn/"]
    lines += _files(package, indent=2)
    known = [package / room for room in ROOMS]
    others = sorted(set(_rooms(package)) - set(known))
    for room in [room for room in known if room.is_dir()] + others:
        lines += list(_room(room, indent=2))
    return "\n".join([*lines, "```", ""])


def _room(folder: Path, indent: int) -> Iterator[str]:
    yield _line(f"{folder.name}/", folder / "__init__.py", indent)
    yield from _files(folder, indent + 2)
    for inner in sorted(_rooms(folder)):
        yield from _room(inner, indent + 2)


def _rooms(folder: Path) -> list[Path]:
    return [init.parent for init in folder.glob("*/__init__.py")]


def _files(folder: Path, indent: int) -> list[str]:
    files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    return [_line(path.name, path, indent) for path in files]


def _line(name: str, module: Path, indent: int) -> str:
    return f"{' ' * indent}{name:<{26 - indent}} {_about(module)}".rstrip()


def _about(module: Path) -> str:
    """The first sentence of a module, or as many of its clauses as fit on the line."""
    text = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    sentence = re.split(r"(?<=[a-z\d)`'])[.?](?:\s|$)", " ".join(text.split()))[0]
    clauses = re.split(r"(?<=[:;,]) ", sentence)
    while len(clauses) > 1 and len(" ".join(clauses)) > LONGEST:
        clauses.pop()
    return " ".join(clauses).rstrip(":;,. ")


def measured() -> str:
    """The committed result of the engine benchmark as a table."""
    if not RESULT.exists():
        return "No measurement has been committed yet; `make bench` makes one.\n"
    result = json.loads(RESULT.read_text("utf-8"))
    rows = [row for row in result["rows"] if "batch" in row]
    names = [name for name in CONTESTANTS if any(name in row for row in rows)]
    lines = [
        f"| {result['model']}, {result['config']['dtype']} | {' | '.join(names)} |",
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
    found = README.read_text("utf-8")
    page = _filled(_filled(found, "measured", measured()), "tree", tree())
    if "--check" not in sys.argv:
        README.write_text(page, "utf-8")
    elif page != found:
        sys.exit("README.md is not current: run python scripts/generate_readme.py")


if __name__ == "__main__":
    main()
