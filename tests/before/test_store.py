"""A store folder that the code of aea6709 wrote is opened, looked up, read and served from today."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.before import stored

HERE = Path(__file__).parent


def test_every_block_is_found_and_holds_the_same_keys_and_values(
    tmp_path: Path, before_home: Path
) -> None:
    for name in stored.FOLDERS:
        shutil.copytree(HERE / name, tmp_path / name)
    found = stored.seen(stored.thin(tmp_path / "thin"), before_home, tmp_path, tmp_path)
    expected = json.loads((HERE / "store.json").read_text("utf-8"))
    for what, recorded in expected.items():
        assert found[what] == recorded, what
    assert found.keys() == expected.keys()
