import math

import pytest

from homeostat.training.schedule import learning_rate_factor


def test_constant_stays():
    assert [learning_rate_factor(step, 10, 0, "constant") for step in (0, 5, 9)] == [1.0, 1.0, 1.0]


def test_cosine_is_half_a_wave_that_starts_at_the_peak():
    assert learning_rate_factor(0, 100, 0, "cosine") == 1.0
    assert learning_rate_factor(50, 100, 0, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(25, 100, 0, "cosine") == pytest.approx(0.5 * (1 + math.sqrt(0.5)))


def test_step_drops_tenfold_at_half_and_at_three_quarters():
    factors = [learning_rate_factor(step, 100, 0, "step") for step in (49, 50, 74, 75, 99)]
    assert factors == [1.0, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule):
    assert [learning_rate_factor(step, 100, 4, schedule) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_factor(4, 100, 4, schedule) == 1.0


def test_a_run_of_warm_up_alone_ends_at_the_peak():
    assert learning_rate_factor(9, 10, 10, "cosine") == 1.0
