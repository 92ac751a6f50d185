"""The command line: parse, call one function, print. Nothing heavy is imported before a command.

Trades in words for people and JSON for programs.  Nobody imports it.  Start reading at `program.py`.
"""

from __future__ import annotations

import sys
from typing import Any

from kdn.machine.process import INTERRUPTED, Ending

__all__ = ["app", "main"]


def main() -> None:
    """The `kdn` program: exits with 0, 1 (it failed), 2 (asked wrongly), 130 (Ctrl-C) or 143 (SIGTERM)."""
    ending = Ending()
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


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'kdn.cli' has no attribute {name!r}")
    from kdn.cli.program import app

    return app
