import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.stopping import GL, PQ, EarlyStopping, Patience, SinceBest, stopping_time

LOSSES = [10, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 16]


def stops_at(stopping, values, first=1):
    for epoch, value in enumerate(values, start=first):
        stopping.update(value, epoch)
        if stopping.should_stop:
            return epoch
    return None


# -- patience ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patience", "epoch"), [(0, 3), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (11, 13), (12, None)])
def test_stops_after_patience_epochs_without_improvement(patience, epoch):
    stopping = EarlyStopping(patience=patience)
    assert stops_at(stopping, LOSSES) == epoch
    assert (stopping.best, stopping.best_epoch) == (8, 2)
    assert stops_at(EarlyStopping(patience=None), LOSSES) is None


# Lightning, tests/tests_pytorch/callbacks/test_early_stopping.py: test_early_stopping_patience; epochs count from 0.
@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([6, 5, 5, 5, 5, 5], 3, 4),
        ([6, 5, 4, 4, 3, 3], 1, 3),
        ([6, 5, 6, 5, 5, 5], 3, 4),
    ],
)
def test_patience_is_that_of_lightning(losses, patience, expected):
    assert stops_at(EarlyStopping(patience=patience), losses, first=0) == expected


# Keras, keras/src/callbacks/early_stopping_test.py: test_early_stopping_patience.
@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_patience_is_that_of_keras(patience):
    losses = [10.0, 9.0, 8.0, 9.0, 8.9, 8.8, 8.7, 8.6, 8.5]
    stopping = EarlyStopping("loss", patience=patience, mode="auto")
    assert stops_at(stopping, [{"loss": loss} for loss in losses], first=0) == max(patience, 1) + 2


values = st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=30)


@settings(deadline=None)
@given(values, st.integers(1, 5), st.floats(0, 2))
def test_patience_is_the_rule_since_best(losses, patience, min_delta):
    stopping = EarlyStopping(patience=patience, min_delta=min_delta, check_finite=False)
    assert stops_at(stopping, losses) == stopping_time(SinceBest(patience, min_delta), losses)


def test_max_mode_is_min_mode_of_the_negated_values():
    low, high = EarlyStopping(rules=GL(20)), EarlyStopping(mode="max", rules=GL(20))
    assert stops_at(low, LOSSES) == stops_at(high, [-loss for loss in LOSSES]) == 4
    assert high.best == -low.best


def test_a_gain_of_just_min_delta_is_no_improvement():
    stopping = EarlyStopping(patience=1, min_delta=0.5)
    assert stopping.update(2.0)
    assert not stopping.update(1.5)
    assert stopping.should_stop
    # Small gains that add up to more than min_delta are one: each is compared with the best, not with the last.
    assert [stopping.update(loss) for loss in (1.6, 1.4)] == [False, True]


def test_values_below_zero_and_min_delta_behave():
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    assert [stopping.update(loss) for loss in (-1.0, -1.05, -1.2, -3.0)] == [True, False, True, True]
    growing = EarlyStopping(patience=2, min_delta=0.1, mode="max")
    assert [growing.update(score) for score in (-3.0, -2.95, -2.0, 0.5)] == [True, False, True, True]


# -- what is not finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_values_that_are_not_finite_stop_and_are_no_improvement(bad, mode):
    stopping = EarlyStopping(mode=mode)
    assert not stopping.update(bad)
    assert stopping.best is None
    assert stopping.stopped == f"valid_loss is {bad} at epoch 0."
    assert stopping.update(1.0)
    assert not stopping.should_stop  # it speaks of the last epoch
    assert not stopping.update(bad)
    assert (stopping.best, stopping.best_epoch, stopping.should_stop) == (1.0, 1, True)


@pytest.mark.parametrize("bad", [torch.tensor(torch.inf), torch.tensor(torch.nan)])
def test_the_check_is_that_of_lightning(bad):
    assert stops_at(EarlyStopping("val_loss", check_finite=True), [4, 3, bad, 2, 1], first=0) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_without_the_check_they_only_use_up_patience(bad, mode):
    worst = math.inf if mode == "min" else -math.inf
    stopping = EarlyStopping(patience=2, mode=mode, check_finite=False, stopping_threshold=0.0)
    assert not stopping.update(bad)
    assert not stopping.should_stop
    assert not stopping.update(bad)
    assert "has not been finite for 2 epochs" in stopping.stopped
    assert stopping.update(1.0 if mode == "min" else -1.0)
    bounded = EarlyStopping(mode=mode, check_finite=False, divergence_threshold=0.0)
    bounded.update(bad)
    assert bounded.should_stop == (bad == worst)


# -- thresholds, baseline, warm-up -------------------------------------------------------------------------------------


# Lightning's test_early_stopping_thresholds.
@pytest.mark.parametrize(
    ("threshold", "divergence", "losses", "expected"),
    [
        (None, 15.9, [9, 4, 2, 16, 32, 64], 3),
        (2.9, None, [9, 8, 7, 6, 5, 6, 4, 3, 2, 1], 8),
        (None, None, [8, 4, 2, 3, 4, 5, 8, 10], 5),
    ],
)
def test_thresholds_are_those_of_lightning(threshold, divergence, losses, expected):
    stopping = EarlyStopping("abc", stopping_threshold=threshold, divergence_threshold=divergence)
    assert stops_at(stopping, losses, first=0) == expected


def test_the_epoch_that_reaches_the_threshold_is_the_best():
    stopping = EarlyStopping("acc", mode="max", stopping_threshold=1.0, divergence_threshold=0.1)
    assert [stopping.update(score) for score in (0.5, 0.1, 1.0)] == [True, False, True]
    assert stopping.stopped == "acc is 1 at epoch 2 and has reached the stopping threshold 1."
    assert stopping.best == 1.0
    stopping.update(0.05)
    assert stopping.stopped == "acc is 0.05 at epoch 3, worse than the divergence threshold 0.1."


def test_a_baseline_that_is_never_reached_ends_training_after_patience_epochs():
    # Keras: "If no epoch improves on baseline, training will run for `patience` epochs and restore weights from the
    # best epoch in that set."
    stopping = EarlyStopping(patience=3, baseline=1.0)
    assert stops_at(stopping, [5, 4, 3, 2, 0.5]) == 3
    assert (stopping.best, stopping.best_epoch) == (3, 3)
    assert "not been better than 1 (the baseline) for 3 epochs; it is 3 at epoch 3" in stopping.stopped
    reached = EarlyStopping(patience=3, baseline=4.5)
    assert stops_at(reached, [5, 4, 4.2, 4.3, 4.1]) == 5
    assert "not been better than 4 (epoch 2)" in reached.stopped
    with_margin = EarlyStopping(patience=2, baseline=1.0, min_delta=0.5)
    assert stops_at(with_margin, [0.9, 0.8, 0.1]) == 2


def test_epochs_before_the_first_one_watched_are_neither_judged_nor_remembered():
    stopping = EarlyStopping(patience=1, start_from_epoch=3, rules=Patience(1))
    assert stops_at(stopping, [1, math.nan, 9, 5, 4, 6], first=0) == 5
    assert (stopping.best, stopping.best_epoch) == (4, 4)


# -- rules -------------------------------------------------------------------------------------------------------------


def test_any_rule_stops_and_says_its_numbers():
    stopping = EarlyStopping(patience=None, rules=(Patience(9), GL(alpha=12)))
    assert stops_at(stopping, LOSSES) == 3
    assert (
        stopping.stopped
        == "GL(alpha=12): the generalization loss is 12.5 %, the best loss 8; valid_loss is 9 at epoch 3."
    )


# EarlyStopping.jl, test/disjunction.jl: patience or NaN.
@pytest.mark.parametrize(
    ("losses", "epoch"), [([12, 10, 11, 12, 13, math.nan], 5), ([math.nan, 12, 10, 11, 12, 13], 1)]
)
def test_rules_and_the_check_together(losses, epoch):
    assert stops_at(EarlyStopping(patience=None, rules=[Patience(3)]), losses) == epoch


def test_a_rule_that_fails_leaves_everything_as_it_was():
    class Failing(Patience):
        def following(self, state, loss, train_losses):
            return {}[loss] if loss > 2 else super().following(state, loss, train_losses)

    stopping = EarlyStopping(rules=(GL(5), Failing(3)), mode="max")
    stopping.update(-1.0)
    before = stopping.state_dict()
    with pytest.raises(KeyError):
        stopping.update(-3.0)
    assert stopping.state_dict() == before


def test_the_training_loss_comes_with_the_mapping_or_beside_the_value():
    train, valid = [2.0, 1.9, 1.8, 1.75], [8.0, 8.0, 9.0, 10.0]
    expected = stopping_time(PQ(0.5, 2), valid, train)
    assert expected == 4
    mapped = EarlyStopping(patience=None, rules=PQ(0.5, 2))
    pairs = zip(valid, train, strict=True)
    assert stops_at(mapped, [{"valid_loss": v, "train_loss": t} for v, t in pairs]) == expected
    beside = EarlyStopping(patience=None, rules=(PQ(0.5, 2), PQ(0.4, 2)))
    for v, t in zip(valid, train, strict=True):
        beside.update(v, train_loss=(number for number in [t]))
    assert beside.should_stop
    with pytest.raises(InvalidValue, match="train_loss must be given"):
        mapped.update(1.0)
    with pytest.raises(InvalidType, match="train_loss must be a number"):
        mapped.update(1.0, train_loss="low")
    assert mapped.best == 8.0


# -- what update takes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [torch.tensor(2.5), torch.tensor([[2.5]], requires_grad=True), np.float16(2.5), torch.tensor(2.5).bfloat16()],
)
def test_numbers_of_any_kind_become_floats(value):
    stopping = EarlyStopping()
    stopping.update(value)
    assert stopping.best == 2.5
    assert type(stopping.best) is float


@pytest.mark.parametrize("value", [None, "2.5", torch.ones(2), [1.0], 1j])
def test_what_is_no_number_is_refused_and_changes_nothing(value):
    stopping = EarlyStopping()
    stopping.update(1.0)
    before = stopping.state_dict()
    with pytest.raises(InvalidType, match=r"EarlyStopping.update: valid_loss must be a number"):
        stopping.update(value)
    assert stopping.state_dict() == before


def test_a_mapping_is_asked_for_the_monitored_value():
    stopping = EarlyStopping("val_acc", mode="auto")
    assert stopping.mode == "max"
    assert stopping.update({"val_acc": 0.5, "val_loss": 3.0})
    assert stopping.update({"valid_acc": torch.tensor(0.75)})
    assert EarlyStopping().update({"val_loss": 1.0})
    with pytest.raises(InvalidValue, match=r"unknown monitor 'val_acc'. Did you mean 'val_acc5'"):
        stopping.update({"val_acc5": 0.5})
    lenient = EarlyStopping(strict=False)
    assert not lenient.update({"other": 0.5})
    assert lenient.state_dict() == EarlyStopping().state_dict()


def test_auto_tells_the_direction_from_the_name_or_refuses():
    names = {
        "loss": "min",
        "val_mse": "min",
        "error_rate": "min",
        "hinge": "min",
        "val_accuracy": "max",
        "f1_score": "max",
        "valid_auc": "max",
        "F1": "max",
        "top5_accuracy": "max",
    }
    assert {name: EarlyStopping(name, mode="auto").mode for name in names} == names
    for name in ("reward", "accuracy_loss"):
        with pytest.raises(InvalidValue, match="min or max where the name does not tell"):
            EarlyStopping(name, mode="auto")


def test_verbose_says_what_happens(capsys):
    stopping = EarlyStopping(patience=1, verbose=True)
    for loss in (3.0, 2.0, 2.5):
        stopping.update(loss)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Epoch 0: valid_loss has improved to 3.", "Epoch 1: valid_loss has improved from 3 to 2."]
    assert lines[2] == f"Stopping: {stopping.stopped}"


# -- state -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(values, values, st.integers(1, 5), st.sampled_from(["min", "max"]), st.booleans())
def test_going_on_from_the_state_is_as_never_having_stopped(first, second, patience, mode, check):
    def make():
        return EarlyStopping(
            patience=patience, min_delta=0.1, mode=mode, check_finite=check, rules=(GL(30), PQ(0.5, 2)), baseline=0.0
        )

    straight, other, resumed = make(), make(), make()
    for value in first:
        straight.update(value, train_loss=value)
        other.update(value, train_loss=value)
    resumed.load_state_dict(json.loads(json.dumps(other.state_dict(), allow_nan=False)))
    assert resumed.stopped == straight.stopped
    for value in second:
        assert straight.update(value, train_loss=value) == resumed.update(value, train_loss=value)
        assert straight.stopped == resumed.stopped
    assert straight.state_dict() == resumed.state_dict()


def test_a_loaded_state_is_judged_by_the_settings_of_now():
    first = EarlyStopping(patience=2)
    assert stops_at(first, [1, 2, 3]) == 3
    longer = EarlyStopping(patience=5)
    longer.load_state_dict(first.state_dict())
    assert not longer.should_stop
    assert longer.waited == 2
    assert stops_at(longer, [3, 3, 3], first=4) == 6


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    stopping = EarlyStopping(rules=(GL(5), Patience(2)))
    stopping.update(1.0)
    stopping.update(1.02)
    before = stopping.state_dict()
    for change in ({"rules": []}, {"rules": [GL(5).state_dict(), {}]}, {"surplus": 1}):
        with pytest.raises(InvalidValue, match="state must"):
            stopping.load_state_dict({**EarlyStopping().state_dict(), **change})
        assert stopping.state_dict() == before
    with pytest.raises(InvalidValue, match="state must have the keys"):
        stopping.load_state_dict({"best": 0.0})


def test_reset_forgets_everything_and_copies_are_independent():
    stopping = EarlyStopping(rules=GL(5))
    fresh = stopping.state_dict()
    stopping.update(1.0)
    assert pickle.loads(pickle.dumps(stopping)).state_dict() == stopping.state_dict()
    twin = copy.deepcopy(stopping)
    twin.update(0.5)
    assert stopping.best == 1.0
    stopping.reset()
    assert stopping.state_dict() == fresh
    assert stopping.stopped is None


def test_arguments_that_cannot_be_used_are_refused():
    with pytest.raises(InvalidType, match=r"monitor must be a name, but got 3. Say patience=3"):
        EarlyStopping(3)
    for count in (-1, 1.5, True, "3"):
        with pytest.raises(InvalidValue, match="patience must be an integer of at least 0"):
            EarlyStopping(patience=count)
        with pytest.raises(InvalidValue, match="start_from_epoch must be an integer"):
            EarlyStopping(start_from_epoch=count)
        with pytest.raises(InvalidValue, match="epoch must be an integer"):
            EarlyStopping().update(1.0, count)
    for number in (math.nan, math.inf):
        for name in ("min_delta", "baseline", "stopping_threshold", "divergence_threshold"):
            with pytest.raises(InvalidValue, match=f"{name} must be finite"):
                EarlyStopping(**{name: number})
    with pytest.raises(InvalidValue, match="min_delta must be finite and at least 0"):
        EarlyStopping(min_delta=-0.1)
    with pytest.raises(InvalidValue, match=r"unknown mode 'minimum'. Did you mean 'min'"):
        EarlyStopping(mode="minimum")
    with pytest.raises(InvalidType, match="be rules such as"):
        EarlyStopping(rules=["GL"])
    with pytest.raises(InvalidType, match=r"be a torch.nn.Module"):
        EarlyStopping().keeping({})


def test_without_a_mode_the_name_tells_and_min_is_what_is_left():
    names = {"valid_loss": "min", "val_accuracy": "max", "val_auc": "max", "abc": "min", "brier_score": "min"}
    assert {name: EarlyStopping(name).mode for name in names} == names
    assert EarlyStopping("val_accuracy", mode="min").mode == "min"
    stopping = EarlyStopping("val_accuracy", patience=2)  # as Keras users write it
    assert [stopping.update({"val_accuracy": value}) for value in (0.5, 0.6, 0.7)] == [True, True, True]


def test_rules_of_any_wrong_type_are_refused():
    for rules in (5, "GL", ["GL"]):
        with pytest.raises(InvalidType, match="rules must be rules such as"):
            EarlyStopping(rules=rules)
