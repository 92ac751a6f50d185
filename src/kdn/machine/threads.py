"""The threads of this process: those that compute, beside those of others, and one that works off a queue.

GNU's OpenMP keeps a team of workers for every thread that ever ran a parallel loop.  With more teams
than processors it lets waiting workers sleep instead of spin, and then every loop begins with waking
them: an engine's thread took 1.25 times as long for a pass as long as the thread that had loaded the
model kept its idle team, with 8,000 switches between threads a second instead of 60.

A parallel loop ends when its slowest worker does.  Beside busy programs a worker is sent away for some
ms at a time, and with two threads 16 tokens took 3.6 to 20.8 s where one thread takes 1.7 s.  So no more
threads compute than there are processors free.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from kdn.clock import Clock

__all__ = [
    "FreeCores",
    "Task",
    "WriteBehind",
    "busy_seconds",
    "compute_with",
    "give_up_workers",
    "running_elsewhere",
    "thread_seconds",
    "usable_cores",
]

Task = Callable[[], object]
_LOOK_AGAIN_S = 0.05
"""How often a queue that gives way looks whether it may go on."""
_log = logging.getLogger(__name__)


_MAPS = Path("/proc/self/maps")
_SOFT = 1
"""OpenMP's name for giving up threads and keeping settings."""


def compute_with(num_threads: int) -> None:
    """Let the calling thread compute with so many threads from now on, and no other thread.

    torch's own call also sets the number of all threads that begin later.  The calling thread must have
    asked torch for its number before: torch sets it then.  fp32 products of MKL keep torch's number.
    Does nothing where tensors are computed with other libraries.
    """
    for library in _libraries():
        library.omp_set_num_threads(num_threads)


def give_up_workers() -> None:
    """End the calling thread's idle workers. They come back when it next computes something.

    Does nothing in the middle of a computation, or where tensors are computed with other libraries.
    """
    for library in _libraries():
        library.omp_pause_resource_all(_SOFT)


@lru_cache(maxsize=1)
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """GNU OpenMP as it is loaded into this process; torch brings a copy of its own."""
    if not _MAPS.is_file():
        return ()
    lines = _MAPS.read_text("utf-8").splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}
    found = (ctypes.CDLL(path) for path in sorted(paths) if Path(path).is_file())
    return tuple(library for library in found if hasattr(library, "omp_pause_resource_all"))


def thread_seconds() -> Mapping[str, float]:
    """Processor seconds of this process by thread name, numbers left out; `other` is what no Python thread
    that lives now has used: workers of tensor operations, and threads that have ended.

    Empty where the system does not say what a thread has used (only Linux does).
    """
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        try:
            told = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text("utf-8")
        except OSError:  # it has ended meanwhile
            continue
        name = thread.name.rstrip("0123456789_- ") or thread.name
        found[name] = found.get(name, 0.0) + int(told.split()[0]) / 1e9
    if found:
        found["other"] = max(time.process_time() - sum(found.values()), 0.0)
    return found


_LOOK_S = 0.25
"""The time over which other programs are watched: the kernel counts in hundredths of a second."""
_RECENT_S = 1.0
"""What was seen over a longer time does not say who is busy now."""
_MOMENTS, _MOMENT_S = 3, 1e-3
_STAT = Path("/proc/stat")
_TASKS = Path("/proc/self/task")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Processors that this process may run on, by its affinity and the quota of its control group."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return min(len(os.sched_getaffinity(0)), _quota())
    return os.cpu_count() or 1


def _quota() -> int:
    try:
        quota, period = _QUOTA.read_text("ascii").split()
    except (OSError, ValueError):
        return os.cpu_count() or 1
    return os.cpu_count() or 1 if quota == "max" else max(math.ceil(int(quota) / int(period)), 1)


def busy_seconds() -> float | None:
    """What all processors together have worked since the start of the machine; None where nobody says."""
    try:
        line = _STAT.read_text("ascii").partition("\n")[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq = map(int, line[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def running_elsewhere(pause: Callable[[float], object] = time.sleep) -> int:
    """How many threads of other programs run, or want to; 0 where nobody says.

    The least of some moments: a client that has just sent its request is done in the next one.
    """
    try:
        least = _running_now()
        for _ in range(_MOMENTS - 1):
            if least:
                pause(_MOMENT_S)
                least = min(least, _running_now())
    except (OSError, IndexError, ValueError):
        return 0
    return least


def _running_now() -> int:
    told = _STAT.read_text("ascii").partition("procs_running ")[2].split()
    return max(int(told[0]) - sum(map(_is_running, _TASKS.iterdir())), 0)


def _is_running(task: Path) -> bool:
    try:
        return (task / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"R"
    except (OSError, IndexError):  # it has ended meanwhile
        return False


class FreeCores:
    """How many threads of this process find a processor of their own."""

    def __init__(
        self,
        most: int,
        clock: Clock,
        *,
        cores: int | None = None,
        busy_s: Callable[[], float | None] = busy_seconds,
        own_s: Callable[[], float] = time.process_time,
        running: Callable[[], int] = running_elsewhere,
    ) -> None:
        """Never more than `most` threads. `cores` are the machine's, all of them by default.

        `running` is how many threads of other programs run now: all that is known after a pause.
        """
        self._most = most
        self._clock = clock
        self._cores = cores or os.cpu_count() or 1
        self._busy_s, self._own_s, self._running = busy_s, own_s, running
        self._looked_s = clock.now()
        self._seen = self._look()
        self._threads = self._beside(running())

    def threads(self) -> int:
        """As many as are free by the last quarter of a second, at least one.

        A processor that others use for half of the time counts as theirs.  Where nobody asked for longer,
        what others did meanwhile may be over, so it counts who runs now.
        """
        now_s = self._clock.now()
        passed_s = now_s - self._looked_s
        if passed_s < _LOOK_S:
            return self._threads
        seen = self._look()
        if seen is not None and self._seen is not None:
            is_recent = passed_s <= _RECENT_S
            others = (seen - self._seen) / passed_s if is_recent else self._running()
            self._threads = self._beside(others)
        self._seen, self._looked_s = seen, now_s
        return self._threads

    def _beside(self, others: float) -> int:
        return max(min(math.floor(self._cores - others + 0.5), self._most), 1)

    def _look(self) -> float | None:
        """Processor seconds of all other programs so far."""
        busy_s = self._busy_s()
        return None if busy_s is None else busy_s - self._own_s()


class WriteBehind:
    """Runs tasks one after another in a thread of its own, as long as what waits stays bounded.

    The thread gives way while `may_work` says no: until half of the bytes wait that may, or somebody waits
    for the end.

    A task handles its own errors.  One that raises all the same costs itself only: another
    thread goes on with the rest.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._moved = threading.Condition()
        self._waiting: deque[tuple[int, Task]] = deque()
        self._size_bytes = 0
        self._num_flushing = 0
        self._thread: threading.Thread | None = None
        self.may_work: Callable[[], bool] = lambda: True
        """False while something else needs the processors more. Asked under a lock: it waits for nothing."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the tasks that are not done."""
        return self._size_bytes

    def has_time(self) -> bool:
        """May a task of this queue take longer? Not while somebody waits for the end."""
        return not self._num_flushing and self._may_work()

    def offer(self, size_bytes: int, task: Task) -> bool:
        """Take a task; False when too much waits already."""
        with self._moved:
            if self._size_bytes + size_bytes > self._capacity_bytes:
                return False
            self._waiting.append((size_bytes, task))
            self._size_bytes += size_bytes
            if self._thread is None:
                self._start()
            return True

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is left to do; False when that took longer than `timeout_s`."""
        with self._moved:
            self._num_flushing += 1
            self._moved.notify_all()
            try:
                return self._moved.wait_for(lambda: self._thread is None, timeout_s)
            finally:
                self._num_flushing -= 1

    def cancel(self) -> int:
        """Drop the tasks that have not begun; returns how many."""
        with self._moved:
            dropped = len(self._waiting)
            self._size_bytes -= sum(size for size, _ in self._waiting)
            self._waiting.clear()
            self._moved.notify_all()
            return dropped

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="kdn-write-behind", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        """Do what waits, then end: a thread that has nothing to do does not exist."""
        task = self._next()
        while task is not None:
            size_bytes, run = task
            try:
                run()
            except BaseException:
                self._give_up(size_bytes)
                raise
            with self._moved:
                self._size_bytes -= size_bytes
            task = self._next()

    def _next(self) -> tuple[int, Task] | None:
        with self._moved:
            while self._gives_way():
                self._moved.wait(_LOOK_AGAIN_S)
            if self._waiting:
                return self._waiting.popleft()
            self._thread = None
            self._moved.notify_all()
            return None

    def _gives_way(self) -> bool:
        has_room = 2 * self._size_bytes <= self._capacity_bytes
        return bool(self._waiting) and has_room and not (self._num_flushing or self._may_work())

    def _may_work(self) -> bool:
        """Work is never left undone because nobody can say whether it may be done."""
        try:
            return self.may_work()
        except Exception:  # noqa: BLE001  it may fail in any way
            _log.exception("whether to give way cannot be told; writing goes on")
            return True

    def _give_up(self, size_bytes: int) -> None:
        with self._moved:
            self._size_bytes -= size_bytes
            self._thread = None
            if self._waiting:
                self._start()
            self._moved.notify_all()
