"""Batch, instance and group normalization: every backend against float64 formulas, in all layouts and odd sizes."""

from __future__ import annotations

import pytest
import torch

from homeostat.kernels import norm_channels
from homeostat.kernels import norm_channels_reference as reference
from homeostat.kernels.norm_channels import affine, gradient_sums, input_gradient, merge, normalize, normalize_with
from homeostat.kernels.norm_channels import statistics as statistics_of

SHAPES = [(64, 128), (5, 3), (1, 5), (2, 3, 7), (4, 6, 5, 3), (3, 17, 4, 1), (2, 6, 3, 4, 5), (40, 700), (2, 4, 65, 70)]
LAYOUTS = ["contiguous", "last", "sliced", "sliced_last", "expanded"]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def in_layout(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values, laid out in memory in another way."""
    if layout == "last":
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        return torch.stack([values, values], -1)[..., 0]
    if layout == "sliced_last":
        rows = values.movedim(1, -1).contiguous()
        return torch.cat([rows, rows], -2)[..., : rows.shape[-2], :].movedim(-1, 1)
    if layout == "expanded":
        return values[:1].expand(values.shape)
    return values.contiguous()


def drawn(shape, dtype=torch.float32, mean=0.0, layout="contiguous", seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = in_layout((make(shape) + mean).to(dtype), layout)
    parameters = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    weight, bias = make(shape[1:2]).to(parameters), make(shape[1:2]).to(parameters)
    return x, weight, bias, in_layout(make(shape).to(dtype), layout), make(shape).to(dtype)


def wide(*tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def assert_close(actual, expected, tolerance):
    """Relative to the largest expected value."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * max(scale, 1e-3))


def all_of(x, weight, bias, residual, grad, groups, slope, backend):
    """Output, mean, variance and the four gradients."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    output, mean, variance = normalize(*leaves, groups, 1e-5, slope, backend)
    given = [leaf for leaf in leaves if leaf is not None]
    return output.detach(), mean, variance, *torch.autograd.grad(output, given, grad)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sets", ["batch", "one group", "instance"])
def test_forward_and_gradients_agree_with_float64(dtype, layout, shape, sets):
    groups = {"batch": 0, "one group": 1, "instance": shape[1]}[sets]
    if (sets == "instance" and shape[2:].count(1) == len(shape[2:])) or (sets == "batch" and shape == (1, 5)):
        return  # one value per set
    for slope, add in ((1.0, False), (0.0, False), (0.0, True), (0.01, True)):
        x, weight, bias, residual, grad = drawn(shape, dtype, layout=layout)
        if layout == "expanded" and sets == "batch" and len(shape) == 2:
            return  # no variance
        residual = residual if add else None
        actual = all_of(x, weight, bias, residual, grad, groups, slope, None)
        expected = all_of(*wide(x, weight, bias, residual, grad), groups, slope, "reference")
        for value, truth in zip(actual, expected, strict=True):
            assert_close(value, truth, 40 * TOLERANCE[dtype] if dtype is torch.float64 else 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("weighted", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("groups", [0, 3])
def test_weight_and_bias_are_optional(weighted, groups):
    x, weight, bias, _, grad = drawn((4, 6, 5, 5))
    weight, bias = weight if weighted[0] else None, bias if weighted[1] else None
    actual = all_of(x, weight, bias, None, grad, groups, 0.0, "numba")
    expected = all_of(*wide(x, weight, bias, None, grad), groups, 0.0, "reference")
    for value, truth in zip(actual, expected, strict=True):
        assert_close(value, truth, 4e-6)


@pytest.mark.parametrize("layout", ["contiguous", "last"])
@pytest.mark.parametrize("groups", [0, 4])
def test_a_mean_of_1e4_with_deviation_1_agrees_with_float64_to_1e_5(layout, groups, threads):
    """The accuracy that is promised: relative to the largest value, forward and gradients."""
    x, weight, bias, residual, grad = drawn((16, 16, 20, 20), mean=1e4, layout=layout)
    actual = all_of(x, weight, bias, residual, grad, groups, 0.01, None)
    expected = all_of(*wide(x, weight, bias, residual, grad), groups, 0.01, "reference")
    for value, truth in zip(actual, expected, strict=True):
        assert_close(value, truth, 1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "last"])
@pytest.mark.parametrize("groups", [0, 8])
@pytest.mark.parametrize("shape", [(33, 16, 31, 33), (64, 8, 7, 7), (3, 24, 80, 90)], ids=str)
def test_the_number_of_threads_changes_no_bit(layout, groups, shape):
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(all_of(*drawn(shape, layout=layout), groups, 0.0, "numba"))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_outputs_that_pass_the_cache_are_the_same(layout):
    """8 MiB and more are stored without being fetched first."""
    x, weight, bias, residual, grad = drawn((33, 40, 42, 40), layout=layout)
    actual = all_of(x, weight, bias, residual, grad, 0, 0.0, "numba")
    expected = all_of(x, weight, bias, residual, grad, 0, 0.0, "reference")
    for value, truth in zip(actual, expected, strict=True):
        assert_close(value, truth, 1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_output_and_gradient_keep_the_inputs_layout(layout):
    x, weight, bias, _, grad = drawn((3, 5, 4, 6), layout=layout)
    for backend in ("numba", "reference"):
        output, _, _, dx, *_ = all_of(x, weight, bias, None, grad, 0, 0.0, backend)
        assert output.stride() == x.stride() == dx.stride()


@pytest.mark.parametrize("layout", ["contiguous", "last"])
@pytest.mark.parametrize("groups", [0, 2])
def test_numbers_whose_squares_overflow_float32_are_normalized(layout, groups):
    x, weight, bias, _, _ = drawn((8, 4, 5, 5), layout=layout)
    output, _, variance = normalize(x * 1e25, weight, bias, None, groups, 1e-5, 1.0, "numba")
    assert variance.isfinite().all()
    assert_close(output, normalize(*wide(x, weight, bias), None, groups, 0.0, 1.0, "reference")[0], 4e-6)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_not_a_number_stays_where_it_is_and_negative_infinity_is_cut(backend, layout):
    x = in_layout(torch.randn(4, 3, 5, 5), layout)
    x[0, 0, 0, 0] = torch.nan
    x[1, 1, 0, 0] = -torch.inf
    mean, variance = torch.zeros(3), torch.ones(3)
    output = affine(x, mean, variance, None, None, None, 1e-5, 0.0, backend)
    assert output[0, 0, 0, 0].isnan()
    assert output.isnan().sum() == 1
    assert output[1, 1, 0, 0] == 0
    assert not output.signbit().any()  # no -0 either
    trained = normalize(x, None, None, None, 0, 1e-5, 0.0, backend)[0]
    assert trained[:, 0].isnan().all()
    assert trained[:, 2].isfinite().all()


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_an_infinite_gradient_is_cut_where_relu_is(backend):
    x = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], requires_grad=True)
    output = affine(x, torch.zeros(2), torch.ones(2), None, None, None, 0.0, 0.0, backend)
    (grad,) = torch.autograd.grad(output, x, torch.tensor([[torch.inf, 2.0], [3.0, -torch.inf]]))
    assert grad.tolist() == [[0, 2], [3, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_fall_back_to_the_reference_with_float32_parameters(dtype):
    x, weight, bias, residual, grad = drawn((8, 6, 5, 5), dtype, layout="last")
    actual = all_of(x, weight, bias, residual, grad, 0, 0.0, None)
    mean, variance = actual[1:3]
    assert mean.dtype is variance.dtype is torch.float64
    assert actual[0].dtype is actual[3].dtype is dtype
    assert actual[4].dtype is torch.float32
    expected = all_of(*wide(x, weight, bias, residual, grad), 0, 0.0, "reference")
    for value, truth in zip(actual, expected, strict=True):
        assert_close(value, truth, 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("groups", [0, 3])
def test_empty_inputs_give_empty_outputs_and_zero_gradients(shape, groups):
    for backend in ("numba", "reference"):
        x, weight, bias, residual, grad = drawn(shape)
        output, mean, _, dx, dw, db, dr = all_of(x, weight, bias, residual, grad, groups, 0.0, backend)
        assert output.shape == dx.shape == dr.shape == shape
        assert mean.shape == ((shape[0], groups) if groups else (3,))
        assert not dw.any()
        assert not db.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_given_statistics_agree_with_float64(dtype, layout, given):
    x, weight, bias, residual, grad = drawn((4, 6, 5, 7), dtype, layout=layout)
    mean, variance = torch.linspace(-1, 1, 6, dtype=given), torch.linspace(0.5, 2, 6, dtype=given)
    for add, slope in ((False, 0.0), (True, 0.01)):
        results = []
        for convert, backend in ((lambda *tensors: tensors, None), (wide, "reference")):
            leaves = [t.detach().requires_grad_() for t in convert(x, weight, bias, residual)]
            extra = leaves[3] if add else None
            output = affine(leaves[0], mean, variance, leaves[1], leaves[2], extra, 1e-5, slope, backend)
            results.append([output, *torch.autograd.grad(output, leaves[: 4 if add else 3], grad.to(output.dtype))])
        for value, truth in zip(*results, strict=True):
            assert_close(value, truth, 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("layout", ["contiguous", "last"])
@pytest.mark.parametrize("parts", [(5, 5), (1, 9), (0, 10), (3, 3, 4)], ids=str)
@pytest.mark.parametrize(("add", "slope"), [(False, 0.0), (True, 0.0), (True, 1.0)])
def test_a_batch_in_parts_is_the_whole_batch(backend, layout, parts, add, slope):
    """What processes do who share the statistics of their parts of a batch: forward and backward."""
    x, weight, bias, residual, grad = drawn((10, 6, 5, 4), torch.float64, mean=3.0, layout=layout)
    residual = residual if add else None
    whole = all_of(x, weight, bias, residual, grad, 0, slope, backend)
    xs, gs = list(x.split(parts)), grad.split(parts)
    rs = residual.split(parts) if add else [None] * len(parts)
    common = merge(torch.stack([statistics_of(part, backend) for part in xs]))
    assert_close(common[1], whole[1], 1e-14)
    assert_close(common[2] / common[0], whole[2], 1e-13)

    outputs = [normalize_with(p, common, weight, bias, r, 1e-5, slope, backend) for p, r in zip(xs, rs, strict=True)]
    sums, masks = [], []
    for part, output, own in zip(xs, outputs, gs, strict=True):
        kept = output if add and slope != 1 else None
        total, mask = gradient_sums(own, part, common, weight, bias, kept, 1e-5, slope, backend)
        sums.append(total)
        masks.append(own if kept is None else mask)
    total = torch.stack(sums).sum(0)
    if add:
        gs, slope = masks, 1.0
    grads = [
        input_gradient(own, part, common, weight, bias, total, 1e-5, slope, backend)
        for own, part in zip(gs, xs, strict=True)
    ]
    assert_close(torch.cat(outputs), whole[0], 1e-12)
    assert_close(torch.cat(grads), whole[3], 1e-12)
    assert_close(total[1], whole[4], 1e-12)
    assert_close(total[0], whole[5], 1e-12)
    if add:
        assert_close(torch.cat(list(gs)), whole[6], 1e-12)


def test_merging_keeps_the_digits_of_a_large_mean():
    """Chan's formula where the difference of squares would leave nothing: mean 1e8, deviation 1, in float64."""
    x = torch.randn(1000, 2, dtype=torch.float64) + 1e8
    whole = merge(torch.stack([statistics_of(part, "numba") for part in x.split([1, 99, 900])]))
    torch.testing.assert_close(whole[2] / whole[0], (x - 1e8).var(0, unbiased=False), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"input": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "batch_norm: input must be a floating tensor"),
        ({"input": torch.ones(4)}, ValueError, r"\(N, C, ...\)"),
        ({"input": torch.ones(4, 0)}, ValueError, "at least one channel"),
        ({"weight": torch.ones(4)}, ValueError, "weight must have 3 elements, one per channel"),
        ({"weight": torch.ones(3).double()}, TypeError, "weight must have the input's dtype"),
        ({"bias": torch.ones(3, device="meta")}, ValueError, "on cpu"),
        ({"residual": torch.ones(4, 1)}, ValueError, "residual must have the input's shape"),
        ({"residual": torch.ones(4, 3).double()}, TypeError, "residual must have the input's dtype"),
        ({"mean": torch.ones(2)}, ValueError, "running_mean must have 3 elements"),
        ({"variance": torch.ones(3).int()}, TypeError, "running_var must be a floating tensor"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_computed(change, error, words):
    given = {"input": torch.ones(4, 3), "weight": None, "bias": None, "residual": None, **change}
    with pytest.raises(error, match=words):
        norm_channels.check("batch_norm", **given)


def test_the_reference_is_the_formula():
    """By hand: x = 1, 3 has mean 2 and variance 1; with weight 2, bias 1 and residual -4, relu cuts the first."""
    x = torch.tensor([[1.0], [3.0]])
    two, one = torch.tensor([2.0]), torch.tensor([1.0])
    output, mean, variance = reference.normalize(x, two, one, torch.full((2, 1), -1.0), 0, 0.0, 0.0)
    assert (output.tolist(), mean.tolist(), variance.tolist()) == ([[0.0], [2.0]], [2.0], [1.0])
