"""The reuse techniques of one model, made and stacked as its settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kdn.api.common import Common
from kdn.calibration.of_model import ModelCalibration
from kdn.clock import Clock
from kdn.config import Config
from kdn.core import Fingerprint, JctModel, KvShape, Request
from kdn.errors import BadConfig, StoreError
from kdn.model import LoadedModel
from kdn.reuse import LossRule, PrefixReuse, RecordLookups, Stack
from kdn.reuse.blend import (
    AttendedRows,
    BlendReuse,
    BlendRule,
    QualityGuard,
    RatioController,
    one_layer,
)
from kdn.reuse.blend.record import GuardRecord, read_records, write_record
from kdn.reuse.codec_quality import QualityRecord
from kdn.reuse.load_or_compute import EstimateS
from kdn.reuse.share import ShareGuard, ShareReuse, Sibling
from kdn.reuse.source import MeasuredSpeeds
from kdn.reuse.steer import SteerReuse, recipe_of
from kdn.schedule import RequestQueue
from kdn.store import CODECS
from kdn.trace import Trace

__all__ = ["ReuseParts", "join_reuse"]


@dataclass(frozen=True)
class ReuseParts:
    """The stack that plans, and what else reads or tells of its techniques."""

    planner: Stack
    prefix: PrefixReuse
    blend: BlendReuse
    loss: LossRule
    speeds: MeasuredSpeeds
    guard: QualityGuard
    share_guard: ShareGuard


def join_reuse(
    model: LoadedModel,
    shape: KvShape,
    calibration: ModelCalibration,
    common: Common,
    queue: RequestQueue,
    on_plan: Callable[[Request], None],
    config: Config,
    clock: Clock,
    trace: Trace,
) -> ReuseParts:
    """The techniques over the common store; `on_plan` hears of each request that is planned.

    Raises BadConfig for a codec whose loss is not known to be within the limit that was set, and for a
    layer to observe that the model does not have.
    """
    fingerprints = model.fingerprints
    own, find = fingerprints.of(None), fingerprints.of_context
    store = common.store
    _refuse_unmeasured(config, calibration.codecs(own))
    loss = LossRule(config.store.codec, config.store.max_kl, calibration.codecs)
    speeds = MeasuredSpeeds()
    controller = RatioController(config.blend.ratio, speeds)
    prefix = PrefixReuse(
        store,
        shape,
        find,
        loss,
        estimate_s=_prefill_estimate(config, calibration.jct),
        load_within_s=config.store.load_within_s,
        invoked=fingerprints.invoked,
        trace=trace,
    )
    blend = BlendReuse(
        store,
        shape,
        find,
        controller,
        clock,
        movable=not model.decoder.rope.length_dependent,
        bias=calibration.key_bias,
        recipe=recipe_of,
        reads=loss.reads,
        invoked=fingerprints.invoked,
        rule=_blend_rule(config.blend.layer, shape.num_layers),
        trace=trace,
    )
    share_guard = ShareGuard(config.share.guard_every, config.share.guard_kl, find, trace)
    share = ShareReuse(
        store,
        shape,
        find,
        calibration.shares,
        clock,
        siblings=partial(_siblings, model),
        settings=config.share,
        guard=share_guard,
        speeds=speeds,
        is_waiting=lambda: len(queue) > 1,  # the one that is planned is in it
        invoked=fingerprints.invoked,
        trace=trace,
    )
    recording = [] if common.recorder is None else [RecordLookups(common.recorder)]
    steer = SteerReuse(store, shape, find, invoked=fingerprints.invoked, trace=trace)
    return ReuseParts(
        Stack([*recording, prefix, share, blend, steer], on_plan=on_plan, trace=trace),
        prefix,
        blend,
        loss,
        speeds,
        _make_guard(config, controller, own, trace),
        share_guard,
    )


def _blend_rule(layer: int | None, num_layers: int) -> BlendRule:
    """What chooses the rows that blending recomputes."""
    if layer is None:
        return AttendedRows()
    if layer >= num_layers:
        raise BadConfig(f"blend.layer is {layer}; the model has layers 0 to {num_layers - 1}")
    return one_layer(layer, num_layers)


def _siblings(model: LoadedModel) -> list[Sibling]:
    """The model without an adapter, and with each that acts on whole prompts."""
    names = [name for name, one in list(model.adapters.items()) if not one.invocation]
    return [Sibling(name or model.name, model.fingerprints.of(name)) for name in (None, *names)]


def _prefill_estimate(config: Config, jct: JctModel) -> EstimateS | None:
    """What a prefill takes, when it is known how quick it is here: set, or fitted."""
    rate = config.store.prefill_tokens_per_s
    if rate is not None:
        return lambda new, _cached: new / rate
    return jct.seconds if jct.source == "fit" else None


def _refuse_unmeasured(config: Config, record: QualityRecord | None) -> None:
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


def _make_guard(
    config: Config, controller: RatioController, model: Fingerprint, trace: Trace
) -> QualityGuard:
    """A guard that goes on where the last run with this model ended."""
    file = config.guard_file

    def keep(salt: str, collection: str, record: GuardRecord | None) -> None:
        try:
            write_record(file, model, salt, collection, record)
        except StoreError as error:
            trace.event("blend.record", why=str(error))

    return QualityGuard(
        controller,
        config.blend.guard_every,
        config.blend.guard_kl,
        trace,
        records={salt: own for (one, salt), own in read_records(file).items() if one == model},
        keep=keep,
        recipe=recipe_of,
    )
