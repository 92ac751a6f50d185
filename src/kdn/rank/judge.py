"""Puts one-token questions to an engine and gathers the answers, many at a time, in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from kdn.core import (
    FinishReason,
    Generator,
    Prompt,
    Request,
    Retention,
    Sampling,
    Segment,
    Stream,
    Token,
    TokenIds,
    Usage,
)
from kdn.errors import Cancelled, PromptTooLong
from kdn.rank.choices import Choice, ChoiceProbabilities, one_of, read_logits, share_out, wanted
from kdn.rank.tree import Fork, fork_of

__all__ = ["Judge", "one_token"]

MIN_REACH = 1e-4
"""Answers that are together less likely than this are not told apart."""
_LEAST = math.log(MIN_REACH)
IN_FLIGHT = 128
"""Questions handed to the engine ahead of the answer awaited: what a policy can choose among."""


@dataclass(frozen=True)
class Judge:
    """Asks questions of one model. Safe from several threads."""

    generator: Generator
    new_id: Callable[[], str]
    salt: str = ""
    adapter: str | None = None
    single_use: bool = False
    """Does each prompt begin with tokens of its own?"""

    def ask(
        self, prompts: Iterable[Prompt], choices: Sequence[Choice], temperature: float = 1.0
    ) -> Iterator[ChoiceProbabilities]:
        """An answer for each prompt, in order; prompts are drawn as there is room for more.

        Choices that begin alike are told apart by further passes, one for each place where they part
        that is reached with more than `MIN_REACH`; an answer's probability is the product of the
        shares along its tokens, and below that the rest is shared evenly.  What is still under way
        when the caller stops listening is cancelled.
        Raises PromptTooLong at the first prompt that is longer than the model or its budget bears.
        """
        for answer in self.ask_each(prompts, choices, temperature):
            yield _whole(answer)

    def ask_each(
        self, prompts: Iterable[Prompt], choices: Sequence[Choice], temperature: float = 1.0
    ) -> Iterator[ChoiceProbabilities | PromptTooLong]:
        """As `ask`; a prompt that is too long has its error in the answer's place."""
        root = fork_of(choices)
        names = tuple(choice.name for choice in choices)
        for prompt, answer in self._answers(prompts, root.path, one_of(root.tokens)):
            if isinstance(answer, PromptTooLong):
                yield answer
                continue
            token, usage = answer
            try:
                found = self._shares(prompt, root, token)
            except PromptTooLong as error:  # it fitted, but not with the answer begun
                yield error
                continue
            logprobs = [found[place] for place in range(len(choices))]
            yield ChoiceProbabilities(names, share_out(logprobs, temperature), usage)

    def logits(
        self, prompts: Iterable[Prompt], choices: Sequence[Choice]
    ) -> Iterator[tuple[tuple[float, ...], Usage]]:
        """For each prompt, in order, the logits of the choices, and where its tokens came from."""
        sampling = replace(wanted(choices), raw_logits=True)
        for _, answer in self._answers(prompts, (), sampling):
            token, usage = _whole(answer)
            yield read_logits(choices, token), usage

    def _answers(
        self, prompts: Iterable[Prompt], path: TokenIds, sampling: Sampling
    ) -> Iterator[tuple[Prompt, tuple[Token, Usage] | PromptTooLong]]:
        """The token that follows each prompt and `path`, in order."""
        running: deque[tuple[Prompt, Stream | PromptTooLong]] = deque()
        coming = iter(prompts)
        try:
            while True:
                for prompt in coming:
                    running.append((prompt, self._begun(continued(prompt, path), sampling)))
                    if len(running) >= IN_FLIGHT:
                        break
                if not running:
                    return
                prompt, stream = running[0]
                answer = stream if isinstance(stream, PromptTooLong) else one_token(stream)
                running.popleft()
                yield prompt, answer
        finally:
            for _, stream in running:
                if not isinstance(stream, PromptTooLong):
                    stream.cancel()

    def _begun(self, prompt: Prompt, sampling: Sampling) -> Stream | PromptTooLong:
        try:
            return self._submit(prompt, sampling)
        except PromptTooLong as error:
            return error

    def _shares(
        self, prompt: Prompt, fork: Fork, token: Token, reach: float = 0.0
    ) -> dict[int, float]:
        """Log-probability of every answer after a fork that was reached with log-probability `reach`."""
        known = {other.token_id: other.logprob for other in token.alternatives}
        found: dict[int, float] = {}
        asked: list[tuple[Fork, float, Stream]] = []
        for token_id, members, deeper in zip(fork.tokens, fork.branches, fork.forks, strict=True):
            here = reach + known[token_id]
            if deeper is None or here < _LEAST:
                found |= dict.fromkeys(members, here - math.log(len(members)))
            else:
                stream = self._submit(
                    continued(prompt, deeper.path), one_of(deeper.tokens), Retention.NOTHING
                )
                asked.append((deeper, here, stream))
        try:
            for deeper, here, stream in asked:
                found |= self._shares(prompt, deeper, one_token(stream)[0], here)
        finally:
            for _, _, stream in asked:
                stream.cancel()
        return found

    def _submit(
        self, prompt: Prompt, sampling: Sampling, retention: Retention = Retention.SHARED
    ) -> Stream:
        request = Request(
            id=self.new_id(),
            prompt=prompt,
            sampling=sampling,
            salt=self.salt,
            adapter=self.adapter,
            retention=retention,
            single_use=self.single_use,
        )
        return self.generator.submit(request)


A = TypeVar("A")


def _whole(answer: A | PromptTooLong) -> A:
    if isinstance(answer, PromptTooLong):
        raise answer
    return answer


def continued(prompt: Prompt, path: TokenIds) -> Prompt:
    """The prompt with an answer begun: `path` belongs to its last segment, so that nothing new is kept."""
    if not path:
        return prompt
    *front, last = prompt.segments
    return Prompt((*front, Segment(last.role, (*last.token_ids, *path))))


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
