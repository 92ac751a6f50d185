"""How far the keys of a text drift when it stands behind others: measured once a model, then kept.

    eight texts, each computed alone behind the prelude    ─┐
    the same eight, computed one behind the other          ─┴─> mean difference of keys, by layer

The texts that travel with kdn are enough: the drift hardly depends on what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from kdn.core import Fingerprint, Plan, Prompt, Role, TokenIds
from kdn.corpus import corpus_files
from kdn.engine import HeldKV, steps_alone
from kdn.errors import StoreError
from kdn.machine.files import publish_file
from kdn.model import Document, LoadedModel
from kdn.model.attention import Attention
from kdn.reuse.blend import Drift
from kdn.trace import Trace

__all__ = [
    "TEXTS",
    "DriftKeeper",
    "drift_share",
    "load_drift",
    "measure_drift",
    "save_drift",
    "shipped_texts",
]

TEXTS = 8
_WORDS = 200
_SHARES = {"smollm2-135m": 1.0}
"""What brings blends nearest to a full prefill where it is not half, by `kdn bench blend`."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """A drift on disk."""

    fingerprint: str
    shape: tuple[int, int, int]
    values: bytes
    """fp32, little end first."""


def drift_share(model: str, wished: float | None = None) -> float:
    """How much of its drift is taken off that model's stored keys, 0 to 1: as wished, else as measured."""
    return _SHARES.get(model, 0.5) if wished is None else wished


def shipped_texts(number: int = TEXTS) -> list[str]:
    """So many passages of the shipped documents, from different ones where there are enough."""
    words = [file.read_text("utf-8").split() for file in corpus_files()]
    cuts = [
        " ".join(text[at : at + _WORDS])
        for at in range(0, max(map(len, words)), _WORDS)
        for text in words
        if at + _WORDS <= len(text)
    ]
    return cuts[:number]


def measure_drift(
    model: LoadedModel, attention: Attention, prompt: Prompt
) -> Generator[None, None, Drift]:
    """The drift, as seen in a prompt of several documents behind a prelude.

    Costs two prefills of the prompt.  It yields after every layer, so that whoever drives it may let
    others go first.
    """
    (_, _, home), *spans = prompt.spans()
    prelude = prompt.token_ids[:home]
    documents = [(a, b) for segment, a, b in spans if segment.role is Role.DOCUMENT]
    assert len(documents) > 1, "drift is of documents behind the first"
    lead = yield from _keys(model, attention, prelude, None)
    whole = yield from _keys(model, attention, prompt.token_ids[: documents[-1][1]], None)
    total = torch.zeros(whole.shape[0], *whole.shape[3:])
    for start, stop in documents[1:]:
        alone = yield from _keys(
            model, attention, (*prelude, *prompt.token_ids[start:stop]), HeldKV(lead)
        )
        error = whole[:, 0, start:stop].float() - alone[:, 0].float()
        total += error.sum(dim=1)
    return Drift(total / sum(stop - start for start, stop in documents[1:]))


def load_drift(home: Path, fingerprint: Fingerprint) -> Drift | None:
    """The drift of that model; None when none was measured that can be read."""
    try:
        record = msgspec.msgpack.decode(_path(home, fingerprint).read_bytes(), type=_Record)
        values = np.frombuffer(record.values, dtype="<f4").reshape(record.shape)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return Drift(torch.from_numpy(values.copy())) if record.fingerprint == fingerprint else None


def save_drift(home: Path, fingerprint: Fingerprint, drift: Drift) -> Path:
    """Write it down, whole or not at all. Raises StoreError when that is impossible."""
    layers, heads, dim = drift.shift.shape
    values = drift.shift.float().numpy().astype("<f4").tobytes()
    record = _Record(fingerprint=fingerprint, shape=(layers, heads, dim), values=values)
    path = _path(home, fingerprint)
    publish_file(path, msgspec.msgpack.encode(record))
    return path


def _path(home: Path, fingerprint: Fingerprint) -> Path:
    return home / "drift" / f"{fingerprint}.msgpack"


class DriftKeeper:
    """The drift of one model: read when it was measured before, else measured when it is wanted."""

    def __init__(
        self,
        home: Path,
        fingerprint: Fingerprint,
        measure: Callable[[Prompt], Generator[None, None, Drift]],
        prompt: Callable[[Sequence[Document]], Prompt],
        share: float,
        trace: Trace,
    ) -> None:
        """`share` of the drift is taken off by blends; at 0 it is neither measured nor used."""
        self._home, self._fingerprint = home, fingerprint
        self._measure, self._prompt = measure, prompt
        self._share, self._trace = share, trace
        self._drift = load_drift(home, fingerprint)

    def known(self, fingerprint: Fingerprint) -> Drift | None:
        """What blends of that model take off. Adapters have keys of their own, never measured."""
        if self._drift is None or not self._share or fingerprint != self._fingerprint:
            return None
        return self._drift.times(self._share)

    def when_idle(self) -> Iterator[None]:
        """The measurement in steps, if one is due."""
        return self._steps() if self._share else iter(())

    def learn(self) -> Drift:
        """The whole drift; measured now where it is not known."""
        for _ in self._steps():
            pass
        assert self._drift is not None, "measured just now"
        return self._drift

    def _steps(self) -> Iterator[None]:
        if self._drift is not None:
            return
        drift = yield from self._measure(
            self._prompt([Document(None, text) for text in shipped_texts()])
        )
        self._drift = drift
        try:
            save_drift(self._home, self._fingerprint, drift)
        except StoreError as error:
            self._trace.event("blend.drift", why=str(error))


def _keys(
    model: LoadedModel, attention: Attention, tokens: TokenIds, prefix: HeldKV | None
) -> Generator[None, None, Tensor]:
    """[layers, 2, tokens, kv heads, dim]: KV of the tokens after the prefix."""
    plan = Plan(tokens, prefix=prefix, logits=())
    ran = yield from steps_alone(model, attention, plan, capture=True)
    assert ran.captured is not None, "asked for"
    return ran.captured
