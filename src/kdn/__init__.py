"""kdn: prefill shared text once, keep its KV cache, deliver and reuse it everywhere.

Importing this is quick: a name is loaded from its room when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdn.api import (
        Answer,
        AsyncKdn,
        Kdn,
        OpenModels,
        RankedDocument,
        Ranking,
        Source,
        open,  # noqa: A004  kdn.open, as in gzip.open
        open_models,
    )
    from kdn.api.rerank_once import rerank
    from kdn.config import Config, load_config
    from kdn.core import Constraint, Sampling
    from kdn.errors import (
        BadConfig,
        BadInput,
        Cancelled,
        DocumentError,
        EngineFailed,
        ForeignStore,
        KdnError,
        MissingExtra,
        NoSpace,
        PortInUse,
        PromptTooLong,
        StoreError,
        UnknownModel,
        WeightsError,
    )

    __version__: str

__all__ = [
    "Answer",
    "AsyncKdn",
    "BadConfig",
    "BadInput",
    "Cancelled",
    "Config",
    "Constraint",
    "DocumentError",
    "EngineFailed",
    "ForeignStore",
    "Kdn",
    "KdnError",
    "MissingExtra",
    "NoSpace",
    "OpenModels",
    "PortInUse",
    "PromptTooLong",
    "RankedDocument",
    "Ranking",
    "Sampling",
    "Source",
    "StoreError",
    "UnknownModel",
    "WeightsError",
    "__version__",
    "load_config",
    "open",
    "open_models",
    "rerank",
]

_ELSEWHERE = {
    "Answer": "kdn.api",
    "AsyncKdn": "kdn.api",
    "Config": "kdn.config",
    "Constraint": "kdn.core",
    "Kdn": "kdn.api",
    "OpenModels": "kdn.api",
    "RankedDocument": "kdn.api",
    "Ranking": "kdn.api",
    "Sampling": "kdn.core",
    "Source": "kdn.api",
    "load_config": "kdn.config",
    "open": "kdn.api",
    "open_models": "kdn.api",
    "rerank": "kdn.api.rerank_once",
}
"""Where a public name comes from; the others are errors."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kdn' has no attribute {name!r}")
    if name == "__version__":
        return _version()
    from importlib import import_module

    found = getattr(import_module(_ELSEWHERE.get(name, "kdn.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; a checkout that was never installed says so."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kdn")
    except PackageNotFoundError:
        return "0+uninstalled"
