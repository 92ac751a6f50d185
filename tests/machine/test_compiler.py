"""What is compiled is named by all that may change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.machine.compiler import source_name


def test_another_version_of_the_compiler_gives_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }", "utf-8")
    monkeypatch.setenv("CC", "cc-of-a-test")
    names: list[str] = []
    for version in ("12.1", "12.2", "12.1"):
        compiler = tmp_path / version / "cc-of-a-test"
        compiler.parent.mkdir(exist_ok=True)
        compiler.write_text(f'#!/bin/sh\necho {version}\necho "free: $LC_ALL $LANG"\n', "utf-8")
        compiler.chmod(0o700)
        monkeypatch.setenv(
            "LANG", f"de_DE of {len(names)}"
        )  # what follows the version is translated
        monkeypatch.setenv("PATH", f"{compiler.parent}:/bin:/usr/bin")
        names.append(source_name([source]))
    assert names[0] == names[2] != names[1]
