"""The doctor: quick, remembered, and never needed."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from kdn.clock import ManualClock, SystemClock
from kdn.errors import StoreError
from kdn.machine.doctor import (
    Diagnosis,
    examine,
    format_diagnosis,
    installed_extras,
    last_diagnosis,
    measured_dtype,
)
from kdn.machine.facts import matmul_gflops


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diagnosis]:
    home = tmp_path_factory.mktemp("home") / "new"
    return home, examine(home, SystemClock())


@pytest.mark.alone
def test_an_examination_is_quick_and_remembered(examined: tuple[Path, Diagnosis]) -> None:
    home, diagnosis = examined
    assert diagnosis.seconds < 10
    assert last_diagnosis(home) == diagnosis
    assert [path.name for path in home.iterdir()] == ["doctor.json"]


def test_every_finding_is_a_number_and_a_choice_with_a_reason(
    examined: tuple[Path, Diagnosis],
) -> None:
    _, diagnosis = examined
    cpu = diagnosis.compute[0]
    assert min(cpu.matmul_gflops.values()) > 0.1
    assert cpu.memory_gb_per_s > 0.1
    assert diagnosis.disk.write_mb_per_s > 0
    assert diagnosis.dtype["cpu"] in cpu.matmul_gflops
    shown = dict(format_diagnosis(diagnosis))
    assert diagnosis.reason["cpu"] in shown["cpu dtype"]
    assert "serve" in shown["extras"]


def test_auto_follows_the_diagnosis_of_this_machine_only(
    examined: tuple[Path, Diagnosis], tmp_path: Path
) -> None:
    _, diagnosis = examined
    measured = msgspec.structs.replace(diagnosis, dtype={"cpu": "float32"})
    (tmp_path / "doctor.json").write_bytes(msgspec.json.encode(measured))
    assert measured_dtype(tmp_path) == "float32"
    assert measured_dtype(tmp_path, "cuda:1") is None

    elsewhere = msgspec.structs.replace(diagnosis.machine, cpu="another processor")
    moved = msgspec.structs.replace(measured, machine=elsewhere)
    (tmp_path / "doctor.json").write_bytes(msgspec.json.encode(moved))
    assert measured_dtype(tmp_path) is None


def test_a_torn_diagnosis_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "doctor.json").write_bytes(b'{"machine": {')
    assert last_diagnosis(tmp_path) is None
    assert measured_dtype(tmp_path) is None


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="set KDN_HOME"):
        examine(tmp_path / "file", SystemClock())


def test_a_rate_is_work_over_time() -> None:
    class Steps(ManualClock):
        """Every look costs a second, so every run takes one."""

        def now(self) -> float:
            self.advance(1.0)
            return super().now()

    assert matmul_gflops("cpu", "float32", Steps(), side=10) == pytest.approx(2e-6)


def test_every_extra_of_the_package_is_listed() -> None:
    """As the installed package names them, but for those that stand for others."""
    named = set(metadata.metadata("kdn").get_all("Provides-Extra") or ()) - {"all", "dev"}
    assert set(installed_extras()) == named
    assert installed_extras()["net"] is (find_spec("numba") is not None)
