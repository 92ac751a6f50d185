"""Choices, templates, calibration and journals: numbers one can check by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import Token, TokenProb, Usage
from kdn.errors import BadInput
from kdn.rank import (
    Choice,
    LabelJob,
    LabelJournal,
    RowTemplate,
    fit_temperature,
    glued,
    make_choices,
    make_table,
    read_probabilities,
    share_out,
    surprise,
    wanted,
)

YES, NO = Choice("yes", 5), Choice("no", 9)


def letters(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def test_choices_are_known_by_their_first_token() -> None:
    assert make_choices(["yes", "no"], letters) == (Choice("yes", 121), Choice("no", 110))
    assert make_choices(["good=A", "grim=B"], letters) == (Choice("good", 65), Choice("grim", 66))
    with pytest.raises(BadInput, match="begin with the same token"):
        make_choices(["good", "grim"], letters)
    with pytest.raises(BadInput, match="two choices or more"):
        make_choices(["yes"], letters)
    with pytest.raises(BadInput, match="the choice 'good' stands there twice"):
        make_choices(["good=A", "good=B"], letters)


def test_a_verdict_follows_the_choices_whatever_the_engine_reports_first() -> None:
    sampling = wanted((YES, NO))
    assert (sampling.max_tokens, sampling.allowed, sampling.ranked) == (1, (5, 9), (5, 9))
    told = (TokenProb(9, "no", math.log(0.8)), TokenProb(5, "yes", math.log(0.2)))
    answer = read_probabilities((YES, NO), Token(9, "no", None, told), Usage(3, 1))
    assert answer.probabilities == pytest.approx((0.2, 0.8))
    assert answer.best == "no"
    assert answer.logprobs == pytest.approx((math.log(0.2), math.log(0.8)))


def test_temperature_halves_the_odds_in_logarithms() -> None:
    """Odds of 16 to 1 become 4 to 1 at temperature 2."""
    shares = share_out([math.log(16), 0.0], 2.0)
    assert shares == pytest.approx((0.8, 0.2))
    with pytest.raises(BadInput, match="above 0"):
        share_out([0.0], 0.0)


def test_calibration_finds_the_temperature_that_made_the_labels() -> None:
    """Said at odds of 9 to 1 and right three times in four, which odds of 3 to 1 would be: 2."""
    said = [[math.log(0.9), math.log(0.1)]] * 4
    found = fit_temperature(said, [0, 0, 0, 1])
    assert found == pytest.approx(2.0, rel=0.01)
    assert surprise(said, [0, 0, 0, 1], found) < surprise(said, [0, 0, 0, 1], 1.0)
    with pytest.raises(BadInput, match="no row"):
        fit_temperature([], [])


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=30),
)
def test_calibration_never_makes_the_labels_less_likely(rows: list[tuple[float, bool]]) -> None:
    said = [[math.log(share) for share in share_out([x, 0.0])] for x, _ in rows]
    right = [int(flag) for _, flag in rows]
    fitted = surprise(said, right, fit_temperature(said, right))
    assert fitted <= surprise(said, right, 1.0) + 1e-3


def test_what_rows_share_is_said_first() -> None:
    template = RowTemplate("Is it rain? Say yes or no.\n\nDay: {day}, sky: {sky}")
    asked = template.fill({"day": "Monday", "sky": "grey", "more": "{day}"})
    assert [(m.role, m.content) for m in asked.messages] == [
        ("system", "Is it rain? Say yes or no."),
        ("user", "Day: Monday, sky: grey"),
    ]
    assert RowTemplate("{day}").fill({"day": "{sky}"}).messages[0].content == "{sky}"
    with pytest.raises(BadInput, match="asks for 'sky'; the columns are day"):
        template.fill({"day": "Monday"})


@pytest.mark.parametrize("template", ["no place", "{", "{}", "a } b {c}", "{{c}}"])
def test_broken_templates_are_refused(template: str) -> None:
    with pytest.raises(BadInput):
        RowTemplate(template)


@pytest.mark.parametrize("name", ["my.text", "a:b", "x[0]", "a!r", "0", "two words", "a:>10"])
def test_a_column_may_have_any_name_without_braces(name: str) -> None:
    asked = RowTemplate("Of {{this}}: {" + name + "}!").fill({name: "{v}"})
    assert [m.content for m in asked.messages] == ["Of {this}:", "{v}!"]


def test_joined_tokens_are_shared_up_to_the_seam() -> None:
    prompt = glued((1, 2), (3,))
    assert prompt.token_ids == (1, 2, 3)
    assert [segment.num_tokens for segment in prompt.segments] == [2, 1]
    assert glued((), (3,)).num_tokens == 1


def test_a_damaged_journal_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "out.journal"
    for line in ("}{", "3", '{"a": 1}'):
        path.write_text(f"job\n[-0.1, -2.0]\n{line}\n")
        with pytest.raises(BadInput, match=r"out\.journal is damaged .*remove it"):
            LabelJournal(path, "job")


def test_a_journal_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "out.journal"
    journal = LabelJournal(path, "job")
    journal.add((-0.1, -2.0))
    journal.add((-0.2, -1.0))
    journal.close()
    path.write_text(path.read_text() + "[-0.3, -0")
    again = LabelJournal(path, "job")
    assert again.lines == [(-0.1, -2.0), (-0.2, -1.0)]
    again.add((-0.5, -0.9))
    again.close()
    third = LabelJournal(path, "job")
    assert len(third.lines) == 3
    third.close()
    with pytest.raises(BadInput, match="3 results of another run"):
        LabelJournal(path, "another job")
    other = LabelJournal(path, "another job", force=True)
    assert other.lines == [], "another question's answers are not ours"
    other.remove()
    assert not path.exists()


def job(**options: object) -> LabelJob:
    return LabelJob("model", "{text}", (YES, NO), **options)  # type: ignore[arg-type]


def test_a_table_abstains_below_the_threshold_and_counts_what_was_known() -> None:
    rows = [{"truth": "yes"}, {"truth": "no"}, {"truth": "?"}]
    said = [(math.log(p), math.log(1 - p)) for p in (0.9, 0.6, 0.55)]
    plain = make_table(job(), rows, said)
    assert [one.label for one in plain.labelled] == ["yes", "yes", "yes"]
    assert (plain.temperature, plain.accuracy, plain.num_known) == (1.0, None, 0)
    strict = make_table(job(threshold=0.7), rows, said)
    assert [one.label for one in strict.labelled] == ["yes", None, None]
    assert strict.num_abstained == 2
    known = make_table(job(known="truth"), rows, said)
    assert (known.num_known, known.accuracy) == (2, 0.5)


def test_the_name_of_a_job_is_its_questions() -> None:
    rows = [{"text": "a"}]
    assert job().name(rows) == job(threshold=0.9, known="truth").name(rows)
    assert job().name(rows) != job().name([{"text": "b"}])
