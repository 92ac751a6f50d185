"""The frame around every command: errors become one sentence, and every end has its exit code."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from kdn.errors import BadInput, KdnError

__all__ = ["INTERRUPTED", "Commands"]

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""


class Commands(TyperGroup):
    """A group whose commands may raise KdnError: 2 for what the caller can put right, otherwise 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KdnError as error:
            sys.stderr.write(f"kdn: {error}\n")
            raise typer.Exit(2 if isinstance(error, BadInput) else 1) from error
        except KeyboardInterrupt as stop:
            sys.stderr.write("\nkdn: stopped; what was finished before is kept\n")
            raise typer.Exit(INTERRUPTED) from stop
        except BrokenPipeError as gone:
            # The reader of our output has left; Python must not complain when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from gone
