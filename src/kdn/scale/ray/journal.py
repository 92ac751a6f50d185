"""What a batch has done, on disk as it comes, so that the same batch goes on after a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kdn.config import load_config
from kdn.machine.journal import RunJournal
from kdn.model import resolve
from kdn.model.weights import weight_files
from kdn.rank import Row, name_run
from kdn.scale.ray.jobs import BatchJob, PrefillBatch, RowResult
from kdn.scale.ray.run import BatchSettings

__all__ = ["BatchJournal"]


class BatchJournal(RunJournal[tuple[int, RowResult]]):
    """Results of a batch as they come, each with its row's number from 0; a torn last line is not counted."""

    def __init__(
        self,
        path: Path,
        rows: Sequence[Row],
        job: BatchJob,
        settings: BatchSettings,
        *,
        force: bool = False,
    ) -> None:
        """Go on with the journal of this batch, or begin one.

        A batch is the same where rows and job are, and the model, device, dtype and quantization that the
        settings name; here, not on a cluster, also the files of the model's weights.  KV is stored again
        where another home or cluster is to have it.  Raises StoreError, BadInput for the results of another
        batch, unless `force` discards them, and UnknownModel and WeightsError for a model here.
        """
        self._num_rows, self._kinds = len(rows), ({"error"}, {*job.columns()})
        name = name_run([msgspec.to_builtins(job), *_decided_by(job, settings)], rows)
        super().__init__(path, name, self._result, force=force)

    @property
    def done(self) -> dict[int, RowResult]:
        """The rows that have a result."""
        return dict(self.lines)

    def _result(self, told: Any) -> tuple[int, RowResult]:
        number, result = msgspec.convert(told, tuple[int, dict[str, Any]])
        if number not in range(self._num_rows) or {*result} not in self._kinds:
            raise ValueError(f"{str(told)[:80]} is no result of a row")
        return number, result


def _decided_by(job: BatchJob, settings: BatchSettings) -> list[Any]:
    """What decides results beside job and rows: not how many engines there are."""
    # of no device or dtype, `auto` chooses
    said: list[Any] = [settings.model, settings.device, settings.dtype, settings.quantization]
    home = None if settings.home is None else Path(settings.home)
    if settings.address is None:
        model = resolve(settings.model, load_config(os.environ, home=home).home)
        files = weight_files(model) if model.is_dir() else [model]
        said += [(str(one.resolve()), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    if isinstance(job, PrefillBatch):
        config = load_config(os.environ, home=home)
        said += [settings.address, str(config.home.absolute()), str(config.store_folder.absolute())]
    return said
