"""A child that stops the test's own process, as Ctrl-C does, while that waits for the child's first word."""

from __future__ import annotations

from pathlib import Path

__all__ = ["interrupting"]


def interrupting(number: Path) -> list[str]:
    """A command that writes its process's number to a file, and lives until its input ends.

    The signal is sent once the test's process sleeps: before, it may not know its child yet.
    """
    asleep = "while [ -r /proc/$PPID/stat ] && ! grep -q ') S ' /proc/$PPID/stat; do :; done"
    return ["sh", "-c", f"echo $$ > {number}; {asleep}; kill -INT $PPID; exec cat"]
