"""What taking documents in would cost, and what the stored blocks have saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdn.calibration.of_model import ModelCalibration
from kdn.config import Config
from kdn.core import KvShape
from kdn.cost import Ledger, compute_ledger, load_sheet, load_speed
from kdn.rag import Library, Survey
from kdn.store import Store

__all__ = ["Costs"]

_PREFILL_TOKENS_PER_S = 2000.0
_EMBED_TOKENS_PER_S = 4000.0
"""For estimates before anything was measured; a laptop's order of magnitude."""


class Costs:
    """Estimates and accounts of an open model."""

    def __init__(
        self, shape: KvShape, store: Store, config: Config, calibration: ModelCalibration
    ) -> None:
        self._shape = shape
        self._store = store
        self._config = config
        self._calibration = calibration

    def survey(
        self,
        library: Library,
        paths: Path | str | Iterable[Path | str],
        exclude: str | Iterable[str] = (),
    ) -> Survey:
        """What `ingest` would take: files, tokens, bytes of KV, minutes. Changes nothing."""
        return library.survey(
            paths,
            exclude=exclude,
            kv_bytes_per_token=self._shape.token_bytes,
            embed_tokens_per_s=_EMBED_TOKENS_PER_S,
            prefill_tokens_per_s=self._prefill_rate(),
        )

    def ledger(self) -> Ledger:
        """What the stored blocks have saved and spent, by `[cost]` of the settings.

        Blocks that are gone are not in it.  Raises BadInput for a tier without a price.
        """
        settings = self._config.cost
        return compute_ledger(
            self._store.tiers.lives(), load_speed(settings.speed), load_sheet(settings.prices)
        )

    def _prefill_rate(self) -> float:
        """Tokens a second for parts of the usual length: fitted, or an order of magnitude."""
        jct = self._calibration.jct
        if jct.source != "fit":
            return _PREFILL_TOKENS_PER_S
        tokens = self._config.library.part_tokens
        return tokens / jct.seconds(tokens)
