"""What the models of one process have in common: the store, the memory for KV, and when to rest."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from kdn.engine import Engine, KvPool
from kdn.store import LookupRecorder, Store

__all__ = ["Common"]


@dataclass
class Common:
    """Parts of one process that its open models, one or several, use and do not close."""

    store: Store
    pool: KvPool
    recorder: LookupRecorder | None
    num_models: int
    engines: list[Engine] = field(default_factory=list)
    """Of the models that were joined so far."""

    def close(self) -> None:
        """Close the store, then the record of its lookups. To be called after the models are closed."""
        with ExitStack() as stack:
            if self.recorder is not None:
                stack.callback(self.recorder.close)
            stack.callback(self.store.close)
