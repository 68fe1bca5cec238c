"""Levels that are one thing under two names are noticed."""

import numpy as np
from simulated_studies import trials

from homeostat.study.design import make_design
from homeostat.study.results.analysis import analyze
from homeostat.study.twins import twins

NORMS = make_design({"norm": ["none", "keep", "batch"], "dropout": [0, 0.5]}, 3)


def study(same=True, **changes):
    """A study in which norm=keep does what norm=none does, bit for bit, but for the time that it takes."""
    table = trials(NORMS).sort_values(["treatment", "seed"], ignore_index=True)
    metrics = [name for name in table if "accuracy" in name or "loss" in name or name == "epochs"]
    base, other = table["norm"] == "none", table["norm"] == "keep"
    if same:
        table.loc[other, metrics] = table.loc[base, metrics].to_numpy()
    return analyze(table.assign(**changes), NORMS, response="valid_accuracy")


def test_levels_that_never_differ_are_named():
    assert twins(study()) == [
        "norm=none and norm=keep gave exactly the same results in all 6 pairs of trials: here they are the same thing, "
        "or the factor does nothing."
    ]


def test_levels_that_differ_anywhere_are_not():
    assert twins(study(same=False)) == []
    analysis = study()
    place = analysis.frame.index[analysis.frame["norm"] == "keep"][-1]
    analysis.frame.loc[place, "train_loss"] = np.nextafter(analysis.frame.loc[place, "train_loss"], 9)
    assert twins(analysis) == []


def test_a_response_that_never_varies_is_told_elsewhere():
    assert twins(study(valid_accuracy=0.5)) == []
