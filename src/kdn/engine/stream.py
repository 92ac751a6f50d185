"""A running request as its caller sees it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from kdn.core import StreamEvent

__all__ = ["RunningStream"]

Item = StreamEvent | Exception | None


class RunningStream:
    """Events come from the engine's thread; the caller iterates, or has them pushed."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._listener: Callable[[Item], None] | None = None
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop after the current step. The stream then ends with CANCELLED."""
        self._cancelled.set()
        self._wake()

    def push(self, item: Item) -> None:
        """Deliver an event, an error, or None for the end."""
        with self._lock:
            if self._listener is None:
                self._items.put(item)
            else:
                self._listener(item)

    def on_event(self, listener: Callable[[Item], None]) -> None:
        """From now on push to `listener`, beginning with what has come already."""
        with self._lock:
            while not self._items.empty():
                listener(self._items.get())
            self._listener = listener

    def __iter__(self) -> Iterator[StreamEvent]:
        while (item := self._items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
