"""The command line: parse, call one function, print. Nothing heavy is imported before a command.

Trades in words for people and JSON for programs.  Nobody imports it.  Start reading at `program.py`.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["app", "main"]

_INTERRUPTED = 130


def main() -> None:
    """The `kdn` program: exits with 0, 1 (it failed), 2 (it was asked wrongly) or 130 (Ctrl-C)."""
    try:
        from kdn.cli.program import app

        app(prog_name="kdn")
    except SystemExit as ended:
        from kdn.machine.process import end_if_closed

        end_if_closed(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
    except KeyboardInterrupt:  # while commands are imported; later ones are theirs to report
        sys.stderr.write("\nkdn: stopped\n")
        sys.exit(_INTERRUPTED)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'kdn.cli' has no attribute {name!r}")
    from kdn.cli.program import app

    return app
