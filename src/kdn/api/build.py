"""The only place that builds rooms and joins them: `kdn.open(...)`.

settings ─> machine ─> model ─> store ─> calibration ─> techniques ─> engine ─> Parts ─> Kdn
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from kdn.api.checked import checked
from kdn.api.common import Common
from kdn.api.cost import Costs
from kdn.api.kdn import Kdn
from kdn.api.load import load, prepared
from kdn.api.parts import Parts
from kdn.api.prompts import Prompts
from kdn.api.score import Scoring
from kdn.api.store import open_configured_store
from kdn.calibration.background import bias_steps, comparison_steps, jct_steps, prefill_steps
from kdn.calibration.idle import EndedRequests, Idle, IdleWork
from kdn.calibration.key_bias import KeyBiasKeeper, key_bias_share, measure_key_bias
from kdn.calibration.of_model import ModelCalibration
from kdn.clock import Clock, SystemClock
from kdn.config import Config, load_config
from kdn.core import Fingerprint, JctModel, Share
from kdn.engine import Engine, EngineLimits
from kdn.engine.limits import IDLE_PREFIX_BYTES
from kdn.errors import BadConfig, BadInput, StoreError
from kdn.machine.facts import free_memory_bytes
from kdn.model import LoadedModel
from kdn.model.attention import Attention
from kdn.rank import adapter_folders, layout_adapters
from kdn.reuse import LossRule, PrefixReuse, RecordLookups, Stack
from kdn.reuse.blend import BlendReuse, QualityGuard, RatioController
from kdn.reuse.blend.record import GuardRecord, read_records, write_record
from kdn.reuse.codec_quality import QualityRecord
from kdn.reuse.load_or_compute import EstimateS
from kdn.reuse.share import ShareGuard, ShareReuse
from kdn.reuse.source import MeasuredSpeeds
from kdn.reuse.steer import SteerReuse, recipe_of
from kdn.reuse.why import Explainer
from kdn.schedule import RequestQueue, make_policy
from kdn.store import CODECS, LookupRecorder, Store
from kdn.trace import Recorder, Tee, Trace

__all__ = [
    "join",
    "kv_bytes",
    "make_recorder",
    "open",
    "over",
    "settings_of",
]


@checked
def open(  # noqa: A001  kdn.open, as in gzip.open
    model: str | Path = "smollm2-135m",
    *,
    home: Path | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantization: str = "none",
    int8: bool = False,
    adapters: Mapping[str, Path | str] | None = None,
    config: Config | None = None,
    clock: Clock | None = None,
    trace: Trace | None = None,
) -> Kdn:
    """A model with its store and library, ready to answer.

    `model` is a known name, a folder or a GGUF file; nothing is downloaded.  `quantization` keeps its
    matrices as int8 or int4 (`int8=True` is the earlier spelling of the former).  `home` holds everything
    that is kept (default: `$KDN_HOME`, else the user's cache folder); a `config` names its own.  What
    is not given comes from `config`, else from kdn.toml and the environment.  Raises KdnError.
    """
    config = settings_of(home, config)
    clock, trace = clock or SystemClock(), trace or Recorder()
    own = layout_adapters(model)
    chosen = own | adapter_folders(adapters)
    kernels = prepared([model], config, trace)
    loaded, attention = load(
        model,
        config,
        clock,
        kernels,
        device=device,
        dtype=dtype,
        quantization="int8" if int8 else quantization,
        adapters=chosen,
    )
    store = open_configured_store(config, clock, trace)
    try:
        rerankers = [name for name, path in own.items() if chosen[name] == path]
        return Kdn(join(loaded, attention, store, config, clock, trace, rerankers))
    except BaseException:
        store.close()
        raise


def over(parts: Parts, store: Store, clock: Clock, trace: Trace) -> Kdn:
    """The model of `parts` once more, with `store` in place of its own. Both are to be closed."""
    rerankers = parts.scoring.rerankers
    return Kdn(join(parts.model, parts.attention, store, parts.config, clock, trace, rerankers))


def join(
    model: LoadedModel,
    attention: Attention,
    store: Store,
    config: Config,
    clock: Clock,
    trace: Trace,
    rerankers: Collection[str] = (),
    *,
    name: str | None = None,
    common: Common | None = None,
) -> Parts:
    """The parts of an open model over a store that is theirs to close, unless it is `common` to several.

    `name` is what callers know it by, its own by default.
    Raises BadConfig for a codec whose loss is not known to be within the limit that was set.
    """
    decoder, prompts = model.decoder, Prompts(model)
    shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
    own = prompts.fingerprint(None)
    bias = KeyBiasKeeper(
        config.home,
        own,
        partial(measure_key_bias, model, attention),
        lambda texts: prompts.segments("?", texts),
        key_bias_share(model.name, config.blend.key_bias),
        trace,
    )
    calibration = ModelCalibration(model, attention, bias, config.home, clock)
    _refuse_unmeasured(config, calibration.codecs(own))

    recorder = make_recorder(config, clock) if common is None else common.recorder
    speeds = MeasuredSpeeds()
    controller = RatioController(config.blend.ratio, speeds)
    guard = _make_guard(config, controller, own, trace)
    loss = LossRule(config.store.codec, config.store.max_kl, calibration.codecs)
    prefix = PrefixReuse(
        store,
        shape,
        prompts.context_fingerprint,
        loss,
        estimate_s=_prefill_estimate(config, calibration.jct),
        load_within_s=config.store.load_within_s,
        invoked=prompts.invoked,
        trace=trace,
    )
    blend = BlendReuse(
        store,
        shape,
        prompts.context_fingerprint,
        controller,
        clock,
        movable=not decoder.rope.length_dependent,
        bias=calibration.key_bias,
        recipe=recipe_of,
        trace=trace,
    )
    ended = EndedRequests()
    queue = RequestQueue(make_policy(config.engine.policy, calibration.jct))
    share_guard = ShareGuard(
        config.share.guard_every, config.share.guard_kl, prompts.context_fingerprint, trace
    )
    share = ShareReuse(
        store,
        shape,
        prompts.context_fingerprint,
        calibration.shares,
        clock,
        siblings=prompts.siblings,
        default=Share(config.share.mode, config.share.max_kl, config.share.within_s),
        guard=share_guard,
        speeds=speeds,
        is_waiting=lambda: len(queue) > 1,  # the one that is planned is in it
        trace=trace,
    )
    recording = [] if recorder is None else [RecordLookups(recorder)]
    steer = SteerReuse(store, shape, prompts.context_fingerprint, trace=trace)
    planner = Stack([*recording, prefix, share, blend, steer], on_plan=ended.note, trace=trace)
    limits = EngineLimits(
        kv_bytes=kv_bytes(config) if common is None else common.pool.total_bytes,
        max_batch_tokens=config.engine.max_batch_tokens,
        max_stall_ms=config.engine.max_stall_ms,
        pack_tokens=config.engine.pack_tokens,
        row_chunk=config.engine.row_chunk,
        speculative_tokens=config.engine.speculative_tokens,
        idle_prefix_bytes=resident_bytes(config) // (1 if common is None else common.num_models),
    )
    idle = Idle(clock, trace)
    queues = [ended.queue() for _ in range(4)]
    heard = Tee(trace, speeds, ended, idle)
    pool = None if common is None else common.pool
    engine = Engine(model, attention, planner, limits, clock, queue, heard, pool=pool)
    if common is not None:
        common.engines.append(engine)
    is_idle = engine.is_idle if common is None else common.is_idle
    store.queues.give_way(is_idle)
    idle.start(
        engine,
        is_idle,
        [
            IdleWork("bias", bias_steps(queues[0], calibration.key_bias_steps), queues[0]),
            IdleWork(
                "prefill", prefill_steps(queues[1], planner.background, idle, trace), queues[1]
            ),
            IdleWork("compare", comparison_steps(queues[2], guard, idle, trace), queues[2]),
            IdleWork("shares", comparison_steps(queues[3], share_guard, idle, trace), queues[3]),
            *_jct_work(config, calibration, trace),
        ],
    )
    ends = [idle.close, ended.close, engine.close, planner.close]
    if common is None:
        ends += [store.close, *([] if recorder is None else [recorder.close])]
    return Parts(
        name=name or model.name,
        config=config,
        clock=clock,
        trace=trace,
        model=model,
        attention=attention,
        store=store,
        prompts=prompts,
        calibration=calibration,
        planner=planner,
        guard=guard,
        speeds=speeds,
        engine=engine,
        ended=ended,
        idle=idle,
        scoring=Scoring(model, engine, store, prompts, rerankers),
        cost=Costs(shape, store, config, calibration),
        why=Explainer(
            store,
            lambda: {name: prompts.context_fingerprint(name) for name in (None, *model.adapters)},
            prompts.context_fingerprint,
            shape.dtype,
            loss,
            partial(model.tokenizer.decode, special=True),
            show_text=config.store.key_file is None,
        ),
        closers=tuple(ends),
    )


def kv_bytes(config: Config) -> int:
    """The memory for KV of running requests: as set, else a quarter of what is free."""
    return config.engine.kv_budget_bytes or free_memory_bytes() // 4


def resident_bytes(config: Config) -> int:
    """The memory for prefixes that stay: as set, else a sixteenth of what is free."""
    asked = config.engine.resident_bytes
    return max(free_memory_bytes() // 16, IDLE_PREFIX_BYTES) if asked is None else asked


def make_recorder(config: Config, clock: Clock) -> LookupRecorder | None:
    """What writes lookups down, where the settings ask for it."""
    return None if config.store.record is None else LookupRecorder(config.store.record, clock)


def settings_of(home: Path | str | None, config: Config | None) -> Config:
    """What was given, of the right types, else kdn.toml and the environment."""
    if config is not None and not isinstance(config, Config):
        raise BadInput(f"config is a {type(config).__name__}; make one with kdn.load_config(...)")
    if config is not None and home is not None:
        raise BadInput(f"home is {home} and config has its own, {config.home}: give one of the two")
    if home is not None and not isinstance(home, str | os.PathLike):
        raise BadInput(f"home is a {type(home).__name__}; it must be the path of a folder")
    try:
        return config or load_config(
            os.environ, home=None if home is None else Path(home).expanduser()
        )
    except OSError as error:
        raise BadInput(
            f"home {str(home)[:80]!r} cannot be used ({error.strerror}); choose another"
        ) from error


# --- what was measured, as the techniques read it --------------------------------------------


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
        recipe=recipe_of,
    )


# --- idle time -------------------------------------------------------------------------------


def _jct_work(config: Config, calibration: ModelCalibration, trace: Trace) -> list[IdleWork]:
    """Measures how long prompts take, where that was never done and settings do not forbid it."""
    after_s = config.engine.fit_idle_s
    if after_s == 0 or calibration.jct.source == "fit":
        return []
    steps = jct_steps(calibration.jct_meter, calibration.keep_jct, trace)
    return [IdleWork("jct", steps, after_s=after_s)]
