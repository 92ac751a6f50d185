"""What settings promise about quality, held against what was measured, and watched while it runs."""

from __future__ import annotations

from kdn.config import Config
from kdn.core import Fingerprint
from kdn.errors import BadConfig, StoreError
from kdn.reuse.blend import QualityGuard, RatioController
from kdn.reuse.blend.record import GuardRecord, read_records, write_record
from kdn.reuse.codec_quality import QualityRecord
from kdn.store import CODECS
from kdn.trace import Trace

__all__ = ["make_guard", "refuse_unmeasured"]


def refuse_unmeasured(config: Config, record: QualityRecord | None) -> None:
    """A lossy codec that was named together with a limit must be known to keep it."""
    codec, limit = config.store.codec, config.store.max_kl
    if limit is None or codec not in CODECS or CODECS[codec].lossless:
        return
    found = record.codecs.get(codec) if record is not None else None
    if found is None:
        raise BadConfig(
            f"store.codec is {codec} with max_kl {limit:g}, and what {codec} does to this model was"
            " never measured; run: kdn store calibrate"
        )
    if found.kl > limit:
        raise BadConfig(
            f"store.codec is {codec}, which moves this model by {found.kl:.2g} nats, more than"
            f" max_kl {limit:g}: raise max_kl, or let codec be auto"
        )


def make_guard(
    config: Config, controller: RatioController, model: Fingerprint, trace: Trace
) -> QualityGuard:
    """A guard that goes on where the last run with this model ended."""
    file = config.guard_file

    def keep(collection: str, record: GuardRecord) -> None:
        try:
            write_record(file, model, collection, record)
        except StoreError as error:
            trace.event("blend.record", why=str(error))

    return QualityGuard(
        controller,
        config.blend.guard_every,
        config.blend.guard_kl,
        trace,
        records=read_records(file).get(model),
        keep=keep,
    )
