"""Looking at a study between two seeds: what is settled, what is given up, and that peeking makes no false claims."""

from __future__ import annotations

import numpy as np
import pytest
from planted import planted

from homeostat.study.design import full_factorial
from homeostat.study.results.analysis import analyze
from homeostat.study.stopping import look

THREE = {"norm": ["none", "batch"], "dropout": [0, 0.5], "crop": [False, True]}


def study(seeds: int, *, so_far: int, margin: float = 0.01, noise: float = 0.01, seed: int = 0) -> object:
    """A study of three techniques of which one helps, after the first `so_far` seeds."""
    design = full_factorial(THREE, seeds)
    done = so_far * len(design.treatments)
    trials = planted(
        design,
        lambda c: 0.05 * (c["norm"] == "batch"),
        noise=noise,
        pending=range(done, design.trials),
        seed=seed,
    )
    return analyze(trials, design, response="valid_score", margin=margin)


def test_a_study_is_settled_when_every_effect_is_and_not_before() -> None:
    looks = [look(study(12, so_far=n, margin=0.02)) for n in (2, 12)]
    assert [found.settled for found in looks] == [False, True]
    states = looks[1].effects.set_index("label")["state"]
    assert states["norm: none → batch"] == "beyond"
    assert (states.drop("norm: none → batch") == "within").all()
    assert set(looks[0].effects["state"]) == {"open"}
    assert looks[1].effects["n"].tolist() == [12] * 6


def test_a_wider_target_needs_fewer_seeds() -> None:
    found = study(6, so_far=6, margin=0.0)
    assert not look(found).settled
    assert look(found, target=0.03).settled


def test_treatments_without_the_technique_that_helps_are_given_up() -> None:
    found = look(study(10, so_far=10))
    assert set(found.alive) <= {4, 5, 6, 7}  # norm=batch
    assert len(look(study(10, so_far=1)).alive) == 8


def test_less_may_be_better() -> None:
    design = full_factorial({"norm": ["none", "batch"]}, 8)
    trials = planted(design, lambda c: 0.1 * (c["norm"] == "batch"), metric="valid_loss")
    found = analyze(trials, design, response="valid_loss", goal="minimize")
    assert look(found).alive == (0,)


def test_nothing_is_settled_before_anything_has_run() -> None:
    found = look(study(3, so_far=0))
    assert not found.settled
    assert found.alive == tuple(range(8))
    assert found.effects.empty


@pytest.mark.parametrize("slopes", [0.0, 0.02])
def test_looking_after_every_seed_claims_nothing_that_is_not_there(slopes: float) -> None:
    """Studies without effects, in which a technique may act differently from seed to seed: at most 5 % claim one."""
    design = full_factorial({"norm": ["none", "batch"], "dropout": [0, 0.5]}, 12)
    trials = planted(design, lambda c: 0.0)
    draws, wrong = np.random.default_rng(1), 0
    on = (trials["norm"] == "batch").to_numpy()
    for _ in range(60):
        slope = draws.normal(0.0, slopes or 1e-9, 12)[trials["seed"].to_numpy()]
        trials["valid_score"] = draws.normal(0.0, 0.01, len(trials)) + on * slope
        wrong += (look(analyze(trials, design, response="valid_score")).effects["p_holm"] < 0.05).any()
    assert wrong <= 3  # the p-value remembers every look
