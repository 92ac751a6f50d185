"""Tokenises with a stranger's patterns in a process of its own, which its parent may stop.

Started by `kdn.model.text.tokenizer` as a script: the first line is a tokenizer.json, then a line of JSON
comes in for every text and a line goes out.  It imports the tokenizer library and nothing of kdn.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

__all__ = ["MEMORY_BYTES"]

MEMORY_BYTES = 2 << 30
"""Address space of the process."""


def _answer(inner: Any, line: str) -> dict[str, Any]:
    try:
        found = inner.encode(json.loads(line)["text"], add_special_tokens=False)
    except BaseException as error:  # noqa: BLE001  the library panics, which is no Exception
        return {"error": str(error)[:500] or type(error).__name__}
    return {"ids": found.ids, "edges": found.offsets}


def main() -> None:
    """Answer lines until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    inner = tokenizers.Tokenizer.from_str(json.loads(sys.stdin.readline()))
    inner.encode_special_tokens = True
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(inner, line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
