"""The grid of augmented images: what it takes, what it shows, and that it leaves the world alone."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.augment import make_augment, preview


def pictures(n=4, channels=3, height=10, width=14, dtype=torch.uint8):
    x = torch.randint(0, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(0))
    return x.to(torch.uint8) if dtype == torch.uint8 else (x / 255).to(dtype)


def shown(figure):
    """The images of a figure, in the order of its axes."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_a_row_per_image_the_original_first():
    x, augment = pictures(), make_augment("flip+color_jitter")
    figure = preview(x, augment, count=3, draws=2)
    images = shown(figure)
    assert isinstance(figure, Figure)
    assert len(images) == 9
    for row in range(3):
        np.testing.assert_allclose(images[3 * row], x[row].permute(1, 2, 0) / 255, atol=1e-6)
    assert [text.get_text() for text in figure.texts] == ["original", "color_jitter+flip"]
    assert not np.array_equal(images[1], images[2])
    places = np.array([axes.get_position().bounds for axes in figure.axes]).reshape(3, 3, 4)
    assert (np.diff(places[:, :, 0], axis=1) > 0).all()
    assert (np.diff(places[:, :, 1], axis=0) < 0).all()
    assert (places[..., :2] >= 0).all()
    assert (places[..., :2] + places[..., 2:] <= 1).all()


def test_the_seed_alone_decides():
    x = pictures()
    torch.manual_seed(1)
    first = shown(preview(x, "crop+noise", draws=2, seed=4))
    state = torch.manual_seed(2).get_state()
    again = shown(preview(x, "crop+noise", draws=2, seed=4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    other = shown(preview(x, "crop+noise", draws=2, seed=5))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def dicts(x):
    return [{"pixel_values": image, "label": 0} for image in x]


def as_pil(x):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in x]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.numpy(),
        lambda x: x.permute(0, 2, 3, 1).numpy(),
        list,
        lambda x: TensorDataset(x, torch.arange(4)),
        lambda x: DataLoader(TensorDataset(x, torch.arange(4)), batch_size=3),
        lambda x: DataLoader(x, batch_size=2),
        lambda x: iter(list(x)),
        dicts,
        as_pil,
        lambda x: [(image, 0) for image in as_pil(x)],
    ],
)
def test_all_kinds_of_datasets_show_the_same_images(make):
    x = pictures()
    images = shown(preview(make(x), "none", draws=1, count=9))
    assert len(images) == 8
    for row in range(4):
        np.testing.assert_allclose(images[2 * row], x[row].permute(1, 2, 0) / 255, atol=1e-6)


def test_a_task_shows_its_training_images():
    from homeostat.training.datasets import load_task

    images = shown(preview(load_task("digits"), "crop", count=2, draws=1))
    assert len(images) == 4
    assert images[0].shape == (8, 8)


def test_gray_pictures_and_arrays_without_channels():
    x = pictures(3, 1)
    for dataset in (x, [image[0].numpy() for image in x], [Image.fromarray(image[0].numpy()) for image in x]):
        images = shown(preview(dataset, "none", draws=1))
        np.testing.assert_allclose(images[0], x[0, 0] / 255, atol=1e-6)


def test_standardized_values_are_stretched_to_what_the_originals_cover():
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    first = shown(preview(x, "none", draws=1))[0]
    np.testing.assert_allclose(first, ((x - x.min()) / (x.max() - x.min()))[0, 0], atol=1e-6)
    constant = shown(preview(torch.full((1, 1, 4, 4), 3.0), "none", draws=1))[0]
    assert np.isfinite(constant).all()


def test_dark_bytes_are_stretched_too():
    x = pictures(2, 1) // 16
    np.testing.assert_allclose(shown(preview(x, "none", draws=1))[0], x[0, 0] / x.max(), atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_it_is_saved_where_it_is_asked_for(tmp_path, suffix):
    path = tmp_path / f"grid.{suffix}"
    preview(pictures(1), "flip", draws=1, path=path)
    assert path.stat().st_size > 500


def test_matplotlib_s_global_state_stays(monkeypatch):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    preview(pictures(1), "flip", draws=1)
    assert plt.get_fignums() == before


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(InvalidValue, match="preview: dataset must hold images"):
        preview(torch.rand(4, 7))
    with pytest.raises(InvalidValue, match="preview: dataset must hold images"):
        preview(torch.rand(4, 2, 8, 8))
    with pytest.raises(InvalidValue, match="preview: dataset must hold images"):
        preview([])
    with pytest.raises(InvalidValue, match=r"images of one size, but got \[\(3, 4, 4\), \(3, 5, 5\)\]"):
        preview([torch.rand(3, 4, 4), torch.rand(3, 5, 5)])
    with pytest.raises(InvalidType, match="preview: dataset must be images"):
        preview(3)
    with pytest.raises(InvalidType, match="preview: dataset must hold images as tensors"):
        preview(["a", "b"])
    with pytest.raises(InvalidValue, match="have an image in its dicts"):
        preview([{"text": "a"}])
    for name in ("count", "draws"):
        with pytest.raises(InvalidValue, match=f"preview: {name} must be an integer of at least 1"):
            preview(pictures(), **{name: 0})
    with pytest.raises(InvalidValue, match="unknown augmentation 'crp'"):
        preview(pictures(), "crp")
    with pytest.raises(InvalidValue, match="Give uint8 images"):
        preview(torch.randn(2, 3, 8, 8), "color_jitter")
