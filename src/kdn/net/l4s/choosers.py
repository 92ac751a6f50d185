"""The policies by name, and the packaged weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput, WeightsError
from kdn.net.l4s.policy import LastValue, Oracle, PolicyConfig, SwiftQueue
from kdn.net.l4s.stream import PacketStream, num_weights
from kdn.net.l4s.tokens import Samples
from kdn.net.world.spec import Marking
from kdn.net.world.world import Chooser

__all__ = [
    "MARKINGS",
    "POLICIES",
    "check_real",
    "chooser",
    "marking_of",
    "packaged_lstm",
    "packaged_weights",
    "read_weights",
]

MARKINGS: dict[str, Marking] = {
    "all-L": "fixed",
    "all-C": "fixed",
    "random": "random",
    "by-type": "by-type",
    "last-value": "ask",
    "by-forecast": "ask",
    "swift": "ask",
    "swift-online": "ask",
    "oracle": "ask",
}
"""How a flow under each policy marks. all-C changes the flow's own class; see `evaluate`.

`by-forecast` goes by forecasts alone; `swift` keeps an account of what its packets met besides;
`swift-online` is `swift` whose predictor goes on learning from its flow.
"""
POLICIES = tuple(MARKINGS)


def read_weights(path: Path) -> NDArray[np.float32]:
    """A weight vector from a file that `kdn net l4s train` wrote. Raises WeightsError."""
    try:
        weights: NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, EOFError) as error:
        reason = error if isinstance(error, OSError) else "it is no file that kdn wrote"
        raise WeightsError(
            f"{path.name} cannot be read as predictor weights ({reason}); make: kdn net l4s train"
        ) from error
    if weights.shape != (num_weights(),):
        raise WeightsError(
            f"{path.name} holds {weights.size} numbers, this version wants {num_weights()}; "
            "make new weights: kdn net l4s train"
        )
    weights.flags.writeable = False
    return weights


@cache
def packaged_weights() -> NDArray[np.float32]:
    """The predictor that comes with this version. Raises WeightsError."""
    with resources.as_file(resources.files("kdn.net.l4s").joinpath("swift.npy")) as path:
        return read_weights(path)


@cache
def packaged_lstm() -> Callable[[Samples], NDArray[np.float64]] | None:
    """The LSTM baseline as a guess, or None where its weights are not packaged."""
    found = resources.files("kdn.net.l4s").joinpath("lstm.npz")
    if not found.is_file():
        return None
    from kdn.net.l4s.lstm import Lstm, guess_with

    with resources.as_file(found) as path:
        return guess_with(Lstm.load(path))


def marking_of(policy: str) -> Marking:
    """How a flow under the policy marks. Raises BadInput for an unknown name."""
    if policy not in MARKINGS:
        raise BadInput(f"no policy {policy!r}; there are {', '.join(POLICIES)}")
    return MARKINGS[policy]


def check_real(policy: str) -> None:
    """Can a flow on a real network choose by this policy? Raises BadInput if not."""
    marking_of(policy)
    if policy == "oracle":
        raise BadInput(
            "the oracle looks into copies of a simulated network, and a real one has none; "
            "use: kdn net l4s simulate --policy oracle"
        )


def chooser(
    policy: str, weights: NDArray[np.float32] | None = None, background: bool = False
) -> Chooser | None:
    """A fresh chooser for one flow; None where the flow needs none. Raises BadInput.

    A predictor that learns does so between two packets, repeatably; with `background` on a thread
    of its own, which ends with `OnlineStream.close`.
    """
    marking_of(policy)
    if policy == "swift-online":
        from kdn.net.l4s.online import AtOnce, OnlineStream  # needs torch, as no other policy does

        start = packaged_weights() if weights is None else weights
        return SwiftQueue(OnlineStream(start, executor=None if background else AtOnce()))
    if policy in {"swift", "by-forecast"}:
        stream = PacketStream(packaged_weights() if weights is None else weights)
        return SwiftQueue(
            stream, PolicyConfig() if policy == "swift" else PolicyConfig(strategies=None)
        )
    if policy == "last-value":
        return SwiftQueue(LastValue(), PolicyConfig(strategies=None))
    return Oracle() if policy == "oracle" else None
