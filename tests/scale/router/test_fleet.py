"""The router's record of its servers, and the rules, on numbers that one can add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import JctModel
from kdn.errors import BadInput
from kdn.scale.router import RULES, Fleet, RoutedPrompt
from kdn.scale.router.content import prompt_of
from kdn.scale.router.fleet import Confirmed, StoredChunks, ToldTokens
from kdn.scale.router.rules import KvAware, PrefixHash, RoundRobin

SECOND_A_TOKEN = JctModel(pass_s=0.0, token_s=1.0, pair_s=0.0, cached_s=0.0)


def prompt(names: str, num_tokens: int | None = None) -> RoutedPrompt:
    """A chunk of ten tokens for each letter; a name stands for the letters up to it."""
    chunks = tuple(names[: n + 1] for n in range(len(names)))
    return RoutedPrompt(chunks, num_tokens or 10 * len(names) + 1, 10)


def fleet_of(*names: str) -> Fleet:
    return Fleet(names, SECOND_A_TOKEN)


def test_a_prompt_goes_where_its_beginning_is_stored() -> None:
    fleet = fleet_of("a", "b", "c")
    number = fleet.begin("b", prompt("xyz"), 0.0)
    fleet.servers["b"].began(number, 31.0)
    assert fleet.first_token_s(fleet.servers["b"], prompt("xyzw"), 31.0) == pytest.approx(11.0)
    assert fleet.first_token_s(fleet.servers["a"], prompt("xyzw"), 31.0) == 41.0
    assert KvAware().order(prompt("xyzw"), fleet, 31.0)[0].name == "b"


def test_a_long_queue_outweighs_a_stored_beginning() -> None:
    fleet = fleet_of("a", "b")
    fleet.begin("a", prompt("xyz"), 0.0)  # 31 s
    fleet.begin("a", prompt("uvw"), 0.0)  # 31 s more
    # at a: 52 s of queue and 1 s for the last token; at b: all 31 tokens
    assert fleet.first_token_s(fleet.servers["a"], prompt("xyz"), 10.0) == 53.0
    assert [server.name for server in KvAware().order(prompt("xyz"), fleet, 10.0)] == ["b", "a"]


def test_a_queue_ends_no_sooner_than_its_oldest_prefill_is_late() -> None:
    fleet = fleet_of("a")
    fleet.begin("a", prompt("x"), 0.0)  # 11 s
    fleet.begin("a", prompt("y"), 0.0)  # 11 s
    assert [fleet.servers["a"].wait_s(now_s) for now_s in (0.0, 5.0, 11.0, 50.0)] == [
        22,
        17,
        11,
        11,
    ]


def test_a_server_slower_than_the_model_is_known_for_it() -> None:
    fleet = fleet_of("a", "b")
    now_s = 0.0
    for turn in range(60):
        number = fleet.begin("a", prompt(2 * chr(0x100 + turn)), now_s)
        now_s += 63.0  # thrice the 21 s of the model
        fleet.servers["a"].began(number, now_s)
        fleet.servers["a"].ended(number)
    assert fleet.servers["a"].slowdown == pytest.approx(3.0, rel=0.01)
    assert fleet.servers["a"].num_running == 0
    assert KvAware().order(prompt("new"), fleet, now_s)[0].name == "b"


class Answering:
    """A server "a" that is sent prompts of one chunk of 4,000 tokens, and says what it had of each."""

    def __init__(self, *answered: str) -> None:
        self.fleet = fleet_of("a")
        for name in answered:
            self.answer(self.send(name), 0)

    def send(self, name: str) -> tuple[int, RoutedPrompt, Confirmed]:
        sent = RoutedPrompt((name,), 4001, 4000)
        confirmed = self.fleet.servers["a"].stored.confirmed(sent.chunks)
        return self.fleet.begin("a", sent, 0.0), sent, confirmed

    def answer(
        self, sent: tuple[int, RoutedPrompt, Confirmed], cached: int, tokens: int = 4001
    ) -> None:
        number, asked, confirmed = sent
        self.fleet.servers["a"].began(number, 0.0)
        self.fleet.correct("a", asked, confirmed, ToldTokens(tokens, cached))

    def stored(self) -> str:
        one = self.fleet.servers["a"].stored
        return "".join(name for name in "abcdefghxy" if one.match([name]))


def test_a_server_that_had_less_than_believed_is_believed_less() -> None:
    """It lacks `c`, so that it lacks what it used before."""
    server = Answering(*"abcdefgh")
    server.answer(server.send("c"), 0)
    assert server.stored() == "cdefgh"


def test_no_answer_takes_more_than_half_of_what_is_believed() -> None:
    """`h` was used last: all others were used before it."""
    server = Answering(*"abcdefgh")
    server.answer(server.send("h"), 0)
    assert server.stored() == "efgh"


def test_a_server_counts_in_tokens_of_its_own() -> None:
    """Of the chunk it makes 2,000 tokens. With a block of 256 not whole, half is no difference."""
    server = Answering(*"abcdefgh")
    server.answer(server.send("h"), 745, tokens=2001)
    assert len(server.stored()) == 8
    server.answer(server.send("h"), 744, tokens=2001)
    assert len(server.stored()) == 4


def test_prompts_that_are_sent_together_are_all_computed() -> None:
    server = Answering(*"abcdefgh")
    sent = [server.send("x") for _ in range(5)]
    for one in sent:
        server.answer(one, 0)
    assert server.stored() == "abcdefghx"


def test_a_prompt_whose_client_left_was_perhaps_not_computed() -> None:
    server = Answering(*"abcdefgh")
    server.send("x")
    server.answer(server.send("x"), 0)
    assert server.stored() == "abcdefghx"


def test_a_prompt_that_was_stored_in_full_takes_nothing_away() -> None:
    """7,680 characters of English, 1,669 tokens of a server and 1,920 by four bytes a token."""
    fleet = fleet_of("a")
    stored = fleet.servers["a"].stored
    for number in range(20):
        one = fleet.begin("a", prompt_of({"model": "m", "prompt": f"{number} " * 512}), 0.0)
        fleet.servers["a"].began(one, 0.0)
    hit = prompt_of({"model": "m", "prompt": "The tide. " * 768})
    sizes = []
    for cached in (0, 1669, 1669, 1669):
        confirmed = stored.confirmed(hit.chunks)
        fleet.servers["a"].began(fleet.begin("a", hit, 0.0), 0.0)
        fleet.correct("a", hit, confirmed, ToldTokens(1670, cached))
        sizes.append(len(stored))
    assert sizes == [10 * 2 + 10 * 3 + 15] * 4  # 1,024 or 1,536 characters each, and 7,680


def test_only_an_answer_that_began_says_that_a_prompt_is_stored() -> None:
    """While it waits it is counted on, so that prompts of one beginning go to one server."""
    fleet = fleet_of("a")
    server, asked = fleet.servers["a"], prompt("xyz")
    answered, refused = fleet.begin("a", prompt("xy"), 0.0), fleet.begin("a", asked, 0.0)
    assert (server.match(asked.chunks), len(server.stored)) == (3, 0)
    server.ended(refused)
    server.ended(refused)  # told again, as where its client leaves
    assert (server.match(asked.chunks), len(server.stored)) == (2, 0)
    server.began(answered, 21.0)
    server.ended(answered)
    assert (server.match(asked.chunks), len(server.stored)) == (2, 2)
    server.ended(fleet.begin("a", asked, 21.0))
    assert (server.match(asked.chunks), len(server.stored)) == (2, 2)


def test_a_server_that_is_down_gets_nothing_and_comes_back_empty() -> None:
    fleet = fleet_of("a", "b")
    fleet.servers["a"].began(fleet.begin("a", prompt("xy"), 0.0), 0.0)
    late = fleet.begin("a", prompt("xyz"), 0.0)
    fleet.down("a")
    fleet.servers["a"].began(late, 1.0)  # what it had sent before
    for make in RULES.values():
        assert [server.name for server in make().order(prompt("xyz"), fleet, 0.0)] == ["b"]
    fleet.servers["a"].is_up = True
    assert fleet.servers["a"].match(prompt("xyz").chunks) == 0
    fleet.down("a")
    fleet.down("b")
    assert all(make().order(prompt("xyz"), fleet, 0.0) == [] for make in RULES.values())


def test_round_robin_takes_turns_and_hashing_does_not() -> None:
    fleet = fleet_of("a", "b", "c")
    turns = RoundRobin()
    assert [turns.order(prompt("x"), fleet, 0.0)[0].name for _ in range(4)] == list("abca")
    hashed = {PrefixHash().order(prompt("x" * n), fleet, 0.0)[0].name for n in range(4, 9)}
    assert len(hashed) == 1


@given(st.text("xyz", min_size=1, max_size=6))
def test_hashing_moves_only_what_a_lost_server_had(names: str) -> None:
    fleet = fleet_of(*"abcdefg")
    before = [server.name for server in PrefixHash().order(prompt(names), fleet, 0.0)]
    fleet.down("c")
    after = [server.name for server in PrefixHash().order(prompt(names), fleet, 0.0)]
    assert after == [name for name in before if name != "c"]


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=30), st.integers(1, 12))
def test_chunks_stay_under_their_cap_and_lose_ends_before_beginnings(
    texts: list[str], capacity: int
) -> None:
    stored = StoredChunks(capacity)
    for text in texts:
        chunks = prompt(text).chunks
        stored.store(chunks)
        assert len(stored) <= capacity
        assert stored.match(chunks) == min(capacity, len(chunks))


def test_servers_are_named_once() -> None:
    with pytest.raises(BadInput, match="a, a; name one or more"):
        fleet_of("a", "a")
    with pytest.raises(BadInput, match="none; name one"):
        fleet_of()
