"""How much loss stored KV may have: which codec writes a request's blocks, which it may read.

    setting codec      max_kl      writes                              reads besides exact
    none, lossless     any         that                                what max_kl allows
    int8, ...          none        that (it was chosen by name)    that
    int8, ...          a number    that if measured within, else       whatever was measured
                                   lossless                            within
    auto               a number    the smallest measured within, else  whatever was measured
                                   lossless                            within
    auto               none        lossless                            nothing

A request's own max_kl stands before the setting's; 0 means exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdn.core import EXACT, Cause, Fingerprint, Prefix, Recipe, Request
from kdn.reuse.codec_quality import QualityRecord
from kdn.store import CODECS, Codec, Loss

__all__ = ["LossRule", "lossy_recipe"]

AUTO = "auto"


def lossy_recipe(codec: str) -> Recipe:
    """How KV was made that went through a codec, and KV that was computed after such KV."""
    return Recipe((Cause.CODEC,), codec)


@dataclass(frozen=True)
class LossRule:
    """The settings, and where measurements are found. By default nothing may be lost."""

    codec: str = "none"
    """A codec's name, or `auto`."""
    max_kl: float | None = None
    record: Callable[[Fingerprint], QualityRecord | None] = lambda _: None

    def writes(self, request: Request, fingerprint: Fingerprint) -> Codec:
        """What this request's blocks are written with."""
        if self.codec != AUTO:
            chosen = CODECS[self.codec]
            return chosen if self._allows(chosen, request, fingerprint) else CODECS["lossless"]
        gains = self._measured_within(request, fingerprint)
        return CODECS[max(gains, key=gains.__getitem__, default="lossless")]

    def reads(self, request: Request, fingerprint: Fingerprint) -> list[Recipe]:
        """Which recipes may stand in for computing, exact first, then the least loss first."""
        lossy = dict.fromkeys(self._measured_within(request, fingerprint))
        if self._named_without_limit(request):
            lossy[self.codec] = None
        return [EXACT, *map(lossy_recipe, lossy)]

    def allowed(self, request: Request, fingerprint: Fingerprint) -> dict[str, Loss]:
        """Lossy codecs that exact blocks may go through on their way to this request."""
        record, within = self.record(fingerprint), self._measured_within(request, fingerprint)
        if record is None:
            return {}
        return {name: Loss(record.codecs[name].kl, 1 / gain) for name, gain in within.items()}

    def _limit(self, request: Request) -> float | None:
        asked = request.option(Prefix)
        return self.max_kl if asked is None or asked.max_kl is None else asked.max_kl

    def _named_without_limit(self, request: Request) -> bool:
        named = self.codec != AUTO and not CODECS[self.codec].lossless
        return named and self._limit(request) is None

    def _allows(self, codec: Codec, request: Request, fingerprint: Fingerprint) -> bool:
        if codec.lossless or self._named_without_limit(request):
            return True
        return codec.name in self._measured_within(request, fingerprint)

    def _measured_within(self, request: Request, fingerprint: Fingerprint) -> dict[str, float]:
        """Lossy codecs whose measured KL is within the limit, least first, with their gains."""
        limit = self._limit(request)
        record = self.record(fingerprint) if limit else None
        if limit is None or record is None:
            return {}
        known = [
            (quality.kl, name, quality.gain)
            for name, quality in record.codecs.items()
            if name in CODECS and not CODECS[name].lossless and quality.kl <= limit
        ]
        return {name: gain for _, name, gain in sorted(known)}
