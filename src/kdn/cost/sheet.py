"""Price sheets: dated TOML files that say what a GPU hour and each storage tier cost, and who says so.

No price stands in code.  A sheet names its date and a source for every price; what it leaves out,
misspells or makes absurd is refused with the place; one older than a year is used, and said to be.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdn.cost.tables import PriceTable, read_table
from kdn.cost.units import (
    MONTH_HOURS,
    BytesPerSecond,
    PerByte,
    PerByteHour,
    PerHour,
    PerRequest,
)
from kdn.errors import BadInput

__all__ = ["PriceSheet", "TierPrice", "load_sheet"]

OLD_DAYS = 365
_NO_FEE, _NO_BYTE_FEE, _NO_RENT = PerRequest(0), PerByte(0), PerHour(0)


@dataclass(frozen=True)
class TierPrice:
    """What storing bytes in one place costs, and how fast they come from it."""

    name: str
    storage: PerByteHour
    bandwidth: BytesPerSecond
    write: PerByte = _NO_BYTE_FEE
    read: PerByte = _NO_BYTE_FEE
    """Egress."""
    put: PerRequest = _NO_FEE
    get: PerRequest = _NO_FEE
    provisioned: PerHour = _NO_RENT
    """For throughput or I/O operations, whether used or not; shared by all that is stored there."""
    latency_s: float = 0.0
    """Before the first byte."""
    capacity_gb: float | None = None
    """None where there is no limit that matters."""
    source: str = ""


@dataclass(frozen=True)
class PriceSheet:
    """One place to run: its accelerator and its tiers."""

    name: str
    date: dt.date
    gpu: PerHour
    gpu_name: str
    gpu_source: str
    tiers: Mapping[str, TierPrice]
    note: str = ""

    def tier(self, name: str) -> TierPrice:
        """Raises BadInput, naming those there are."""
        if name not in self.tiers:
            known = ", ".join(self.tiers)
            raise BadInput(f"price sheet {self.name}: no price for tier {name!r}; it has {known}")
        return self.tiers[name]

    def warning(self, today: dt.date) -> str | None:
        """What to know before these prices are believed; None when they are recent."""
        days = (today - self.date).days
        if days > OLD_DAYS:
            return (
                f"the prices of {self.name} are of {self.date}, {days} days ago:"
                " check them and give a newer sheet with --prices"
            )
        return f"the prices of {self.name} are of {self.date}, in the future" if days < 0 else None


def load_sheet(name: str | Path) -> PriceSheet:
    """A sheet by name, or a file. Raises BadInput, saying what is missing, unknown or absurd."""
    top = read_table("prices", "price sheet", name)
    gpu, tiers = top.table("gpu"), top.table("tiers")
    sheet = PriceSheet(
        name=Path(name).stem,
        date=top.date("date"),
        gpu=_gpu_price(gpu),
        gpu_name=gpu.text("name"),
        gpu_source=gpu.text("source"),
        tiers={key: _tier(key, tiers.table(key)) for key in tiers.values},
        note=top.text("note", ""),
    )
    gpu.close()
    top.close()
    if not sheet.tiers:
        raise BadInput(f"price sheet {name}: [tiers] is empty; give at least one tier")
    return sheet


def _gpu_price(gpu: PriceTable) -> PerHour:
    """By the hour, or of hardware that is owned: bought, written off, and fed with power."""
    if "usd_per_hour" in gpu.values:
        return PerHour(gpu.number("usd_per_hour", most=10_000))
    bought = gpu.number("bought_usd", most=1e8)
    hours = gpu.number("written_off_years", least=0.1, most=30) * 12 * MONTH_HOURS
    share = gpu.number("used_share", 1.0, least=0.01, most=1)
    power = gpu.number("power_watts", most=1e6) / 1000 * gpu.number("usd_per_kwh", most=10)
    return PerHour(bought / hours / share + power)


def _tier(name: str, table: PriceTable) -> TierPrice:
    found = TierPrice(
        name=name,
        storage=_storage(table),
        bandwidth=BytesPerSecond(table.number("gb_per_s", least=1e-6, most=1e4) * 1e9),
        write=PerByte.gb(table.number("write_usd_per_gb", 0.0, most=100)),
        read=PerByte.gb(table.number("read_usd_per_gb", 0.0, most=100)),
        put=PerRequest(table.number("usd_per_1000_puts", 0.0, most=100) / 1000),
        get=PerRequest(table.number("usd_per_1000_gets", 0.0, most=100) / 1000),
        provisioned=PerHour(table.number("provisioned_usd_per_month", 0.0, most=1e6) / MONTH_HOURS),
        latency_s=table.number("latency_ms", 0.0, most=60_000) / 1000,
        capacity_gb=table.number("capacity_gb", most=1e9)
        if "capacity_gb" in table.values
        else None,
        source=table.text("source"),
    )
    table.close()
    return found


def _storage(table: PriceTable) -> PerByteHour:
    if table.values.get("already_paid_for") is True:
        table.take("already_paid_for")
        return PerByteHour(0)
    if "usd_per_gb_hour" in table.values:
        return PerByteHour.gb_hour(table.number("usd_per_gb_hour", most=10))
    return PerByteHour.gb_month(table.number("usd_per_gb_month", most=1000))
