import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.clip import adaptive_clip_grad_, clip_grad_norm_, clip_grad_value_

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


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_bound_beyond_the_precision_only_clamps_infinity(dtype, foreach):
    (parameter,) = with_gradients([[math.inf, 1.0]], dtype)
    clip_grad_value_(parameter, 1e300, foreach)
    assert parameter.grad.isfinite().all()
    assert parameter.grad[1] == 1


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


@settings(deadline=None)
@given(
    gradients,
    st.floats(1e-2, 1e2),
    st.sampled_from([2, 1, 3.5, 0.5, math.inf, "inf"]),
    st.sampled_from([None, True, False]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_every_norm_equals_torchs(lists, max_norm, norm_type, foreach, dtype):
    scaled = [[value * 1e-3 for value in values] for values in lists]  # whose third powers float32 can hold
    ours, torchs = with_gradients(scaled, dtype), with_gradients(scaled, dtype)
    found = clip_grad_norm_(ours, max_norm, norm_type, foreach=foreach)
    expected = nn.utils.clip_grad_norm_(torchs, max_norm, float(norm_type), foreach=foreach)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(joined(ours), joined(torchs))
    clip_grad_value_(ours, max_norm, foreach)
    nn.utils.clip_grad_value_(torchs, max_norm, foreach)
    torch.testing.assert_close(joined(ours), joined(torchs))


@pytest.mark.parametrize("foreach", [None, False])
def test_half_precision_is_clipped_the_same_one_by_one(foreach):
    parameters = with_gradients([[300.0] * 4, [400.0] * 4], torch.float16)
    assert clip_grad_norm_(parameters, 1.0, 3.0, foreach=foreach).isfinite()
    assert clip_grad_norm_(parameters, 1.0, math.inf, foreach=foreach).item() < 1
    clip_grad_value_(parameters, 0.01, foreach)
    assert joined(parameters).max().item() == pytest.approx(0.01, rel=1e-3)


def test_an_infinite_bound_only_measures():
    parameters = with_gradients([[3.0], [-4.0]])
    assert clip_grad_norm_(parameters, math.inf).item() == 5.0
    assert joined(parameters).tolist() == [3.0, -4.0]
    assert clip_grad_norm_(with_gradients([[math.inf]]), math.inf).item() == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_can_be_an_error_that_changes_nothing(bad):
    parameters = with_gradients([[1.0, bad], [5.0]])
    with pytest.raises(InvalidValue, match=r"norm must be finite, but got (nan|inf)"):
        clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    assert parameters[1].grad.item() == 5.0
    assert clip_grad_norm_(with_gradients([[5.0]]), 1.0, error_if_nonfinite=True).item() == 5.0


def test_the_order_of_precisions_does_not_matter_and_nothing_is_nothing():
    half, single = with_gradients([[3.0]], torch.float16), with_gradients([[4.0]], torch.float32)
    assert clip_grad_norm_([*half, *single], 1e3) == clip_grad_norm_([*single, *half], 1e3) == 5
    empty = nn.Parameter(torch.zeros(0, 3))
    empty.grad = torch.zeros(0, 3)
    for norm_type in (2, math.inf):
        assert clip_grad_norm_([empty, *single], 1e3, norm_type) == 4
        for nothing in ([], iter(()), [empty], empty):
            assert clip_grad_norm_(nothing, 1.0, norm_type) == 0
            clip_grad_value_(nothing, 1.0)
            adaptive_clip_grad_(nothing, norm_type=norm_type)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    for clip in (clip_grad_norm_, clip_grad_value_, adaptive_clip_grad_):
        with pytest.raises(InvalidValue, match=r"dense gradients.*sparse=False"):
            clip(embedding.parameters(), 1.0)


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1e30), (torch.float32, 1e20), (torch.float64, 1e200)])
def test_gradients_whose_squares_overflow_are_clipped(dtype, size, foreach):
    parameters = with_gradients([[3 * size, 0.0], [4 * size]], dtype)
    assert clip_grad_norm_(parameters, 1.0, foreach=foreach).item() == pytest.approx(5 * size, rel=1e-2)
    torch.testing.assert_close(joined(parameters), torch.tensor([0.6, 0.0, 0.8]).double(), rtol=1e-2, atol=0)
    parameters = with_gradients([[3 * size, 0.0], [4 * size]], dtype)
    clip_grad_norm_(parameters, 1.0, 20.0, foreach=foreach)
    torch.testing.assert_close(joined(parameters), torch.tensor([0.75, 0.0, 1.0]).double(), rtol=1e-2, atol=0)


# -- by unit ----------------------------------------------------------------------------------------------------------


def by_the_formula(weight, gradient, clip_factor, eps, norm_type):
    """Brock et al. 2021, equation 3, unit by unit; a vector is one unit."""
    units = [(weight, gradient)] if weight.ndim <= 1 else list(zip(weight, gradient, strict=True))
    clipped = []
    for w, g in units:
        bound = clip_factor * max(w.norm(norm_type).item(), eps)
        norm = g.norm(norm_type).item()
        clipped.append(g * (bound / norm) if norm > bound else g)
    return torch.stack(clipped).reshape(weight.shape)


def test_clipping_compiles_as_one_graph():
    ours, eager = (
        with_gradients([[3e20, 0.0], [4.0]], torch.float32),
        with_gradients([[3e20, 0.0], [4.0]], torch.float32),
    )
    compiled = torch.compile(lambda: clip_grad_norm_(ours, 1.0), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(), clip_grad_norm_(eager, 1.0))
    torch.testing.assert_close(joined(ours), joined(eager))


@settings(deadline=None)
@given(
    st.sampled_from([(), (5,), (3, 4), (2, 3, 5), (4, 2, 3, 3), (1, 1)]),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([1e-3, 0.5]),
    st.sampled_from([2.0, 1.0, math.inf]),
    st.integers(0, 2**32),
)
def test_adaptive_clipping_is_the_formula(shape, clip_factor, eps, norm_type, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
    weight.grad = torch.randn(shape, dtype=torch.float64, generator=generator) * 10 ** (seed % 5 - 3)
    expected = by_the_formula(weight.detach(), weight.grad.clone(), clip_factor, eps, norm_type)
    adaptive_clip_grad_(iter([weight, weight]), clip_factor, eps, norm_type)
    torch.testing.assert_close(weight.grad, expected)


def test_weights_at_zero_can_leave_it():
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.ones(2, 3)
    adaptive_clip_grad_(weight)
    torch.testing.assert_close(weight.grad.norm(dim=1), torch.full((2,), 1e-5))
    weight.grad = torch.zeros(2, 3)
    adaptive_clip_grad_(weight)
    assert not weight.grad.any()


def test_a_unit_that_is_not_finite_stays_and_the_others_are_clipped():
    weight = nn.Parameter(torch.ones(3, 1))
    weight.grad = torch.tensor([[math.nan], [math.inf], [7.0]])
    adaptive_clip_grad_([weight, nn.Parameter(torch.ones(2))], 0.5)
    assert weight.grad[0].isnan()
    assert weight.grad[1:].flatten().tolist() == [math.inf, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adaptive_clipping_of_half_precision_does_not_overflow(dtype):
    weight = nn.Parameter(torch.full((2, 4096), 8.0, dtype=dtype))
    weight.grad = torch.full((2, 4096), 2000.0, dtype=dtype)
    adaptive_clip_grad_(weight, 0.1)
    torch.testing.assert_close(weight.grad.float(), torch.full((2, 4096), 0.8), rtol=1e-2, atol=0)
    bias = nn.Parameter(torch.full((4096,), 8.0, dtype=dtype))
    bias.grad = torch.full((4096,), 2000.0, dtype=dtype)
    adaptive_clip_grad_(bias, 0.1)
    torch.testing.assert_close(bias.grad.float(), torch.full((4096,), 0.8), rtol=1e-2, atol=0)


def test_units_whose_squares_overflow_are_clipped():
    weight, bias = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(4))
    weight.grad, bias.grad = torch.tensor([[1e20] * 4, [1e-3] * 4]), torch.full((4,), 1e20)
    adaptive_clip_grad_([weight, bias], 0.1)
    torch.testing.assert_close(weight.grad, torch.tensor([[0.1] * 4, [1e-3] * 4]))
    torch.testing.assert_close(bias.grad, torch.full((4,), 0.1))


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bounds_that_cannot_be_used_are_refused(value):
    parameters = with_gradients([[1.0]])
    with pytest.raises(InvalidValue, match="max_norm must be positive"):
        clip_grad_norm_(parameters, value)
    with pytest.raises(InvalidValue, match="norm_type must be positive"):
        clip_grad_norm_(parameters, 1.0, value)
    with pytest.raises(InvalidValue, match="eps must be positive and finite"):
        clip_grad_norm_(parameters, 1.0, eps=value)
    with pytest.raises(InvalidValue, match="clip_factor must be positive and finite"):
        adaptive_clip_grad_(parameters, value)
    with pytest.raises(InvalidValue, match="eps must be positive and finite"):
        adaptive_clip_grad_(parameters, eps=value)
    with pytest.raises(InvalidValue, match="norm_type must be positive"):
        adaptive_clip_grad_(parameters, norm_type=value)
    for each in (value, math.inf):
        with pytest.raises(InvalidValue, match="clip_value must be positive and finite"):
            clip_grad_value_(parameters, each)
    assert parameters[0].grad.item() == 1.0


def test_what_holds_no_tensors_is_refused():
    for clip in (clip_grad_norm_, clip_grad_value_, adaptive_clip_grad_):
        with pytest.raises(InvalidType, match=f"{clip.__name__}: parameters must be tensors"):
            clip(nn.Linear(2, 2), 1.0)


def test_bounds_of_other_types_are_refused():
    parameters = with_gradients([[1.0]])
    with pytest.raises(InvalidType, match="max_norm must be a number"):
        clip_grad_norm_(parameters, None)
    with pytest.raises(InvalidType, match="clip_value must be a number"):
        clip_grad_value_(parameters, "much")
    assert clip_grad_norm_(parameters, torch.tensor(0.5)) == 1
    assert parameters[0].grad.item() == pytest.approx(0.5)
