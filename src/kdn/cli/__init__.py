"""The command line: parse, call one function, print. Nothing heavy is imported before a command.

Trades in words for people and JSON for programs.  Nobody imports it.  Start reading at `program.py`.
"""

from __future__ import annotations

import sys
from typing import Any

from kdn.machine.process import end_if_closed, stop_code, unwind_on_sigterm

__all__ = ["app", "main"]


def main() -> None:
    """The `kdn` program: 0, 1 (it failed), 2 (it was asked wrongly), 130 (Ctrl-C), 143 (SIGTERM)."""
    unwind_on_sigterm()
    try:
        from kdn.cli.program import app

        app(prog_name="kdn")
    except SystemExit as ended:
        end_if_closed(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
    except (
        KeyboardInterrupt
    ) as stop:  # while commands are imported; later ones are theirs to report
        sys.stderr.write("\nkdn: stopped\n")
        sys.exit(stop_code(stop))


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'kdn.cli' has no attribute {name!r}")
    from kdn.cli.program import app

    return app
