"""Answers that begin alike: asked apart where they part, and probabilities that sum to one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kdn
from kdn.api import Kdn
from kdn.core import Prompt, Role, Segment, TokenIds
from kdn.errors import BadInput
from kdn.rank import Choice, RowTemplate, fork_of, make_choices

LOST_CARD, LOST_PHONE, NEW_CARD = (Choice("lc", 1, (2,)), Choice("lp", 1, (3,)), Choice("nc", 4))


def test_a_question_is_asked_only_where_answers_part() -> None:
    root = fork_of([LOST_CARD, LOST_PHONE, NEW_CARD])
    assert (root.path, root.tokens, root.branches) == ((), (1, 4), ((0, 1), (2,)))
    behind_lost, behind_new = root.forks
    assert behind_new is None
    assert behind_lost is not None
    assert (behind_lost.path, behind_lost.tokens) == ((1,), (2, 3))


def test_what_all_begin_with_is_no_question() -> None:
    root = fork_of([Choice("a", 7, (8, 1)), Choice("b", 7, (8, 2))])
    assert (root.path, root.tokens, root.forks) == ((7, 8), (1, 2), (None, None))


def spelled(word: str) -> TokenIds:
    return tuple(map(ord, word))


def test_only_whole_words_may_begin_alike() -> None:
    with pytest.raises(BadInput, match="begin with the same token"):
        make_choices(["ab", "ac"], spelled)
    assert make_choices(["ab", "ac"], spelled, whole=True)[1].tokens == spelled("ac")
    assert make_choices(["ab", "bc"], spelled, whole=True)[0].rest == (), "one token is enough"
    with pytest.raises(BadInput, match="the choice 'ab' stands there twice"):
        make_choices(["ab", "b", "ab"], spelled, whole=True)
    with pytest.raises(BadInput, match=r"'abc' begins with all of 'ab'.*ab=B"):
        make_choices(["abc", "b", "ab"], spelled, whole=True)


@pytest.fixture(scope="module")
def model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kdn]:
    with kdn.open(smollm2, home=tmp_path_factory.mktemp("home")) as found:
        yield found


def test_probabilities_are_products_along_the_tokens(model: Kdn) -> None:
    """Against one plain question after another, multiplied by hand."""
    encode = model.model.tokenizer.encode
    words = ["card arrival", "card linking", "card swallowed", "top up", "cash"]
    choices = make_choices(words, encode, whole=True)
    prompt = model.prompts.question(RowTemplate("Which topic? {t}").fill({"t": "Where is it?"}))
    answer = next(iter(model.scoring.judge().ask([prompt], choices)))
    assert sum(answer.probabilities) == pytest.approx(1)

    def share(path: TokenIds, tokens: TokenIds) -> list[float]:
        asked = Prompt((*prompt.segments, Segment(Role.QUESTION, path))) if path else prompt
        options = [Choice(str(token), token) for token in tokens]
        return list(next(iter(model.scoring.judge().ask([asked], options))).probabilities)

    def product(word: str) -> float:
        tokens, found = encode(word), 1.0
        for at in range(len(tokens)):
            rivals = [encode(w) for w in words if encode(w)[:at] == tokens[:at]]
            nexts = tuple(dict.fromkeys(r[at] for r in rivals))
            if len(nexts) > 1:
                found *= share(tokens[:at], nexts)[nexts.index(tokens[at])]
        return found

    by_hand = [product(word) for word in words]
    assert answer.probabilities == pytest.approx(by_hand, abs=2e-2)
