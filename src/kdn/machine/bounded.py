"""Programs and patterns of strangers run in a process of their own, which can be stopped."""

from __future__ import annotations

import atexit
import json
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["BoundedProcess"]


class BoundedProcess:
    """A script that answers lines of JSON: started when first asked, and again after it was stopped.

    The script bounds its own memory.  Safe from several threads; questions wait for one another.
    """

    def __init__(self, script: Path, memory_bytes: int, first: Sequence[str] = ()) -> None:
        """`first` are lines that each new process gets before any question, and does not answer."""
        self._script = script
        self._memory_bytes = memory_bytes
        self._first = [line.encode() for line in first]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, question: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """Its answer, which has a key `error` where there is none: why, as the end of a sentence."""
        with self._lock:
            try:
                return self._asked(json.dumps(question).encode(), deadline_s)
            except OSError as error:
                self._stop()
                return {"error": f"it cannot be run ({error})"}

    def _asked(self, line: bytes, deadline_s: float) -> dict[str, Any]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = self._started()
        assert process.stdin is not None, "a pipe was asked for"
        assert process.stdout is not None, "a pipe was asked for"
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(deadline_s):
                self._stop()
                return {"error": f"it took more than {deadline_s:.0f} s and was stopped"}
        answer = process.stdout.readline()
        if not answer.endswith(b"\n"):
            self._stop()
            return {"error": f"it needs more than {self._memory_bytes >> 20} MiB, or broke off"}
        found: dict[str, Any] = json.loads(answer)
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(
            [sys.executable or "python3", "-I", str(self._script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert started.stdin is not None, "a pipe was asked for"
        for line in self._first:
            started.stdin.write(line + b"\n")
        return started

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.communicate()

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._stop()
