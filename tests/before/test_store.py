"""A store folder that the code of aea6709 wrote is opened, looked up, read and served from today."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdn.model.arithmetic import holds_bits
from kdn.model.attention import TorchAttention
from tests.before import seams, stored

HERE = Path(__file__).parent


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "store.json").read_text("utf-8"))
    return found


def test_every_block_is_found_and_holds_the_same_keys_and_values(
    tmp_path: Path, before_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As recorded: without a compiler, whose code names what it computes."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    for name in stored.FOLDERS:
        shutil.copytree(HERE / name, tmp_path / name)
    thin = stored.thin(tmp_path / "thin")
    with seams.opened(thin, before_home) as k:
        if not holds_bits(k.model.decoder, TorchAttention()):
            pytest.skip("plain torch holds no bits on this processor, so nothing stored is taken")
    found = stored.seen(thin, before_home, tmp_path, tmp_path)
    expected = recorded()
    del expected["codecs"]
    for what, then in expected.items():
        assert found[what] == then, what
    assert found.keys() == expected.keys()


def test_blocks_of_every_codec_hold_the_same_keys_and_values(
    tmp_path: Path, before_home: Path
) -> None:
    shutil.copytree(HERE / "codecs", tmp_path / "codecs")
    found = stored.seen_of_codecs(stored.thin(tmp_path / "thin"), before_home, tmp_path / "codecs")
    assert found == recorded()["codecs"]
