"""The stream of one request: from the engine's thread to the caller that reads it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator

from kdn.core import StreamEvent

__all__ = ["RunningStream"]

_log = logging.getLogger(__name__)

Item = StreamEvent | Exception | None


class RunningStream:
    """Events come from the engine's thread; the caller iterates, or has them pushed."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._listener: Callable[[Item], None] | None = None
        self._held: list[Item] = []
        self._has_ended = False
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop after the current step. The stream then ends with CANCELLED."""
        self._cancelled.set()
        self._wake()

    def hold(self, event: StreamEvent) -> None:
        """Deliver an event with the next `flush` or `push`: callers run when all tokens of a step are drawn,
        and not between two of them."""
        self._held.append(event)

    def flush(self) -> None:
        """Deliver what was held."""
        if self._held:
            self.push()

    def push(self, *items: Item) -> None:
        """Deliver what was held, then events, an error, or None for the end; after the end nothing.

        A listener that raises is a caller that is gone: it is not called again, and the request is cancelled.
        """
        held, self._held = [*self._held, *items], []
        with self._lock:
            for item in held:
                if not self._has_ended:
                    self._has_ended = item is None
                    self._deliver(item)

    def _deliver(self, item: Item) -> None:
        if self._listener is None:
            self._items.put(item)
            return
        try:
            self._listener(item)
        except Exception:  # noqa: BLE001  callers' code may fail in any way
            _log.exception("a listener failed; its request is cancelled")
            self._listener = _ignore
            self.cancel()

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


def _ignore(_item: Item) -> None:
    return None
