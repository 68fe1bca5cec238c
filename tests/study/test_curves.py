"""Learning curves: what is averaged, what is left out, and what is named."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from homeostat.study.show import curves as learning
from homeostat.study.show.curves import by_factor, overview, quantities

NAN = float("nan")


def frame(values: dict[int, list[float]], treatments: dict[int, int]) -> pd.DataFrame:
    """Curves of `loss`: trial → its values by epoch."""
    rows = [
        {"trial": trial, "treatment": treatments[trial], "seed": trial, "epoch": epoch, "loss": value}
        for trial, course in values.items()
        for epoch, value in enumerate(course)
    ]
    return pd.DataFrame(rows)


def line(values: dict[int, list[float]]) -> learning.Line:
    return learning._lines(frame(values, dict.fromkeys(values, 0)), "loss")[0]


def test_a_line_is_the_mean_with_the_range_over_seeds() -> None:
    found = line({0: [4.0, 2.0], 1: [2.0, 1.0]})
    assert found.at.tolist() == [0, 1]
    assert found.mean.tolist() == [3.0, 1.5]
    assert (found.low.tolist(), found.high.tolist()) == ([2.0, 1.0], [4.0, 2.0])


def test_a_trial_that_stopped_early_keeps_its_last_value() -> None:
    assert line({0: [4.0, 2.0], 1: [2.0, 1.0, 1.0, 0.0]}).mean.tolist() == [3.0, 1.5, 1.5, 1.0]


@pytest.mark.parametrize("lost", [NAN, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out_and_not_filled_in(lost: float) -> None:
    found = line({0: [4.0, 2.0, 1.0], 1: [2.0, lost]})
    assert found.mean.tolist() == [3.0, 2.0, 1.0]
    assert np.isnan(line({0: [1.0, lost]}).mean[1])


def test_long_curves_are_thinned_but_keep_their_end() -> None:
    found = line({0: [float(i) for i in range(5000)]})
    assert len(found.at) <= 102
    assert (found.at[0], found.at[-1], found.mean[-1]) == (0, 4999, 4999.0)


@pytest.mark.parametrize(
    ("columns", "response", "expected"),
    [
        (["train_f1", "valid_f1", "train_loss", "valid_loss"], "test_f1", ("train_f1", "valid_f1")),
        (["train_loss", "valid_loss"], "valid_accuracy", ("train_loss", "valid_loss")),
        (["a", "score", "b"], "score", ("score",)),
        (["a", "b", "c"], "score", ("a", "b")),
        ([], "score", ()),
    ],
)
def test_what_is_drawn_is_what_is_judged_where_it_was_recorded(
    columns: list[str], response: str, expected: tuple[str, ...]
) -> None:
    table = pd.DataFrame(0.5, index=[0], columns=["trial", "treatment", "seed", "epoch", *columns])
    assert quantities(table, response) == expected


def test_a_quantity_without_a_single_number_is_not_drawn() -> None:
    table = pd.DataFrame({"trial": [0], "epoch": [0], "note": ["text"], "lost": [NAN], "kept": [1.0]})
    assert quantities(table, "score") == ("kept",)


def many(treatments: int) -> pd.DataFrame:
    values = {i: [1.0, 0.5 + 0.01 * i] for i in range(treatments)}
    return frame(values, {i: i for i in range(treatments)})


def test_named_lines_are_named_once_and_the_others_stay_grey() -> None:
    picture = overview(many(5), {"loss": "Loss"}, {0: ("base", 0), 3: ("best <b>", 2)}, str, "Curves.")
    for markup in (picture.wide, picture.narrow):
        assert markup.count(">base</text>") == 1
        assert markup.count(">best &lt;b&gt;</text>") == 1
        assert markup.count('stroke="var(--ghost') == 3


def test_grey_lines_are_not_drawn_without_end() -> None:
    picture = overview(many(400), {"loss": "Loss"}, {}, str, "Curves.")
    assert picture.wide.count('stroke="var(--ghost') <= 64


@pytest.mark.parametrize("quantity", ["loss", "level"])
def test_each_factor_has_a_panel_with_its_levels(quantity: str) -> None:
    levels = {"norm": {0: "none", 1: "batch", 2: "none", 3: "batch"}, "lr": {0: "0.1", 1: "0.1", 2: "1", 3: "1"}}
    picture = by_factor(many(4).rename(columns={"loss": quantity}), quantity, levels, str, "By factor.")
    for markup in (picture.wide, picture.narrow):
        for text in ("norm", "lr", "none", "batch", "0.1", "1"):
            assert f">{text}</text>" in markup


def test_a_line_has_another_name_where_there_is_little_room() -> None:
    picture = overview(many(2), {"loss": "Loss"}, {0: ("#0 norm + dropout", 0)}, str, "Curves.", {0: "#0"})
    assert (">#0 norm + dropout<" in picture.wide, ">#0<" in picture.wide) == (True, False)
    assert (">#0 norm + dropout<" in picture.narrow, ">#0<" in picture.narrow) == (False, True)


def test_the_names_of_levels_stand_above_the_lines() -> None:
    levels = {"norm": {0: "none", 1: "batch", 2: "layer", 3: "group"}, "lr": {0: "low", 1: "low", 2: "high", 3: "high"}}
    picture = by_factor(many(4), "loss", levels, str, "By factor.")
    for markup in (picture.wide, picture.narrow):
        root = ElementTree.fromstring(markup)
        names = [float(node.attrib["y"]) for node in root.iter("text") if node.text in ("none", "low", "high")]
        frames = [node.find("rect") for node in root.iter("clipPath")]
        assert len(names) == 3
        assert max(names) < min(float(frame.attrib["y"]) for frame in frames if frame is not None)


def test_curves_without_a_finite_value_still_give_a_figure() -> None:
    table = frame({0: [NAN, NAN], 1: [NAN]}, {0: 0, 1: 1})
    assert overview(table, {"loss": "Loss"}, {0: ("base", 0)}, str, "Nothing.").wide.startswith("<svg")
