"""The connector itself: vLLM's scheduler asks `TransferPlanner`, its worker drives `Transfers`.

Loads are asynchronous: a request waits for its KV while the engine computes others, and what did not
come is computed (`kv_load_failure_policy` must be `recompute`).  Saves copy within the step, so blocks
are never held back from vLLM, whether a request ends, is cancelled or is preempted.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kdn.core import Fingerprint
from kdn.scale.counts import TransferCounts
from kdn.scale.identity import handoff_fingerprint
from kdn.scale.paged import RUN_LAYOUT, PagedKv
from kdn.scale.planner import ScheduledRequest, StepPlan, TransferPlanner
from kdn.scale.settings import SharedStores, read_settings
from kdn.scale.startup import startup_warnings
from kdn.scale.transfers import Transfers
from kdn.scale.vllm.engine import (
    check_engine,
    handed_shape,
    identify,
    paged_shape,
    scatter,
)
from kdn.scale.vllm.facts import RequestReader
from kdn.scale.vllm.metrics import KdnConnectorStats, KdnVllmMetrics
from kdn.store import Store

__all__ = ["KdnConnector", "KdnStepMetadata"]

logger = logging.getLogger("vllm.kdn")

IDLE_WAIT_S = 0.005
"""How long an engine without work waits for a load before it looks again."""
HIT_SOURCES = {
    "memory": CacheHitSource.HOST,
    "disk": CacheHitSource.DISK,
    "peer": CacheHitSource.P2P,
}
"""vLLM's names of our tiers; the others have none."""
STORES = SharedStores()


@dataclass
class KdnStepMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler's side tells the worker's side with a step."""

    plan: StepPlan = field(default_factory=StepPlan)


class KdnConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """vLLM's KV from and to kdn's store. vLLM makes one for its scheduler and one for each worker.

    Each method is one of vLLM's, and hands over to `TransferPlanner`, `Transfers` or `RequestReader`.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Raises BadConfig or BadInput with one sentence that says what to change."""
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = self._kv_transfer_config
        settings = read_settings(transfer.kv_connector_extra_config)
        check_engine(vllm_config, kv_cache_config, settings)
        self.counts = TransferCounts()
        self._settings = settings
        self._spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
        self._identity = identify(vllm_config, self._spec)
        ranks = self._identity.tensor_ranks * self._identity.pipeline_ranks

        def fingerprints(adapter: str | None, generation: str) -> list[Fingerprint]:
            each = range(ranks)
            return [self._identity.fingerprint(adapter, rank, generation) for rank in each]

        handed = None  # KV is handed over to one worker alone
        if ranks == 1:
            shape = handed_shape(self._spec, kv_cache_config)
            handed = handoff_fingerprint(self._identity.weights, RUN_LAYOUT, shape)
        self._requests = RequestReader(save=settings.save, takes_handed=handed is not None)
        self.transfers: Transfers | None = None
        self._failed_blocks: set[int] = set()
        with ExitStack() as entered:  # vLLM shuts no connector down whose start failed
            self.store: Store = STORES.enter(settings)
            entered.callback(STORES.leave, self.store)
            if role is KVConnectorRole.SCHEDULER:  # once, not for each worker too
                failures = STORES.failures(self.store)
                for sentence in startup_warnings(self.store, failures, fingerprints(None, "")):
                    logger.warning("kdn: %s", sentence)
            self.planner = TransferPlanner(
                self.store,
                self._spec.block_size,
                fingerprints,
                self.counts,
                settings.least_tokens,
                handed,
            )
            self._entered = entered.pop_all()
        logger.info("kdn: KV is stored in %s", settings.tiers())

    @property
    def requires_kv_delivery(self) -> bool:
        """No: a load or a save that fails is a miss."""
        return False

    # --- scheduler ---

    def on_new_request(self, request: Any) -> None:
        """A request came: note whose KV it would use."""
        facts = self._requests.facts(request)
        if facts is None:
            self.counts.add(unnamed_requests=1)
        else:
            self.planner.follow(facts, request.all_token_ids)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many tokens the store has beyond vLLM's own; they come asynchronously."""
        found = self.planner.matched(request.request_id, num_computed_tokens)
        return found, found > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """vLLM has room for what was matched."""
        if num_external_tokens:
            table = blocks.get_block_ids()[0]
            self.planner.allocated(request.request_id, num_external_tokens, table)

    def build_connector_meta(self, scheduler_output: Any) -> KdnStepMetadata:
        """The loads that begin with this step, and what to save after it."""
        cached = scheduler_output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for new in scheduler_output.scheduled_new_reqs:
            computed[new.req_id] = new.num_computed_tokens
        state = scheduler_output.kv_connector_block_state
        scheduled = [
            ScheduledRequest(
                request_id, computed[request_id], num_tokens, partial(_table, state, request_id)
            )
            for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items()
        ]
        return KdnStepMetadata(self.planner.step(scheduled))

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """A request ended. Its blocks may go: saves were copied within their step."""
        self.planner.forget(request.request_id)
        return False, None

    def reset_cache(self) -> bool | None:
        """Find nothing any more of what is stored, and store under a new name.

        vLLM asks for it before or after its weights change and does not say whether they do. Nothing is
        deleted: others use the store.
        """
        self.planner.renew(secrets.token_hex(16))
        self._requests.takes_handed = False
        logger.info(
            "kdn: the KV cache was reset, as for other weights: what is stored is not found by this vLLM"
            " until it is started again; other servers go on with it"
        )
        return True

    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        """All under the tier that most of the load comes from."""
        if num_external_tokens == 0:
            return {}
        source = HIT_SOURCES.get(self.planner.tier_of(request.request_id))
        return {source or CacheHitSource.EXTERNAL_UNSPECIFIED: num_external_tokens}

    # --- worker ---

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """vLLM's cache is there. Raises BadInput for a layout that kdn does not know."""
        rank = self._vllm_config.parallel_config.rank
        shape = paged_shape(self._spec, self._kv_cache_config.num_blocks)
        self.transfers = Transfers(
            self.store,
            PagedKv(kv_caches, shape, scatter(self._spec)),
            lambda adapter, generation: self._identity.fingerprint(adapter, rank, generation),
            self.counts,
            queue_bytes=self._settings.save_queue_bytes,
            load_threads=self._settings.load_threads,
            handed=self.planner.handed,
        )

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Start this step's loads; they end in later steps."""
        assert self.transfers is not None
        for task in _step(self._get_connector_metadata()).loads:
            self.transfers.load(task)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: a request is computed after its load ended."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing: blocks are copied once, after the step."""

    def wait_for_save(self) -> None:
        """Copy what this step completed; it is stored from a thread."""
        assert self.transfers is not None
        for task in _step(self._get_connector_metadata()).saves:
            self.transfers.save(task)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose loads ended; with them what failed, for `get_block_ids_with_load_errors`."""
        assert self.transfers is not None
        self.transfers.cancel(finished_req_ids)
        ended = self.transfers.take_finished(
            IDLE_WAIT_S if _step(self._get_connector_metadata()).idle else 0.0
        )
        self._failed_blocks |= ended.failed_blocks
        return None, set(ended.request_ids) or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """vLLM's blocks that did not come, in the very pass that tells of their request."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def shutdown(self) -> None:
        """Store what waits and leave the store; may be called twice."""
        if self.transfers is not None:
            self.transfers.close()
            self.transfers = None
        self._entered.close()  # once: others of this process may be in the same store

    # --- statistics ---

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """Counters since the last call."""
        taken = self.counts.take()
        return KdnConnectorStats(data=taken) if taken else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        """vLLM hands the counters over as they crossed processes."""
        return KdnConnectorStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KdnVllmMetrics:
        """The counters for vLLM's /metrics."""
        return KdnVllmMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def _step(metadata: KVConnectorMetadata) -> StepPlan:
    assert isinstance(metadata, KdnStepMetadata)
    return metadata.plan


def _table(state: Any, request_id: str) -> Sequence[int]:
    """A request's blocks, of the only group there is."""
    blocks: tuple[list[int], ...] = state.get_block_ids(request_id)
    return blocks[0]
