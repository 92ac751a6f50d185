"""What one key's requests store is nothing to another key, in counts and in time: a tiny model, real KV."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.config import load_config
from kdn.serve import ServeSettings, served
from tests.serve.running import Running, running

SETTINGS = ServeSettings(
    port=0, api_keys=("ONE", "TWO"), salted_keys=("alice=ALICE", "carol+public=CAROL")
)


@pytest.fixture(scope="module")
def server(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=4096)
    with (
        kdn.open(folder, config=config, dtype="float32") as opened,
        running(served(opened), SETTINGS) as server,
    ):
        yield server
        opened.check()


def ask(server: Running, key: str, text: str, salt: str | None = None) -> tuple[int, float]:
    """How many prompt tokens were reused, and the seconds that it took."""
    body: dict[str, Any] = {"prompt": text, "max_tokens": 1}
    if salt is not None:
        body["cache_salt"] = salt
    begun = time.perf_counter()
    answer = server.http.post(
        "/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
    )
    took_s = time.perf_counter() - begun
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"], took_s


def test_a_salt_is_worth_something_only_with_its_key(server: Running) -> None:
    secret = "the salary of Odalys is 4711. " * 20
    assert ask(server, "ALICE", secret, "alice")[0] == 0
    assert ask(server, "ALICE", secret)[0] > 500, "her own, with and without its name"
    for key in ("ONE", "TWO", "CAROL"):
        assert ask(server, key, secret, "alice")[0] == 0, key
    # each found only what itself has stored just now
    for key in ("ONE", "TWO", "CAROL"):
        assert ask(server, key, secret, "alice")[0] > 500, key


def test_what_is_public_answers_everybody_and_is_written_by_grant(server: Running) -> None:
    text = "written for all of them. " * 20
    ask(server, "CAROL", text, "public")
    for key, salt in (("ONE", None), ("TWO", "mine"), ("ALICE", None)):
        assert ask(server, key, text, salt)[0] > 400, key


def test_keys_without_salts_share_what_they_store_without_one(server: Running) -> None:
    text = "one handbook for two teams. " * 20
    ask(server, "ONE", text)
    assert ask(server, "TWO", text)[0] > 400
    assert ask(server, "ALICE", text)[0] == 0


def probability_by_chance(left: list[float], right: list[float], shuffles: int = 10_000) -> float:
    """How often two groups that are drawn at random from all the times have medians so far apart.

    A permutation test: it supposes nothing about how the times are spread.
    """
    rng, together = random.Random(1), [*left, *right]

    def gap(times: list[float]) -> float:
        return abs(statistics.median(times[: len(left)]) - statistics.median(times[len(left) :]))

    found, as_far = gap(together), 0
    for _ in range(shuffles):
        rng.shuffle(together)
        as_far += gap(together) >= found
    return (as_far + 1) / (shuffles + 1)


def test_a_permutation_test_tells_what_differs_from_what_does_not() -> None:
    same = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert probability_by_chance(same, same) == 1.0
    assert probability_by_chance(same, [10 + one for one in same]) < 0.005


def times_of_three_groups(server: Running, attempt: int) -> dict[str, list[float]]:
    """Twenty prompts that ALICE stored, twenty that TWO did and twenty that nobody did, as TWO asks them.

    The order is drawn at random: in any fixed one the machine's own ups and downs fall on one of the groups
    more than on the others.
    """
    said = {
        "foreign": "is stored by somebody else. ",
        "own": "was asked before by itself. ",
        "new": "was never asked by anybody. ",
    }
    asked = [(group, f"{attempt} {n} {said[group]}" * 40) for group in said for n in range(20)]
    for group, text in asked:
        if group != "new":
            ask(server, "ALICE" if group == "foreign" else "TWO", text, "alice")
    random.Random(attempt).shuffle(asked)
    times: dict[str, list[float]] = {group: [] for group in said}
    for group, text in asked:
        times[group].append(ask(server, "TWO", text, "alice")[1])
    return times


@pytest.mark.alone
def test_time_does_not_tell_what_another_key_has_stored(server: Running) -> None:
    """What is TWO's own is told from what is new, and by the same comparison what is ALICE's is not.

    Chance alone fails one attempt in a thousand, and an outage of the machine hides what is told: of three
    attempts one must succeed.
    """
    found = []
    for attempt in range(3):
        times = times_of_three_groups(server, attempt)
        own, foreign = (
            probability_by_chance(times[one], times["new"]) for one in ("own", "foreign")
        )
        found.append((own, foreign))
        if own < 0.001 < foreign:
            return
    raise AssertionError(f"by chance what is TWO's own and what is ALICE's: {found}")
