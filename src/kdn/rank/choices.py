"""What a one-token question may be answered with, and how likely each answer is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from kdn.core import Sampling, Token, TokenIds, Usage
from kdn.errors import BadInput

__all__ = [
    "Choice",
    "ChoiceProbabilities",
    "check_choices",
    "make_choices",
    "name_of",
    "one_of",
    "read_logits",
    "read_probabilities",
    "share_out",
    "wanted",
]


@dataclass(frozen=True)
class Choice:
    """An answer: the name it goes by, and the token that stands for it, or the tokens."""

    name: str
    token_id: int
    rest: TokenIds = ()
    """The tokens after the first, for answers that begin alike."""

    @property
    def tokens(self) -> TokenIds:
        return (self.token_id, *self.rest)


@dataclass(frozen=True)
class ChoiceProbabilities:
    """How the model answers one question. Probabilities follow the choices, and sum to 1."""

    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    usage: Usage

    @property
    def best(self) -> str:
        """The likeliest choice; among equals the first named."""
        return self.names[self.probabilities.index(max(self.probabilities))]

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Natural logarithms of the probabilities; what none is left for reads -inf."""
        return tuple(math.log(p) if p > 0 else -math.inf for p in self.probabilities)


def make_choices(
    words: Sequence[str], encode: Callable[[str], TokenIds], *, whole: bool = False
) -> tuple[Choice, ...]:
    """Choices from words, each known by its first token; `name=word` gives it another name.

    With `whole` words may begin alike: they then keep all their tokens (see `Judge.ask`).  Raises
    BadInput for fewer than two, for two of one name, and for two that cannot be told apart.
    """
    check_choices(words)
    spelled = [_spelled(given, encode) for given in words]
    firsts = [choice.token_id for choice in spelled]
    if len(set(firsts)) == len(firsts):
        return tuple(replace(choice, rest=()) for choice in spelled)
    if not whole:
        _refuse_twins(spelled)
    _refuse_beginnings(spelled)
    return tuple(spelled)


def check_choices(words: Sequence[str]) -> None:
    """What `make_choices` refuses without a tokenizer: raises BadInput for fewer than two, and for two
    of one name."""
    if len(words) < 2:
        raise BadInput(f"a question needs two choices or more, not {len(words)}: e.g. yes,no")
    name, times = Counter(map(name_of, words)).most_common(1)[0]
    if times > 1:
        raise BadInput(f"the choice {name!r} stands there twice; leave one out, or rename it")


def name_of(word: str) -> str:
    """The name that a choice goes by: what stands before the `=`, if there is one."""
    return word.partition("=")[0]


def _spelled(given: str, encode: Callable[[str], TokenIds]) -> Choice:
    name, _, word = given.partition("=")
    ids = encode(word or name)
    if not ids:
        raise BadInput(f"the choice {given!r} is empty")
    return Choice(name, ids[0], ids[1:])


def _refuse_twins(choices: Sequence[Choice]) -> None:
    seen: dict[int, str] = {}
    for choice in choices:
        if choice.token_id in seen:
            raise BadInput(
                f"the choices {seen[choice.token_id]!r} and {choice.name!r} begin with the same "
                "token, and one token is all that is computed: give one of them another word, "
                f"such as {choice.name}=B"
            )
        seen[choice.token_id] = choice.name


def _refuse_beginnings(choices: Sequence[Choice]) -> None:
    """Raises BadInput where one choice's tokens are the beginning of another's."""
    ordered = sorted(choices, key=lambda choice: choice.tokens)
    for shorter, longer in pairwise(ordered):
        if longer.tokens[: len(shorter.tokens)] == shorter.tokens:
            raise BadInput(
                f"the choice {longer.name!r} begins with all of {shorter.name!r}, and nothing tells "
                f"where an answer ends: give one of them another word, such as {shorter.name}=B"
            )


def wanted(choices: Sequence[Choice]) -> Sampling:
    """One token among the choices' first, with the log-probability of each."""
    return one_of(tuple(choice.token_id for choice in choices))


def one_of(ids: TokenIds) -> Sampling:
    """One token among `ids`, with the log-probability of each."""
    return Sampling(max_tokens=1, ignore_eos=True, allowed=ids, ranked=ids, logprobs=0)


def read_probabilities(
    choices: Sequence[Choice], token: Token, usage: Usage
) -> ChoiceProbabilities:
    """The answer in a token that was drawn as `wanted` says."""
    shares = share_out(read_logits(choices, token))
    return ChoiceProbabilities(tuple(choice.name for choice in choices), shares, usage)


def read_logits(choices: Sequence[Choice], token: Token) -> tuple[float, ...]:
    """What was reported of each choice, in their order: log-probabilities, or logits if asked for."""
    told = {other.token_id: other.logprob for other in token.alternatives}
    return tuple(told[choice.token_id] for choice in choices)


def share_out(logprobs: Sequence[float], temperature: float = 1.0) -> tuple[float, ...]:
    """Softmax of log-probabilities over `temperature`: above 1 is less sure, below 1 more."""
    if temperature <= 0:
        raise BadInput(f"a temperature must be above 0, not {temperature}")
    peak = max(logprobs)
    weights = [math.exp((one - peak) / temperature) for one in logprobs]
    total = sum(weights)
    return tuple(weight / total for weight in weights)
