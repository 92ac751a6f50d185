"""Time to a receiver's first token: with nothing, its own cache, a sibling's KV from memory, disk or a link.

The link is simulated (`kdn.reuse.share.pipeline`) from the layer times and sizes that were measured here;
all other times are those of requests.
"""

from __future__ import annotations

from kdn import api
from kdn.bench.common.result import BenchOptions
from kdn.bench.share.pair import BASE, SharePair
from kdn.bench.share.rows import ShareRows
from kdn.bench.share.tasks import SharedContext
from kdn.core import Retention
from kdn.reuse.share.pipeline import LoadOrder, SharedArrival, times_to_first_token
from kdn.store.admin.manage import Which, move, select

__all__ = ["timing_round"]

LINK_BYTES_PER_S = 125_000_000
"""1 Gbit/s."""


def timing_round(
    options: BenchOptions,
    opened: api.Kdn,
    pair: SharePair,
    context: SharedContext,
    group: tuple[int, int] | None,
    rows: ShareRows,
) -> None:
    """One round of every way over one context, kept when it is done."""
    number = len(rows.rounds)
    found: dict[str, float] = {}
    receiver, alora = pair.receiver, f"{pair.task}-alora"
    ask = _Asking(opened, context, f"{options.seed}-{number}")
    found["nothing"], _ = ask(receiver, "own", share="exact")
    found["own cache"], _ = ask(receiver, "own", share="exact")
    for place in ("memory", "disk"):
        ask(None if pair.sender == BASE else pair.sender, place)
        if place == "disk":
            opened.store.flush()
            move(opened.store, select(opened.store, Which(salt=ask.salt(place))), "disk", "memory")
        took_ms, shared = ask(receiver, place)
        if shared:
            found[f"shared, {place}"] = took_ms
    if alora in opened.model.adapters:
        found["alora, nothing"], _ = ask(alora, "alora")
        ask(None, "alora-base")
        found["alora, memory"], _ = ask(alora, "alora-base")
    if group is not None:
        found |= _over_link(opened, ask.num_tokens, found["nothing"], group)
    line = {name: round(took_ms, 3) for name, took_ms in found.items()}
    rows.keep({"round": line, "pair": pair.name, "tokens": ask.num_tokens})


class _Asking:
    """Asks about one context, under salts of this round."""

    def __init__(self, opened: api.Kdn, context: SharedContext, name: str) -> None:
        self._opened, self._context, self._name = opened, context, name
        self.num_tokens = 0

    def salt(self, place: str) -> str:
        return f"{self._name}-{place}"

    def __call__(
        self, adapter: str | None, place: str, share: api.ShareMode = "best"
    ) -> tuple[float, int]:
        """Milliseconds to the first token, and how many tokens came from a sibling."""
        answer = self._opened.generate(
            self._context.asked[0].question,
            [self._context.document],
            max_tokens=1,
            temperature=0,
            salt=self.salt(place),
            adapter=adapter,
            retention=Retention.SHARED,
            share=share,
        )
        self.num_tokens = answer.usage.prompt_tokens
        return answer.usage.ttft_ms, answer.usage.shared


def _over_link(
    opened: api.Kdn, num_tokens: int, prefill_ms: float, group: tuple[int, int]
) -> dict[str, float]:
    """The published group over a link of 1 Gbit/s, by how loads are ordered."""
    decoder = opened.model.decoder
    shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
    layer_bytes = num_tokens * shape.token_bytes / shape.num_layers
    states_bytes = num_tokens * decoder.config.hidden_size * decoder.dtype.itemsize
    ways = {"pipelined": LoadOrder.PIPELINED, "reused first": LoadOrder.REUSED_FIRST}
    return {
        f"group, 1 Gbit/s link, {name} (simulated)": times_to_first_token(
            [SharedArrival(0.0, *group)],
            shape.num_layers,
            order,
            load=1e3 * layer_bytes / LINK_BYTES_PER_S,
            states=1e3 * states_bytes / LINK_BYTES_PER_S,
            compute=prefill_ms / shape.num_layers,
        )[0]
        for name, order in ways.items()
    }
