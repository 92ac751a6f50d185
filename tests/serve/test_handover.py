"""Calls that come together wake the loop once, and run in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

from kdn.serve.connections import Handover


def test_calls_of_one_step_run_in_one_turn_of_the_loop_and_in_order() -> None:
    heard: list[int] = []
    turns: list[int] = []

    async def listen() -> None:
        handover, loop = Handover.here(), asyncio.get_running_loop()
        assert Handover.here() is handover
        for number in range(24):  # the loop is busy until all are there
            handover.call(partial(heard.append, number))
            loop.call_soon(lambda: turns.append(len(heard)))
        await asyncio.sleep(0)

    asyncio.run(listen())
    assert heard == list(range(24))
    assert turns[0] == 24, "the first turn ran them all"


def test_a_call_that_raises_costs_itself_only() -> None:
    heard: list[int] = []
    told: list[str] = []

    async def listen() -> None:
        handover = Handover.here()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, what: told.append(str(what["exception"])))
        for call in (partial(heard.append, 1), partial(heard.remove, 7), partial(heard.append, 2)):
            handover.call(call)
        await asyncio.sleep(0)

    asyncio.run(listen())
    assert heard == [1, 2]
    assert told == ["list.remove(x): x not in list"]


def test_threads_hand_over_all_their_calls() -> None:
    heard: list[tuple[str, int]] = []

    async def listen() -> None:
        handover, ended = Handover.here(), asyncio.Semaphore(0)

        def work(name: str, end: Callable[[], None]) -> None:
            for number in range(200):
                handover.call(partial(heard.append, (name, number)))
            handover.call(end)

        threads = [threading.Thread(target=work, args=(name, ended.release)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            await ended.acquire()
            thread.join()

    asyncio.run(listen())
    for name in "ab":
        assert [number for one, number in heard if one == name] == list(range(200))


def test_a_closed_loop_takes_calls_and_runs_none() -> None:
    async def here() -> Handover:
        return Handover.here()

    heard: list[int] = []
    handover = asyncio.run(here())
    handover.call(partial(heard.append, 1))
    assert heard == []
