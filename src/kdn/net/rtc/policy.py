"""A trained policy as plain arrays: no learner and no torch is needed to use one."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.machine.files import READABLE, publish_made
from kdn.net.rtc.call import MAX_RATE_BPS, START_RATE_BPS, Decision, Feedback
from kdn.net.rtc.control.gcc import Gcc
from kdn.net.rtc.control.window import interval_of
from kdn.net.rtc.history import History, apply_action

__all__ = [
    "Learned",
    "Policy",
    "RateSetter",
    "Safeguarded",
    "add_policy",
    "load_policies",
    "save_policies",
]

_PACKAGED = Path(__file__).parent / "weights" / "policies.npz"


@dataclass(frozen=True)
class Policy:
    """A network of tanh layers from a state to the mean of the next action."""

    name: str
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    """(weights [out, in], biases [out]) of each layer."""

    def action(self, observation: NDArray[np.float32]) -> float:
        """The action for a state; the last layer is linear."""
        x = observation
        for weights, biases in self.layers[:-1]:
            x = np.tanh(weights @ x + biases)
        weights, biases = self.layers[-1]
        return float((weights @ x + biases)[0])


@dataclass
class Learned:
    """The controller that follows a policy."""

    policy: Policy
    bps: float = START_RATE_BPS
    _history: History = field(default_factory=History)
    _heard: bool = False

    def decide(self, feedback: Feedback) -> Decision:
        self._history.add(interval_of(feedback))
        self._heard = self._heard or len(feedback.acks) > 0
        if self._heard:
            action = self.policy.action(self._history.observation(self.bps))
            self.bps = apply_action(self.bps, action)
        return Decision(self.bps)


class RateSetter(Protocol):
    """A controller whose rate another may set."""

    bps: float

    def decide(self, feedback: Feedback) -> Decision:
        """As every controller does."""


@dataclass
class Safeguarded:
    """A controller that hands the call to GCC for a second when loss stays above 10 %."""

    learned: RateSetter
    _gcc: Gcc = field(default_factory=Gcc)
    _lossy: int = 0
    _driven: int = 0
    fallbacks: int = 0

    def decide(self, feedback: Feedback) -> Decision:
        safe = self._gcc.decide(feedback)
        own = self.learned.decide(feedback)
        self._lossy = self._lossy + 1 if interval_of(feedback).loss > 0.10 else 0
        if self._lossy >= 3 and not self._driven:
            self._driven, self._lossy = 20, 0
            self.fallbacks += 1
        if not self._driven:
            return own
        self._driven -= 1
        self.learned.bps = min(safe.rate_bps, MAX_RATE_BPS)
        return Decision(safe.rate_bps)


def save_policies(policies: list[Policy], path: Path) -> None:
    """All policies in one file, whole or not at all. Raises StoreError."""
    arrays = {}
    for policy in policies:
        for i, (weights, biases) in enumerate(policy.layers):
            arrays[f"{policy.name}/{i}/weights"] = weights.astype(np.float32)
            arrays[f"{policy.name}/{i}/biases"] = biases.astype(np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    publish_made(path, file.getvalue(), READABLE)


def add_policy(policy: Policy, path: Path) -> None:
    """Put a policy beside those that the file has now, in place of one of its name.

    Raises BadInput, StoreError.
    """
    there = load_policies(path) if path.exists() else {}
    save_policies(list((there | {policy.name: policy}).values()), path)


def load_policies(path: Path | None = None) -> dict[str, Policy]:
    """The packaged policies, or those of a file. Raises BadInput when it is not one."""
    where = path or _PACKAGED
    try:
        with where.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            names = dict.fromkeys(key.split("/")[0] for key in stored.files)
            return {name: _read_policy(stored, name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        reason = error if isinstance(error, OSError) else "`kdn net rtc train` did not write it"
        raise BadInput(f"cannot read {where} as policies: {reason}") from error


def _read_policy(stored: np.lib.npyio.NpzFile, name: str) -> Policy:
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    while f"{name}/{len(layers)}/weights" in stored.files:
        i = len(layers)
        layers.append((stored[f"{name}/{i}/weights"], stored[f"{name}/{i}/biases"]))
    return Policy(name, tuple(layers))
