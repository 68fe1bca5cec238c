"""Numbers and names as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.study.results.wording import Unit, counted, listed, metric_words, setting, settings, unit_of

POINTS = Unit("valid_accuracy", points=True)
LOSS = Unit("valid_loss")
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (POINTS.value(0.97849), "97.8 %"),
        (POINTS.value(0.0), "0.0 %"),
        (POINTS.value(NAN), "–"),
        (POINTS.change(-0.0123), "−1.2"),
        (POINTS.change(0.0042), "+0.42"),
        (POINTS.change(0.00042), "+0.042"),
        (POINTS.change(0.0), "0.0"),
        (POINTS.range(0.015, 0.0231), "[1.5, 2.3]"),
        (POINTS.range(NAN, NAN), ""),
        (POINTS.gain(0.019, 0.015, 0.023), "+1.9 points [1.5, 2.3]"),
        (POINTS.gain(0.002, -0.001, 0.005), "+0.20 points [−0.10, 0.50]"),
        (POINTS.gain(0.019, NAN, NAN), "+1.9 points"),
        (POINTS.amount(0.02, NAN, NAN), "2.0 points"),
        (LOSS.value(0.12345), "0.123"),
        (LOSS.value(1234.5), "1234"),
        (LOSS.value(12.345), "12.3"),
        (LOSS.value(0.0), "0"),
        (LOSS.value(3.2e-7), "3.20e−07"),
        (LOSS.value(INF), "∞"),
        (LOSS.change(-INF), "−∞"),
        (LOSS.gain(-0.5, -0.75, -0.25), "−0.500 [−0.750, −0.250]"),
        (LOSS.gain(-0.0001, -0.2, 0.2), "0.000 [−0.200, 0.200]"),
    ],
)
def test_numbers(shown: str, text: str) -> None:
    assert shown == text


@given(st.floats(-1e12, 1e12))
def test_no_number_is_written_as_minus_zero_or_with_a_hyphen(number: float) -> None:
    for unit in (POINTS, LOSS):
        for text in (unit.value(number), unit.change(number), unit.gain(number, number - 1, number + 1)):
            assert "-" not in text
            digits = text.split(" ")[0].lstrip("+−").replace("−", "-")
            assert not (text[0] in "+−" and float(digits) == 0)


def test_percent_is_for_accuracies_that_are_fractions() -> None:
    assert unit_of("test_accuracy", [0.2, NAN, 1.0]).points
    assert not unit_of("test_accuracy", [98.5]).points
    assert not unit_of("valid_loss", [0.2]).points
    assert (POINTS.label, LOSS.label) == ("validation accuracy (%)", "validation loss")
    assert (POINTS.change_label, LOSS.change_label) == ("points of validation accuracy", "validation loss")


def test_names_and_lists() -> None:
    assert metric_words("test_rmse") == "test RMSE"
    assert metric_words("score") == "score"
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert (counted(1, "trial"), counted(2000, "trial")) == ("1 trial", "2,000 trials")
    assert settings({"norm": None, "crop": True, "dropout": 0.5}) == "norm=none, crop=true, dropout=0.5"
    assert setting("l1", 1e-4) == "l1=0.0001"


def test_a_column_has_the_decimals_that_its_narrowest_interval_needs() -> None:
    rows = [(0.013, 0.009, 0.017), (0.0038, -0.0002, 0.0078), (-0.0612, -0.0642, -0.0582), (NAN, NAN, NAN)]
    unit = POINTS.column(rows)
    assert [unit.gain(*row) for row in rows] == [
        "+1.3 points [0.9, 1.7]", "+0.4 points [0.0, 0.8]", "−6.1 points [−6.4, −5.8]", "–",
    ]  # fmt: skip
    loss = LOSS.column([(0.198, 0.194, 0.202), (0.00158, -0.00258, 0.00573)])
    assert loss.gain(0.198, 0.194, 0.202) == "+0.1980 [0.1940, 0.2020]"
    assert POINTS.column([(0.0004, 0.0001, 0.0007)]).gain(0.0004, 0.0001, 0.0007) == "+0.04 points [0.01, 0.07]"
    assert LOSS.column([]) == LOSS.column([(1e9, NAN, NAN)]) == LOSS.column([(0.0, 0.0, 0.0)]) == LOSS
