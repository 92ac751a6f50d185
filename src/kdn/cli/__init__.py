"""The command line: parse, call one function, print. Nothing heavy is imported before a command.

Trades in words for people and JSON for programs.  Nobody imports it.  Start reading at `program.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from kdn.machine.process import INTERRUPTED, Ending

__all__ = ["app", "main"]


def main() -> None:
    """The `kdn` program: exits with 0, 1 (it failed), 2 (asked wrongly), 130 (Ctrl-C) or 143 (SIGTERM)."""
    ending = Ending()
    _open_missing_streams()
    try:
        from kdn.cli.program import app

        app(prog_name="kdn")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        stopped = code == INTERRUPTED
        ending.leave_with((ending.code or code) if stopped else code)
        raise
    except BaseException as error:  # while commands are imported, or what a library made of a stop
        if ending.code is None and not isinstance(error, KeyboardInterrupt):
            raise
        sys.stderr.write("\nkdn: stopped\n")
        ending.leave_with(ending.code or INTERRUPTED)


def _open_missing_streams() -> None:
    """A supervisor may have closed a standard stream: it is empty then, and takes what nobody reads."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115  until the end
            setattr(sys, name, nothing)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'kdn.cli' has no attribute {name!r}")
    from kdn.cli.program import app

    return app
