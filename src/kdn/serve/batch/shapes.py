"""Files and batches as they are kept and shown. Field order and explicit nulls are OpenAI's."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

__all__ = ["ENDED", "BatchCounts", "BatchError", "BatchRecord", "FileRecord"]

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
"""What a batch does not leave again."""


class FileRecord(Struct, kw_only=True):
    """A file; `owner` is its caller and is not shown."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str = "processed"
    owner: str

    def shown(self) -> dict[str, Any]:
        return _without_owner(self)


class BatchError(Struct, kw_only=True):
    """Why a batch has failed as a whole."""

    code: str
    message: str
    line: int | None = None
    """From 1; None where no line is at fault."""
    param: str | None = None


class BatchCounts(Struct):
    total: int = 0
    completed: int = 0
    """Lines answered with 200; they stand in the output file."""
    failed: int = 0
    """Lines that were refused or failed; they stand in the error file."""


class BatchRecord(Struct, kw_only=True):
    """A batch; times are seconds since 1970."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: list[BatchError] | None = None
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts = field(default_factory=BatchCounts)
    metadata: dict[str, str] | None = None
    owner: str
    output_expires_s: int | None = None
    """How long output and error file are kept; None: until they are deleted."""

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    def shown(self) -> dict[str, Any]:
        found = _without_owner(self)
        del found["output_expires_s"]
        if self.errors is not None:
            found["errors"] = {"object": "list", "data": found["errors"]}
        return found


def _without_owner(record: Struct) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(record)
    del found["owner"]
    return found
