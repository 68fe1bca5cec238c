"""What augmentation does: shapes and types stay, places and values are as documented, and only the draws decide."""

import math

import pytest
import torch
from augment_images import generator, images, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.augment import AUGMENTATIONS, UINT8_DEVIATION, make_augment
from homeostat.parts.augment.draws import part_seed, uniform
from homeostat.parts.augment.settings import CHANCES


def allowed(parts, channels, height, width):
    """Those of the parts that apply to such images."""
    banned = {"rotate90"} if height != width else set()
    banned |= set() if channels in (1, 3) else {"randaugment", "trivialaugment", "color_jitter"}
    banned |= set() if channels == 3 else {"color_drop"}
    return [part for part in parts if part not in banned]


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.sampled_from(AUGMENTATIONS), min_size=1, unique=True),
    n=st.integers(0, 7),
    channels=st.integers(1, 4),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    channels_last=st.booleans(),
    padding_mode=st.sampled_from(["reflect", "constant"]),
    offset=st.integers(0, 2**33),
    cut=st.integers(0, 7),
)
def test_shape_dtype_and_memory_format_stay_and_a_batch_may_be_cut_anywhere(
    parts, n, channels, height, width, dtype, channels_last, padding_mode, offset, cut
):
    spec = "+".join(allowed(parts, channels, height, width)) or "none"
    x = pictures(n, channels, height, width, dtype, channels_last)
    before, augment = x.clone(), make_augment(spec, padding_mode=padding_mode)
    y = augment(x, seed=5, offset=offset)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())
    assert torch.equal(x, before)
    assert torch.isfinite(y.float()).all()
    cut = min(cut, n)
    parts_of_it = [augment(x[:cut], seed=5, offset=offset), augment(x[cut:], seed=5, offset=offset + cut)]
    assert torch.equal(torch.cat(parts_of_it), y)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_part_does_something_and_stays_in_range(name, dtype):
    x = pictures(64, 3, 16, 16, dtype)
    y = make_augment(name)(x, generator())
    changed = (y != x).flatten(1).any(1).float().mean().item()
    assert changed > (0.05 if name == "color_drop" else 0.3)
    if dtype == torch.float32 and name != "noise":
        assert y.min() >= -1e-6
        assert y.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_one_image_of_eight_by_eight_pixels_is_enough(name):
    for n, side in ((1, 8), (3, 1), (1, 1)):
        x = pictures(n, 3, side, side, torch.uint8)
        assert make_augment(name)(x, generator()).shape == x.shape


def test_a_chance_is_how_often_a_part_acts():
    x = pictures(2000, 3, 6, 6, torch.uint8)
    for name, chance in (("blur", 0.3), ("color_drop", None), ("sobel", None), ("flip", 0.8), ("rotate", 0.0)):
        given = {} if chance is None else {"chance": {name: chance}}
        expected = {"color_drop": 0.2, "sobel": 0.5}.get(name, chance)
        y = make_augment(name, **given)(x, generator())
        acted = (y != x).flatten(1).any(1).double().mean().item()
        assert abs(acted - expected) <= 5 * math.sqrt(expected * (1 - expected) / 2000)


def test_a_seed_takes_the_place_of_a_generator():
    x, augment = pictures(9, 3, 8, 8, torch.uint8), make_augment("rotate+crop+noise")
    assert torch.equal(augment(x, seed=3), augment(x, seed=torch.tensor([3, 0])))
    assert not torch.equal(augment(x, seed=3), augment(x, seed=torch.tensor([3, 1])))
    with pytest.raises(InvalidValue, match="seed must be None beside a generator"):
        augment(x, generator(), seed=3)
    with pytest.raises(InvalidType, match="seed must be an integer"):
        augment(x, seed="3")
    with pytest.raises(InvalidValue, match="example must be at least 0"):
        augment(x, seed=3, offset=-1)
    state = torch.random.get_rng_state()
    first = augment(x)
    torch.random.set_rng_state(state)
    assert torch.equal(augment(x), first)
    assert not torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("channels_last", [True, False])
def test_strides_of_single_channel_images_stay(channels_last):
    x = torch.rand(4, 1, 6, 6).as_strided((4, 1, 6, 6), (36, 1, 6, 1) if channels_last else (36, 36, 6, 1))
    for spec in ("crop", "flip", "cutout"):
        assert make_augment(spec)(x, generator()).stride() == x.stride()


@pytest.mark.parametrize(("mode", "torch_mode"), [("reflect", "reflect"), ("constant", "constant")])
def test_a_crop_is_a_window_of_the_padded_image(mode, torch_mode):
    x = images(dtype=torch.float32)
    y = make_augment("crop", padding=3, padding_mode=mode, fill=0.0)(x, generator())
    padded = F.pad(x, [3] * 4, mode=torch_mode)
    windows = {
        (i, j): (padded[:, :, i : i + 12, j : j + 10] == y).flatten(1).all(1) for i in range(7) for j in range(7)
    }
    found = torch.stack(list(windows.values()))
    assert (found.sum(0) >= 1).all()
    assert (found.any(1)).sum() > 20  # 64 draws from 49 places


def test_every_place_of_a_crop_is_equally_likely():
    row = torch.arange(9.0).expand(20_000, 1, 9, 9)
    shifts = make_augment("crop", padding=1)(row, generator())[:, 0, 4, 4] - 4
    counts = torch.stack([(shifts == shift).sum() for shift in (-1, 0, 1)])
    assert counts.sum() == 20_000
    assert (counts - 20_000 / 3).abs().max() < 5 * math.sqrt(20_000 * 2 / 9)


def test_the_default_padding_is_an_eighth_and_at_least_one():
    columns = torch.arange(32.0).expand(500, 1, 32, 32)
    shifts = make_augment("crop")(columns, generator())[:, 0, 16, 16] - 16
    assert (shifts.min(), shifts.max()) == (-4, 4)
    small = torch.arange(4.0).expand(500, 1, 4, 4)
    shifts = make_augment("crop")(small, generator())[:, 0, 1, 1] - 1
    assert (shifts.min(), shifts.max()) == (-1, 1)


def test_a_flip_mirrors_half_of_the_examples():
    x = images(2000)
    y = make_augment("flip")(x, generator())
    same = (y == x).flatten(1).all(1)
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert abs(mirrored.sum().item() - 1000) < 5 * math.sqrt(500)


def test_cutout_covers_a_square_with_the_fill():
    x = images(2000, 3, 12, 12)
    y = make_augment("cutout", cutout_size=4, fill=(0, 0, 0))(x, generator())
    covered = (y == 0).all(1)
    assert torch.equal(covered, (y == 0).any(1))
    assert torch.equal(torch.where(covered[:, None], 0, x), y)
    rows, columns = covered.any(2).sum(1), covered.any(1).sum(1)
    assert torch.equal(covered.sum((1, 2)), rows * columns)
    assert (rows.max(), rows.min()) == (4, 2)  # a center at the border leaves half of the square
    assert covered.float().mean(0).min() > 0


def test_fill_can_differ_by_channel():
    x = images(8, 2, 8, 8, torch.float32)
    y = make_augment("cutout", cutout_size=20, fill=(-1.0, -2.0))(x, generator())
    center = y[:, :, 4, 4]
    assert torch.equal(center, torch.tensor([[-1.0, -2.0]]).expand(8, 2))


def test_noise_has_the_documented_deviation():
    x = torch.full((100, 3, 16, 16), 128, dtype=torch.uint8)
    raw = make_augment("noise", noise_std=0.1)(x, generator()).float()
    assert raw.mean().item() == pytest.approx(128, abs=0.1)
    assert raw.std().item() == pytest.approx(math.sqrt((0.1 * UINT8_DEVIATION) ** 2 + 1 / 12), rel=0.01)
    standardized = make_augment("noise", noise_std=0.1)(torch.zeros(5000, 20), generator())
    assert standardized.std().item() == pytest.approx(0.1, rel=0.01)


def test_noise_on_pixels_stays_in_range_instead_of_wrapping():
    x = torch.tensor([0, 255], dtype=torch.uint8).repeat(1000).view(10, 1, 20, 10)
    y = make_augment("noise", noise_std=0.2)(x, generator())
    assert y[x == 0].max() < 128 < y[x == 255].min()


def test_examples_are_augmented_independently_of_their_neighbors():
    x = images()
    y = make_augment("crop+flip")(x, generator())
    changed = x.clone()
    changed[0] = 7
    assert torch.equal(make_augment("crop+flip")(changed, generator())[1:], y[1:])


@pytest.mark.parametrize("spec", [*AUGMENTATIONS, "+".join(AUGMENTATIONS)])
def test_only_the_generator_decides(spec):
    x = images(64, 3, 12, 12)
    augment = make_augment(spec)
    torch.manual_seed(1)
    first = augment(x, generator(5))
    state = torch.manual_seed(2).get_state()
    assert torch.equal(augment(x, generator(5)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(augment(x, generator(6)), first)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bfloat16])
def test_images_of_every_type_move_alike(dtype):
    x = images()
    augment = make_augment("crop+flip+cutout", fill=3.0)
    assert torch.equal(augment(x.to(dtype), generator()).float(), augment(x.float(), generator()))


@pytest.mark.parametrize(
    "spec", ["crop+flip+cutout", "resized_crop+rotate+blur+noise", "color_jitter+color_drop", "sobel"]
)
def test_gradients_reach_floating_images(spec):
    x = (0.2 + 0.6 * torch.rand(4, 3, 4, 5, dtype=torch.float64, generator=generator())).requires_grad_()
    augment = make_augment(spec, brightness=0.1, contrast=0.1, saturation=0.1)  # so that nothing is cut off
    assert torch.autograd.gradcheck(lambda z: augment(z, generator()), x, fast_mode=True)
    assert torch.isfinite(torch.autograd.grad(augment(torch.zeros_like(x) + 0 * x, generator()).sum(), x)[0]).all()


def test_parts_have_draws_of_their_own():
    x = pictures(32, 3, 12, 12, torch.float32)
    alone = make_augment("color_jitter")(x, generator())
    both = make_augment("rotate+color_jitter", chance={"rotate": 0.0})(x, generator())
    assert torch.equal(alone, both)
    rotated = make_augment("rotate")(x, generator())
    assert torch.equal(make_augment("rotate+noise")(x, generator()), make_augment("noise")(rotated, generator()))


def test_streams_differ_by_part_key_and_number():
    seeds = [torch.tensor([1, 2]), torch.tensor([1, 3]), torch.tensor([2, 2]), torch.tensor([-1, 2])]
    streams = {tuple(part_seed(seed, name).tolist()) for seed in seeds for name in AUGMENTATIONS}
    assert len(streams) == len(seeds) * len(AUGMENTATIONS)
    first = uniform(part_seed(seeds[0], "rotate"), 500, 3, 0)
    second = uniform(part_seed(seeds[0], "blur"), 500, 3, 0)
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(1500)


def test_specifications_share_their_draws():
    x = images(dtype=torch.float32)
    cropped = make_augment("crop")(x, generator())
    both = make_augment("crop+flip")(x, generator())
    assert (((both == cropped) | (both == cropped.flip(3))).flatten(1).all(1)).all()
    assert torch.equal(make_augment("flip+crop")(x, generator()), both)


@pytest.mark.parametrize("channels_last", [True, False])
def test_values_do_not_depend_on_memory_format(channels_last):
    x = images(dtype=torch.float32)
    x = x if channels_last else x.contiguous()
    augment = make_augment("crop+flip+cutout+noise")
    assert torch.equal(augment(x, generator()), augment(x.clone(memory_format=torch.contiguous_format), generator()))


def test_the_result_never_shares_memory_with_the_input():
    for name in AUGMENTATIONS:
        chance = {name: 0.0} if name in CHANCES else None
        for dtype in (torch.uint8, torch.float32, torch.float64):
            x = pictures(3, 3, 8, 8, dtype)
            before = x.clone()
            make_augment(name, chance=chance)(x, generator()).zero_()
            assert torch.equal(x, before)


def test_none_changes_nothing():
    for x in (images(), torch.randn(5, 3), torch.randn(2, 3, 4)):
        assert torch.equal(make_augment("none")(x, generator()), x)
