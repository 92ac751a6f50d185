"""What a trace costs: dollars and delay of every event of the store's replayer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kdn.core import Served
from kdn.cost.sheet import PriceSheet, TierPrice
from kdn.cost.speed import Speed
from kdn.cost.units import BytesPerSecond, PerByteHour, Seconds, SizeBytes, Usd
from kdn.errors import BadInput

__all__ = ["TraceBill", "price_trace"]

_NO_STORE = TierPrice("none", PerByteHour(0), BytesPerSecond(1))
"""Nothing comes from it."""


@dataclass(frozen=True)
class TraceBill:
    """A trace's requests under one policy, in one tier."""

    requests: int
    prefill: Usd
    decode: Usd
    load: Usd
    storage: Usd
    fees: Usd
    """Writes, requests, egress, provisioning."""
    hit_tokens: int
    tokens: int
    mean_delay: Seconds
    """To the first token, without queueing."""

    @property
    def usd(self) -> Usd:
        return self.prefill + self.decode + self.load + self.storage + self.fees

    @property
    def hit_rate(self) -> float | None:
        """Of the prompt tokens; None for a trace that does not say what is the same."""
        return self.hit_tokens / self.tokens if self.tokens else None


def price_trace(
    served: Iterable[Served],
    speed: Speed,
    sheet: PriceSheet,
    tier: TierPrice | None,
    *,
    rented: SizeBytes | None = None,
) -> TraceBill:
    """Add up what each request costs. Raises BadInput for an empty trace.

    Storage is what is held from one request to the next, or `rented` all the time.  With `tier` None
    everything is computed, and nothing paid for a store.
    """
    if tier is None:
        tier = _NO_STORE
        served = (replace(one, hit_tokens=0, read_bytes=0) for one in served)
    prefill_s = decode_s = load_s = delay_s = kept_byte_s = 0.0
    last: Served | None = None
    requests = hits = tokens = read = written = gets = puts = 0
    for one in served:
        new = one.num_tokens - one.hit_tokens
        own_s = speed.prefill.seconds(new, one.hit_tokens)
        wait_s = _load_s(one, tier)
        prefill_s, load_s = prefill_s + own_s, load_s + wait_s
        delay_s += own_s + wait_s
        decode_s += speed.decode(one.output_tokens, one.num_tokens).value / speed.decode_batch
        if last is not None:
            kept_byte_s += last.held_bytes * (one.at_s - last.at_s)
        requests, hits, tokens = requests + 1, hits + one.hit_tokens, tokens + one.num_tokens
        read, written = read + one.read_bytes, written + one.written_bytes
        gets, puts = gets + one.hit_blocks, puts + one.written_blocks
        last = one
    if last is None:
        raise BadInput("the trace has no requests: nothing to price")
    period = Seconds(last.at_s)
    if rented is not None:
        kept_byte_s = rented.value * period.value
    fees = (
        tier.write.cost(SizeBytes(written)) + tier.read.cost(SizeBytes(read)) + tier.get.cost(gets)
    )
    return TraceBill(
        requests=requests,
        prefill=sheet.gpu.cost(Seconds(prefill_s)),
        decode=sheet.gpu.cost(Seconds(decode_s)),
        load=sheet.gpu.cost(Seconds(load_s)),
        storage=tier.storage.cost(SizeBytes(kept_byte_s), Seconds(1.0)),
        fees=fees + tier.put.cost(puts) + tier.provisioned.cost(period),
        hit_tokens=hits,
        tokens=tokens,
        mean_delay=Seconds(delay_s / requests),
    )


def _load_s(one: Served, tier: TierPrice) -> float:
    if not one.read_bytes:
        return 0.0
    return tier.latency_s + tier.bandwidth.time(SizeBytes(one.read_bytes)).value
