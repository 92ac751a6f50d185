"""The engine as its callers see it: submit from any thread, read the stream, close.

One thread runs the step loop.  What still ends the loop, past its own care, ends the requests at hand
with EngineFailed; the loop begins again with empty accounts.  After a few such failures in a short time
the engine stops for good: all callers that wait are told, and `failure` says why.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from kdn.clock import Clock
from kdn.core import Planner, Request
from kdn.engine.budget import KvBudget, KvPool, ResidentStat
from kdn.engine.kv import extents
from kdn.engine.limits import EngineLimits, JobMemory
from kdn.engine.loop import StepLoop
from kdn.engine.request import Intake, RunningRequest, RunningStream
from kdn.errors import BadInput, EngineFailed
from kdn.machine.threads import FreeCores, compute_with, give_up_workers
from kdn.model import LoadedModel
from kdn.model.arithmetic import holds_bits
from kdn.model.attention import Attention
from kdn.schedule import Fcfs, RequestQueue
from kdn.trace import GuardedTrace, NoTrace, Trace

__all__ = ["Engine", "EngineStat"]

_log = logging.getLogger(__name__)

_MAX_FAILURES = 3
"""So many failures of the loop within `_FAILURES_WITHIN_S` are survived; one more stops the engine."""
_FAILURES_WITHIN_S = 60.0


@dataclass(frozen=True)
class EngineStat:
    """A look at the engine: counts of requests, and bytes of KV."""

    num_waiting: int
    num_prefilling: int
    num_decoding: int
    kv_total_bytes: int
    kv_free_bytes: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of the engine's thread by part (`engine.executor.Part`), since the loop began."""
    resident: ResidentStat | None = None


class Engine:
    """Runs requests on one model. Create, `submit` from any thread, `close`.

    With `threaded=False` nothing runs until `step` is called: for tests and simulations.  Ctrl-C and
    sys.exit are raised there then, by `step` and `close`.
    """

    def __init__(
        self,
        model: LoadedModel,
        attention: Attention,
        planner: Planner,
        limits: EngineLimits,
        clock: Clock,
        waiting: RequestQueue | None = None,
        trace: Trace | None = None,
        *,
        seed: int = 0,
        threaded: bool = True,
        pool: KvPool | None = None,
        cores: FreeCores | None = None,
    ) -> None:
        """`waiting` is an empty request queue with the schedule policy; None is first come, first served.

        With a `pool` other engines share its bytes, of which `limits.kv_bytes` says the number, and
        take turns with this one.  As many threads compute as torch has in the calling thread; where their
        number changes no bit, as many as find a processor by `cores` (by default, as the machine says).
        """
        self._model = model
        self._limits = limits
        self._clock = clock
        self._trace = GuardedTrace(trace or NoTrace())
        self._intake = Intake(model, limits, clock, seed)
        self._inbox: queue.SimpleQueue[RunningRequest] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._pool = pool
        self._turn = nullcontext() if pool is None else pool.turn()
        self._budget = KvBudget(pool or limits.kv_bytes, self._wake.set)
        self._queue = waiting if waiting is not None else RequestQueue(Fcfs())  # empty is falsy

        self.may_retain = _bits_hold(model, attention)
        """False where KV would depend on what shares a pass: then none is stored."""

        def new_loop() -> StepLoop:
            return StepLoop(
                model,
                attention,
                planner,
                limits,
                self._intake.memory,
                clock,
                self._queue,
                self._inbox,
                self._trace,
                self._forget,
                self._budget,
                may_retain=self.may_retain,
            )

        self._new_loop = new_loop
        self._loop = new_loop()
        self._lock = threading.Lock()
        self._open: dict[str, RunningRequest] = {}
        """Requests that were taken and have not ended, by id."""
        self._interrupts: deque[BaseException] = deque(maxlen=0 if threaded else None)
        """What listeners raised, for the one who makes the steps; a thread of ours takes none."""
        self._failures: deque[float] = deque()
        """When the loop failed, lately."""
        self._stopped: EngineFailed | None = None
        self._when_stopped: list[Callable[[EngineFailed], None]] = []
        self.failure: EngineFailed | None = None
        """Why the engine stopped by itself; None while it runs and after `close`."""
        self._most = torch.get_num_threads()
        may_vary = self._most > 1 and model.decoder.is_same_for_any_threads
        self._cores = (cores or FreeCores(self._most, clock)) if threaded and may_vary else None
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="kdn-engine", daemon=True)
            self._thread.start()

    def submit(self, request: Request) -> RunningStream:
        """Queue a request. Raises PromptTooLong, UnknownModel or BadInput before anything is computed.

        Raises EngineFailed when the engine is closed or has stopped.
        """
        stream = RunningStream(self._wake.set, self._interrupts.append)
        running = self._intake.take(request, stream)
        if self._thread is not None:
            give_up_workers()  # the engine's thread needs the processors
        with self._lock:
            if self._stopped is not None:
                raise EngineFailed(f"request {request.id}: {self._stopped}")
            if request.id in self._open:
                raise BadInput(f"a request called {request.id!r} is running; give each its own id")
            self._open[request.id] = running
            self._inbox.put(running)
        self._wake.set()
        return stream

    @property
    def is_running(self) -> bool:
        """False once it was closed, or stopped by errors."""
        return self._stopped is None

    def when_stopped(self, listener: Callable[[EngineFailed], None]) -> None:
        """Call `listener` from the engine's thread when the engine stops by itself: a server may exit."""
        self._when_stopped.append(listener)

    def free_kv(self) -> int:
        """Bytes of KV that could be reserved now."""
        return self._loop.free_kv()

    def waiting_kv(self) -> int:
        """Bytes of KV that requests which wait will take when they are let in, for the worst case."""
        config = self._model.decoder.config
        token_bytes = config.kv_shape(
            str(self._model.decoder.dtype).removeprefix("torch.")
        ).token_bytes
        with self._lock:
            waiting = [one for one in self._open.values() if one.kv is None]
        tokens = (one.request.prompt.num_tokens + one.max_new_tokens for one in waiting)
        return token_bytes * sum(map(extents, tokens))

    @property
    def memory(self) -> JobMemory:
        """What a prompt that is asked for one token needs."""
        return self._intake.memory

    def most_tokens(self) -> int:
        """The longest prompt of one token that can run here, nothing of it retained."""
        fits = self.memory.largest(self._limits.kv_bytes)
        return min(fits, self._model.decoder.config.max_position - 1)

    def stat(self) -> EngineStat:
        """Counts as of now; may be a step old when asked from another thread."""
        return EngineStat(
            *self._loop.counts(),
            self._limits.kv_bytes,
            self._loop.free_kv(),
            self._loop.times.seconds(),
            self._loop.prefixes.stat(),
        )

    def is_idle(self) -> bool:
        """Is there no request that waits or runs? One that has stopped is idle, whatever it left undone."""
        return not (self.is_running and any(self._loop.counts()))

    def close(self) -> None:
        """End the loop; requests still running end with an error. Calling it twice is harmless."""
        self._stop(EngineFailed("the engine is closed; open a new one"))
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._fail_all(EngineFailed("the engine was closed while the request was running"))
        if self._pool is not None:
            self._pool.leave(self._budget)
        if self._interrupts:
            _raise_first(self._interrupts)

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError. Only meaningful between steps."""
        self._loop.check()

    def step(self) -> bool:
        """One unit of work. False when there was nothing to do. Survives what ends the loop.

        Without a thread of its own the engine raises what is no Exception.  Where a listener raised it,
        that request is cancelled and the others go on; elsewhere it ends the requests at hand.
        """
        try:
            with self._turn, torch.inference_mode():
                worked = self._loop.step()
        except BaseException as error:  # a panic of a library in Rust, too, and sys.exit
            is_interrupt = self._thread is None and not isinstance(error, Exception)
            if not is_interrupt:
                _log.exception("the engine's loop failed")
            self._begin_again(error, counts=not is_interrupt)
            if is_interrupt:
                raise
            return False
        if self._interrupts:
            _raise_first(self._interrupts)
        return worked

    def _run(self) -> None:
        try:
            while self.is_running:
                _compute_with(self._most if self._cores is None else self._cores.threads())
                self._wake.clear()
                if not self.step():
                    give_up_workers()  # they slow down those of another engine
                    self._wake.wait()
        except BaseException as error:  # noqa: BLE001  a thread that ends unheard leaves callers waiting
            _log.exception("the engine's thread failed")
            self._stop_for_good(f"because its thread failed: {error!r}", error)

    def _begin_again(self, error: BaseException, *, counts: bool) -> None:
        """Fail all requests and start an empty loop, or stop for good when failures that count are many."""
        if counts:
            self._note_failure()
        if len(self._failures) > _MAX_FAILURES:
            times = f"{len(self._failures)} failures in {_FAILURES_WITHIN_S:.0f} s"
            self._stop_for_good(f"after {times}, the last was {error!r}", error)
            return
        failure = EngineFailed(f"the engine failed and begins again: {error!r}; ask again")
        failure.__cause__ = error
        self._trace.event("engine.restart", why=repr(error))
        self._fail_all(failure)
        self._loop = self._new_loop()

    def _stop_for_good(self, why: str, error: BaseException) -> None:
        failure = EngineFailed(f"the engine stopped {why}; restart the program")
        failure.__cause__ = error
        self._stop(failure)
        self._trace.event("engine.stop", why=repr(error))
        self._fail_all(failure)
        self.failure = failure
        for listener in self._when_stopped:
            try:
                listener(failure)
            except BaseException:  # noqa: BLE001  the others must hear of it too
                _log.exception("a listener of the engine's stop failed")

    def _note_failure(self) -> None:
        try:
            now_s = self._clock.now()
        except Exception:  # noqa: BLE001  it may be the clock that failed
            now_s = self._failures[-1] if self._failures else 0.0
        self._failures.append(now_s)
        while now_s - self._failures[0] > _FAILURES_WITHIN_S:
            self._failures.popleft()

    def _stop(self, reason: EngineFailed) -> None:
        with self._lock:
            self._stopped = self._stopped or reason

    def _fail_all(self, error: EngineFailed) -> None:
        """End every request that was taken, wherever it is, so that no caller waits for ever."""
        with self._lock:
            members = list(self._open.values())
            self._open.clear()
            while not self._inbox.empty():
                self._inbox.get()
        self._queue.clear()
        for running in members:
            self._loop.fail(running, error)
        self._budget.clear()
        self._budget.waits_no_more()

    def _forget(self, running: RunningRequest) -> None:
        with self._lock:
            if self._open.get(running.id) is running:
                del self._open[running.id]


def _raise_first(interrupts: deque[BaseException]) -> None:
    """Raise the first of them, and forget all."""
    first = interrupts[0]
    interrupts.clear()
    raise first


def _compute_with(num_threads: int) -> None:
    if num_threads != torch.get_num_threads():
        compute_with(num_threads)
    if num_threads != torch.get_num_threads():  # torch computes with another library
        torch.set_num_threads(num_threads)


def _bits_hold(model: LoadedModel, attention: Attention) -> bool:
    """On a GPU rows are equal within rounding, and stored so; on a CPU they must be equal."""
    decoder, config = model.decoder, model.decoder.config
    if decoder.device.type != "cpu":
        return True
    holds = holds_bits(decoder, attention)
    if not holds:
        is_torch = decoder.quantization != "none" and not decoder.kernel
        _log.warning(
            "%s: on this processor a row's bits depend on the rows beside it (%d heads of %d values in "
            "%s), so its KV is not stored; %s",
            model.name,
            config.num_heads,
            config.head_dim,
            decoder.dtype,
            f"install a C compiler for {decoder.quantization} weights, or leave the quantization out"
            if is_torch
            else "another dtype may hold them",
        )
    return holds


def all_idle(engines: Iterable[Engine]) -> bool:
    """Does none of them have a request? Background work of one model takes nothing from another."""
    return all(engine.is_idle() for engine in engines)
