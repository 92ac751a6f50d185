"""The only place that builds rooms and joins them: `kdn.open(...)`.

settings ─> machine ─> model ─> store ─> calibration ─> techniques ─> engine ─> Parts ─> Kdn
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
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
from kdn.api.techniques import ReuseParts, join_reuse
from kdn.calibration.background import bias_steps, comparison_steps, jct_steps, prefill_steps
from kdn.calibration.idle import EndedRequests, Idle, IdleWork
from kdn.calibration.key_bias import KeyBiasKeeper, key_bias_share, measure_key_bias
from kdn.calibration.of_model import ModelCalibration
from kdn.clock import Clock, SystemClock
from kdn.config import Config, load_config
from kdn.engine import Engine, EngineLimits, KvPool, all_idle, kv_shape
from kdn.engine.limits import IDLE_PREFIX_BYTES
from kdn.errors import BadInput
from kdn.machine.facts import free_memory_bytes
from kdn.model import LoadedModel
from kdn.model.attention import Attention
from kdn.rank import adapter_folders, layout_adapters
from kdn.reuse.why import Explainer
from kdn.schedule import RequestQueue, make_policy
from kdn.store import LookupRecorder, Store
from kdn.trace import GuardedTrace, Recorder, Tee, Trace

__all__ = [
    "join",
    "kv_bytes",
    "make_common",
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
    finders = prepared([model], config, trace)
    loaded, attention = load(
        model,
        config,
        clock,
        finders,
        device=device,
        dtype=dtype,
        quantization="int8" if int8 else quantization,
        adapters=chosen,
    )
    store = open_configured_store(config, clock, trace)
    try:
        rerankers = [name for name, path in own.items() if chosen[name] == path]
        return _alone(loaded, attention, store, config, clock, trace, rerankers)
    except BaseException:
        store.close()
        raise


def over(parts: Parts, store: Store, clock: Clock, trace: Trace) -> Kdn:
    """The model of `parts` once more, with `store` in place of its own. Both are to be closed."""
    rerankers = parts.scoring.rerankers
    return _alone(parts.model, parts.attention, store, parts.config, clock, trace, rerankers)


def _alone(
    model: LoadedModel,
    attention: Attention,
    store: Store,
    config: Config,
    clock: Clock,
    trace: Trace,
    rerankers: Collection[str],
) -> Kdn:
    """A model over a store of its own, which is closed with it."""
    common = make_common(store, config, clock)
    parts = join(model, attention, common, config, clock, trace, rerankers)
    return Kdn(replace(parts, closers=(*parts.closers, common.close)))


def make_common(store: Store, config: Config, clock: Clock, num_models: int = 1) -> Common:
    """What `num_models` models over the store have in common. It is closed with the store."""
    return Common(store, KvPool(kv_bytes(config)), make_recorder(config, clock), num_models)


def join(
    model: LoadedModel,
    attention: Attention,
    common: Common,
    config: Config,
    clock: Clock,
    trace: Trace,
    rerankers: Collection[str] = (),
    *,
    name: str | None = None,
) -> Parts:
    """The parts of an open model, which end before what it has in `common` with others.

    `name` is what callers know it by, its own by default.
    Raises BadConfig for a codec whose loss is not known to be within the limit that was set.
    """
    store, prompts, names = common.store, Prompts(model), model.fingerprints
    shape, guarded = kv_shape(model), GuardedTrace(trace)
    calibration = _calibration(model, attention, config, clock, guarded)
    ended = EndedRequests()
    queue = RequestQueue(make_policy(config.engine.policy, calibration.jct))
    reuse = join_reuse(model, shape, calibration, common, queue, ended.note, config, clock, guarded)
    idle = Idle(clock, guarded)
    engine = Engine(
        model,
        attention,
        reuse.planner,
        _limits(config, common),
        clock,
        queue,
        Tee(guarded, reuse.speeds, ended, idle),
        pool=common.pool,
    )
    common.engines.append(engine)
    is_idle = partial(all_idle, common.engines)
    store.queues.give_way(is_idle)
    work = _idle_work(config, calibration, reuse, ended, idle, guarded)
    idle.start(engine, is_idle, work)
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
        planner=reuse.planner,
        prefix=reuse.prefix,
        blend=reuse.blend,
        guard=reuse.guard,
        speeds=reuse.speeds,
        engine=engine,
        ended=ended,
        idle=idle,
        scoring=Scoring(model, engine, store, prompts, reuse.prefix.match, rerankers),
        cost=Costs(shape, store, config, calibration),
        why=Explainer(
            store,
            lambda: {name: names.of_context(name) for name in (None, *model.adapters)},
            names.of_context,
            shape.dtype,
            reuse.loss,
            partial(model.tokenizer.decode, special=True),
            show_text=config.store.key_file is None,
        ),
        closers=(idle.close, ended.close, engine.close, reuse.planner.close),
    )


def _calibration(
    model: LoadedModel,
    attention: Attention,
    config: Config,
    clock: Clock,
    trace: Trace,
) -> ModelCalibration:
    """What was measured of the model on this machine, and what measures the rest."""
    bias = KeyBiasKeeper(
        config.home,
        model.fingerprints.of(None),
        partial(measure_key_bias, model, attention),
        lambda texts: Prompts(model).segments("?", texts),
        key_bias_share(model.name, config.blend.key_bias),
        trace,
    )
    return ModelCalibration(model, attention, bias, config.home, clock)


def _limits(config: Config, common: Common) -> EngineLimits:
    return EngineLimits(
        kv_bytes=common.pool.total_bytes,
        max_batch_tokens=config.engine.max_batch_tokens,
        max_stall_ms=config.engine.max_stall_ms,
        pack_tokens=config.engine.pack_tokens,
        row_chunk=config.engine.row_chunk,
        speculative_tokens=config.engine.speculative_tokens,
        idle_prefix_bytes=resident_bytes(config) // common.num_models,
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
    if home == "":
        raise BadInput("home is ''; it must name a folder, such as '.' for this one")
    return config or load_config(os.environ, home=None if home is None else Path(home))


def _idle_work(
    config: Config,
    calibration: ModelCalibration,
    reuse: ReuseParts,
    ended: EndedRequests,
    idle: Idle,
    trace: Trace,
) -> list[IdleWork]:
    """What is done while no request runs, each part with a queue of its own of those that ended."""
    bias, prefill, compare, shares = (ended.queue() for _ in range(4))
    return [
        IdleWork("bias", bias_steps(bias, calibration.key_bias_steps), bias),
        IdleWork("prefill", prefill_steps(prefill, reuse.planner.background, idle, trace), prefill),
        IdleWork("compare", comparison_steps(compare, reuse.guard, idle, trace), compare),
        IdleWork("shares", comparison_steps(shares, reuse.share_guard, idle, trace), shares),
        *_jct_work(config, calibration, trace),
    ]


def _jct_work(config: Config, calibration: ModelCalibration, trace: Trace) -> list[IdleWork]:
    """Measures how long prompts take, where that was never done and settings do not forbid it."""
    after_s = config.engine.fit_idle_s
    if after_s == 0 or calibration.jct.source == "fit":
        return []
    steps = jct_steps(calibration.jct_meter, calibration.keep_jct, trace)
    return [IdleWork("jct", steps, after_s=after_s)]
