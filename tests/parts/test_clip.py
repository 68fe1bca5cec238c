import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homeostat.errors import InvalidValue
from homeostat.parts.clip import clip_grad_norm_, clip_grad_value_

gradients = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), min_size=1, max_size=5)


def with_gradients(lists, dtype=torch.float64):
    parameters = [nn.Parameter(torch.zeros(len(values), dtype=dtype)) for values in lists]
    for parameter, values in zip(parameters, lists, strict=True):
        parameter.grad = torch.tensor(values, dtype=dtype)
    return parameters


def joined(parameters):
    return torch.cat([parameter.grad.double() for parameter in parameters])


@settings(deadline=None)
@given(gradients, st.floats(1e-3, 1e3))
def test_the_norm_is_bounded_and_the_direction_kept(lists, max_norm):
    parameters = with_gradients(lists)
    before = joined(parameters)
    returned = clip_grad_norm_(parameters, max_norm)
    after = joined(parameters)
    torch.testing.assert_close(returned.double(), before.norm())
    factor = min(1.0, max_norm / (before.norm().item() + 1e-6))
    torch.testing.assert_close(after, factor * before)
    assert after.norm().item() <= max_norm * (1 + 1e-9)


@settings(deadline=None)
@given(gradients, st.floats(1e-2, 1e2))
def test_equals_torch(lists, max_norm):
    ours, torchs = with_gradients(lists), with_gradients(lists)
    torch.testing.assert_close(clip_grad_norm_(ours, max_norm), nn.utils.clip_grad_norm_(torchs, max_norm))
    torch.testing.assert_close(joined(ours), joined(torchs))
    clip_grad_value_(ours, max_norm)
    nn.utils.clip_grad_value_(torchs, max_norm)
    assert torch.equal(joined(ours), joined(torchs))


def test_half_precision_does_not_overflow():
    parameters = with_gradients([[300.0] * 4, [400.0] * 4], torch.float16)
    norm = clip_grad_norm_(parameters, 1.0)
    assert norm.dtype == torch.float32
    assert norm.item() == 1000.0
    torch.testing.assert_close(joined(parameters).norm().item(), 1.0, atol=2e-3, rtol=0)


def test_precisions_can_be_mixed():
    parameters = [
        *with_gradients([[3.0]], torch.bfloat16),
        *with_gradients([[4.0]]),
        *with_gradients([[12.0]], torch.float32),
    ]
    assert clip_grad_norm_(parameters, 100.0).item() == 13.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_reported_and_left_alone(bad):
    parameters = with_gradients([[1.0, bad], [5.0]])
    assert not clip_grad_norm_(parameters, 1.0).isfinite()
    assert parameters[1].grad.item() == 5.0
    assert parameters[0].grad[0].item() == 1.0


def test_by_value_infinity_is_clamped_and_nan_stays():
    (parameter,) = with_gradients([[math.inf, -math.inf, math.nan, 0.5]])
    clip_grad_value_(parameter, 2.0)
    assert parameter.grad[:2].tolist() == [2.0, -2.0]
    assert parameter.grad[2].isnan()
    assert parameter.grad[3].item() == 0.5


def test_parameters_without_gradient_are_skipped_and_repeated_ones_count_once():
    (parameter,) = with_gradients([[3.0, 4.0]])
    idle = nn.Parameter(torch.ones(3))
    assert clip_grad_norm_([parameter, idle, parameter], 1.0).item() == 5.0
    torch.testing.assert_close(parameter.grad.norm().item(), 1.0, atol=1e-6, rtol=0)
    assert clip_grad_norm_([idle], 1.0).item() == 0.0
    clip_grad_value_([idle], 1.0)
    assert idle.grad is None


def test_a_generator_of_parameters_is_read_once():
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    assert clip_grad_norm_(layer.parameters(), 1e3).item() == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bounds_that_cannot_be_used_are_refused(value):
    parameters = with_gradients([[1.0]])
    with pytest.raises(InvalidValue, match="max_norm must be positive and finite"):
        clip_grad_norm_(parameters, value)
    with pytest.raises(InvalidValue, match="clip_value must be positive and finite"):
        clip_grad_value_(parameters, value)
    assert parameters[0].grad.item() == 1.0
