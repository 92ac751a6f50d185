"""Compares what comes with what was recorded: floats within a tolerance, all else exactly."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["alike"]


def alike(found: Any, recorded: Any, tolerance: float, where: str = "") -> None:
    """Raises AssertionError, naming the place, where the two differ."""
    if isinstance(recorded, float) or (isinstance(found, float) and isinstance(recorded, int)):
        assert found == pytest.approx(recorded, abs=tolerance), where
    elif isinstance(recorded, dict):
        assert isinstance(found, dict), where
        assert sorted(found) == sorted(recorded), where
        for name, one in recorded.items():
            alike(found[name], one, tolerance, f"{where} > {name}")
    elif isinstance(recorded, list):
        assert isinstance(found, list), where
        assert len(found) == len(recorded), where
        for number, (left, right) in enumerate(zip(found, recorded, strict=True)):
            alike(left, right, tolerance, f"{where} > {number}")
    else:
        assert found == recorded, where
