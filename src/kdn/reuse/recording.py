"""Records what is looked up, as a technique that reuses nothing: a recorder that fails costs itself alone."""

from __future__ import annotations

from kdn.core import Planned, Request
from kdn.reuse.technique import Technique
from kdn.store import LookupRecorder

__all__ = ["RecordLookups"]


class RecordLookups(Technique):
    """Writes every prompt that is planned to a trace of lookups (`store.record`)."""

    def __init__(self, recorder: LookupRecorder) -> None:
        """The recorder is the caller's to close."""
        self._recorder = recorder

    def refine(self, request: Request, planned: Planned) -> Planned:
        self._recorder.note(request.prompt.token_ids, request.salt)
        return planned
