"""What the tests of this folder share: one home, so that kernels and weights are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.before import seams


@pytest.fixture(scope="session")
def before_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("before-home")


@pytest.fixture(scope="session")
def before_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model under the name that it had when all was recorded."""
    return seams.tiny(tmp_path_factory.mktemp("before") / "tiny")


@pytest.fixture(scope="session")
def before_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seams.tiny_adapter(tmp_path_factory.mktemp("before") / "lora")
