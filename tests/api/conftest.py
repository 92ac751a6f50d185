"""A tiny model that is open, for tests that change nothing of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kdn
from kdn.config import load_config
from kdn.testing import write_tiny_model


@pytest.fixture(scope="module")
def k(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kdn.Kdn]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"), "llama")
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path_factory.mktemp("home"))
    with kdn.open(folder, config=config) as found:
        yield found
