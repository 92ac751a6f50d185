"""Guards of the steering benchmark: choices that are acted on where they are clear, by hand."""

from __future__ import annotations

from typing import Any

from kdn.bench.steer.guards import GUARDS, Guard, chosen_guard, guard_rows, guarded
from kdn.bench.steer.verdicts import steer_notes
from kdn.reuse.steer import LOOK_SHARE, LOOKS


def looked(name: str, share: float, gain: float, *, agrees: bool = False) -> dict[str, Any]:
    """An item of plain NLL 3 whose look gains so much, at a share of the attention."""
    arms: dict[str, Any] = {"plain": {"nll": 3.0, "kl": 0.0}}
    sure = {"lead": 0.5, "share": share, "votes": 1.0}
    arms["look-always"] = {"nll": 3 - gain, "kl": 0.1, "chosen": 4, "sure": sure}
    nearest = {"nll": 3.0, "kl": 0.1, "chosen": 4 if agrees else 5, "sure": {"lead": 0.2}}
    arms["retrieved"] = nearest | {"sure": {"lead": 0.2, "cosine": 0.7}}
    return {"name": name, "cluster": name, "chance": 0.1, "arms": arms}


def test_an_item_is_the_arms_own_where_the_choice_is_clear_and_else_the_plain_one() -> None:
    guard = Guard("look-always", "share", 0.5, "look")
    clear, unclear = guarded([looked("squad/1", 0.5, 1.0), looked("squad/2", 0.4, -1.0)], [guard])
    assert clear["arms"]["look"]["nll"] == 2
    assert unclear["arms"]["look"] == {"nll": 3.0, "kl": 0.0}
    untold = looked("squad/3", 0.5, 1.0)
    del untold["arms"]["look-always"]["sure"]
    assert "look" not in guarded([untold], [guard])[0]["arms"], "rows of before do not tell"
    assert guard.acts(untold) is None


def test_the_benchmark_judges_the_guard_that_requests_have() -> None:
    look = next(guard for guard in GUARDS if guard.name == "look")
    assert (look.arm, look.measure, look.least) == ("look-always", "share", LOOK_SHARE)
    assert LOOKS == {"look": LOOK_SHARE, "look-always": 0}


def test_a_threshold_is_chosen_that_harms_no_set() -> None:
    """On squad every look gains 1, at shares of 0.3 and more; on musique those below 0.4 lose 3."""
    fit = [looked(f"squad/{n}", 0.3 + n / 10, 1.0, agrees=True) for n in range(4)]
    fit += [looked("musique/1", 0.2, -3.0), looked("musique/2", 0.35, -3.0)]
    fit += [looked("musique/3", 0.6, 0.5, agrees=True)]
    found = chosen_guard(fit, "look-always", "share")
    assert found is not None
    assert found.least == 0.4, "0.3 would gain a quarter more on squad and lose 1 on musique"
    assert chosen_guard(fit, "look-always", "lead") is None, "all lead alike: musique loses 5.5 / 3"
    best = chosen_guard(fit, "look-always")
    assert best is not None
    assert best.measure == "agrees", "all of squad and the last of musique"
    always, share, agrees = (row for row in guard_rows(fit) if row["arm"] == "look-always")
    assert always["acts on"] == "7 of 7"
    assert (share["acts where"], share["acts on"]) == ("share >= 0.4", "4 of 7")
    assert (share["gain, squad"], agrees["gain, squad"]) == (0.75, 1)
    assert chosen_guard([], "look-always") is None


def test_the_page_says_how_often_a_guard_acts() -> None:
    """Half of ten looks are clear and gain 1, the others lose 1."""
    items = [looked(f"squad/{n}", 0.9 if n < 5 else 0.0, 1.0 if n < 5 else -1.0) for n in range(10)]
    notes = " ".join(steer_notes(guarded(items), guarded(items), []))
    assert "A look that acts where it is sure, by set: squad gains (+0.500" in notes
    assert "A look that always acts, by set: squad shows no difference (+0.000" in notes
    assert "(`share` >= 0.2) acts on 5 of 10 items, and leaves the others as they are." in notes
    assert "Of 10 items of `fit` `share` >= 0.9 would be chosen." in notes
