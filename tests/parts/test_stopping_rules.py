"""Numbers from the test suite of EarlyStopping.jl 0.3 (test/criteria.jl) unless another origin is named."""

import json
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.stopping import GL, PQ, UP, Patience, Rule, SinceBest, progress, stopping_time

LOSSES = [10, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 16]

# Two or three training losses before every validation loss.
STRIPS = [
    ([9.5, 9.3], 10),
    ([9.3, 9.1, 8.9], 8),
    ([8.3, 8.4], 9),
    ([9.9, 9.5], 10),
    ([10.6, 10.4], 11),
    ([8888, 11.8, 11.7], 12),
    ([11.6, 11.4], 12),
    ([12.2, 12.1], 13),
    ([14.5, 14.1], 14),
    ([13.9, 13.7], 15),
    ([12.5, 12.3], 16),
    ([11.2, 11.0], 17),
    ([10.5, 10.3], 16),
]
QUOTIENTS = [0, 0, 2.08, 1.18, 3.90, 11.7, 5.70, 15.2, 5.28, 11.9, 12.3, 12.4, 10.3]

RULES = [GL(5), PQ(1.0, strip=3), UP(2, strip=2), Patience(2), SinceBest(3, min_delta=0.1)]


@pytest.mark.parametrize(("alpha", "epoch"), [(12, 3), (20, 4), (40, 6), (90, 11), (110, 12), (1000, None)])
def test_generalization_loss(alpha, epoch):
    assert stopping_time(GL(alpha=alpha), LOSSES) == epoch


@pytest.mark.parametrize(("n", "epoch"), [(1, 3), (2, 4), (3, 5), (4, 6), (5, 12), (6, None)])
def test_patience_counts_rises_in_a_row(n, epoch):
    assert stopping_time(Patience(n), LOSSES) == epoch
    assert stopping_time(UP(n, strip=1), LOSSES) == epoch


@pytest.mark.parametrize(("n", "epoch"), [(1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (6, 8)])
def test_since_best_counts_epochs_since_the_best(n, epoch):
    assert stopping_time(SinceBest(n), LOSSES) == epoch


@pytest.mark.parametrize(("n", "epoch"), [(2, 5), (3, 9)])
def test_since_best_begins_anew_at_a_new_best(n, epoch):
    assert stopping_time(SinceBest(n), [10, 9, 8, 9, 10, 7, 10, 10, 10, 10]) == epoch


def test_progress():
    assert progress([2, 3, 6, 7]) == 1250
    assert progress(torch.tensor([7.0, 2.0, 3.0, 6.0])) == 1250
    assert progress([0.1] * 7) == 0  # whatever the rounding of their mean
    assert progress([-4, -2]) == 250
    assert progress([0, 1]) == math.inf
    assert progress([0, 0]) == 0
    with pytest.raises(InvalidValue, match="at least one loss"):
        progress([])


@pytest.mark.parametrize(("alpha", "epoch"), [(2.0, 3), (3.8, 5), (11.6, 6), (15.1, 8), (15.3, None)])
def test_quotient(alpha, epoch):
    rule = PQ(alpha=alpha, strip=2)
    assert stopping_time(rule, [valid for _, valid in STRIPS], [train for train, _ in STRIPS]) == epoch


def test_quotients_are_those_of_the_published_table():
    rule, found = PQ(alpha=100, strip=2), []
    for train, valid in STRIPS:
        rule.update(valid, train)
        found.append(rule.criterion)
    assert found == pytest.approx(QUOTIENTS, rel=0.01)  # printed with three digits, some of them cut


def test_without_progress_the_quotient_is_infinite():
    rule = PQ(alpha=10, strip=2)
    assert rule.update(10.0, [10.0, 10.0])
    assert rule.criterion == math.inf
    assert not PQ(alpha=10, strip=2).update(10.0, [10.0])
    # Prechelt stopped every run whose progress fell below 0.1 per thousand.
    assert not PQ(alpha=10, strip=2).update(10.0, [1.0, 1.0001])
    assert PQ(alpha=10, strip=2, min_progress=0.1).update(10.0, [1.0, 1.0001])


def prechelt(valid, train, k):
    """GL, P_k and rises at the ends of strips, by the formulas as printed."""
    for t in range(k, len(valid) + 1, k):
        gl = 100 * (valid[t - 1] / min(valid[:t]) - 1)
        strip = train[t - k : t]
        yield t, gl, 1000 * (sum(strip) / (k * min(strip)) - 1), t > k and valid[t - 1] > valid[t - 1 - k]


losses = st.lists(st.floats(0.1, 100), min_size=4, max_size=40)


@settings(deadline=None)
@given(losses, st.integers(2, 6), st.floats(0.1, 50), st.integers(0, 2**32))
def test_rules_are_the_printed_formulas_at_the_end_of_strips(valid, k, alpha, seed):
    train = np.random.default_rng(seed).uniform(1, 2, len(valid)).tolist()
    strips = list(prechelt(valid, train, k))
    expected = next((t for t, gl, p, _ in strips if gl / p > alpha), None)
    assert stopping_time(PQ(alpha, k), valid, train) == expected
    for successive in (1, 2, 3):
        rises, expected = 0, None
        for t, _, _, rose in strips:
            rises = rises + 1 if rose else 0
            if rises == successive:
                expected = t
                break
        assert stopping_time(UP(successive, k), valid) == expected


@settings(deadline=None)
@given(losses, st.floats(0.1, 100))
def test_generalization_loss_is_the_printed_formula(valid, alpha):
    expected = next(
        (t for t in range(1, len(valid) + 1) if 100 * (valid[t - 1] - min(valid[:t])) / min(valid[:t]) > alpha), None
    )
    assert stopping_time(GL(alpha), valid) == expected


def test_losses_below_zero_are_measured_by_the_size_of_the_best():
    rule = GL(alpha=20)
    assert [rule.update(loss) for loss in (-8, -10, -9, -8, -7)] == [False, False, False, False, True]
    assert rule.criterion == pytest.approx(30)
    zero = GL(alpha=1e9)
    assert [zero.update(loss) for loss in (0.0, 0.0, 1e-300)] == [False, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_worse_than_every_number(bad):
    assert stopping_time(GL(1e6), [1.0, bad]) == 2
    assert stopping_time(Patience(2), [1.0, bad, bad]) == 3
    assert stopping_time(SinceBest(2), [bad, bad]) == 2
    assert stopping_time(GL(5), [bad, bad, bad]) is None  # nothing to be worse than
    assert stopping_time(GL(5), [bad, 2.0, 2.05, 2.2]) == 4
    assert stopping_time(SinceBest(2), [bad, 2.0, bad, 1.0, 3.0, 3.0]) == 6
    assert stopping_time(PQ(1, 2), [1.0] * 4, [bad, 1.0, 1.0, 1.0]) == 4  # the first strip is not judged


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_going_on_from_the_state_is_as_never_having_stopped(rule, data):
    any_loss = st.floats(-10, 10) | st.sampled_from([math.nan, math.inf])
    series = data.draw(st.lists(st.tuples(any_loss, any_loss), max_size=30))
    cut = data.draw(st.integers(0, len(series)))
    straight, first, resumed = (type(rule).__new__(type(rule)) for _ in range(3))
    for copy in (straight, first, resumed):
        copy.__dict__.update(rule.__dict__)
        copy.reset()
    expected = [straight.update(*pair) for pair in series]
    found = [first.update(*pair) for pair in series[:cut]]
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert resumed.stopped == first.stopped
    assert found + [resumed.update(*pair) for pair in series[cut:]] == expected
    assert resumed.state_dict() == straight.state_dict()
    assert repr(resumed) in resumed.reason()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_asking_for_the_stopping_time_leaves_the_rule_as_it_is(rule):
    rule.reset()
    rule.update(1.0, 1.0)
    before = rule.state_dict()
    stopping_time(rule, iter(LOSSES), iter(LOSSES))
    assert rule.state_dict() == before
    rule.reset()
    assert rule.state_dict() != before


def test_losses_come_as_numbers_of_any_kind():
    kinds = [torch.tensor(8.0), torch.tensor([9.0], dtype=torch.bfloat16), np.float32(10), 11, np.array([12.0])]
    assert stopping_time(Patience(3), kinds) == 4
    assert stopping_time(Patience(3), torch.tensor([8.0, 9, 10, 11])) == 4
    assert stopping_time(PQ(2.0, 2), [10.0, 11.0], [torch.tensor([2.0, 1.9]), np.array([1.9, 1.8])]) is None
    assert stopping_time(PQ(0.1, 2), [10.0, 11.0], [torch.tensor([2.0, 1.9]), np.array([1.9, 1.8])]) == 2
    for bad in ("3", None, torch.ones(2), 1j, [1.0]):
        with pytest.raises(InvalidType, match=r"Patience\(3\): valid_loss must be a number"):
            Patience(3).update(bad)
    with pytest.raises(InvalidType, match="train_loss must be a number"):
        PQ().update(1.0, "1.0")


def test_a_missing_training_loss_is_an_error_that_changes_nothing():
    rule = PQ()
    before = rule.state_dict()
    with pytest.raises(InvalidValue, match=r"PQ.*train_loss must be given.*update\(valid_loss, train_loss\)"):
        rule.update(1.0)
    assert rule.state_dict() == before
    with pytest.raises(InvalidValue, match="as many as losses"):
        stopping_time(rule, [1.0, 2.0], [1.0])


def test_a_rule_of_your_own():
    class Below(Rule):
        start: ClassVar = {"criterion": math.nan, "stop": False}

        def following(self, state, loss, train_losses):
            return {"criterion": loss, "stop": loss < 9}

        def reason(self):
            return "low enough"

    assert stopping_time(Below(), LOSSES) == 2


def test_arguments_that_cannot_be_used_are_refused():
    for value in (0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidValue, match="alpha must be positive and finite"):
            GL(value)
        with pytest.raises(InvalidValue, match="alpha must be positive and finite"):
            PQ(value)
    for value in (1, 2.0, True):
        with pytest.raises(InvalidValue, match="PQ: strip must be an integer of at least 2"):
            PQ(1.0, value)
    for value in (0, 1.5, True, None):
        for build, name in ((Patience, "n"), (SinceBest, "n"), (UP, "successive")):
            with pytest.raises(InvalidValue, match=f"{build.__name__}: {name} must be an integer of at least 1"):
                build(value)
    with pytest.raises(InvalidValue, match="strip"):
        UP(1, 0)
    with pytest.raises(InvalidValue, match="min_delta"):
        SinceBest(1, -1)
    with pytest.raises(InvalidValue, match="min_progress"):
        PQ(min_progress=-1)
    with pytest.raises(InvalidValue, match="state must have the keys"):
        GL().load_state_dict({"best": 1.0})
    with pytest.raises(InvalidType, match="be a Rule"):
        stopping_time("GL", LOSSES)
