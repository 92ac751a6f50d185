"""A tiny base with two adapters, opened in bf16 or in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdn
from tests.engine.test_company import write_adapter
from tests.reuse.share.pairs import LAYERS, MODULES, settings


@pytest.fixture(scope="module")
def folders(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Path]]:
    """A base of four layers with two adapters, a and b."""
    base = tiny_model("llama", num_hidden_layers=LAYERS, max_position_embeddings=1024)
    place = tmp_path_factory.mktemp("adapters")
    adapters = {name: write_adapter(place / name, n, MODULES) for n, name in enumerate("ab")}
    return base, adapters


@pytest.fixture
def k(folders: tuple[Path, dict[str, Path]], tmp_path: Path) -> Iterator[kdn.Kdn]:
    base, adapters = folders
    with kdn.open(base, config=settings(tmp_path), dtype="bfloat16", adapters=adapters) as made:
        yield made
        made.check()


@pytest.fixture
def floats(folders: tuple[Path, dict[str, Path]], tmp_path: Path) -> Iterator[kdn.Kdn]:
    """The same in fp32, for every processor."""
    base, adapters = folders
    with kdn.open(base, config=settings(tmp_path), dtype="float32", adapters=adapters) as made:
        yield made
        made.check()
