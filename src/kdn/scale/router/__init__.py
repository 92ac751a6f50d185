"""A router: many servers behind one address, each request sent where its KV is stored.

    body ─> content.py: names of its chunks ─> rules.py: which server first ─> forward.py: try, retry, pass on
                                                  ^
                  fleet.py: what each server stores, how busy it is, whether it answers

The rules know no HTTP: `simulate.py` runs the very same ones over a trace.
"""

from __future__ import annotations

from kdn.scale.router.fleet import Fleet, RoutedPrompt
from kdn.scale.router.rules import RULES

__all__ = ["RULES", "Fleet", "RoutedPrompt", "RoutingRule"]
