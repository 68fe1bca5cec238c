import math

import pytest
import torch
from quick_fits import quick

from homeostat.training.loop import fit
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


def test_exponential_multiplies_after_every_epoch_as_torch_does():
    factors = [learning_rate_factor(step, 40, 0, "exponential", gamma=0.5, per_epoch=4) for step in range(12)]
    assert factors == [1.0] * 4 + [0.5] * 4 + [0.25] * 4
    torchs = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), gamma=0.95)
    for epoch in range(30):
        found = learning_rate_factor(4 * epoch, 120, 0, "exponential", gamma=0.95, per_epoch=4)
        assert found == pytest.approx(torchs.get_last_lr()[0])
        torchs.optimizer.step()
        torchs.step()


def test_exponential_counts_its_epochs_from_the_end_of_the_warm_up():
    factors = [learning_rate_factor(step, 40, 2, "exponential", gamma=0.5, per_epoch=4) for step in range(10)]
    assert factors == [0.5, 1.0, *[1.0] * 4, *[0.5] * 4]


def test_a_fit_has_the_course_of_its_recipe(color_task):
    rates = []
    recipe = quick(schedule="exponential", gamma=0.5).varied({"epochs": 3})
    fit(color_task, recipe, 0, on_step=lambda step, seen: rates.append(seen["learning_rate"]))
    assert rates == pytest.approx([rate for rate in (0.01, 0.005, 0.0025) for _ in range(len(rates) // 3)])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential"])
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule):
    assert [learning_rate_factor(step, 100, 4, schedule) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_factor(4, 100, 4, schedule) == 1.0


def test_a_run_of_warm_up_alone_ends_at_the_peak():
    assert learning_rate_factor(9, 10, 10, "cosine") == 1.0
