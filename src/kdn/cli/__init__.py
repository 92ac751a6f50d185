"""The command line: parse, call one function, print. Nothing heavy is imported before a command."""

from __future__ import annotations

from kdn.cli.main import app, main

__all__ = ["app", "main"]
