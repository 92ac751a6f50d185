"""Why a prompt was not reused further: the place where it left what is stored, and the likely reason.

Nothing here runs for a request by itself: it is worked out when somebody asks.
"""

from __future__ import annotations

from kdn.reuse.why.explain import Explainer
from kdn.reuse.why.reasons import Explanation, MissReason

__all__ = ["Explainer", "Explanation", "MissReason"]
