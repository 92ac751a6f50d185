"""What was measured of an open model on this machine: read once, measured when it is asked for, kept.

codecs  how far each codec moves its answers   kdn store calibrate
bias    how keys change after other texts      `learn_key_bias`, or idle time
jct     how long a prompt takes                kdn cost fit, or idle time
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kdn.calibration.key_bias import KeyBiasKeeper
from kdn.calibration.times import JctMeter, jct_path, measure_jct, stored_jct
from kdn.clock import Clock
from kdn.core import Fingerprint, JctModel
from kdn.cost import GRID, save_jct
from kdn.model import LoadedModel
from kdn.model.attention import Attention
from kdn.reuse.blend import KeyBias
from kdn.reuse.codec_quality import QualityRecord, load_record
from kdn.reuse.share import ShareRecords

__all__ = ["ModelCalibration"]


class ModelCalibration:
    """The measurements of one model; files in `home` hold them between runs."""

    def __init__(
        self,
        model: LoadedModel,
        attention: Attention,
        bias: KeyBiasKeeper,
        home: Path,
        clock: Clock,
    ) -> None:
        self._model, self._attention, self._clock = model, attention, clock
        self._bias = bias
        self._home = home
        self.shares = ShareRecords(home)
        """What was measured of pairs of models (`kdn share profile`)."""
        self._codecs: dict[Fingerprint, QualityRecord | None] = {}
        self.jct = stored_jct(model.decoder, home)
        """How long prompts take here: fitted by `kdn cost fit`, else counted from shapes."""

    def codecs(self, fingerprint: Fingerprint) -> QualityRecord | None:
        """What `kdn store calibrate` found for that model; looked up once while this is open."""
        if fingerprint not in self._codecs:
            self._codecs[fingerprint] = load_record(self._home, fingerprint)
        return self._codecs[fingerprint]

    def key_bias(self, fingerprint: Fingerprint) -> KeyBias | None:
        """What blends of that model correct keys by; None where it is not known."""
        return self._bias.known(fingerprint)

    def learn_key_bias(self) -> KeyBias:
        """The mean change of keys after other texts, which blending corrects (see docs/blend.md).

        Measured when it is not known: two prefills of some 2,000 tokens, once a model; the home
        folder keeps it.  Idle time does this by itself after the first blended answer.
        """
        return self._bias.learn()

    def key_bias_steps(self) -> Iterator[None]:
        """The measurement of the key bias in steps; none when it is known or is not used."""
        return self._bias.when_idle()

    def fit_jct(self, grid: Sequence[tuple[int, int]] = GRID, repeats: int = 3) -> JctModel:
        """Measure how long prompts take here, keep the fit, and use it from the next opening on.

        Takes a few seconds of the machine; other requests meanwhile spoil it.
        """
        self.keep_jct(measure_jct(self._model, self._attention, self._clock, grid, repeats))
        return self.jct

    def jct_meter(self) -> JctMeter:
        """What measures single points, for idle time. The caller closes it."""
        return JctMeter(self._model, self._attention, self._clock)

    def keep_jct(self, found: JctModel) -> None:
        """Take over a fit and write it down. Raises StoreError when that is impossible."""
        self.jct = found
        save_jct(found, jct_path(self._model.decoder, self._home))
