"""Moments: every backend against numbers made by torch in float64, in every layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InvalidType, InvalidValue
from homeostat.kernels import moments as stem
from homeostat.kernels.moments import moments

BACKENDS = ["numba", "reference"]


def by_torch(x: torch.Tensor, dim: int | None, bound: float) -> list[torch.Tensor]:
    """The fields of Moments, set by set, from the finite values alone."""
    sets = [x.flatten()] if dim is None else [s.flatten() for s in x.unbind(dim)]
    columns = []
    for s in sets:
        known = s[s.isfinite()].double()
        some = known if len(known) else torch.tensor([torch.nan], dtype=torch.float64)
        shares = [(known == 0).double().mean(), (known.abs() > bound).double().mean()]
        statistics = (some.mean(), some.var(correction=0), some.abs().amax())
        columns.append([len(known), *statistics, *shares, len(s) - len(known)])
    table = torch.tensor(columns, dtype=torch.float64).reshape(-1, 7).T
    return list(table[:, 0] if dim is None else table)


def assert_moments(x: torch.Tensor, dim: int | None, bound: float, backend: str, rtol: float = 1e-6) -> None:
    actual, expected = moments(x, dim=dim, bound=bound, backend=backend), by_torch(x, dim, bound)
    for name, a, e in zip(actual._fields, actual, expected, strict=True):
        near = {"rtol": rtol, "atol": rtol} if name in ("mean", "variance") else {"rtol": 1e-14, "atol": 0}
        torch.testing.assert_close(a, e, equal_nan=True, **near)


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """The same values, differently in memory."""
    views = [x, torch.stack([x, x], -1)[..., 0]]
    if x.dim() == 4:
        views.append(x.contiguous(memory_format=torch.channels_last))
    if x.dim() > 1:
        views.append(x.transpose(0, -1).contiguous().transpose(0, -1))
    return views


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(), (1,), (5001,), (64, 130), (301, 3), (3, 5, 7, 9), (2, 3, 40, 33), (30, 70, 2, 2), (5, 1, 1, 1)]
)
def test_moments_are_those_of_torch_for_every_dimension_and_layout(backend, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(shape, dtype=dtype, generator=generator) - 0.3
    for x in (drawn, torch.relu(drawn)):
        for view in layouts(x):
            for dim in (None, *range(x.dim())):
                assert_moments(view, dim, 0.7, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(9000,), (400, 30), (4, 6, 20, 20)])
def test_nan_and_infinity_are_counted_apart(backend, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.view(-1)[3::71], x.view(-1)[5::97], x.view(-1)[40::1001] = torch.nan, torch.inf, -torch.inf
    for view in layouts(x):
        for dim in (None, *range(x.dim())):
            assert_moments(view, dim, 1.0, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sets_without_finite_values_have_counts_alone(backend):
    x = torch.full((4, 3), torch.nan)
    x[:, 1] = torch.inf
    x[:, 2] = 2.0
    watched = moments(x, dim=1, backend=backend)
    assert watched.count.tolist() == [0, 0, 4]
    assert watched.nonfinite.tolist() == [4, 4, 0]
    for name in ("mean", "variance", "abs_max", "zeros", "beyond"):
        assert getattr(watched, name).isnan().tolist() == [True, True, False]
    for empty in (torch.empty(0), torch.empty(0, 3)):
        watched = moments(empty, backend=backend)
        assert watched.mean.isnan()
        assert watched.variance.isnan()
        assert (watched.count, watched.nonfinite) == (0, 0)
    assert moments(torch.empty(3, 0), dim=1, backend=backend).mean.shape == (0,)
    assert moments(torch.empty(0, 3), dim=1, backend=backend).mean.isnan().tolist() == [True] * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_a_mean_of_10000_costs_no_digits_and_squares_may_overflow(backend, dim):
    x = torch.randn(3000, 20, generator=torch.Generator().manual_seed(0))
    assert_moments(x + 1e4, dim, 1e4, backend, rtol=1e-5)
    x[:70] += 1e5
    assert_moments(x, dim, 1.0, backend, rtol=1e-5)
    large = x * 1e30
    watched = moments(large, dim=dim, backend=backend)
    expected = by_torch(large, dim, math.inf)
    torch.testing.assert_close(watched.variance, expected[2], rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [None, 1])
def test_a_bound_that_float32_lacks_is_not_rounded_to_a_value(backend, dim):
    x = torch.full((100, 3), 0.1)  # the float32 next to 0.1 is larger
    assert (moments(x, dim=dim, bound=0.1, backend=backend).beyond == 1).all()
    assert (moments(x, dim=dim, bound=x[0, 0].item(), backend=backend).beyond == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=4), data=st.data(), bound=st.floats(0, 2),
    strange=st.booleans(),
)  # fmt: skip
def test_any_shape(shape, data, bound, strange):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    if strange:
        x.view(-1)[::3] = torch.nan
    x = x.permute(data.draw(st.permutations(range(x.dim()))))
    dim = data.draw(st.sampled_from([None, *range(-x.dim(), x.dim())]))
    assert_moments(x, dim, bound, "numba")


def test_the_number_of_threads_changes_nothing():
    x = torch.randn(40, 6, 50, 50)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                [torch.stack(moments(v, dim=dim)) for v in layouts(x) for dim in (None, 0, 1)]
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_falls_back_to_the_reference(dtype):
    assert_moments(torch.randn(5, 7).to(dtype), 1, 0.5, None)


def test_the_operator_keeps_torchs_rules_and_passes_no_gradient():
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    for dim in (None, 1):
        torch.library.opcheck(stem.moments_of.dispatched, (x.detach(), dim, 1.0, None))
        assert not any(value.requires_grad for value in moments(x, dim=dim, backend="reference"))

    def watch(x):
        return moments(x, dim=1, bound=1.0)

    compiled = torch.compile(watch, backend="aot_eager", fullgraph=True)
    for a, e in zip(compiled(x), watch(x), strict=True):
        assert torch.equal(a, e)
    each = torch.func.vmap(watch)(torch.stack([x, 2 * x]))
    assert torch.equal(each.variance[1], watch(2 * x).variance)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidType, match="moments: input must be a floating tensor"):
        moments(torch.arange(3))
    for bound in (-1.0, math.nan):
        with pytest.raises(InvalidValue, match="bound must be a number >= 0"):
            moments(torch.ones(3), bound=bound)
    for dim in (1, -2):
        with pytest.raises(InvalidValue, match=r"dim must lie in \[-1, 0\]"):
            moments(torch.ones(3), dim=dim)
