"""python -m kdn: the same as the command."""

from __future__ import annotations

from kdn.cli import main

main()
