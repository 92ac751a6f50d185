"""The policies by name, and the packaged weights."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput, WeightsError
from kdn.net.l4s.policy import LastValue, Oracle, SwiftQueue
from kdn.net.l4s.stream import Stream, num_weights
from kdn.net.world.spec import Marking
from kdn.net.world.world import Chooser

__all__ = ["MARKINGS", "POLICIES", "chooser", "packaged_weights"]

MARKINGS: dict[str, Marking] = {
    "all-L": "fixed",
    "all-C": "fixed",
    "random": "random",
    "by-type": "by-type",
    "last-value": "ask",
    "swift": "ask",
    "oracle": "ask",
}
"""How a flow under each policy marks. all-C changes the flow's own class; see `evaluate`."""
POLICIES = tuple(MARKINGS)


@cache
def packaged_weights() -> NDArray[np.float32]:
    """The weights that `kdn net l4s train` made for this version. Raises WeightsError."""
    try:
        with resources.files("kdn.net.l4s").joinpath("swift.npy").open("rb") as file:
            weights = np.load(file, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"the packaged predictor cannot be read ({error}); make one: kdn net l4s train"
        ) from error
    if weights.shape != (num_weights(),):
        raise WeightsError(
            f"the packaged predictor holds {weights.size} numbers, this version wants "
            f"{num_weights()}; make one: kdn net l4s train"
        )
    weights.flags.writeable = False
    return weights


def chooser(policy: str, weights: NDArray[np.float32] | None = None) -> Chooser | None:
    """A fresh chooser for one flow; None where the flow needs none. Raises BadInput."""
    if policy not in MARKINGS:
        raise BadInput(f"no policy {policy!r}; there are {', '.join(POLICIES)}")
    if policy == "swift":
        return SwiftQueue(Stream(packaged_weights() if weights is None else weights))
    if policy == "last-value":
        return SwiftQueue(LastValue())
    return Oracle() if policy == "oracle" else None
