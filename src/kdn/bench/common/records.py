"""The question sets that benchmarks read: files of one JSON object a line."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from kdn.errors import BadInput
from kdn.machine.text import lines_of

__all__ = ["read_records"]


def read_records(path: Path) -> list[Any]:
    """The records of a .jsonl file, packed or not. Raises BadInput when it is not there or is none."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give the folder of the shared question sets")
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        return [json.loads(line) for line in lines_of(text) if line.strip()]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadInput(f"{path}: not a JSON object a line ({error}); fetch it again") from error
