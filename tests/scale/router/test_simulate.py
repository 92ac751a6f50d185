"""A few requests through the simulated servers, with times that one can add up."""

from __future__ import annotations

from kdn.scale.router import RULES, Fleet
from kdn.scale.router.simulate import (
    Outage,
    RoutedRequest,
    RoutingOutcome,
    simulate_routing,
    with_hot_prefix,
)
from tests.scale.router.test_fleet import SECOND_A_TOKEN, prompt


def run(
    rule: str, requests: list[RoutedRequest], servers: str = "ab", *outages: Outage
) -> RoutingOutcome:
    fleet = Fleet(servers, SECOND_A_TOKEN)
    return simulate_routing(requests, fleet, RULES[rule](), SECOND_A_TOKEN, 100, outages)


def chat(start_s: float, every_s: float, turns: str) -> list[RoutedRequest]:
    """A conversation that grows by a chunk a turn."""
    return [RoutedRequest(start_s + every_s * n, prompt(turns[: n + 1])) for n in range(len(turns))]


def test_turns_of_a_conversation_hit_where_the_last_one_was() -> None:
    found = run("kv-aware", chat(0.0, 100.0, "xyz"))
    # 11 tokens, then 21 of which 10 are stored, then 31 of which 20 are
    assert found.first_token_s == [11.0, 11.0, 11.0]
    assert found.hit_rate == 30 / 63


def test_round_robin_computes_on_both_servers() -> None:
    found = run("round-robin", chat(0.0, 100.0, "xyz"))
    assert found.first_token_s == [11.0, 21.0, 21.0]
    assert found.hit_rate == 10 / 63


def test_one_queue_is_first_come_first_served() -> None:
    found = run("kv-aware", [RoutedRequest(0.0, prompt(name)) for name in "xyz"], "a")
    assert found.first_token_s == [11.0, 22.0, 33.0]
    assert found.mean_s == 22.0
    assert found.quantile_s(0.99) == 33.0


def test_what_a_dead_server_had_not_begun_goes_to_another() -> None:
    requests = [RoutedRequest(0.0, prompt("x"), answer_s=100.0) for _ in range(1)]
    requests += [RoutedRequest(12.0, prompt("y" * 3)), RoutedRequest(12.0, prompt("z" * 3))]
    found = run("round-robin", requests, "ab", Outage("a", 13.0, 50.0))
    # x is being answered at a when it dies; y waits at b; z was at a, and is sent to b, behind y
    assert found.num_cut == 1
    assert found.num_retried == 1
    assert found.first_token_s == [11.0, 31.0, 62.0]


def test_requests_without_a_server_are_refused_until_it_is_back() -> None:
    requests = [RoutedRequest(at_s, prompt("x")) for at_s in (0.0, 20.0, 60.0)]
    found = run("kv-aware", requests, "a", Outage("a", 15.0, 50.0))
    assert found.num_refused == 1
    assert found.first_token_s == [11.0, 11.0]  # computed a second time: the cache went with it


def test_a_hot_prefix_stands_before_every_second_prompt() -> None:
    plain = [RoutedRequest(0.0, prompt("x")), RoutedRequest(1.0, prompt("x"))]
    hot, cold = with_hot_prefix(plain, prompt("HH", num_tokens=20), every=2)
    assert (len(hot.prompt.chunks), hot.prompt.num_tokens) == (3, 31)
    assert cold.prompt == plain[1].prompt
