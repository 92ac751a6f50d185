"""The frame around every command: errors become one sentence, and every end has its exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from kdn.cli.show import say
from kdn.errors import BadInput, KdnError
from kdn.machine.process import INTERRUPTED

__all__ = ["Commands", "explained"]


class Commands(TyperGroup):
    """A group whose commands may raise KdnError: 2 for what the caller can put right, otherwise 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes `--int8`, which was an option once, for `--quantization int8`."""
        return super().parse_args(
            ctx, ["--quantization=int8" if a == "--int8" else a for a in args]
        )

    def make_context(self, *given: Any, **named: Any) -> Any:
        """Reads the words of a command; stopped here, too, it says so."""
        try:
            return super().make_context(*given, **named)
        except KeyboardInterrupt as stop:
            say("\nkdn: stopped")
            raise typer.Exit(INTERRUPTED) from stop
        except OSError as error:  # of the output, where help is written
            raise _failed(error) from error

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KdnError as error:
            say(f"kdn: {error}")
            raise typer.Exit(2 if isinstance(error, BadInput) else 1) from error
        except KeyboardInterrupt as stop:
            say("\nkdn: stopped; what was finished before is kept")
            raise typer.Exit(INTERRUPTED) from stop
        except OSError as error:
            raise _failed(error) from error


def _failed(error: OSError) -> typer.Exit:
    """The end of a command that the system refused; why is told, unless nobody reads any more."""
    if isinstance(error, BrokenPipeError):
        # The reader of our output has left; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        say(f"kdn: {explained(error)}")
    return typer.Exit(1)


def explained(error: OSError) -> str:
    """An error of the system as a sentence: what it was about, what happened, what to do."""
    about = f"{error.filename}: " if error.filename is not None else ""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{about}{reason}; free some space, or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{about}{reason}; check its rights, or choose another folder"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return f"{about}{reason}; name another file or folder"
    return f"{about}{reason}; check the file and its folder"
