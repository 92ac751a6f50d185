"""What a store has saved and spent, in dollars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kdn.cost.sheet import PriceSheet, TierPrice
from kdn.cost.speed import Speed
from kdn.cost.units import Seconds, SizeBytes, Usd, total

__all__ = ["Ledger", "block_saving", "compute_ledger", "load_cost", "use_saving"]


@dataclass(frozen=True)
class Ledger:
    """Over the blocks that are held now: what their uses saved, what storing them cost."""

    saved: Usd
    spent: Usd


def block_saving(speed: Speed, sheet: PriceSheet, start: int, num_tokens: int) -> Usd:
    """Prefill of a block's tokens after those before it: what one use of it saves.

    The fixed time of a prefill is not among it: it is paid once a request in any case.
    """
    whole = speed.prefill.seconds(num_tokens, start) - speed.prefill.seconds(0, start)
    alone = speed.prefill.seconds(1, 0)
    return sheet.gpu.cost(Seconds(max(0.0, whole - alone)))


def use_saving(speed: Speed, sheet: PriceSheet) -> Callable[[int, int], float]:
    """Dollars that a use of a block saves, from its start and its tokens: what `value` ranks by."""
    return lambda start, num_tokens: block_saving(speed, sheet, start, num_tokens).value


def load_cost(sheet: PriceSheet, price: TierPrice, size: SizeBytes) -> Usd:
    """Bringing a block in once: the GPU that waits for it, the request, egress."""
    load = Seconds(price.latency_s) + price.bandwidth.time(size)
    return sheet.gpu.cost(load) + price.get.cost(1) + price.read.cost(size)


def compute_ledger(
    lives: Mapping[str, Sequence[tuple[int, int, int, float, int]]],
    speed: Speed,
    sheet: PriceSheet,
) -> Ledger:
    """The ledger of blocks by tier, each (start, tokens, bytes, seconds kept, uses).

    Raises BadInput for a tier with blocks that the sheet has no price for.
    """
    ledgers = [_tier_books(blocks, speed, sheet, tier) for tier, blocks in lives.items() if blocks]
    return Ledger(total(one.saved for one in ledgers), total(one.spent for one in ledgers))


def _tier_books(
    blocks: Iterable[tuple[int, int, int, float, int]],
    speed: Speed,
    sheet: PriceSheet,
    tier: str,
) -> Ledger:
    price = sheet.tier(tier)
    saved = spent = Usd(0)
    for start, num_tokens, size_bytes, age_s, uses in blocks:
        size = SizeBytes(size_bytes)
        saved += block_saving(speed, sheet, start, num_tokens) * uses
        spent += price.storage.cost(size, Seconds(max(0.0, age_s)))
        spent += price.write.cost(size) + price.put.cost(1)
        spent += load_cost(sheet, price, size) * uses
    return Ledger(saved, spent)
