"""What the engine's requests of one HTTP request have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import UnsetType

from kdn.core import Prompt, Request, Sampling
from kdn.serve.auth import Caller
from kdn.serve.openai.responses import WhyReport
from kdn.serve.openai.steering import SteeringReport
from kdn.serve.service import ServedModel

__all__ = ["HttpJob"]


@dataclass(frozen=True)
class HttpJob:
    """What all requests of one HTTP request share."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    """The name that the answer gives: the base model or the adapter."""
    adapter: str | None
    served: ServedModel
    """Who answers."""
    caller: Caller
    salt: str
    priority: int
    explain: Callable[[str], Awaitable[WhyReport | UnsetType]]
    """Why the job's request of that id was not reused further."""
    steering: Callable[[HttpJob, Sequence[int]], Awaitable[SteeringReport | UnsetType]]
    """What steering did to the first answer, whose tokens are given."""
    traceparent: str = ""
    """The caller's trace."""
    background: bool = False
    """Runs after what somebody waits for."""
    bound: dict[str, tuple[str, object]] = field(default_factory=dict)

    def request(self, number: int, prompt: Prompt, sampling: Sampling, **more: Any) -> Request:
        """The request of this job with that number; `more` are fields of `Request`."""
        return Request(
            id=f"{self.id}-{number}",
            prompt=prompt,
            sampling=sampling,
            salt=self.salt,
            adapter=self._bound(),
            priority=self.priority,
            background=self.background,
            **more,
        )

    def _bound(self) -> str | None:
        """What the adapter's name meant when it was first needed: all requests of a job get the same."""
        if self.adapter is None:
            return None
        if self.adapter not in self.bound:
            self.bound[self.adapter] = self.served.bind(self.adapter)
        return self.bound[self.adapter][0]
