"""Contestants time what they say they time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.interrupting import interrupting

from kdn.bench.engine.contestants import Arrivals, KdnContestant, RivalProcess, rate_together
from kdn.clock import ManualClock
from kdn.core import (
    Finish,
    FinishReason,
    Request,
    Retention,
    Role,
    StreamEvent,
    Token,
    TokenIds,
    Usage,
)
from kdn.errors import EngineFailed

RIVAL = """
import json, sys
print(json.dumps({"ready": "abacus 1"}), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    if ask["op"] == "decode":
        answer = {"arrivals": [[1.0, 2.0] for _ in ask["prompts"]]}
    elif ask["op"] == "hit":
        answer = {"seconds": None if ask["prefix"] == [0] else len(ask["prompt"])}
    elif ask["prompt"] == [13]:
        answer = {"error": "ValueError: unlucky"}
    elif ask["prompt"] == [99]:
        sys.exit("no more beads")
    else:
        answer = {"seconds": len(ask["prompt"]) / 4}
    print(json.dumps(answer), flush=True)
"""


class Abacus:
    """A generator that needs a second for each prompt token not in its one stored prefix."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._stored: tuple[int, ...] = ()
        self.requests: list[Request] = []

    def submit(self, request: Request) -> AbacusStream:
        self.requests.append(request)
        ids = request.prompt.token_ids
        exact = (
            len(self._stored) if request.reuse and ids[: len(self._stored)] == self._stored else 0
        )
        if request.retention is Retention.SHARED:
            self._stored = request.prompt.segments[0].token_ids
        return AbacusStream(self._clock, len(ids) - exact, exact, request.sampling.max_tokens)


class AbacusStream:
    def __init__(self, clock: ManualClock, computed: int, exact: int, max_tokens: int) -> None:
        self._clock, self._computed = clock, computed
        self._exact, self._max_tokens = exact, max_tokens

    def __iter__(self) -> Iterator[StreamEvent]:
        self._clock.advance(self._computed)
        for token_id in range(self._max_tokens):
            yield Token(token_id, "x")
            self._clock.advance(0.5)
        usage = Usage(self._computed + self._exact, self._max_tokens, exact=self._exact)
        yield Finish(FinishReason.LENGTH, usage)

    def cancel(self) -> None:
        self._max_tokens = 0

    def on_event(self, listener: Callable[[StreamEvent | Exception | None], None]) -> None:
        if self._max_tokens == 13:
            listener(EngineFailed("unlucky"))
        else:
            for event in self:
                listener(event)
        listener(None)


def test_our_first_token_is_cold_and_leaves_nothing() -> None:
    clock = ManualClock()
    abacus = Abacus(clock)
    assert KdnContestant(abacus, clock).first_token_s((1, 2, 3)) == 3.0
    [request] = abacus.requests
    assert not request.reuse
    assert request.retention is Retention.NOTHING
    assert request.sampling.ignore_eos


def test_a_hit_computes_only_the_rest() -> None:
    clock = ManualClock()
    abacus = Abacus(clock)
    settled: list[str] = []
    ours = KdnContestant(abacus, clock, lambda: settled.append("written"))
    prefix = tuple(range(100))
    ours.keep(prefix)
    assert settled == ["written"]
    assert ours.hit_s(prefix, (7, 8)) == (2.0, Usage(102, 1, exact=100))
    roles = [segment.role for segment in abacus.requests[-1].prompt.segments]
    assert roles == [Role.DOCUMENT, Role.QUESTION]


def test_every_token_of_every_stream_has_its_time() -> None:
    clock = ManualClock()
    arrivals = KdnContestant(Abacus(clock), clock).arrivals_s([(1,), (2,)], 3)
    assert arrivals == [[1.0, 1.5, 2.0], [3.5, 4.0, 4.5]]


def test_a_stream_that_fails_fails_the_benchmark() -> None:
    clock = ManualClock()
    with pytest.raises(EngineFailed, match="unlucky"):
        KdnContestant(Abacus(clock), clock).arrivals_s([(1,)], 13)


class Sprinters:
    """Streams of a token a second; each begins seven after the one before."""

    name = "sprinters"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def arrivals_s(self, prompts: Sequence[TokenIds], num_tokens: int) -> Arrivals | None:
        self.asked.append(num_tokens)
        return [
            [7.0 * stream + 1.0 + token for token in range(num_tokens)]
            for stream in range(len(prompts))
        ]

    def first_token_s(self, prompt: TokenIds) -> float:
        raise NotImplementedError


def test_answers_grow_until_they_are_decoded_together() -> None:
    # Three tokens end at 3, before 8; twelve end at 12: from 8 to 12 there are 4 of each.
    sprinters = Sprinters()
    assert rate_together(sprinters, [(1,), (2,)], 3) == 8 / 4
    assert sprinters.asked == [3, 12]


def test_answers_that_never_meet_are_told() -> None:
    # The eighth of these begins at 50; one token each ends at 1, 4 at 4, 16 at 16.
    with pytest.raises(EngineFailed, match="8 answers of 16 tokens never ran side by side"):
        rate_together(Sprinters(), [(1,)] * 8, 1)


@pytest.fixture
def rival(tmp_path: Path) -> Iterator[RivalProcess]:
    script = tmp_path / "rival.py"
    script.write_text(RIVAL)
    process = RivalProcess([sys.executable, script], tmp_path / "rival.log")
    yield process
    process.close()


def test_a_rival_answers_in_lines(rival: RivalProcess) -> None:
    assert rival.name == "abacus 1"
    assert rival.first_token_s((1, 2, 3)) == 0.75
    assert rival.arrivals_s([(1,), (2,)], 2) == [[1.0, 2.0], [1.0, 2.0]]
    assert rival.hit_s((1, 2), (3,)) == 3.0
    assert rival.hit_s((0,), (3,)) is None


def test_a_stop_while_a_rival_starts_ends_the_rival(tmp_path: Path) -> None:
    number = tmp_path / "number"
    with pytest.raises(KeyboardInterrupt):
        RivalProcess(interrupting(number), tmp_path / "rival.log")
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


STOPPED = """
import os, signal, sys
def told(*_):
    open(sys.argv[1], "w").write("told to stop")
    sys.exit()
signal.signal(signal.SIGTERM, told)
print('{"ready": "deaf"}', flush=True)
sys.stdin.readline()
os.kill(os.getppid(), signal.SIGINT)
while True:
    signal.pause()
"""
"""Begins to work, has the test's process interrupted, and does not hear that its input ends."""


def test_a_stop_while_a_rival_works_is_not_waited_out(tmp_path: Path) -> None:
    script, said = tmp_path / "rival.py", tmp_path / "said"
    script.write_text(STOPPED)
    deaf = RivalProcess([sys.executable, script, said], tmp_path / "rival.log")
    with pytest.raises(KeyboardInterrupt):
        deaf.first_token_s((1,))
    deaf.close()
    assert said.read_text() == "told to stop"


def test_a_rival_that_fails_or_ends_says_why(rival: RivalProcess) -> None:
    with pytest.raises(EngineFailed, match="unlucky"):
        rival.first_token_s((13,))
    with pytest.raises(EngineFailed, match="no more beads"):
        rival.first_token_s((99,))


def test_a_rival_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="No module named nowhere"):
        RivalProcess([sys.executable, "-m", "nowhere"], tmp_path / "log")
