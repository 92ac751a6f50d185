"""What a test needs of the processor, found where the test meets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

_SAID = (
    "bfloat16 is asked for, and this processor has none",
    "bf16 path needs the cpu support",  # oneDNN, asked without a model
)


@contextmanager
def skipped_without_bf16() -> Iterator[None]:
    """A skip in place of the error by which kdn, or oneDNN, refuses bfloat16 on this processor."""
    try:
        yield
    except Exception as error:
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if has_bf16 or not _is_refusal(error):
            raise
        pytest.skip("the processor has no bfloat16")


def _is_refusal(error: BaseException) -> bool:
    """True where it, what caused it, or each of several errors is one of those."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_refusal, error.exceptions))
    if any(said in str(error) for said in _SAID):
        return True
    return error.__cause__ is not None and _is_refusal(error.__cause__)
