"""The beginning of a stored run, where what follows must be computed in another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdn.core import LayerKV, LayerSource

__all__ = ["LeadingTokens"]


@dataclass(frozen=True)
class LeadingTokens:
    """The first `num_tokens` tokens of a source, at least one."""

    source: LayerSource
    num_tokens: int

    @property
    def name(self) -> str:
        return f"{self.source.name}[:{self.num_tokens}]"

    def start(self, layer: int) -> None:
        self.source.start(layer)

    def take(self, layer: int) -> Sequence[LayerKV]:
        left, runs = self.num_tokens, list[LayerKV]()
        for run in self.source.take(layer):
            if left <= 0:
                break
            runs.append(LayerKV(run.k[:left], run.v[:left], run.shift))
            left -= run.num_tokens
        return runs

    def close(self) -> None:
        self.source.close()
