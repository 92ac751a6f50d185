"""A model behind OpenAI's API that answers questions by one token: `max_tokens=1` with log-probabilities.

The choices' first tokens are biased alike, so the server draws one of them, and their log-probabilities
keep their differences whether the server reports them before the bias (vLLM) or after it (kdn, OpenAI).  A
choice that is not among the reported ones is asked for alone: its token is then drawn, and reported.

Documents stand first in the prompt, so that a server's prefix cache has them for the next query.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Self, TypeVar

from kdn.core import Usage
from kdn.errors import BadInput, PromptTooLong, UnknownModel
from kdn.machine.text import counted
from kdn.model import Document
from kdn.rank import (
    Choice,
    ChoiceProbabilities,
    Conversation,
    Layout,
    Ranking,
    Template,
    find_template,
    make_choices,
    rank_by,
    relevance_question,
    share_out,
    worth_asking,
)
from kdn.scale.remote.client import JsonClient, JsonReply

__all__ = ["RemoteEngine"]

_BIAS = 100.0
"""The most that the API allows: no other token is drawn."""
_REPORTED = 20
"""The most alternatives that the API reports."""
T = TypeVar("T")
A = TypeVar("A")


class RemoteEngine:
    """One model of a server. Safe from several threads."""

    def __init__(
        self, client: JsonClient, model: str | None = None, *, in_flight: int = 16
    ) -> None:
        """`model` None is the only one, or the first, that the server names; `in_flight` questions are
        asked at the same time.  Raises Unreachable, and UnknownModel for a model it does not have."""
        self._client = client
        self._in_flight = in_flight
        reply = client.get("/v1/models")
        served = reply.body.get("data")
        listed = served if isinstance(served, list) else []
        cards = {str(one["id"]): one for one in listed if isinstance(one, dict) and "id" in one}
        names = list(cards)
        if reply.status != HTTPStatus.OK or not names:
            raise BadInput(
                f"{client.url}/v1/models names no model: {reply.message}; give the address of a"
                " server with OpenAI's API, and its key if it asks for one"
            )
        if model is not None and model not in names:
            raise UnknownModel(f"{client.url} has no model {model!r}; it has {', '.join(names)}")
        self.model = model or names[0]
        self._weights = cards[self.model].get("weights")
        self._texts: dict[int, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the server."""
        self._client.close()

    @property
    def fingerprint(self) -> str:
        """Where answers come from, so that another server or model never goes on with a journal.

        A server of kdn tells a digest of its weights and of what it computes in, here and with each answer:
        an answer of others raises BadInput. Of other servers, and of a router before servers that differ,
        nobody notices when other weights, or another dtype, answer by the name.
        """
        place = f"{self._client.url}/{self.model}"
        return f"{place} {self._weights}" if isinstance(self._weights, str) else place

    def choices(self, words: Sequence[str]) -> tuple[Choice, ...]:
        """Choices by their first tokens. Raises BadInput for two that begin with the same token."""
        return make_choices(words, self._encode)

    def ask_each(
        self, questions: Iterable[Conversation], choices: Sequence[Choice], temperature: float = 1.0
    ) -> Iterator[ChoiceProbabilities | PromptTooLong]:
        """An answer to each question, in order; one that is too long has its error in its place."""

        def one(question: Conversation) -> ChoiceProbabilities | PromptTooLong:
            try:
                logprobs, usage = self._ask(_chat(question), choices)
            except PromptTooLong as error:
                return error
            names = tuple(choice.name for choice in choices)
            return ChoiceProbabilities(names, share_out(logprobs, temperature), usage)

        yield from self._each(one, questions)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        *,
        layout: str | Layout = Layout.DOCUMENT_FIRST,
        template: str | Template | None = None,
        instruction: str | None = None,
    ) -> Ranking:
        """Documents by the log-odds of yes against no, best first.

        Raises PromptTooLong for a document that does not fit, BadInput for a template whose score is
        one logit alone: no server tells logits.
        """
        chosen = find_template(template)
        if chosen.no is None:
            raise BadInput(
                f"the template {chosen.name!r} scores by one logit, which servers do not tell;"
                " use it without --engine, or take another template"
            )
        make = _maker(query, chosen, Layout(layout), instruction)
        words, distinct = self.choices([chosen.yes, chosen.no]), worth_asking(documents)
        found = list(self._each(lambda text: self._ask(make(text), words), distinct))
        odds = {
            text: logprobs[0] - logprobs[1]
            for text, (logprobs, _) in zip(distinct, found, strict=True)
        }
        return rank_by(documents, odds, [usage for _, usage in found], top_n)

    def _each(self, work: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
        """`work` of each item, in order, some at the same time; no more is begun than is waited for."""
        waiting: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self._in_flight, thread_name_prefix="kdn-remote") as threads:
            try:
                for item in items:
                    waiting.append(threads.submit(work, item))
                    if len(waiting) >= self._in_flight:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _ask(
        self, prompt: Mapping[str, Any], choices: Sequence[Choice]
    ) -> tuple[tuple[float, ...], Usage]:
        """The log-probabilities of the choices, up to a common constant."""
        told, _, usage = self._token(prompt, choices)
        least = min(told.values())
        found = []
        for choice in choices:
            logprob = told.get(self._text(choice))
            if logprob is None:
                _, logprob, _ = self._token(prompt, [choice])
                if logprob > least:
                    raise BadInput(
                        f"{self._client.url} reports log-probabilities only of the {_REPORTED} likeliest"
                        f" tokens, biases included, so {counted(len(choices), 'choice')} cannot be compared;"
                        f" give {_REPORTED} or fewer"
                    )
            found.append(logprob)
        return tuple(found), usage

    def _token(
        self, prompt: Mapping[str, Any], choices: Sequence[Choice]
    ) -> tuple[dict[str, float], float, Usage]:
        """One token drawn among `choices`: log-probabilities by token text, its own, and what it took."""
        is_chat = "messages" in prompt
        reported = (
            {"logprobs": True, "top_logprobs": _REPORTED} if is_chat else {"logprobs": _REPORTED}
        )
        reply = self._client.post(
            "/v1/chat/completions" if is_chat else "/v1/completions",
            {
                "model": self.model,
                **prompt,
                **reported,
                "max_tokens": 1,
                "temperature": 0,
                "logit_bias": {str(choice.token_id): _BIAS for choice in choices},
            },
        )
        self._refuse(reply)
        return *_told(reply), _usage(reply)

    def _refuse(self, reply: JsonReply) -> None:
        if reply.status == HTTPStatus.OK:
            self._refuse_others(reply.body.get("system_fingerprint"))
            return
        said = reply.message
        if reply.status == HTTPStatus.BAD_REQUEST and "context" in said:
            raise PromptTooLong(said)
        raise BadInput(f"{self._client.url} refused a question ({reply.status}): {said}")

    def _refuse_others(self, told: object) -> None:
        """Results of two models by one name are not to be mixed. What tells no digest is believed."""
        if isinstance(self._weights, str) and isinstance(told, str) and told != self._weights:
            raise BadInput(
                f"{self._client.url} has other weights by the name {self.model!r} than when this began, or"
                " computes in another dtype or quantization; begin again for results of these alone"
            )

    def _encode(self, word: str) -> tuple[int, ...]:
        body = {"model": self.model, "prompt": word, "add_special_tokens": False}
        reply = self._client.post("/tokenize", body)
        tokens = reply.body.get("tokens")
        is_list = isinstance(tokens, list) and all(isinstance(one, int) for one in tokens)
        if reply.status != HTTPStatus.OK or not is_list:
            raise self._lacks("/tokenize", reply)
        return tuple(tokens or ())

    def _text(self, choice: Choice) -> str:
        """The choice's first token as the server writes it."""
        if choice.token_id not in self._texts:
            body = {"model": self.model, "tokens": [choice.token_id]}
            reply = self._client.post("/detokenize", body)
            text = reply.body.get("prompt")
            if reply.status != HTTPStatus.OK or not isinstance(text, str):
                raise self._lacks("/detokenize", reply)
            self._texts[choice.token_id] = text
        return self._texts[choice.token_id]

    def _lacks(self, path: str, reply: JsonReply) -> BadInput:
        return BadInput(
            f"{self._client.url} has no {path} ({reply.message}), so the choices' tokens are not"
            " known; vLLM and kdn serve have it"
        )


def _told(reply: JsonReply) -> tuple[dict[str, float], float]:
    """Log-probabilities of the only token and its alternatives, by text (of twins the likelier one), and
    that of the token itself."""
    try:
        logprobs = reply.body["choices"][0]["logprobs"]
        if "content" in logprobs:
            first = logprobs["content"][0]
            pairs = [(one["token"], one["logprob"]) for one in first["top_logprobs"]]
            drawn = first["token"], first["logprob"]
        else:
            pairs = list(logprobs["top_logprobs"][0].items())
            drawn = logprobs["tokens"][0], logprobs["token_logprobs"][0]
        found = dict[str, float]()
        for text, logprob in (*pairs, drawn):
            found[text] = max(_logprob(logprob), found.get(text, -math.inf))
        return found, _logprob(drawn[1])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"the server's answer has no log-probabilities ({reply.message}); it must allow logprobs"
        ) from error


def _logprob(given: Any) -> float:
    """Raises ValueError, TypeError for what is none: nothing could be compared with NaN."""
    logprob = float(given)
    if math.isnan(logprob) or logprob == math.inf:
        raise ValueError(f"{logprob} is no log-probability")
    return logprob


def _count(told: Any, name: str) -> int:
    """A number of tokens that a server tells; 0 where it tells none."""
    found = told.get(name) if isinstance(told, dict) else None
    return max(found, 0) if isinstance(found, int) else 0


def _usage(reply: JsonReply) -> Usage:
    told = reply.body.get("usage")
    tokens = _count(told, "prompt_tokens")
    details = told.get("prompt_tokens_details") if isinstance(told, dict) else None
    cached = min(_count(details, "cached_tokens"), tokens)
    return Usage(
        prompt_tokens=tokens, completion_tokens=1, exact=cached, recomputed=tokens - cached
    )


def _chat(question: Conversation) -> dict[str, Any]:
    """Documents before the first words of the user, as plain text: every chat template knows that."""
    said = [{"role": one.role, "content": one.content} for one in question.messages]
    if question.documents:
        first = next(place for place, one in enumerate(said) if one["role"] == "user")
        texts = [one.text for one in question.documents]
        said[first]["content"] = "\n\n".join((*texts, said[first]["content"]))
    return {"messages": said}


def _maker(
    query: str, template: Template, layout: Layout, instruction: str | None
) -> Callable[[str], dict[str, Any]]:
    """From a document to the prompt that asks about it."""
    said = instruction or template.instruction
    if not template.has_own_prelude:
        return lambda text: _chat(relevance_question(query, Document(None, text), layout, said))
    pieces = template.pieces(layout)
    if "bos" in pieces[1::2]:
        raise BadInput(f"the template {template.name!r} begins with a token that only kdn can name")

    def make(text: str) -> dict[str, Any]:
        filled = {"query": query.strip(), "instruction": said.strip(), "document": text.strip()}
        words = [filled[one] if place % 2 else one for place, one in enumerate(pieces)]
        return {"prompt": "".join(words)}

    return make
