"""Puts one-token questions to an engine and gathers the verdicts, many at a time, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kdn.core import (
    FinishReason,
    Generator,
    Keeping,
    Prompt,
    Request,
    Sampling,
    Stream,
    Token,
    Usage,
)
from kdn.errors import Cancelled
from kdn.rank.choices import Choice, Verdict, read_logits, read_verdict, wanted

__all__ = ["Judge", "one_token"]

IN_FLIGHT = 128
"""Questions handed to the engine ahead of the verdict awaited: what a policy can choose among."""


@dataclass(frozen=True)
class Judge:
    """Asks questions of one model. Safe from several threads."""

    generator: Generator
    new_id: Callable[[], str]
    salt: str = ""
    adapter: str | None = None
    passing: bool = False
    """Does each prompt begin with tokens of its own?"""

    def ask(
        self, prompts: Iterable[Prompt], choices: Sequence[Choice], temperature: float = 1.0
    ) -> Iterator[Verdict]:
        """A verdict for each prompt, in order; prompts are drawn as there is room for more.

        What is still under way when the caller stops listening is cancelled.
        """
        for token, usage in self._tokens(prompts, wanted(choices)):
            yield read_verdict(choices, token, usage, temperature)

    def logits(
        self, prompts: Iterable[Prompt], choices: Sequence[Choice]
    ) -> Iterator[tuple[tuple[float, ...], Usage]]:
        """For each prompt, in order, the logits of the choices, and where its tokens came from."""
        sampling = replace(wanted(choices), raw_logits=True)
        for token, usage in self._tokens(prompts, sampling):
            yield read_logits(choices, token), usage

    def _tokens(
        self, prompts: Iterable[Prompt], sampling: Sampling
    ) -> Iterator[tuple[Token, Usage]]:
        running: deque[Stream] = deque()
        coming = iter(prompts)
        try:
            while True:
                for prompt in coming:
                    running.append(self._submit(prompt, sampling))
                    if len(running) >= IN_FLIGHT:
                        break
                if not running:
                    return
                token, usage = one_token(running[0])
                running.popleft()
                yield token, usage
        finally:
            for stream in running:
                stream.cancel()

    def _submit(self, prompt: Prompt, sampling: Sampling) -> Stream:
        request = Request(
            id=self.new_id(),
            prompt=prompt,
            sampling=sampling,
            salt=self.salt,
            adapter=self.adapter,
            keeping=Keeping.SHARED,
            passing=self.passing,
        )
        return self.generator.submit(request)


def one_token(stream: Stream) -> tuple[Token, Usage]:
    """The only token of a stream, with where its prompt came from. Raises Cancelled."""
    token: Token | None = None
    for event in stream:
        if isinstance(event, Token):
            token = event
        elif event.reason is FinishReason.CANCELLED:
            raise Cancelled("the question was withdrawn before it was answered")
        elif token is not None:
            return token, event.usage
    raise Cancelled("the question ended without an answer")
