"""The interface of a technique: its part in the plans of requests and in the KV that they retain."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import ClassVar, Protocol

from kdn.core import Planned, Request, RetainedKV

__all__ = ["Technique"]


class Technique(Protocol):
    """One way to reuse KV; `Stack` joins several. Subclasses override what they have a say in.

    A technique is called from the engine's thread only, but for `background` and `close`.
    """

    option: ClassVar[type[object] | None] = None
    """A request asks for the technique by an option of this class.  None: it serves every request."""

    needs: Sized | None = None
    """What the technique can do nothing without: while it is empty, requests pass the technique by."""

    without_reuse: ClassVar[bool] = False
    """Does it refine plans that may take nothing from the store?"""

    def cached_tokens(self, request: Request) -> int:
        """How many tokens of the prompt it would take from the store now. Moves no bytes."""
        return 0

    def refine(self, request: Request, planned: Planned) -> Planned:
        """The plan so far with this technique's part in it, or as it is.

        What it opened is closed again if it raises.  BadInput fails the request; after any other
        error the plan so far is used.
        """

    def retain(self, request: Request, retained: RetainedKV) -> RetainedKV | None:
        """Store KV, or change it for the techniques before this one; None when nothing is left to do."""
        return retained

    def background(self, request: Request) -> Sequence[Request]:
        """Requests that prepare the store for others like `request`, for when the engine is idle."""
        return ()

    def close(self) -> None:
        """Stop threads. Calling it twice is harmless."""
        return
