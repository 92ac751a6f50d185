"""A table through Ray Data: blocks of rows go to actors, and what they say comes back once for each row.

    rows ─> numbered ─> blocks ─> map_batches (an actor: one engine) ─> as they end ─> by number ─> table

An actor that dies is started again, and the block it had is given out again; only whole blocks come back.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kdn.config import load_config
from kdn.errors import BadInput, EngineFailed, MissingExtra
from kdn.machine.text import counted
from kdn.model import resolve
from kdn.rank import Row, columns_of
from kdn.scale.ray.jobs import BatchJob, RowResult

__all__ = ["BatchResult", "BatchSettings", "EngineActor", "check_batch", "run_batch"]

_CONNECT_S = 5.0
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""A client's preface with empty settings (RFC 9113, section 3.4): gRPC begins so."""
_HTTP2_SETTINGS = b"\x04"
"""The type of the frame that the server's preface is."""
_NUMBER, _ROW, _RESULT = "kdn_number", "kdn_row", "kdn_result"


@dataclass(frozen=True)
class BatchSettings:
    """Where a batch runs, and with which model."""

    model: str = "smollm2-135m"
    """A known name, or a path that every machine has."""
    home: str | None = None
    """The home folder on each machine; its kdn.toml says which store is shared."""
    device: str | None = None
    dtype: str | None = None
    quantization: str = "none"
    """Of the weights: int8 or int4."""
    address: str | None = None
    """Of a cluster, as Ray has it: `auto`, `HOST:6379`, `ray://HOST:10001`. None: this machine."""
    actors: int = 1
    cpus: float = 1.0
    """Of each actor."""
    gpus: float = 0.0
    batch_rows: int = 64
    """Rows that an actor is given together, and does again when it dies."""
    restarts: int = 3
    """How often an actor may die."""

    def __post_init__(self) -> None:
        if min(self.actors, self.batch_rows) < 1 or self.cpus <= 0 or self.restarts < 0:
            raise BadInput(f"{self}: a batch needs an actor, a row and a part of a processor")


@dataclass(frozen=True)
class BatchResult:
    """Every row with what came of it, in the order of the table."""

    rows: tuple[Mapping[str, Any], ...]
    columns: tuple[str, ...]
    failed: Mapping[int, str]
    """Number of a row, from 1, to why it failed."""


class EngineActor:
    """One engine. Ray makes one for each actor, and calls it with a block of rows at a time."""

    def __init__(self, job: str, settings: str) -> None:
        import kdn

        self._job = msgspec.json.decode(job, type=BatchJob)
        chosen = msgspec.json.decode(settings, type=BatchSettings)
        self._kdn = kdn.open(
            chosen.model,
            home=chosen.home,
            device=chosen.device,
            dtype=chosen.dtype,
            quantization=chosen.quantization,
        )

    def __call__(self, block: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The block's numbers with a result each; what was computed is in the store by then."""
        rows = [msgspec.json.decode(text, type=dict[str, str]) for text in block[_ROW]]
        found = self._job.run(self._kdn, rows)
        # the actor may be ended at any time from now on, and not by a close
        self._kdn.store.flush()
        return {
            _NUMBER: [int(number) for number in block[_NUMBER]],
            _RESULT: [msgspec.json.encode(one).decode() for one in found],
        }


def check_batch(rows: Sequence[Row], job: BatchJob, settings: BatchSettings) -> None:
    """What is wrong with a batch before Ray is asked.

    Raises BadInput for rows that the job cannot be asked with, and where it runs here BadConfig, or
    UnknownModel for a model that is not here.
    """
    job.check(rows)
    if settings.address is None:  # the machines of a cluster may have other models
        home = None if settings.home is None else Path(settings.home)
        resolve(settings.model, load_config(os.environ, home=home).home)


def run_batch(
    rows: Sequence[Row],
    job: BatchJob,
    settings: BatchSettings,
    *,
    done: Mapping[int, RowResult] | None = None,
    on_rows: Callable[[Mapping[int, RowResult]], None] | None = None,
) -> BatchResult:
    """Run the job over the rows that `done` has no result for; the table that is returned holds all.

    `on_rows` is given the results of each block as it comes back, in any order, under the numbers of their
    rows from 0: those of each row that was sent, once, a row that failed with its error alone.  What it
    was given until an error or Ctrl-C ended the batch, or it raised itself, is `done` for the next call
    with these rows, this job and this model.  Where nothing is missing, Ray is not started.

    Raises as `check_batch`, BadInput where no Ray answers, EngineFailed when Ray gives up, MissingExtra
    without Ray.
    """
    check_batch(rows, job, settings)
    found = dict(done or {})
    if missing := [number for number in range(len(rows)) if number not in found]:
        with _ray(settings) as ray:
            _collect(ray, _data(ray, rows, missing, job, settings), len(rows), found, on_rows)
    return _joined(rows, job, found)


def _collect(
    ray: Any,
    data: Any,
    num_rows: int,
    found: dict[int, RowResult],
    on_rows: Callable[[Mapping[int, RowResult]], None] | None,
) -> None:
    """Every row's result into `found`, as blocks come back. Raises EngineFailed."""
    try:
        for block in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            came = {
                int(number): msgspec.json.decode(told)
                for number, told in zip(block[_NUMBER], block[_RESULT], strict=True)
            }
            assert len(came) == len(block[_NUMBER]), f"a row of {sorted(came)} came twice"
            assert not came.keys() & found.keys(), f"a row of {sorted(came)} came again"
            found |= came
            if on_rows is not None:
                on_rows(came)
    except ray.exceptions.RayError as error:
        raise EngineFailed(
            f"the batch ended after {len(found):,} of {counted(num_rows, 'row')}: {_last_line(error)}"
        ) from error
    if missing := num_rows - len(found):
        raise EngineFailed(
            f"{missing:,} of {counted(num_rows, 'row')} did not come back; run the batch again"
        )


def _data(
    ray: Any, rows: Sequence[Row], missing: Sequence[int], job: BatchJob, settings: BatchSettings
) -> Any:
    items = [
        {_NUMBER: number, _ROW: msgspec.json.encode(rows[number], enc_hook=str).decode()}
        for number in missing
    ]
    blocks = -(-len(items) // settings.batch_rows)
    with (
        warnings.catch_warnings()
    ):  # Ray has no other way yet to bound restarts, and warns of this one
        warnings.simplefilter("ignore", DeprecationWarning)
        return ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            EngineActor,
            fn_constructor_args=(_text(job), _text(settings)),
            batch_size=settings.batch_rows,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(
                size=min(settings.actors, blocks), max_tasks_in_flight_per_actor=2
            ),
            num_cpus=settings.cpus,
            num_gpus=settings.gpus or None,
            max_restarts=settings.restarts,
            max_task_retries=settings.restarts,
        )


@contextmanager
def _ray(settings: BatchSettings) -> Iterator[Any]:
    """Ray, connected to a cluster or started here; one that the caller has connected stays so."""
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise MissingExtra(f"batches need Ray ({error}): pip install 'kdn[ray]'") from error
    own = not ray.is_initialized()
    if own:
        _refuse_silent(settings.address)
        told = {name: text for name, text in os.environ.items() if name.startswith("KDN_")}
        here = {} if settings.address else {
            "num_cpus": max(1, round(settings.actors * settings.cpus) + 1),
            "include_dashboard": False,
        }  # fmt: skip
        try:
            ray.init(
                address=settings.address,
                runtime_env={"env_vars": told},
                log_to_driver=False,
                logging_level="error",
                **here,
            )
        except Exception as error:  # it raises bare ones, for a node that does not start
            raise _no_ray(settings.address, _last_line(error)) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def _refuse_silent(address: str | None) -> None:
    """Raises BadInput where no gRPC server answers: Ray itself would try for minutes."""
    try:
        where = urlsplit(f"//{address}" if address and "://" not in address else address or "")
        host, port = where.hostname, where.port
    except ValueError as error:
        raise _no_ray(address, str(error)) from error
    if host is None or port is None:
        return  # `auto`, or this machine
    try:
        with socket.create_connection((host, port), _CONNECT_S) as opened:
            if "RAY_USE_TLS" in os.environ:
                return
            opened.sendall(_HTTP2_HELLO)
            if opened.recv(9, socket.MSG_WAITALL)[3:4] != _HTTP2_SETTINGS:
                raise _no_ray(address, "what listens there is no Ray")
    except OSError as error:
        raise _no_ray(address, error.strerror or str(error)) from error


def _no_ray(address: str | None, why: str) -> BadInput:
    if address is None:
        return BadInput(
            f"Ray cannot be started here ({why}); start one with `ray start --head`, and give its"
            " --address"
        )
    return BadInput(
        f"no Ray answers at {address!r} ({why}); start one with `ray start --head`, or leave the"
        " address out"
    )


def _joined(rows: Sequence[Row], job: BatchJob, found: Mapping[int, RowResult]) -> BatchResult:
    """Old columns, then new ones; where the table has a column of that name, ours is `kdn_NAME`."""
    theirs = columns_of(rows)
    names = {name: _free(name, theirs) for name in (*job.columns(), "error")}
    joined = tuple(
        {**row, **{names[name]: found[number].get(name) for name in names}}
        for number, row in enumerate(rows)
    )
    failed = {
        number + 1: str(one["error"]) for number, one in sorted(found.items()) if "error" in one
    }
    return BatchResult(joined, (*theirs, *names.values()), failed)


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"kdn_{name}"
    return name


def _text(told: object) -> str:
    return msgspec.json.encode(told).decode()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
