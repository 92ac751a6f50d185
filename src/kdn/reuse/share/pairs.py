"""What was measured of an ordered pair of models, kept beside the catalogue, and the choice that follows.

home/share/<sender>-<receiver>/profile.json      the points: what each way to share costs and loses
home/share/<sender>-<receiver>/map.safetensors   the linear map
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from kdn.core import Fingerprint, KvShape
from kdn.machine.files import publish_file
from kdn.reuse.share.linear_map import LinearMap, load_map, save_map
from kdn.reuse.share.plans import ShareChoice

__all__ = [
    "PairRecord",
    "SharePoint",
    "ShareRecords",
    "WayTimes",
    "choose_point",
    "frontier",
    "seconds_at",
]

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Number = Annotated[float, msgspec.Meta(ge=0)]
WayTimes = tuple[tuple[_Count, _Number], ...]
"""(Tokens of context, seconds to read them and a question), ascending; empty where nothing was timed."""


class SharePoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to share, measured on a pair."""

    first: _Count | None = None
    last: _Count | None = None
    ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    mapped: bool = False
    work: _Number
    """Counted work as a share of a prefill of the context, the probe pass included."""
    kl: _Number
    """Mean KL (nats) of the answers' tokens to the receiver's own prefill."""
    nll: float
    """Mean NLL (nats) of the answers' tokens."""
    contexts: _Count
    times: WayTimes = ()

    @property
    def choice(self) -> ShareChoice:
        """What is recomputed."""
        group = None if self.first is None or self.last is None else (self.first, self.last)
        return ShareChoice(group, self.ratio, self.mapped)

    @property
    def is_published(self) -> bool:
        """Is it a way of the paper: a contiguous group of layers?"""
        return self.first is not None and not self.mapped


class PairRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A profile of one ordered pair."""

    sender: str
    receiver: str
    sender_name: str
    receiver_name: str
    num_layers: _Count
    contexts: _Count
    context_tokens: _Count
    """Mean length."""
    own_nll: float
    """The receiver's own mean NLL of the answers' tokens."""
    points: tuple[SharePoint, ...]
    prefill_times: WayTimes = ()
    """Of the receiver's own prefill, measured together with those of the points."""

    def prefill_s(self, num_tokens: int) -> float | None:
        """What the receiver's own prefill takes; None where nothing was timed."""
        return seconds_at(self.prefill_times, num_tokens)

    def without_times(self) -> PairRecord:
        """What holds on every machine: times do not."""
        points = tuple(msgspec.structs.replace(one, times=()) for one in self.points)
        return msgspec.structs.replace(self, points=points, prefill_times=())

    def allowed(self, mode: Literal["published", "best"]) -> list[SharePoint]:
        """The ways that the mode allows."""
        return [one for one in self.points if mode == "best" or one.is_published]

    def usable(
        self,
        mode: Literal["published", "best"],
        is_possible: Callable[[SharePoint], bool] = lambda _: True,
    ) -> list[SharePoint]:
        """The frontier of the ways that the mode allows and that are possible, least work first."""
        return frontier([*filter(is_possible, self.allowed(mode))])


def frontier(points: Sequence[SharePoint]) -> list[SharePoint]:
    """Those that no other beats in both work and KL, least work first."""
    best: list[SharePoint] = []
    for point in sorted(points, key=lambda one: (one.work, one.kl)):
        if not best or point.kl < best[-1].kl:
            best.append(point)
    return best


def seconds_at(times: WayTimes, num_tokens: int) -> float | None:
    """The time at a length, on the line through the first and the last that were timed; None without two."""
    if len(times) < 2:
        return None
    (low, low_s), (high, high_s) = times[0], times[-1]
    token_s = (high_s - low_s) / max(high - low, 1)
    return max(low_s + (num_tokens - low) * token_s, 0.0)


def choose_point(
    points: Sequence[SharePoint],
    *,
    max_kl: float,
    is_waiting: bool,
    seconds: Callable[[SharePoint], float],
    within_s: float | None,
) -> SharePoint | None:
    """The paper's rule (2411.02820, appendix B). `points` is a frontier; None: compute it all.

    While others wait, or where no latency is set: the least work within the quality target.  Else the
    most quality that `seconds`, loading included, says is in time; where nothing is, the quickest.
    """
    good = [one for one in points if one.kl <= max_kl]
    if not good:
        return None
    if is_waiting or within_s is None:
        return min(good, key=lambda one: one.work)
    in_time = [one for one in good if seconds(one) <= within_s]
    return min(in_time, key=lambda one: one.kl) if in_time else min(good, key=seconds)


class ShareRecords:
    """The profiles of a home folder, and its maps, which are read when they are first asked for."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "share"
        self._maps: dict[tuple[str, str], LinearMap | None] = {}
        self.pairs = self._read()
        """By sender and receiver."""

    def _read(self) -> dict[tuple[str, str], PairRecord]:
        found = {}
        for path in sorted(self._folder.glob("*/profile.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=PairRecord)
            except (OSError, RecursionError, msgspec.MsgspecError):
                continue
            if path.parent.name == _name(record.sender, record.receiver):
                found[record.sender, record.receiver] = record
        return found

    def get(self, sender: Fingerprint, receiver: Fingerprint) -> PairRecord | None:
        """The profile of a pair; None where there is none that can be read."""
        return self.pairs.get((sender, receiver))

    def senders(self, receiver: Fingerprint) -> list[PairRecord]:
        """The profiles of all pairs with that receiver."""
        return [one for (_, to), one in self.pairs.items() if to == receiver]

    def all(self) -> list[PairRecord]:
        """Every profile that can be read."""
        return list(self.pairs.values())

    def start_layers(self, sender: Fingerprint) -> tuple[int, ...]:
        """The layers whose inputs receivers of this sender begin from: what it is to store."""
        return tuple(
            sorted(
                {
                    point.first
                    for (made_by, _), one in self.pairs.items()
                    if made_by == sender
                    for point in (*one.usable("published"), *one.usable("best"))
                    if point.first
                }
            )
        )

    def map(self, sender: Fingerprint, receiver: Fingerprint, shape: KvShape) -> LinearMap | None:
        """The pair's map; None where there is none that fits."""
        pair = sender, receiver
        if pair not in self._maps:
            width = 2 * shape.num_kv_heads * shape.head_dim
            path = self.folder(sender, receiver) / "map.safetensors"
            self._maps[pair] = load_map(path, shape.num_layers, width)
        return self._maps[pair]

    def folder(self, sender: str, receiver: str) -> Path:
        """Where what is known of a pair lies."""
        return self._folder / _name(sender, receiver)

    def keep(self, record: PairRecord, made: LinearMap | None) -> Path:
        """Write a profile and its map. Raises StoreError."""
        folder = self.folder(record.sender, record.receiver)
        if made is not None:
            save_map(folder / "map.safetensors", made)
        publish_file(folder / "profile.json", msgspec.json.format(msgspec.json.encode(record)))
        self.pairs[record.sender, record.receiver] = record
        self._maps.pop((record.sender, record.receiver), None)
        return folder / "profile.json"


def _name(sender: str, receiver: str) -> str:
    return f"{sender[:16]}-{receiver[:16]}"
