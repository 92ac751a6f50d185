"""A tiny base with random adapters, opened with its store: what the tests of sharing are written with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import kdn
from kdn.config import Config, load_config
from kdn.core import (
    Finish,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Share,
    Token,
    Usage,
)
from kdn.reuse.share import LinearMap, PairRecord
from kdn.reuse.share.pairs import SharePoint, WayTimes
from tests.engine.runs import some_tokens

LAYERS = 4
MODULES = ("q_proj", "v_proj", "down_proj")
"""What the random adapters act on."""
PRELUDE = Segment(Role.PRELUDE, some_tokens(20, 200, seed=9))
DOCUMENT = Segment(Role.DOCUMENT, some_tokens(300, 200, seed=8))
CONTEXT = 320


def question(seed: int = 1) -> Segment:
    """Twelve tokens."""
    return Segment(Role.QUESTION, some_tokens(12, 200, seed=seed))


def point(
    group: tuple[int, int] | None = None,
    *,
    ratio: float = 0.0,
    mapped: bool = False,
    work: float = 0.3,
    kl: float = 0.01,
    times: WayTimes = (),
) -> SharePoint:
    """A point as if it had been measured."""
    first, last = group or (None, None)
    return SharePoint(
        first=first, last=last, ratio=ratio, mapped=mapped, work=work, kl=kl, nll=1.0, contexts=50,
        times=times,
    )  # fmt: skip


def tell(
    k: kdn.Kdn,
    points: Sequence[SharePoint],
    sender: str | None,
    receiver: str | None,
    made: LinearMap | None = None,
    prefill_times: WayTimes = (),
) -> None:
    """Write a profile of an ordered pair of adapters down."""
    _tell((k, sender), (k, receiver), points, made, prefill_times)


def tell_pair(sender: kdn.Kdn, receiver: kdn.Kdn, points: Sequence[SharePoint]) -> None:
    """Write a profile of two models down; the sender hears of it too."""
    _tell((sender, None), (receiver, None), points, None)


def _tell(
    sender: tuple[kdn.Kdn, str | None],
    receiver: tuple[kdn.Kdn, str | None],
    points: Sequence[SharePoint],
    made: LinearMap | None,
    prefill_times: WayTimes = (),
) -> None:
    record = PairRecord(
        sender=sender[0].model.fingerprints.of(sender[1]),
        receiver=receiver[0].model.fingerprints.of(receiver[1]),
        sender_name=sender[1] or "base",
        receiver_name=receiver[1] or "base",
        num_layers=LAYERS,
        contexts=50,
        context_tokens=CONTEXT,
        own_nll=1.0,
        points=tuple(points),
        prefill_times=prefill_times,
    )
    for k in {sender[0], receiver[0]}:
        k.calibration.shares.keep(record, made)


def settings(home: Path, **share: str) -> Config:
    """Settings for tests: no idle measurements."""
    environ = {"KDN_ENGINE_FIT_IDLE_S": "0", "KDN_BLEND_KEY_BIAS": "0"}
    environ |= {f"KDN_SHARE_{name.upper()}": value for name, value in share.items()}
    return load_config(environ, home=home)


def ask(
    k: kdn.Kdn,
    *segments: Segment,
    adapter: str | None = None,
    salt: str = "",
    share: Share | None = None,
    reuse: bool = True,
    retention: Retention = Retention.SHARED,
) -> tuple[list[int], list[float], Usage]:
    """Greedy tokens, their log-probabilities, and where the prompt's KV came from."""
    sampling = Sampling(max_tokens=6, ignore_eos=True, logprobs=0)
    request = Request(
        k.prompts.new_id("t"),
        Prompt(segments or (PRELUDE, DOCUMENT, question())),
        sampling,
        salt=salt,
        adapter=adapter,
        reuse=reuse,
        techniques=() if share is None else (share,),
        retention=retention,
    )
    events = list(k.submit(request))
    last = events[-1]
    assert isinstance(last, Finish)
    tokens = [event for event in events if isinstance(event, Token)]
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    return [token.token_id for token in tokens], logprobs, last.usage
