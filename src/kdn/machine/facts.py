"""This machine: what it is, and the ceilings that no program on it can pass."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kdn.clock import Clock
from kdn.machine.compiler import cpu_flags
from kdn.machine.threads import usable_cores

if TYPE_CHECKING:
    import torch

__all__ = [
    "Machine",
    "best_seconds",
    "cpu_name",
    "describe_machine",
    "free_memory_bytes",
    "matmul_gflops",
    "memory_gb_per_s",
    "total_memory_bytes",
]

# Without one of them bfloat16 is computed in float32 by conversion, which is slow.
_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16", "svebf16"})


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers: the same words in every benchmark result."""

    cpu: str
    cores: int
    """CPUs that this process may run on."""
    flags: tuple[str, ...]
    """Those of the processor's features that make bfloat16 fast."""
    memory_bytes: int
    torch: str
    gpu: str | None


def describe_machine() -> Machine:
    """This machine in a few words."""
    import torch

    return Machine(
        cpu=cpu_name(),
        cores=usable_cores(),
        flags=tuple(sorted(_BF16_FLAGS & cpu_flags())),
        memory_bytes=total_memory_bytes(),
        torch=str(torch.__version__),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def matmul_gflops(device: str, dtype: str, clock: Clock, *, side: int = 1024) -> float:
    """The rate of a square matrix product, best of five: a ceiling, in GFLOP/s."""
    import torch

    left = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    right = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    return 2 * side**3 / best_seconds(lambda: left @ right, clock, device) / 1e9


def memory_gb_per_s(device: str, clock: Clock) -> float:
    """Bytes read plus bytes written per second by a large copy, best of five, in GB/s."""
    import torch

    size_bytes = 128 * 1024**2
    source = torch.ones(size_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size_bytes / best_seconds(lambda: target.copy_(source), clock, device) / 1e9


def cpu_name() -> str:
    """The processor as it calls itself."""
    for line in _proc_lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def total_memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory_bytes() -> int:
    """Memory that programs can still have; all of it where the system does not say."""
    for line in _proc_lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return total_memory_bytes()


def best_seconds(work: Callable[[], torch.Tensor], clock: Clock, device: str) -> float:
    """The shortest of five runs after a warm-up, in seconds."""
    import torch

    def once() -> float:
        started = clock.now()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return clock.now() - started

    once()
    return min(once() for _ in range(5))


def _proc_lines(path: str) -> list[str]:
    """The lines of a file of the Linux kernel's; none elsewhere."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
