"""docs/configuration.md: every setting with its key, its variable, its default and its meaning."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdn.config import Config

__all__ = ["config_page"]

_HEAD = """# Settings

Made from the code by `scripts/generate_docs.py`.

A setting is found in this order: the call's own argument, the environment, `kdn.toml` in the home folder
(or the file that `KDN_CONFIG` names), the default. A name that kdn does not know is refused. Byte counts may
be written `"8 GiB"`. In the environment a list is written `a,b` and a table `NAME=VALUE,NAME=VALUE`.
The home folder is `~/.cache/kdn`, or what `KDN_HOME` names.
"""


def config_page() -> str:
    """A chapter a room, in the order of `Config`."""
    config, lines = Config(home=Path("HOME")), [_HEAD]
    for room in Config.__struct_fields__:
        part = getattr(config, room)
        if room == "home":
            continue
        kind = type(part)
        lines += [
            f"## [{room}]",
            "",
            " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()),
            "",
        ]
        lines += ["| key | environment | default | meaning |", "|---|---|---|---|"]
        meanings = dict(_meanings(kind))
        for field in kind.__struct_fields__:
            default = _shown(getattr(part, field))
            meaning = meanings.get(field, "").replace("|", "\\|")
            variable = f"KDN_{room}_{field}".upper()
            lines.append(f"| `{field}` | `{variable}` | {default} | {meaning} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _shown(value: Any) -> str:
    if value is None or value in ("", (), {}):
        return ""
    return f"`{value}`".replace("|", "\\|")


def _meanings(kind: type) -> Iterator[tuple[str, str]]:
    """Each field's text: the string that stands after it, of the class and of those it builds on."""
    for one in reversed(kind.__mro__):
        if one.__module__.partition(".")[0] != "kdn":
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and _is_text(text)
            ):
                assert isinstance(text, ast.Expr)
                assert isinstance(text.value, ast.Constant)
                yield field.target.id, " ".join(str(text.value.value).split())


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
