"""A layer source whose KV is changed as it is placed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdn.core import LayerKV, LayerSource

__all__ = ["ChangedSource"]


class ChangedSource:
    """Another source, the parts of a layer as `change(layer, parts)` makes them."""

    def __init__(
        self,
        source: LayerSource,
        how: str,
        change: Callable[[int, Sequence[LayerKV]], Sequence[LayerKV]],
    ) -> None:
        """`how` says in the name what was done."""
        self._source, self._how, self._change = source, how, change

    @property
    def name(self) -> str:
        return f"{self._source.name}, {self._how}"

    @property
    def num_tokens(self) -> int:
        return self._source.num_tokens

    def start(self, layer: int) -> None:
        self._source.start(layer)

    def take(self, layer: int) -> Sequence[LayerKV]:
        return self._change(layer, self._source.take(layer))

    def close(self) -> None:
        self._source.close()
