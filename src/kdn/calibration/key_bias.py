"""The mean change of a text's keys after other texts: measured once a model, then kept.

    eight texts, each computed alone after the prelude     ─┐
    the same eight, computed one after the other           ─┴─> mean difference of keys, by layer

The texts that kdn ships are enough: the bias hardly depends on the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Annotated

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
from kdn.reuse.blend import KeyBias
from kdn.trace import Trace

__all__ = [
    "TEXTS",
    "KeyBiasKeeper",
    "key_bias_share",
    "load_key_bias",
    "measure_key_bias",
    "save_key_bias",
    "shipped_texts",
]

TEXTS = 8
_WORDS = 200
_SHARES = {"smollm2-135m": 1.0}
"""What brings blends nearest to a full prefill where it is not half, by `kdn bench blend`."""


_Size = Annotated[int, msgspec.Meta(ge=1)]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """A key bias on disk."""

    fingerprint: str
    shape: tuple[_Size, _Size, _Size]
    values: bytes
    """fp32, little end first."""
    digest: str = ""
    """SHA-256 of `values`; empty in files of earlier releases."""


def key_bias_share(model: str, wished: float | None = None) -> float:
    """The share of the key bias that is added to stored keys, 0 to 1: as set, else as measured."""
    return _SHARES.get(model, 0.5) if wished is None else wished


def shipped_texts() -> list[str]:
    """`TEXTS` passages of the shipped documents, from different ones where there are enough."""
    words = [file.read_text("utf-8").split() for file in corpus_files()]
    cuts = [
        " ".join(text[at : at + _WORDS])
        for at in range(0, max(map(len, words)), _WORDS)
        for text in words
        if at + _WORDS <= len(text)
    ]
    return cuts[:TEXTS]


def measure_key_bias(
    model: LoadedModel, attention: Attention, prompt: Prompt
) -> Generator[None, None, KeyBias]:
    """The key bias, as seen in a prompt of several documents after a prelude.

    Costs two prefills of the prompt.  It yields after every layer, so that the driver may let other
    work go first.
    """
    (_, _, home), *spans = prompt.spans()
    prelude = prompt.token_ids[:home]
    documents = [(a, b) for segment, a, b in spans if segment.role is Role.DOCUMENT]
    assert len(documents) > 1, "key bias is of documents after the first"
    lead = yield from _keys(model, attention, prelude, None)
    whole = yield from _keys(model, attention, prompt.token_ids[: documents[-1][1]], None)
    total = torch.zeros(whole.shape[0], *whole.shape[3:])
    for start, stop in documents[1:]:
        alone = yield from _keys(
            model, attention, (*prelude, *prompt.token_ids[start:stop]), HeldKV(lead)
        )
        error = whole[:, 0, start:stop].float() - alone[:, 0].float()
        total += error.sum(dim=1)
    return KeyBias(total / sum(stop - start for start, stop in documents[1:]))


def load_key_bias(home: Path, fingerprint: Fingerprint) -> KeyBias | None:
    """The key bias of that model; None when none was measured that can be read."""
    try:
        record = msgspec.msgpack.decode(_path(home, fingerprint).read_bytes(), type=_Record)
        values = np.frombuffer(record.values, dtype="<f4").reshape(record.shape)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    if record.fingerprint != fingerprint or not np.isfinite(values).all():
        return None
    if record.digest and record.digest != hashlib.sha256(record.values).hexdigest():
        return None
    return KeyBias(torch.from_numpy(values.copy()))


def save_key_bias(home: Path, fingerprint: Fingerprint, bias: KeyBias) -> Path:
    """Write it down, whole or not at all. Raises StoreError when that is impossible."""
    layers, heads, dim = bias.shift.shape
    values = bias.shift.float().numpy().astype("<f4").tobytes()
    record = _Record(
        fingerprint=fingerprint,
        shape=(layers, heads, dim),
        values=values,
        digest=hashlib.sha256(values).hexdigest(),
    )
    path = _path(home, fingerprint)
    publish_file(path, msgspec.msgpack.encode(record))
    return path


def _path(home: Path, fingerprint: Fingerprint) -> Path:
    return home / "drift" / f"{fingerprint}.msgpack"


class KeyBiasKeeper:
    """The key bias of one model: read when it was measured before, else measured on demand."""

    def __init__(
        self,
        home: Path,
        fingerprint: Fingerprint,
        measure: Callable[[Prompt], Generator[None, None, KeyBias]],
        prompt: Callable[[Sequence[Document]], Prompt],
        share: float,
        trace: Trace,
    ) -> None:
        """`share` of the bias is added by blends; at 0 it is neither measured nor used."""
        self._home, self._fingerprint = home, fingerprint
        self._measure, self._prompt = measure, prompt
        self._share, self._trace = share, trace
        self._bias = load_key_bias(home, fingerprint)

    def known(self, fingerprint: Fingerprint) -> KeyBias | None:
        """What blends of that model add. Adapters have keys of their own, never measured."""
        if self._bias is None or not self._share or fingerprint != self._fingerprint:
            return None
        return self._bias.times(self._share)

    def when_idle(self) -> Iterator[None]:
        """The measurement in steps, if one is due."""
        return self._steps() if self._share else iter(())

    def learn(self) -> KeyBias:
        """The whole bias; measured now where it is not known."""
        for _ in self._steps():
            pass
        assert self._bias is not None, "measured just now"
        return self._bias

    def _steps(self) -> Iterator[None]:
        if self._bias is not None:
            return
        bias = yield from self._measure(
            self._prompt([Document(None, text) for text in shipped_texts()])
        )
        self._bias = bias
        try:
            save_key_bias(self._home, self._fingerprint, bias)
        except StoreError as error:
            self._trace.event("blend.key_bias", why=str(error))


def _keys(
    model: LoadedModel, attention: Attention, tokens: TokenIds, prefix: HeldKV | None
) -> Generator[None, None, Tensor]:
    """[layers, 2, tokens, kv heads, dim]: KV of the tokens after the prefix."""
    plan = Plan(tokens, prefix=prefix, logits=())
    ran = yield from steps_alone(model, attention, plan, capture=True)
    assert ran.captured is not None, "asked for"
    return ran.captured
