"""Controllers and codecs by name: one line each."""

from __future__ import annotations

from collections.abc import Callable

from kdn.errors import BadInput
from kdn.net.rtc.call import Controller, Link
from kdn.net.rtc.codec.video import VideoCodec
from kdn.net.rtc.control.gcc import Gcc
from kdn.net.rtc.control.kalman import KalmanGcc
from kdn.net.rtc.control.oracle import RateOracle
from kdn.net.rtc.control.rivals import BbrLike, Copa, Fbra, Salsify
from kdn.net.rtc.policy import Learned, Policy, RateSetter, Safeguarded, load_policies

__all__ = ["CODECS", "CONTROLLERS", "check_real", "codec", "controller"]

Make = Callable[[Link, dict[str, Policy], float], Controller]


def _learner() -> RateSetter:
    """Imported when asked for: only this one needs torch."""
    from kdn.net.rtc.inside import LearnsInside

    return LearnsInside()


CONTROLLERS: dict[str, Make] = {
    "ours": lambda _link, policies, _fps: Learned(policies["codec-aware"]),
    "ours-safe": lambda _link, policies, _fps: Safeguarded(Learned(policies["codec-aware"])),
    "aurora": lambda _link, policies, _fps: Learned(policies["network-only"]),
    "onrl": lambda _link, policies, _fps: Safeguarded(Learned(policies["onrl"])),
    "learns": lambda _link, _policies, _fps: _learner(),
    "learns-safe": lambda _link, _policies, _fps: Safeguarded(_learner()),
    "offline": lambda _link, policies, _fps: Learned(policies["offline"]),
    "gcc": lambda _link, _policies, _fps: Gcc(),
    "gcc-kalman": lambda _link, _policies, _fps: KalmanGcc(),
    "salsify": lambda _link, _policies, fps: Salsify(fps=fps),
    "copa": lambda _link, _policies, _fps: Copa(),
    "bbr-like": lambda _link, _policies, _fps: BbrLike(),
    "fbra": lambda _link, _policies, _fps: Fbra(),
    "oracle": lambda link, _policies, _fps: RateOracle(link),
}
"""What each is: learned with the codec-aware reward (and GCC as a safeguard), PPO with rewards that know only
the network, learning within the call from nothing, learned from GCC's logs, and the classical rules.  The
oracle needs a simulated link."""


def _neural(*, masked: bool) -> VideoCodec:
    """Imported when asked for: calls by table need no torch."""
    from kdn.net.rtc.codec.neural import load_codec

    return load_codec(masked)


def _h264() -> VideoCodec:
    from kdn.net.rtc.codec.classical import H264

    return H264()


CODECS: dict[str, Callable[[], VideoCodec]] = {
    "masked": lambda: _neural(masked=True),
    "unmasked": lambda: _neural(masked=False),
    "h264+fec30": _h264,
}
"""The neural codec, its twin that was trained without losses, and H.264 with 30 % of repair packets."""


def codec(name: str) -> VideoCodec:
    """A codec that codes real pictures. Raises BadInput for an unknown name."""
    if name not in CODECS:
        raise BadInput(f"no codec {name!r}; there are {', '.join(CODECS)}")
    return CODECS[name]()


def check_real(name: str) -> None:
    """Can the controller drive a call over sockets? Raises BadInput if not."""
    if name == "oracle":
        raise BadInput(
            "the oracle reads the rate of a simulated link, and sockets do not tell when theirs began; "
            "leave it out, or use --over simulated"
        )


def controller(
    name: str, link: Link, policies: dict[str, Policy] | None = None, fps: float = 25.0
) -> Controller:
    """A fresh controller for one call of so many pictures a second.

    Raises BadInput for an unknown name or a policy that is not there.
    """
    if name not in CONTROLLERS:
        raise BadInput(f"no controller {name!r}; there are {', '.join(CONTROLLERS)}")
    try:
        return CONTROLLERS[name](link, load_policies() if policies is None else policies, fps)
    except KeyError as missing:
        raise BadInput(
            f"controller {name!r} follows the policy {missing}, which is not among those given; "
            "make it: kdn net rtc train"
        ) from missing
