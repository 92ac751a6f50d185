"""The planner: a list of techniques, and a fold over it.

    compute all ─> Prefix.refine ─> ... ─> Blend.refine ─> the plan
    KV to store <─ Prefix.retain <─ ... <─ Blend.retain <─ what the engine noted down

A technique has its turn for the requests that carry its option; one without an option, for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from kdn.core import Plan, Planned, Request, RetainedKV
from kdn.errors import BadInput
from kdn.reuse.technique import Technique
from kdn.trace import NoTrace, Trace

__all__ = ["Stack"]


class Stack:
    """Plans with techniques, each refining the plan of those before it.

    A technique that fails is an event `reuse.failed` and costs its own part alone: the rest of the
    prompt is computed, KV is not stored.
    """

    def __init__(
        self,
        techniques: Sequence[Technique],
        *,
        on_plan: Callable[[Request], None] | None = None,
        trace: Trace | None = None,
    ) -> None:
        """`on_plan` is told of requests that carry a technique's option or share, each time they are
        planned to reuse."""
        self._techniques = tuple(techniques)
        self._on_plan = on_plan
        self._trace = trace or NoTrace()
        self.num_failures = 0
        """How often a technique has failed."""

    def cached_tokens(self, request: Request) -> int:
        """The most that any technique would take from the store."""
        most = 0
        for technique in self._serving(request):
            with self._surviving(technique, request):
                most = max(most, technique.cached_tokens(request))
        return most

    def plan(self, request: Request) -> Planned:
        """What to compute. Raises BadInput for an option that makes no sense."""
        planned = Planned(Plan(request.prompt.token_ids))
        serving = self._serving(request)
        for technique in serving:
            if request.reuse or technique.without_reuse:
                with self._surviving(technique, request):
                    planned = technique.refine(request, planned)
        is_told = planned.shared or any(technique.option is not None for technique in serving)
        if request.reuse and is_told and self._on_plan is not None:
            with self._surviving("on_plan", request):
                self._on_plan(request)
        return planned

    def retain(self, request: Request, retained: RetainedKV) -> None:
        """Hand KV to the techniques, last one first, until one has stored it. Never raises."""
        for technique in reversed(self._serving(request)):
            left = None
            with self._surviving(technique, request):
                left = technique.retain(request, retained)
            if left is None:
                return
            retained = left

    def background(self, request: Request) -> list[Request]:
        """What the techniques would like to have computed when the engine is idle."""
        wished: list[Request] = []
        for technique in self._serving(request):
            wished += technique.background(request)
        return wished

    def close(self) -> None:
        """Close every technique."""
        for technique in self._techniques:
            technique.close()

    def _serving(self, request: Request) -> list[Technique]:
        """The techniques that have a say in the request."""
        return [
            technique
            for technique in self._techniques
            if (technique.option is None or request.option(technique.option) is not None)
            and (technique.needs is None or len(technique.needs))
        ]

    @contextmanager
    def _surviving(self, part: object, request: Request) -> Iterator[None]:
        """Counts an error of a technique, or of another part by name, and goes on."""
        try:
            yield
        except BadInput:
            raise
        except Exception as error:  # noqa: BLE001  a helper's fault costs the helper alone
            self.num_failures += 1
            with suppress(Exception):
                self._trace.event(
                    "reuse.failed",
                    technique=part if isinstance(part, str) else type(part).__name__,
                    request=request.id,
                    why=repr(error),
                )
