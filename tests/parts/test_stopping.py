import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InvalidValue
from homeostat.parts.stopping import EarlyStopping

LOSSES = [10, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 16]


def stops_at(stopping, values):
    for epoch, value in enumerate(values, start=1):
        stopping.update(value, epoch)
        if stopping.should_stop:
            return epoch
    return None


@pytest.mark.parametrize(("patience", "epoch"), [(1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (11, 13), (12, None)])
def test_stops_after_patience_measurements_without_improvement(patience, epoch):
    stopping = EarlyStopping(patience)
    assert stops_at(stopping, LOSSES) == epoch
    assert (stopping.best, stopping.best_epoch) == (8, 2)


def test_max_mode_is_min_mode_of_the_negated_values():
    low, high = EarlyStopping(3), EarlyStopping(3, mode="max")
    assert stops_at(low, LOSSES) == stops_at(high, [-loss for loss in LOSSES])
    assert high.best == -low.best


def test_a_gain_of_just_min_delta_is_no_improvement():
    stopping = EarlyStopping(1, min_delta=0.5)
    assert stopping.update(2.0, 0)
    assert not stopping.update(1.5, 1)
    assert stopping.should_stop
    assert EarlyStopping(1).update(-3.0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_values_that_are_not_finite_are_no_improvement(bad, mode):
    stopping = EarlyStopping(2, mode=mode)
    assert not stopping.update(bad, 0)
    assert stopping.best is None
    assert stopping.update(1.0, 1)
    assert not stopping.update(bad, 2)
    assert (stopping.best, stopping.best_epoch) == (1.0, 1)
    stopping.update(bad, 3)
    assert stopping.should_stop


def test_a_tensor_is_taken_as_a_number():
    stopping = EarlyStopping(1)
    stopping.update(torch.tensor(2.5), 0)
    assert stopping.best == 2.5
    assert isinstance(stopping.best, float)


values = st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=30)


@settings(deadline=None)
@given(values, values, st.integers(1, 5), st.sampled_from(["min", "max"]))
def test_going_on_from_the_state_is_as_never_having_stopped(first, second, patience, mode):
    straight, resumed = EarlyStopping(patience, 0.1, mode), EarlyStopping(patience, 0.1, mode)
    other = EarlyStopping(patience, 0.1, mode)
    for epoch, value in enumerate(first):
        straight.update(value, epoch)
        other.update(value, epoch)
    resumed.load_state_dict(json.loads(json.dumps(other.state_dict(), allow_nan=False)))
    for epoch, value in enumerate(second, start=len(first)):
        assert straight.update(value, epoch) == resumed.update(value, epoch)
    assert straight.state_dict() == resumed.state_dict()
    assert straight.should_stop == resumed.should_stop


def test_a_state_with_other_keys_is_refused_and_changes_nothing():
    stopping = EarlyStopping(1)
    stopping.update(1.0, 0)
    with pytest.raises(InvalidValue, match="state must have the keys"):
        stopping.load_state_dict({"best": 0.0})
    assert stopping.best == 1.0


def test_arguments_that_cannot_be_used_are_refused():
    for patience in (0, -1, 1.5, True):
        with pytest.raises(InvalidValue, match="patience must be an integer of at least 1"):
            EarlyStopping(patience)
    for min_delta in (-0.1, math.nan, math.inf):
        with pytest.raises(InvalidValue, match="min_delta"):
            EarlyStopping(1, min_delta)
    with pytest.raises(InvalidValue, match="unknown mode 'minimum'"):
        EarlyStopping(1, mode="minimum")
