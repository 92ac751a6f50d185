"""What a request allows: whose word counts, and which stored KV of earlier requests it may read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kdn
from kdn.api.prompts import sharing
from kdn.core import (
    EXACT,
    Blend,
    Prompt,
    Request,
    Retention,
    Role,
    Segment,
    Share,
    ShareConfig,
)
from kdn.reuse.share import LinearMap, PairRecord, shared_recipe
from kdn.reuse.share.limits import ShareLimits, limits_of
from kdn.reuse.share.pairs import SharePoint
from tests.reuse.share.pairs import (
    CONTEXT,
    DOCUMENT,
    LAYERS,
    PRELUDE,
    ask,
    point,
    question,
    settings,
    tell,
)

BEST, PUBLISHED = Share("best"), Share("published")
NEAR, FAR = point((0, 1), work=0.5, kl=0.03), point(work=0.0, kl=0.5)
MAPPED, ROWS = point(mapped=True, work=0.1, kl=0.2), point(ratio=0.2, work=0.3, kl=0.1)
ANYTHING = Share(max_kl=1.0)


def record(*points: SharePoint) -> PairRecord:
    return PairRecord(
        sender="s", receiver="r", sender_name="s", receiver_name="r", num_layers=LAYERS, contexts=50,
        context_tokens=CONTEXT, own_nll=1.0, points=points,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, ShareLimits("published", 0.01, 2.0)),
        (Share("best"), ShareLimits("best", 0.01, 2.0)),
        (Share(max_kl=0.3), ShareLimits("best", 0.3, 2.0)),
        (Share("published", within_s=0.5), ShareLimits("published", 0.01, 0.5)),
        (Share("exact"), None),
        (Blend(), None),
    ],
)
def test_a_request_speaks_before_the_settings(
    said: object | None, expected: ShareLimits | None
) -> None:
    request = Request("r", Prompt((Segment(Role.QUESTION, (1, 2)),)))
    asked = request if said is None else request.using(said)
    config = ShareConfig(mode="published", max_kl=0.01, within_s=2.0)
    assert limits_of(asked, config) == expected


def test_where_neither_says_anything_nothing_is_read() -> None:
    request = Request("r", Prompt((Segment(Role.QUESTION, (1, 2)),)))
    assert limits_of(request, ShareConfig(mode="exact")) is None


def test_ways_that_a_request_allows_are_read_the_nearest_first() -> None:
    """Of rows nothing is kept; two pairs may have one way; a way is named with its KL."""
    records = [record(FAR, ROWS, NEAR), record(NEAR, MAPPED)]
    found = ShareLimits("best", 0.5).reads(records)
    assert [one.name for one in found] == [
        "share:layers 0-1 0.03",
        "share:map 0.2",
        "share:reuse 0.5",
    ]
    assert ShareLimits("best", 0.2).reads(records) == found[:2]
    assert ShareLimits("published", 0.5).reads(records) == found[:1]
    assert ShareLimits("published", 0.02).reads(records) == []


@pytest.mark.parametrize(
    ("way", "first", "later", "finds"),
    [
        (FAR, ANYTHING, ANYTHING, True),
        (FAR, ANYTHING, Share(max_kl=0.01), False),
        (FAR, ANYTHING, BEST, False),  # the setting is 0.05
        (point(mapped=True, work=0.1), BEST, BEST, True),
        (point(mapped=True, work=0.1), BEST, PUBLISHED, False),
        (NEAR, PUBLISHED, BEST, True),
        (NEAR, BEST, PUBLISHED, True),
    ],
)
def test_the_next_turn_reads_what_it_might_have_shared_itself(
    floats: kdn.Kdn, way: SharePoint, first: Share, later: Share, finds: bool
) -> None:
    """The first turn's question of 12 tokens is kept behind the context; no sibling has read it."""
    width = 2 * 2 * 16
    zeros = LinearMap(torch.zeros(LAYERS, width, width), torch.zeros(LAYERS, width))
    tell(floats, [way], None, "a", zeros)
    ask(floats)
    assert ask(floats, adapter="a", share=first, retention=Retention.ALL)[2].shared == CONTEXT
    talk = (PRELUDE, DOCUMENT, Segment(Role.HISTORY, question().token_ids), question(2))
    found = ask(floats, *talk, adapter="a", share=later, retention=Retention.NOTHING)
    assert found[2].shared == (CONTEXT + 12 if finds else 0)
    if not finds:
        assert found[:2] == ask(floats, *talk, adapter="a", reuse=False, salt="own")[:2]


def test_two_ways_of_one_context_are_kept_side_by_side(floats: kdn.Kdn) -> None:
    """Between equal runs the nearest goes on, as that: the next turn of a stricter request finds it."""
    tell(floats, [FAR, NEAR], None, "a")
    ask(floats)
    receiver, asked = floats.model.fingerprints.of("a"), [PRELUDE, DOCUMENT]

    def stored() -> list[int]:
        token_ids = [token for one in asked for token in one.token_ids]
        recipes = shared_recipe(FAR), shared_recipe(NEAR), EXACT
        return [floats.store.match(receiver, one, "", token_ids).num_tokens for one in recipes]

    ask(floats, adapter="a", share=ANYTHING)
    assert stored() == [CONTEXT, 0, 0], "the least work"
    ask(floats, adapter="a", share=BEST)
    assert stored() == [CONTEXT, CONTEXT, 0]
    for seed, share, shared in ((1, ANYTHING, CONTEXT), (2, BEST, CONTEXT + 12)):
        asked.append(Segment(Role.HISTORY, question(seed).token_ids))
        _, _, usage = ask(floats, *asked, question(seed + 1), adapter="a", share=share)
        assert (usage.shared, usage.recomputed) == (shared, 24)
        assert stored() == [CONTEXT, shared + 12, 0]


def test_ways_that_nobody_took_are_not_looked_up(floats: kdn.Kdn) -> None:
    """Of forty ways one was taken: a request looks for its exact blocks, the sibling's, and that way's."""
    ways = [point((0, 1), work=0.5 + n / 100, kl=0.04 - n / 1000) for n in range(40)]
    tell(floats, ways, None, "a")
    ask(floats)
    ask(floats, adapter="a", share=BEST)
    before = floats.store.stat().lookups
    assert ask(floats, adapter="a", share=BEST)[2].shared == CONTEXT
    assert floats.store.stat().lookups - before <= 8


def test_a_word_for_sharing_leaves_the_operators_limit(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """The pair's way has 0.03 nats. `share="best"` says nothing of nats, where the settings say 0.01."""
    base, adapters = folders
    strict = settings(tmp_path, max_kl="0.01")
    with kdn.open(base, config=strict, dtype="float32", adapters=adapters) as k:
        tell(k, [NEAR], None, "a")
        ask(k)
        (best,) = sharing("best")
        assert ask(k, adapter="a", share=best, retention=Retention.NOTHING)[2].shared == 0
        own = Share("best", max_kl=0.03)
        assert ask(k, adapter="a", share=own, retention=Retention.NOTHING)[2].shared == CONTEXT
