"""What augmentation is given: gray or standardized images, bytes with a table, vectors, settings; what it refuses."""

import math

import pytest
import torch
from augment_images import generator, images, pictures

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.augment import AUGMENTATIONS, make_augment


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "color_drop"])
def test_gray_images_stay_gray(name):
    x = pictures(16, 1, 12, 12, torch.uint8)
    y = make_augment(name)(x, generator())
    assert y.shape == x.shape
    assert not torch.equal(y, x)


def test_gray_images_have_no_color_to_change():
    gray = pictures(8, 1, 12, 12, torch.uint8)
    with pytest.raises(InvalidValue, match=r"have 3 channels for color_drop, but got .*no color to drop"):
        make_augment("color_drop")(gray, generator())
    with pytest.raises(InvalidValue, match="have 3 channels for color_jitter of color alone"):
        make_augment("color_jitter", brightness=0, contrast=0)(gray, generator())
    jitter = {"saturation": 0.0, "hue": 0.0}
    assert torch.equal(
        make_augment("color_jitter")(gray, generator()), make_augment("color_jitter", **jitter)(gray, generator())
    )
    for name in ("color_jitter", "randaugment", "trivialaugment"):
        with pytest.raises(InvalidValue, match=f"have 1 or 3 channels for {name}"):
            make_augment(name).check((2, 8, 8))


def test_quarter_turns_need_square_images():
    with pytest.raises(InvalidValue, match=r"be square images for rotate90, but got .*rotate takes any angle"):
        make_augment("rotate90").check((3, 8, 9))


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment", "color_jitter", "color_drop", "sobel"])
def test_parts_that_look_at_colors_refuse_standardized_images(name):
    x = torch.randn(8, 3, 10, 10, generator=generator())
    with pytest.raises(InvalidValue, match=rf"lie in \[0, 1\] for {name}, but its values go from .*uint8 images"):
        make_augment(name)(x, generator())
    with pytest.raises(InvalidValue, match="lie in"):
        make_augment(name)(torch.full((2, 3, 4, 4), math.nan), generator())
    augment = make_augment(f"{name}+crop", value_range=(-6.0, 6.0), fill=-6.0, chance={name: 1.0})
    scaled = make_augment(f"{name}+crop", chance={name: 1.0})((x + 6) / 12, generator())
    torch.testing.assert_close(augment(x, generator()), scaled * 12 - 6, rtol=0, atol=2e-4)


def test_bytes_may_have_a_white_of_their_own():
    x = (images(40, 1, 8, 8).int() * 16 // 255).to(torch.uint8)  # 0..16
    settings = {"value_range": (0, 16), "chance": {"sobel": 1.0}}
    for name in ("trivialaugment", "color_jitter", "sobel"):
        y = make_augment(name, **settings)(x, generator())
        wide = make_augment(name, chance={"sobel": 1.0})(x / 16, generator())
        assert torch.equal(y, (wide * 16).round().to(torch.uint8))
        with pytest.raises(InvalidValue, match=rf"lie in \[0, 16\] for {name}, but its values go from 0 to 17"):
            make_augment(name, **settings)(torch.full((2, 1, 8, 8), 17, dtype=torch.uint8).triu(), generator())
    noisy = make_augment("noise", noise_std=1.0, value_range=(0, 51))(
        torch.full((100, 1, 20, 20), 128, dtype=torch.uint8), generator()
    )
    assert noisy.float().std().item() == pytest.approx(math.sqrt((64 / 5) ** 2 + 1 / 12), rel=0.02)


@pytest.mark.parametrize("name", ["resized_crop", "rotate", "rotate90", "blur"])
def test_parts_that_do_not_look_at_colors_take_standardized_images(name):
    x = torch.rand(8, 3, 10, 10, generator=generator(), dtype=torch.float64)
    augment = make_augment(name)
    torch.testing.assert_close(augment(5 * x - 2, generator()), 5 * augment(x, generator()) - 2)


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


@pytest.mark.parametrize("spec", ["color_jitter+crop+flip", "rotate+cutout+noise", "sobel"])
def test_with_a_table_the_other_parts_see_the_raw_pixels(spec):
    x, table = images(32, 3, 12, 12), torch.randn(3, 256, generator=generator(3))
    first, _, rest = spec.partition("+")
    raw = make_augment(first)(x, generator())
    expected = make_augment(rest or "none")(raw, generator(), table)
    assert torch.equal(make_augment(spec)(x, generator(), table), expected)


@pytest.mark.parametrize("name", ["rotate", "trivialaugment"])
def test_with_a_table_the_fill_is_what_stands_for_it(name):
    x = torch.full((50, 3, 12, 12), 255, dtype=torch.uint8)
    table = (torch.arange(256.0) - torch.tensor([[100.0], [150.0], [50.0]])) / 60
    degrees = {"degrees": (45.0, 45.0), "padding_mode": "constant"}
    y = make_augment(name, fill=0.0, **degrees)(x, generator(), table)
    corner = y[:, :, 0, 0][(y[:, :, 0, 0] != table[:, 255]).any(1)]
    assert len(corner)
    if name == "rotate":
        assert torch.equal(corner, torch.zeros_like(corner))
    else:  # whatever does not move pixels leaves white white, or turns it dark
        assert (corner == 0).all(1).float().mean() > 0.5


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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be finite and positive and at most 1"),
        ({"scale": (0.9, 0.2)}, "scale must give the least number first"),
        ({"ratio": 1.0}, "ratio must be two numbers"),
        ({"degrees": -5}, "degrees must be finite and at least 0"),
        ({"degrees": (10.0, math.inf)}, "degrees must be finite"),
        ({"brightness": -0.1}, "brightness must be finite and at least 0"),
        ({"hue": 0.6}, "hue must be finite and at least 0 and at most 0.5"),
        ({"sigma": 0}, "sigma must be finite and positive"),
        ({"num_ops": 0}, "num_ops must be an integer of at least 1"),
        ({"magnitude": 31}, "magnitude must be below num_magnitude_bins"),
        ({"magnitude": 9.0}, "magnitude must be an integer"),
        ({"chance": {"crop": 0.5}}, "unknown part with a chance 'crop'"),
        ({"chance": {"blur": 1.5}}, r"chance\['blur'\] must be finite and at least 0 and at most 1"),
        ({"chance": 0.5}, "chance must be a mapping"),
        ({"value_range": (1.0, 1.0)}, "value_range must have a least number below"),
        ({"fill": "black"}, "fill must be a number or one per channel"),
        ({"fill": []}, "fill must be a number or one per channel"),
        ({"noise_std": "0.1"}, "noise_std must be a number"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_refused(setting, message):
    with pytest.raises((InvalidValue, InvalidType), match=f"make_augment: {message}"):
        make_augment("crop", **setting)


def test_tables_that_cannot_be_used():
    augment, table = make_augment("crop"), torch.zeros(3, 256)
    for wrong in (table[:1], table[:, :255], table.to("meta")):
        with pytest.raises(InvalidValue, match=r"augment: table must have shape \(3, 256\) and be on cpu"):
            augment(images(2), generator(), wrong)
    with pytest.raises(InvalidValue, match="table must be None unless the input is uint8 images"):
        augment(images(2, dtype=torch.float32), generator(), table)
    with pytest.raises(InvalidType, match="table must be floating"):
        augment(images(2), generator(), table.long())
