"""Money, bytes and time as types of their own, so that no two of them are added by mistake.

A price is money per something: multiply it by that something and it becomes money.  Nothing else
type-checks.  Values are finite and not negative; making one from another number raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from kdn.errors import BadInput

__all__ = [
    "Amount",
    "BytesPerSecond",
    "PerByte",
    "PerByteHour",
    "PerHour",
    "PerRequest",
    "Seconds",
    "SizeBytes",
    "Usd",
    "total",
]

_HOUR_S = 3600.0
MONTH_HOURS = 730.0
"""A billing month of 365 / 12 days."""


@dataclass(frozen=True, order=True, slots=True)
class Amount:
    """A finite number that is not below zero, in one unit."""

    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or self.value < 0:
            raise BadInput(
                f"{self.value} {type(self).__name__}: an amount must be finite and not negative"
            )

    def __add__(self, other: Self) -> Self:
        if type(self) is not type(other):
            raise TypeError(f"{type(self).__name__} and {type(other).__name__} do not add up")
        return type(self)(self.value + other.value)

    def __mul__(self, times: float) -> Self:
        return type(self)(self.value * times)

    def over(self, other: Self) -> float:
        """This as a multiple of `other`; infinite where that is nothing."""
        return self.value / other.value if other.value else math.inf


class Usd(Amount):
    """US dollars."""


class Seconds(Amount):
    """Time on a clock."""


class SizeBytes(Amount):
    """Bytes; a GB is 1e9 of them."""


class BytesPerSecond(Amount):
    """How fast bytes come."""

    def time(self, size: SizeBytes) -> Seconds:
        """How long `size` takes. Raises BadInput where nothing comes at all."""
        if not self.value:
            raise BadInput("a bandwidth of 0 bytes per second never delivers")
        return Seconds(size.value / self.value)


class PerHour(Amount):
    """Dollars per hour of something that is rented."""

    def cost(self, time: Seconds) -> Usd:
        return Usd(self.value * time.value / _HOUR_S)


class PerByteHour(Amount):
    """Dollars per byte stored for an hour."""

    @staticmethod
    def gb_month(usd: float) -> PerByteHour:
        """From dollars per GB and month."""
        return PerByteHour(usd / 1e9 / MONTH_HOURS)

    @staticmethod
    def gb_hour(usd: float) -> PerByteHour:
        """From dollars per GB and hour."""
        return PerByteHour(usd / 1e9)

    def cost(self, size: SizeBytes, time: Seconds) -> Usd:
        return Usd(self.value * size.value * time.value / _HOUR_S)


class PerByte(Amount):
    """Dollars per byte moved."""

    @staticmethod
    def gb(usd: float) -> PerByte:
        """From dollars per GB."""
        return PerByte(usd / 1e9)

    def cost(self, size: SizeBytes) -> Usd:
        return Usd(self.value * size.value)


class PerRequest(Amount):
    """Dollars per request."""

    def cost(self, requests: float) -> Usd:
        return Usd(self.value * requests)


def total(amounts: Iterable[Usd]) -> Usd:
    """The sum of amounts of money."""
    return Usd(sum(amount.value for amount in amounts))
