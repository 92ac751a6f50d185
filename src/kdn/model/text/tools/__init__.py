"""How models write calls of tools: one file a way, found by the chat template that was published.

It trades in texts and calls; `kdn.model` passes it on.  Start with `calls.py`.  A new way is one file with a
class like `Hermes`, and its line in `FORMATS`.
"""

from __future__ import annotations

from kdn.model.text.tools.calls import CallReader, Tool, ToolCall, ToolFormat, is_object
from kdn.model.text.tools.hermes import Hermes
from kdn.model.text.tools.llama import Llama

__all__ = ["FORMATS", "CallReader", "Tool", "ToolCall", "ToolFormat", "is_object", "tool_format"]

FORMATS: tuple[ToolFormat, ...] = (Llama(), Hermes())
"""The last is also the way of templates that know no tools."""


def tool_format(template: str) -> ToolFormat:
    """The way that a chat template shows."""
    return next((one for one in FORMATS if one.fits(template)), FORMATS[-1])
