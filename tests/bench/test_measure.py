"""Fair timing, with times one can check by hand."""

from __future__ import annotations

from kdn.bench.common.measure import Ratio, decode_rate, interleave, median, ratio


def test_sides_take_turns_in_alternating_order() -> None:
    log: list[str] = []

    def side(name: str, seconds: float) -> float:
        log.append(name)
        return seconds

    rests: list[float] = []
    samples = interleave(
        {"a": lambda n: side(f"a{n}", 1.0 + n), "b": lambda n: side(f"b{n}", 4.0)},
        rounds=3,
        first=0,
        rest=rests.append,
    )
    assert log == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert samples == {"a": [1.0, 2.0, 3.0], "b": [4.0, 4.0, 4.0]}
    assert len(rests) == 6


def test_the_ratio_is_of_rounds_not_of_medians() -> None:
    # medians are 2 and 8, ratio 4; but in the middle round ours was three times as fast
    samples = {"kdn": [1.0, 4.0, 2.0], "other": [8.0, 12.0, 2.0]}
    assert ratio(samples, "kdn", "other") == Ratio(median=3.0, low=1.0, high=8.0, pairs=3)
    assert median(samples, "kdn") == 2.0


def test_an_absent_rival_has_no_ratio() -> None:
    assert ratio({"kdn": [1.0]}, "kdn", "vllm") is None
    assert median({"kdn": [1.0]}, "vllm") is None


def test_decoding_counts_from_the_last_first_token_to_the_first_end() -> None:
    # the second stream starts at 3 and the first ends at 5: in (3, 5] come 4, 5 and 4, 5
    arrivals = [[1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 4.0, 5.0, 6.0]]
    assert decode_rate(arrivals) == 4 / 2


def test_streams_that_never_meet_have_no_rate() -> None:
    assert decode_rate([[1.0, 2.0], [3.0, 4.0]]) is None
