"""Augmentation in one pass: the reference against a loop over images, the compiled kernel against the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from homeostat.errors import InvalidType, InvalidValue
from homeostat.kernels import philox_reference
from homeostat.kernels.augment import augment, augment_batch, augment_gradient

SEED = torch.tensor([0x0123456789ABCDEF, 42])
EVERYTHING = {"crop": 2, "flip": 0.5, "cutout": 4, "fill": -1.0, "mean": 120.0, "std": 60.0}


def images(n=7, channels=3, height=9, width=6, dtype=torch.uint8, planar=False):
    generator = torch.Generator().manual_seed(n * height + width)
    x = torch.randint(0, 256, (n, channels, height, width), generator=generator).to(dtype)
    return x if planar else x.contiguous(memory_format=torch.channels_last)


def one_by_one(x, seed, crop, padding_mode, flip, cutout, fill, mean, std, example):
    """The same, image after image, in the words of the definition."""
    height, width = x.shape[2:]
    result = np.empty(x.shape, np.float32)
    for index, image in enumerate(x.numpy()):
        words = [int(word) for word in philox_reference.words(seed, 1, 5, example + index)[0]]
        values = (image.astype(np.float32) - np.float32(mean)) / np.float32(std)
        options = {"constant_values": fill} if padding_mode == "constant" else {}
        padded = np.pad(values, [(0, 0), (crop, crop), (crop, crop)], mode=padding_mode, **options)
        top, left = (words[k] * (2 * crop + 1) // 2**32 for k in (0, 1))
        window = padded[:, top : top + height, left : left + width]
        if words[2] / 2**32 < flip:
            window = window[:, :, ::-1]
        window = window.copy()
        row, column = words[3] * height // 2**32 - cutout // 2, words[4] * width // 2**32 - cutout // 2
        window[:, max(0, row) : max(0, row + cutout), max(0, column) : max(0, column + cutout)] = fill
        result[index] = window
    return torch.from_numpy(result)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 6),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    crop=st.integers(0, 12),
    padding_mode=st.sampled_from(["reflect", "constant"]),
    flip=st.sampled_from([0, 0.3, 0.5, 1]),
    cutout=st.integers(0, 12),
    planar=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
    example=st.integers(0, 2**33),
)
def test_it_does_what_a_loop_over_images_does(
    backend, n, channels, height, width, crop, padding_mode, flip, cutout, planar, dtype, seed, example
):
    if padding_mode == "reflect":
        crop = min(crop, height - 1, width - 1)
    x, key = images(n, channels, height, width, planar=planar), torch.tensor(seed)
    settings = {"crop": crop, "padding_mode": padding_mode, "flip": flip, "cutout": cutout}
    settings |= {"fill": 0.25, "mean": 127.3, "std": 61.7, "example": example}
    y = augment(x.to(dtype), key, **settings, backend=backend)
    assert torch.equal(y, one_by_one(x, key, **settings))
    assert (y.dtype, y.is_contiguous(memory_format=torch.channels_last)) == (torch.float32, True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("padding_mode", ["reflect", "constant"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_the_compiled_kernel_gives_the_reference_s_bits(dtype, padding_mode, channels):
    x = images(9, channels, 17, 12, dtype)
    mean, std = [100.0 + c for c in range(channels)], [50.0 + c for c in range(channels)]
    settings = EVERYTHING | {"crop": (5, 3), "padding_mode": padding_mode, "mean": mean, "std": std}
    y = augment(x, SEED, **settings, backend="numba")
    assert torch.equal(y, augment(x, SEED, **settings, backend="reference"))
    assert torch.equal(y, augment(x, SEED, **settings))
    assert y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_augmented_as_it_is(dtype):
    x = images(5, dtype=dtype)
    y = augment(x, SEED, crop=2, flip=0.5, cutout=3, fill=0.5)
    assert y.dtype == dtype
    assert torch.equal(y.float(), augment(x.float(), SEED, crop=2, flip=0.5, cutout=3, fill=0.5))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_bytes_can_stay_bytes(backend):
    x, fill = images(9), torch.tensor([1, 2, 3], dtype=torch.uint8)
    y = augment_batch(x, SEED, None, fill, 2, 1, False, 0.5, 3, 0, backend)
    assert y.dtype == torch.uint8
    assert torch.equal(y.float(), augment_batch(x.float(), SEED, None, fill.float(), 2, 1, False, 0.5, 3, 0, "numba"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "strided",
    [
        lambda x: x.contiguous(),
        lambda x: x.repeat_interleave(2, 3)[:, :, :, ::2],
        lambda x: x.repeat_interleave(3, 1)[:, 1::3],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.repeat_interleave(2, 0)[1::2],
    ],
    ids=["planar", "columns", "channels", "transposed", "examples"],
)
def test_memory_layout_does_not_matter(dtype, strided):
    x = images(dtype=dtype)
    y, z = augment(x, SEED, **EVERYTHING), augment(strided(x), SEED, **EVERYTHING)
    assert torch.equal(y, z)
    assert y.stride() == z.stride()


def test_constants_and_seeds_may_be_views():
    x, table = images(), torch.rand(256, 3).T
    seed, fill = torch.stack([SEED, SEED + 1], 1)[:, 0], torch.rand(6)[::2]
    settings = (2, 2, True, 0.5, 3, 0, "numba")
    expected = augment_batch(x, SEED, table.contiguous(), fill.contiguous(), *settings)
    assert torch.equal(augment_batch(x, seed, table, fill, *settings), expected)


def test_one_image_repeated_without_memory_of_its_own():
    x = images(1).expand(8, -1, -1, -1)
    assert torch.equal(augment(x, SEED, **EVERYTHING), augment(x.contiguous(), SEED, **EVERYTHING))


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_a_batch_can_be_cut_anywhere(backend, cut):
    x = images(6)
    whole = augment(x, SEED, **EVERYTHING, example=11, backend=backend)
    parts = [augment(x[:cut], SEED, **EVERYTHING, example=11, backend=backend)]
    parts.append(augment(x[cut:], SEED, **EVERYTHING, example=11 + cut, backend=backend))
    assert torch.equal(torch.cat(parts), whole)


def test_the_number_of_threads_does_not_matter():
    x, before = images(101, 3, 24, 24), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(augment(x, SEED, **EVERYTHING, backend="numba"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_parts_share_their_draws():
    x = images(40, dtype=torch.float32)
    cropped, flipped = augment(x, SEED, crop=2), augment(x, SEED, flip=0.5)
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)[:, None, None, None]
    both = torch.where(mirrored, cropped.flip(3), cropped)
    assert torch.equal(augment(x, SEED, crop=2, flip=0.5), both)
    hole = augment(torch.zeros_like(x), SEED, cutout=3, fill=1.0) == 1
    assert torch.equal(augment(x, SEED, crop=2, flip=0.5, cutout=3, fill=7.0), torch.where(hole, 7.0, both))


def test_only_the_seed_decides_and_nothing_is_changed():
    x = images(40)
    before, y = x.clone(), augment(x, SEED, **EVERYTHING)
    state = torch.manual_seed(1).get_state()
    assert torch.equal(augment(x, SEED, **EVERYTHING), y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)
    for other in (SEED + torch.tensor([1, 0]), SEED + torch.tensor([0, 1])):
        assert not torch.equal(augment(x, other, **EVERYTHING), y)


def uniform(counts) -> bool:
    """Whether counts are as even as equal chances make them in all but one of 10^4 samples (Pearson's chi-square)."""
    counts = counts.double()
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum()) < chi2.ppf(1 - 1e-4, counts.numel() - 1)


def test_crops_are_uniform_over_rows_and_columns_together():
    n, size, pad = 20_000, 11, 2
    places = torch.arange(float(size * size)).view(1, 1, size, size).expand(n, -1, -1, -1)
    center = augment(places, SEED, crop=pad)[:, 0, 5, 5].long()
    rows, columns = center // size - 5 + pad, center % size - 5 + pad
    assert uniform(torch.bincount(rows * 5 + columns, minlength=25))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_flips_have_their_probability(p):
    n = 20_000
    x = torch.tensor([0.0, 1.0]).expand(n, 1, 1, 2)
    share = augment(x, SEED, flip=p)[:, 0, 0, 0].mean().item()
    assert abs(share - p) < 3.9 * math.sqrt(p * (1 - p) / n)  # 3.9 deviations: one sample of 10^4


def test_centers_of_cutouts_are_uniform_over_the_image():
    y = augment(torch.zeros(20_000, 1, 5, 7), SEED, cutout=1, fill=1.0)
    assert torch.equal(y.sum((1, 2, 3)), torch.ones(20_000))
    assert uniform(y.sum((0, 1)).view(-1))


def test_a_square_has_its_size_but_for_what_sticks_out():
    hole = augment(torch.zeros(500, 1, 12, 10), SEED, cutout=5, fill=1.0)[:, 0]
    rows, columns = hole.amax(2).sum(1), hole.amax(1).sum(1)
    assert torch.equal(hole.sum((1, 2)), rows * columns)
    assert {(rows.min().item(), rows.max().item()), (columns.min().item(), columns.max().item())} == {(3, 5)}
    covering = augment(images(3), SEED, cutout=100, fill=[1.0, 2.0, 3.0])
    assert torch.equal(covering, torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1).expand_as(covering))


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("padding_mode", ["reflect", "constant"])
def test_gradients_of_floating_images(backend, padding_mode):
    x = images(4, 2, 4, 3, torch.float64).requires_grad_()
    settings = EVERYTHING | {"cutout": 2, "padding_mode": padding_mode}

    def function(z):
        return augment(z, SEED, **settings, backend=backend)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize(
    ("x", "table"),
    [
        (images(3), torch.rand(3, 256)),
        (images(3, 1), None),
        (images(3, 1, dtype=torch.float32), None),
        (images(0, dtype=torch.float32), None),
        (images(3, planar=True, dtype=torch.float32).requires_grad_(), None),
    ],
    ids=["uint8 looked up", "uint8", "one channel", "empty", "with gradient"],
)
def test_the_operator_is_registered_properly(x, table):
    fill = torch.zeros(x.shape[1], dtype=x.dtype if table is None else table.dtype)
    torch.library.opcheck(augment_batch.dispatched, (x, SEED, table, fill, 2, 1, True, 0.5, 3, 0, None))


def test_the_gradient_s_operator_is_registered_properly():
    grad = torch.rand(3, 2, 4, 5).requires_grad_()
    torch.library.opcheck(augment_gradient.dispatched, (grad, SEED, 2, 1, True, 0.5, 2, 0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_it_compiles_into_one_graph(dtype):
    x = images(5, dtype=dtype)
    compiled = torch.compile(lambda z, s: augment(z, s, **EVERYTHING) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, SEED), augment(x, SEED, **EVERYTHING) * 2)


def test_it_can_be_exported():
    class Prepare(torch.nn.Module):
        def forward(self, x, seed):
            return augment(x, seed, **EVERYTHING)

    x = images(5)
    exported = torch.export.export(Prepare(), (x, SEED))
    assert torch.equal(exported.module()(x, SEED), augment(x, SEED, **EVERYTHING))


def test_under_the_transforms_of_torch_func():
    x = images(4, dtype=torch.float32)
    stacked = torch.func.vmap(lambda z: augment(z, SEED, **EVERYTHING))(torch.stack([x, x + 1]))
    assert torch.equal(stacked[1], augment(x + 1, SEED, **EVERYTHING))
    with_grad = x.clone().requires_grad_()
    augment(with_grad, SEED, **EVERYTHING).square().sum().backward()
    assert torch.equal(torch.func.grad(lambda z: augment(z, SEED, **EVERYTHING).square().sum())(x), with_grad.grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 6}, r"crop must be smaller than the image \(9 x 6\), but got 6. A mirror image"),
        ({"crop": (9, 0)}, "crop must be smaller than the image"),
        ({"crop": -1}, "crop must be a number of pixels of at least 0"),
        ({"crop": (1, 2, 3)}, "crop must be a number of pixels of at least 0"),
        ({"crop": 1.5}, "crop must be a number of pixels of at least 0"),
        ({"padding_mode": "reflct"}, "unknown padding_mode 'reflct'. Did you mean 'reflect'?"),
        ({"flip": 1.5}, r"flip must lie in \[0, 1\]"),
        ({"flip": math.nan}, r"flip must lie in \[0, 1\]"),
        ({"cutout": -1}, "cutout must be an integer of at least 0"),
        ({"example": -1}, "example must be an integer of at least 0"),
        ({"example": 2**34}, r"example must leave all examples below 2\*\*34"),
        ({"std": 0.0}, "std must be positive"),
        ({"std": [1.0, -1.0, 1.0]}, "std must be positive"),
        ({"std": math.inf}, "std must be finite"),
        ({"mean": [1.0, 2.0]}, r"mean must have one number or one per channel \(3\)"),
        ({"mean": torch.tensor([1.0, math.nan, 2.0])}, "mean must be finite"),
        ({"fill": [0.0] * 4}, r"fill must have one number or one per channel \(3\)"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_values_that_cannot_be_used(settings, message):
    with pytest.raises(InvalidValue, match=f"^augment: {message}"):
        augment(images(), SEED, **settings)


@pytest.mark.parametrize(
    ("x", "seed", "error", "message"),
    [
        (images()[0], SEED, InvalidValue, "images must have four dimensions"),
        (images(2, 0), SEED, InvalidValue, "images must have at least one channel, row and column"),
        (images(2, 3, 0), SEED, InvalidValue, "images must have at least one channel, row and column"),
        (images().long(), SEED, InvalidType, "images must be uint8 or floating"),
        (images().numpy(), SEED, InvalidType, "images must be a tensor"),
        (images(), 5, InvalidType, "seed must be an int64 tensor"),
        (images(), SEED.float(), InvalidType, "seed must be an int64 tensor"),
        (images(), SEED[:1], InvalidValue, r"seed must have shape \(2,\)"),
    ],
)
def test_images_and_seeds_that_cannot_be_used(x, seed, error, message):
    with pytest.raises(error, match=f"^augment: {message}"):
        augment(x, seed)


def test_types_that_cannot_be_used():
    with pytest.raises(InvalidType, match="flip must be a number"):
        augment(images(), SEED, flip="often")
    with pytest.raises(InvalidType, match="mean must be a number or one per channel"):
        augment(images(), SEED, mean="gray")
    with pytest.raises(InvalidValue, match="be float32 or float64 on a CPU for backend 'numba'"):
        augment(images(dtype=torch.bfloat16), SEED, backend="numba")
