"""How many exponentials this machine makes a second, by the quickest way that is known here."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

from kdn.clock import Clock
from kdn.machine.compiler import NoCompiler, compile_shared, cpu_flags
from kdn.machine.facts import best_seconds

__all__ = ["exponentials_per_s"]

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_ROUNDS = 16


def exponentials_per_s(device: str, clock: Clock, *, count: int = 1 << 17) -> float:
    """The rate for fp32 values that stay in a cache, best of five; `count` is a multiple of 64.

    On a CPU with a compiler and AVX512-BF16 the better of torch's and of what the kernels use: torch's
    own is right to the last bit and took eleven times as long, so it bounds no kernel that rounds to bf16.
    """
    import torch

    source = torch.randn(count, device=device)
    target = torch.empty_like(source)

    def by_torch() -> torch.Tensor:
        for _ in range(_ROUNDS):
            torch.exp(source, out=target)
        return target

    ways: list[Callable[[], torch.Tensor]] = [by_torch]
    compiled = _compiled() if device == "cpu" else None
    if compiled is not None:

        def by_polynomial() -> torch.Tensor:
            compiled.kdn_exponentials(
                ctypes.c_void_p(source.data_ptr()),
                ctypes.c_void_p(target.data_ptr()),
                ctypes.c_int64(count),
                ctypes.c_int64(_ROUNDS),
                ctypes.c_int64(torch.get_num_threads()),
            )
            return target

        ways.append(by_polynomial)
    return _ROUNDS * count / min(best_seconds(way, clock, device) for way in ways)


def _compiled() -> ctypes.CDLL | None:
    """None where the kernels could not be compiled either."""
    if "avx512_bf16" not in cpu_flags():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exponentials.so"
        try:
            compile_shared([_SOURCE], _FLAGS, path)
            return ctypes.CDLL(str(path))
        except (NoCompiler, OSError):
            return None
