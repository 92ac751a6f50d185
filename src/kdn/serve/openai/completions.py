"""POST /v1/completions: text or token ids go on, or are judged themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from kdn.core import Finish, Prompt, Role, Segment, Token, TokenIds
from kdn.serve.errors import Refused
from kdn.serve.limits import bounded_router, check_length, suffix_of
from kdn.serve.openai.answers import Answers
from kdn.serve.openai.chat import check_choices, constrained, requests_of, sampling_of
from kdn.serve.openai.context import (
    RequestContext,
    answer_room,
    check_ids,
    refuse_unsupported,
    truncated,
)
from kdn.serve.openai.requests import CompletionBody, KdnOptions
from kdn.serve.openai.responses import (
    Completion,
    CompletionChoice,
    completion_logprobs,
    finish_name,
    prompt_logprobs,
)
from kdn.serve.openai.streams import GatheredAnswer
from kdn.serve.openai.techniques import text_techniques
from kdn.serve.service import ServedModel, Vocabulary

__all__ = ["completion_routes"]

_FILL_IN_THE_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, SmolLM2's tokenizer
)
"""What stands before the text, before the suffix and before the middle, by family."""


def completion_routes(context: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router = bounded_router()

    @router.post("/v1/completions")
    async def complete(body: CompletionBody, http: HttpRequest) -> Response:
        return await (await _begin(context, body, http)).response(http)

    return router


async def _begin(context: RequestContext, body: CompletionBody, http: HttpRequest) -> _Completion:
    refuse_unsupported(body.model_extra)
    _refuse_combinations(body)
    job = context.job("cmpl", body, http)
    model = job.served
    prompts = await context.in_thread(_token_prompts, context, model, body)
    echoes = await context.in_thread(_echoes, model, body)
    constraint = await constrained(context, model, body)
    wanted = []
    for prompt in prompts:
        room = answer_room(
            model, prompt.num_tokens, body.max_tokens, context.settings.default_max_tokens
        )
        own = sampling_of(body, model, room, _logprobs(body), constraint)
        wanted.append((prompt, replace(own, prompt_logprobs=_prompt_logprobs(body))))
    techniques = text_techniques(body.kdn or KdnOptions())
    requests = requests_of(context, job, body, wanted, _num_runs(body), techniques)
    streams = context.submit_all(job, requests)
    return _Completion(job, body, model.vocabulary, streams, prompts, echoes)


def _num_runs(body: CompletionBody) -> int:
    """Answers that are made to a prompt."""
    return body.best_of or body.n or 1


def _logprobs(body: CompletionBody) -> int | None:
    """The best of several is known by its probabilities."""
    is_judged = body.logprobs is None and _num_runs(body) > (body.n or 1)
    return 0 if is_judged else body.logprobs


def _prompt_logprobs(body: CompletionBody) -> int | None:
    return body.logprobs if body.echo and body.logprobs is not None else body.prompt_logprobs


def _refuse_combinations(body: CompletionBody) -> None:
    if body.max_tokens == 0 and not body.echo:
        raise Refused("max_tokens is 0: with echo the prompt comes back, else nothing would",
                      param="max_tokens")  # fmt: skip
    if _num_runs(body) < (body.n or 1):
        raise Refused(f"best_of is {body.best_of}; it must be at least n", param="best_of")
    if body.stream:
        whole = {
            "best_of": _num_runs(body) > (body.n or 1),
            "echo": body.echo and body.logprobs is not None,
            "prompt_logprobs": body.prompt_logprobs is not None,
            "max_tokens": body.max_tokens == 0,
        }
        for name in (name for name, asked in whole.items() if asked):
            raise Refused(
                f"what {name} asks for is told at the end; leave out stream",
                param=name,
                code="unsupported_parameter",
            )


def _token_prompts(
    context: RequestContext, model: ServedModel, body: CompletionBody
) -> list[Prompt]:
    vocabulary, prompts = model.vocabulary, []
    texts = given_prompts(body)
    check_choices(context, len(texts) * _num_runs(body))  # before each prompt gets the suffix
    room = model.max_context - (body.max_tokens or 1)
    most = room if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    for given in texts:
        read = given
        if isinstance(given, str) and most is not None and most <= model.max_context:
            read = suffix_of(given, vocabulary, model.max_context, special=True)
        elif isinstance(given, str):
            check_length([given], vocabulary, model.max_context, "prompt")
        prompts.append(_ids(vocabulary, read))
    if not prompts or not all(prompts):
        raise Refused("a prompt is empty: there is nothing to go on from", param="prompt")
    for ids in prompts:
        check_ids(ids, vocabulary.vocab_size, "prompt")
    if body.suffix:
        check_length([body.suffix], vocabulary, model.max_context, "suffix")
        before, after = _around(vocabulary, body.suffix)
        prompts = [before + ids + after for ids in prompts]
    whole = [Prompt((Segment(Role.QUESTION, ids),)) for ids in prompts]
    return [truncated(prompt, body.truncate_prompt_tokens, room) for prompt in whole]


def _ids(vocabulary: Vocabulary, given: str | TokenIds) -> TokenIds:
    """Raw text is the caller's whole prompt: special tokens in it count, and it begins as one."""
    if not isinstance(given, str):
        return given
    ids = vocabulary.encode(given, special=True)
    begin = vocabulary.bos_ids
    return ids if not ids or ids[: len(begin)] == begin else begin + ids


def _around(vocabulary: Vocabulary, suffix: str) -> tuple[TokenIds, TokenIds]:
    """What stands before and after a text whose answer leads to a suffix. Raises Refused."""
    for marks in _FILL_IN_THE_MIDDLE:
        found = [vocabulary.encode(mark, special=True) for mark in marks]
        if all(len(one) == 1 for one in found):
            before, after, middle = found
            return before, after + vocabulary.encode(suffix) + middle
    raise Refused(
        "this model has no tokens that fill in the middle; leave suffix out",
        param="suffix",
        code="unsupported_parameter",
    )


def given_prompts(body: CompletionBody) -> list[str | TokenIds]:
    """A string, strings, ids or lists of ids, all as a list of prompts."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    ids = [item for item in body.prompt if isinstance(item, int)]
    if ids:
        return [tuple(ids)]
    return [
        item if isinstance(item, str) else tuple(item)
        for item in body.prompt
        if not isinstance(item, int)
    ]


def _echoes(model: ServedModel, body: CompletionBody) -> list[str]:
    """With `echo` the prompts as they were given; of ids, with the special tokens among them."""
    return [
        given if isinstance(given, str) else model.vocabulary.decode(given, special=True)
        for given in (given_prompts(body) if body.echo else ())
    ]


@dataclass(frozen=True)
class _Completion(Answers):
    """In the shape of plain completions."""

    echoes: list[str]

    @property
    def per_prompt(self) -> int:
        return _num_runs(self.body)

    @property
    def logprobs_wanted(self) -> bool:
        return self.body.logprobs is not None

    @property
    def tells_prompts(self) -> bool:
        return _prompt_logprobs(self.body) is not None

    def shown(self, answers: list[GatheredAnswer]) -> list[GatheredAnswer]:
        """Of each prompt's answers those of the highest mean log-probability."""
        runs, wanted = self.per_prompt, self.body.n or 1
        if runs == wanted:
            return answers
        groups = [answers[start : start + runs] for start in range(0, len(answers), runs)]
        return [one for group in groups for one in sorted(group, key=_unlikely)[:wanted]]

    def chunk(self, choices: list[Any], *, streamed: bool = False) -> Any:
        return Completion(
            id=self.job.id, created=self.job.created, model=self.job.model, choices=choices
        )

    def choice(self, index: int, answer: GatheredAnswer) -> CompletionChoice:
        prompt = answer.ended.prompt if self.tells_prompts else ()
        tokens, text = list(answer.tokens), answer.text
        finish = finish_name(answer.ended.reason)
        if self.body.max_tokens == 0:  # one token was drawn, since the engine ends with one
            tokens, text, finish = [], "", "length"
        if self.body.echo and self.body.logprobs is not None:
            tokens = [*prompt, *tokens]
        told = CompletionChoice(index, self._echo(index) + text, finish, self._logprobs(tokens, 0))
        if self.body.prompt_logprobs is not None:
            told.prompt_logprobs = prompt_logprobs(prompt)
        return told

    def tell_prompts(self, whole: Any, answers: list[GatheredAnswer]) -> None:
        """Each choice has its own prompt's; an answer of no tokens used none."""
        if self.body.max_tokens == 0:
            whole.usage.completion_tokens = 0
            whole.usage.total_tokens = whole.usage.prompt_tokens

    def opening(self, index: int) -> Iterator[CompletionChoice]:
        if self.body.echo:
            yield CompletionChoice(index, self._echo(index))

    def delta(self, index: int, token: Token, offset: int) -> CompletionChoice:
        return CompletionChoice(index, token.text, logprobs=self._logprobs([token], offset))

    def ending(self, index: int, finish: Finish) -> Iterator[Completion]:
        choice = CompletionChoice(index, finish.tail, finish_name(finish.reason))
        yield self.chunk([choice], streamed=True)

    def _echo(self, index: int) -> str:
        return self.echoes[index // (self.body.n or 1)] if self.echoes else ""

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> Any:
        if not self.logprobs_wanted:
            return None
        return completion_logprobs(tokens, self.vocabulary, offset)


def _unlikely(answer: GatheredAnswer) -> float:
    """Lowest for the answer of the highest mean log-probability."""
    found = [token.logprob or 0.0 for token in answer.tokens]
    return -sum(found) / max(len(found), 1)
