"""From tokens to text that may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Shown", "StopStrings"]


@dataclass(frozen=True)
class Shown:
    """Text that is final, and the stop string that was met, if one was."""

    text: str
    stop: str | None = None


class StopStrings:
    """Holds text back as long as it could be the beginning of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> Shown:
        """Add generated text; what can no longer belong to a stop string comes back."""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            at, stop = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            shown, self._held = self._held[:at], ""
            return Shown(shown, stop)
        split = len(self._held) - self._held_back()
        shown, self._held = self._held[:split], self._held[split:]
        return Shown(shown)

    def _held_back(self) -> int:
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def flush(self) -> str:
        """What is still held when generation ends without a stop string."""
        held, self._held = self._held, ""
        return held
