"""What a batch has done, on disk as it comes, so that the same batch goes on after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kdn.machine.journal import RunJournal
from kdn.rank import Row, name_run
from kdn.scale.ray.jobs import BatchJob, RowResult
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
        settings name: this machine need not have the model, so other weights at its place are not noticed.
        Raises StoreError, and BadInput for the results of another batch, unless `force` discards them.
        """
        self._num_rows, self._kinds = len(rows), ({"error"}, {*job.columns()})
        # how many engines there are, and where, decides no result; of no device or dtype, `auto` chooses
        model = (settings.model, settings.device, settings.dtype, settings.quantization)
        name = name_run([msgspec.to_builtins(job), *model], rows)
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
