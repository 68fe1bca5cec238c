import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.augment import AUGMENTATIONS, UINT8_DEVIATION, make_augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=64, channels=3, height=12, width=10, dtype=torch.uint8):
    values = torch.randint(1, 256, (n, channels, height, width), generator=generator(9))
    return values.to(dtype).to(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(st.sampled_from(AUGMENTATIONS), min_size=1, unique=True),
    n=st.integers(0, 5),
    channels=st.integers(1, 4),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.bfloat16]),
    channels_last=st.booleans(),
    padding_mode=st.sampled_from(["reflect", "constant"]),
)
def test_shape_dtype_and_memory_format_stay_and_the_input_is_not_changed(
    parts, n, channels, height, width, dtype, channels_last, padding_mode
):
    x = images(n, channels, height, width, dtype)
    x = x if channels_last else x.contiguous()
    before = x.clone()
    y = make_augment("+".join(parts), padding_mode=padding_mode)(x, generator())
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert torch.equal(x, before)
    if n and channels > 1:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert y.is_contiguous(memory_format=layout)


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


@pytest.mark.parametrize("spec", ["crop", "flip", "cutout", "noise", "crop+flip+cutout+noise"])
def test_only_the_generator_decides(spec):
    x = images()
    augment = make_augment(spec)
    torch.manual_seed(1)
    first = augment(x, generator(5))
    state = torch.manual_seed(2).get_state()
    assert torch.equal(augment(x, generator(5)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(augment(x, generator(6)), first)


def looked_up(x, table):
    """The images that uint8 images stand for."""
    return torch.stack([table[c][x[:, c].long()] for c in range(x.shape[1])], 1)


@pytest.mark.parametrize("spec", ["none", "crop", "crop+flip+cutout", "noise", "crop+flip+cutout+noise"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_with_a_table_images_are_looked_up_and_augmented_in_one_pass(spec, channels_last):
    x, table = images(), torch.randn(3, 256, generator=generator(3))
    x = x if channels_last else x.contiguous()
    augment = make_augment(spec, padding=2, padding_mode="constant", fill=(0.1, 0.2, 0.3))
    y = augment(x, generator(), table)
    assert torch.equal(y, augment(looked_up(x, table), generator()))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bfloat16])
def test_images_of_every_type_move_alike(dtype):
    x = images()
    augment = make_augment("crop+flip+cutout", fill=3.0)
    assert torch.equal(augment(x.to(dtype), generator()).float(), augment(x.float(), generator()))


def test_gradients_reach_floating_images():
    x = images(4, 2, 6, 5, torch.float64).requires_grad_()
    augment = make_augment("crop+flip+cutout")
    assert torch.autograd.gradcheck(lambda z: augment(z, generator()), x)


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


def test_none_changes_nothing():
    for x in (images(), torch.randn(5, 3), torch.randn(2, 3, 4)):
        assert torch.equal(make_augment("none")(x, generator()), x)


@pytest.mark.parametrize("name", ["crop", "flip", "cutout"])
def test_vectors_take_noise_and_nothing_else(name):
    augment = make_augment(f"{name}+noise")
    with pytest.raises(InvalidValue, match=f"{name} cannot apply to vectors, but got \\(13,\\)"):
        augment(torch.randn(5, 13), generator())
    with pytest.raises(InvalidValue, match="cannot apply to vectors"):
        augment.check((13,))
    augment.check((3, 8, 8))
    make_augment("noise").check((13,))


def test_arguments_that_cannot_be_used_are_refused():
    with pytest.raises(InvalidValue, match=r"unknown augmentation 'crp'. Did you mean 'crop'"):
        make_augment("crp+flip")
    with pytest.raises(InvalidValue, match="name each part once"):
        make_augment("flip+flip")
    with pytest.raises(InvalidValue, match="unknown augmentation 'none'"):
        make_augment("none+flip")
    with pytest.raises(InvalidType, match="spec must be a string"):
        make_augment(None)
    with pytest.raises(InvalidValue, match="padding must be an integer of at least 0"):
        make_augment("crop", padding=-1)
    with pytest.raises(InvalidValue, match="unknown padding_mode 'zeros'"):
        make_augment("crop", padding_mode="zeros")
    with pytest.raises(InvalidValue, match="noise_std must be finite"):
        make_augment("noise", noise_std=math.nan)
    with pytest.raises(InvalidValue, match="padding must be smaller than the image"):
        make_augment("crop", padding=8)(images(2, 3, 8, 8), generator())
    with pytest.raises(InvalidValue, match="fill must have one number or one per channel"):
        make_augment("cutout", fill=(1.0, 2.0))(images(2, 3, 8, 8), generator())
    with pytest.raises(InvalidType, match="input must be uint8 or floating"):
        make_augment("flip")(images(2).long(), generator())


def test_tables_that_cannot_be_used():
    augment, table = make_augment("crop"), torch.zeros(3, 256)
    for wrong in (table[:1], table[:, :255], table.to("meta")):
        with pytest.raises(InvalidValue, match=r"augment: table must have shape \(3, 256\) and be on cpu"):
            augment(images(2), generator(), wrong)
    with pytest.raises(InvalidValue, match="table must be None unless the input is uint8 images"):
        augment(images(2, dtype=torch.float32), generator(), table)
    with pytest.raises(InvalidType, match="table must be floating"):
        augment(images(2), generator(), table.long())
