"""The engine without HTTP, in a process of its own: what a server that cost nothing would answer.

python -m kdn.bench.serve.alone MODEL; one load a line on standard input, one result a line back.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec

from kdn import api
from kdn.bench.engine.contestants import Listener
from kdn.bench.serve.traffic import LoadAnswer, LoadRequest, LoadResult, OfferedLoad
from kdn.clock import Clock, SystemClock
from kdn.config import load_config
from kdn.core import Generator, Prompt, Request, Retention, Role, Sampling, Segment
from kdn.errors import EngineFailed

__all__ = ["EngineAlone"]


class EngineAlone:
    """Answers loads with an engine in this process, retention as over HTTP."""

    def __init__(self, generator: Generator, clock: Clock) -> None:
        self._generator = generator
        self._clock = clock
        self._serial = 0

    def run_load(self, load: OfferedLoad) -> LoadResult:
        """Submit every request at its time, and wait for all."""
        began_s, running = self._clock.now(), []
        for request in sorted(load.requests, key=lambda one: one.at_s):
            time.sleep(max(request.at_s - (self._clock.now() - began_s), 0))
            sent_s, listener = self._clock.now(), Listener(self._clock)
            self._generator.submit(self._request(request)).on_event(listener)
            running.append((sent_s, listener))
        return LoadResult([_answered(*one) for one in running])

    def _request(self, request: LoadRequest) -> Request:
        self._serial += 1
        return Request(
            id=f"alone-{self._serial}",
            prompt=Prompt((Segment(Role.QUESTION, tuple(request.prompt)),)),
            sampling=Sampling(max_tokens=request.max_tokens, ignore_eos=True),
            retention=Retention.ALL,
        )


def _answered(sent_s: float, listener: Listener) -> LoadAnswer:
    try:
        usage = listener.wait()
    except EngineFailed as failed:
        return LoadAnswer(sent_s, error=str(failed))
    return LoadAnswer(sent_s, listener.times_s[0], listener.times_s[-1], usage.completion_tokens)


def main() -> None:
    """Answer loads until there are no more."""
    config = load_config(os.environ)
    decoder = msgspec.json.Decoder(OfferedLoad)
    with api.open(sys.argv[1], config=config) as service:
        alone = EngineAlone(service.engine, SystemClock())
        print("ready", flush=True)  # noqa: T201  the benchmark waits for it
        for line in sys.stdin.buffer:
            result = alone.run_load(decoder.decode(line))
            sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
