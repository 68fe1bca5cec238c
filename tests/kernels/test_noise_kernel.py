"""Noise: the distribution, and that nothing but the seed and a value's place decides about it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from homeostat.errors import InvalidType, InvalidValue
from homeostat.kernels import philox_reference
from homeostat.kernels.noise import add_noise
from homeostat.kernels.noise_reference import normals

SEED = torch.tensor([0x0123456789ABCDEF, 42])


def test_four_examples_share_the_two_pairs_that_their_words_make() -> None:
    words = philox_reference.words(SEED, 4, 3, 8, 0)
    made = normals(SEED, 4, 3, 8)
    for e in range(3):
        a, b, c, d = (int(word) for word in words[:, e])
        first = math.sqrt(-2 * math.log(((a >> 1) + 0.5) / 2**31))
        second = math.sqrt(-2 * math.log(((c >> 1) + 0.5) / 2**31))
        turns = 2 * math.pi * b / 2**32, 2 * math.pi * d / 2**32
        expected = [first * math.cos(turns[0]), first * math.sin(turns[0])]
        expected += [second * math.cos(turns[1]), second * math.sin(turns[1])]
        assert made[:, e].tolist() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 9),
    shape=st.sampled_from(
        [(), (1,), (5,), (1300,), (2, 3), (3, 5, 4), (1, 3, 3), (2, 1, 7), (3, 0, 4), (2, 2, 2, 3), (2, 33, 40)]
    ),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    form=st.sampled_from(["contiguous", "channels_last", "transposed"]),
    example=st.integers(0, 2**33),
    std=st.sampled_from([0.0, 0.1, 20.0]),
)
def test_the_compiled_kernel_agrees_with_the_reference(n, shape, dtype, form, example, std) -> None:
    x = (torch.rand(n, *shape, generator=torch.Generator().manual_seed(n)) * 256).to(dtype)
    if form == "channels_last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    elif form == "transposed" and x.dim() > 2:
        x = x.mT.contiguous().mT
    before = x.clone()
    got, expected = (add_noise(x, SEED, std, example, backend) for backend in ("numba", "reference"))
    assert (got.dtype, got.shape, got.stride()) == (x.dtype, x.shape, torch.empty_like(x).stride())
    assert torch.equal(x, before)
    if dtype == torch.uint8:  # a sum near one half may be rounded the other way
        assert ((got.int() - expected.int()).abs() <= 1).all()
        assert (got != expected).sum() <= 1
    else:
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5 * std)


def test_it_is_normal_with_independent_neighbors() -> None:
    z = add_noise(torch.zeros(64, 3, 32, 32), SEED, 1.0, 0, None).double()
    count = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean().item() - moment) < 5 * math.sqrt(variance / count)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-4
    neighbors = [(z[:-1], z[1:]), (z[:, :-1], z[:, 1:]), (z[:, :, :-1], z[:, :, 1:]), (z[..., :-1], z[..., 1:])]
    for a, b in neighbors:
        for f in (lambda t: t, torch.square):  # the sine and cosine of one pair share a radius
            product = ((f(a) - f(z).mean()) * (f(b) - f(z).mean())).flatten()
            assert abs(product.mean().item()) < 5 * product.std().item() / math.sqrt(len(product))


def test_the_tails_are_there() -> None:
    z = add_noise(torch.zeros(1000, 4000), SEED, 1.0, 0, None)
    for bound in (3.0, 4.0):
        share = 2 * stats.norm.sf(bound)
        beyond = (z.abs() > bound).sum().item()
        assert abs(beyond - share * z.numel()) < 5 * math.sqrt(share * z.numel())
    assert z.abs().max() > 4.7


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_parts_of_a_batch_and_other_memory_formats_get_the_same(backend: str) -> None:
    x = torch.rand(11, 3, 20, 20)
    whole = add_noise(x, SEED, 0.5, 7, backend)
    for cut in (1, 2, 4, 5, 10):
        parts = [add_noise(x[:cut], SEED, 0.5, 7, backend), add_noise(x[cut:], SEED, 0.5, 7 + cut, backend)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(add_noise(x.contiguous(memory_format=torch.channels_last), SEED, 0.5, 7, backend), whole)


def test_the_number_of_threads_changes_nothing() -> None:
    x, threads = torch.rand(64, 3, 20, 20), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(add_noise(x, SEED, 0.5, 0, "numba"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_bytes_are_rounded_and_kept_in_range() -> None:
    x = torch.tensor([0, 255, 100], dtype=torch.uint8).repeat(300).view(3, 300)
    for backend in ("numba", "reference"):
        y = add_noise(x, SEED, 50.0, 0, backend)
        assert y[x == 0].max() < 255
        assert y[x == 255].min() > 0
        assert torch.equal(y, (add_noise(x.double(), SEED, 50.0, 0, backend)).round().clamp(0, 255).to(torch.uint8))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_what_it_is(bad: float) -> None:
    x = torch.full((2, 70), bad)
    torch.testing.assert_close(add_noise(x, SEED, 1.0, 0, None), x, equal_nan=True)


def test_gradients_pass_unchanged_to_every_order() -> None:
    x = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)

    def noisy(z: torch.Tensor) -> torch.Tensor:
        return add_noise(z, SEED, 0.3, 0, None)

    assert torch.autograd.gradcheck(noisy, x)
    assert torch.autograd.gradgradcheck(noisy, x)


def test_it_is_an_operator_of_torch() -> None:
    for dtype in (torch.float32, torch.uint8):
        x = (torch.rand(2, 3, 4, 4) * 255).to(dtype)
        torch.library.opcheck(torch.ops.homeostat.add_noise.default, (x, SEED, 0.5, 0, None))


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.rand(3, 40)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(
            add_noise(x.to(dtype), SEED, 1.0, 0, None),
            add_noise(x.to(dtype).float(), SEED, 1.0, 0, "reference").to(dtype),
        )


def test_wrong_arguments_are_refused() -> None:
    x = torch.rand(2, 3)
    with pytest.raises(InvalidType, match="add_noise: input must be uint8 or floating"):
        add_noise(x.long(), SEED, 1.0, 0, None)
    with pytest.raises(InvalidValue, match="add_noise: input must have a first dimension"):
        add_noise(x[0, 0], SEED, 1.0, 0, None)
    for std in (-1.0, math.nan, math.inf):
        with pytest.raises(InvalidValue, match="add_noise: std must be finite and at least 0"):
            add_noise(x, SEED, std, 0, None)
    with pytest.raises(InvalidValue, match="add_noise: seed must be int64"):
        add_noise(x, SEED.int(), 1.0, 0, None)
    with pytest.raises(InvalidValue, match="add_noise: example must be at least 0"):
        add_noise(x, SEED, 1.0, -1, None)
    with pytest.raises(InvalidValue, match="add_noise: input must be float32 or float64 on a CPU for backend 'numba'"):
        add_noise(x.half(), SEED, 1.0, 0, "numba")
