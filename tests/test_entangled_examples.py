"""The study files of examples/entangled: each is a valid study, and what can be run small is run."""

import importlib
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import homeostat as hs
from homeostat.claims.themes import entangled_imagenet
from homeostat.cli import app
from homeostat.errors import HomeostatError
from homeostat.training.imagenet import resnet_v2, vgg

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "entangled"
CIFAR = sorted(path.name for path in FOLDER.glob("cifar-*.toml"))
IMAGENET = sorted(path.name for path in FOLDER.glob("imagenet-*.toml"))
TINY = {
    entangled_imagenet.RESNET: lambda shape, outputs: resnet_v2(shape, outputs, blocks=(1,), width=2, dropout=0.2),
    entangled_imagenet.INCEPTION: lambda shape, outputs: resnet_v2(shape, outputs, blocks=(1,), width=3, dropout=0.2),
    entangled_imagenet.VGG: lambda shape, outputs: vgg(shape, outputs, stages=((2, 1),), hidden=(4, 4), dropout=0.5),
}


@pytest.fixture
def tasks(monkeypatch):
    """The module of tasks, with a handful of random images in CIFAR-10's place."""
    known = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.chdir(FOLDER)
    module = importlib.import_module("tasks")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 32, 32), generator=generator).to(torch.uint8)
    splits = [(images[part], torch.arange(40)[part] % 10) for part in (slice(12), slice(12, 32), slice(32, 40))]
    monkeypatch.setattr(module.hs, "load_task", lambda name: hs.Task(data=splits, name=name, classes=10))
    yield module
    for name in ("tasks", "dry_run"):
        if name not in known:
            sys.modules.pop(name, None)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder as ImageNet's, of two classes and odd sizes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40 + number, 61, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
            (folder / "list.txt").touch()
    monkeypatch.setenv("HOMEOSTAT_IMAGENET", str(tmp_path))
    return tmp_path


def study(name):
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_every_line_of_both_tables_has_a_file(tasks):
    assert len(CIFAR) == 7
    assert len(IMAGENET) == 3
    named = [study(name)["task"] for name in (*CIFAR, *IMAGENET)]
    assert len(set(named)) == len(named)
    assert all(callable(getattr(tasks, task.removeprefix("tasks:"))) for task in named)


@pytest.mark.parametrize("name", CIFAR)
def test_a_file_of_cifar_is_trained(tasks, name):
    asked = study(name)
    task = getattr(tasks, asked["task"].partition(":")[2])()
    recipe = hs.Recipe(**asked["recipe"])
    assert [len(split) for split in task.data] == [30, 2, 8]
    assert (recipe.batch_size, recipe.schedule, recipe.gamma) == (128, "exponential", 0.95)
    assert recipe.lr == (0.1 if name in ("cifar-inception.toml", "cifar-inception-crop.toml") else 0.01)
    switched = {factor: levels[-1] for factor, levels in asked["factors"].items()}
    assert switched == {"l2": 5e-4}
    rates = []
    fitted = hs.fit(
        task, recipe.varied({**switched, "batch_size": 10, "epochs": 2}), 0,
        on_step=lambda step, seen: rates.append(seen["learning_rate"]),
    )  # fmt: skip
    assert fitted.metrics["epochs_run"] == 2
    assert rates == pytest.approx([recipe.lr] * 3 + [0.95 * recipe.lr] * 3)
    assert fitted.model.random == ("crop" in name)


@pytest.mark.parametrize("name", ["cifar-mlp-1x512.toml", *IMAGENET])
def test_the_command_line_takes_a_file(tasks, pictures, monkeypatch, name):
    monkeypatch.setattr(entangled_imagenet, "PUBLISHED", TINY)
    monkeypatch.setattr(tasks, "SIDES", dict.fromkeys(tasks.SIDES, 16))
    done = CliRunner().invoke(app, ["study", "--config", name, "--plan"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    treatments = 2 if name.startswith("cifar") else 8
    assert f"{treatments} treatments" in done.output.replace("\n", " ")
    assert "Nothing was run" in done.output


def test_a_file_ends_in_a_report(tasks, tmp_path):
    short = ["--epochs", "1", "--seeds", "2", "--set", "batch_size=10", "--workers", "0", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["study", "--config", "cifar-mlp-1x512.toml", *short], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").exists()


def test_pictures_are_the_center_of_their_files(tasks, pictures, monkeypatch):
    monkeypatch.setitem(tasks.SIDES, "vgg19", 32)
    task = tasks.vgg19()
    assert (len(task.train), len(task.valid), len(task.test)) == (16, 2, 4)
    assert task.input_shape == (3, 32, 32)
    assert task.outputs == 2
    image, label = tasks.Pictures([(pictures / "train" / "dog" / "0.JPEG", 1)], 32)[0]
    assert (image.dtype, image.shape, label) == (torch.uint8, (3, 32, 32), 1)
    Image.fromarray(np.full((50, 90, 3), (200, 100, 50), np.uint8)).save(pictures / "even.png")
    even, _ = tasks.Pictures([(pictures / "even.png", 0)], 8)[0]
    assert torch.equal(even, torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 8, 8))
    prepared = task.prepare(even[None])[0, :, 0, 0]
    torch.testing.assert_close(prepared, torch.tensor([1.3070, -0.2850, -0.9336]), atol=1e-3, rtol=0)


def test_a_missing_folder_is_said(tasks, monkeypatch):
    monkeypatch.delenv("HOMEOSTAT_IMAGENET", raising=False)
    with pytest.raises(HomeostatError, match="HOMEOSTAT_IMAGENET must name the folder"):
        tasks.vgg19()


@pytest.mark.parametrize("name", IMAGENET)
def test_the_dry_run_takes_a_step_with_every_switch_on(tasks, monkeypatch, name):
    dry_run = importlib.import_module("dry_run")
    recipe = dry_run.everything_on(FOLDER / name)
    assert recipe.augment == "resized_crop+color_jitter+flip"
    assert recipe.dropout > 0
    assert recipe.l2 > 0
    monkeypatch.setattr(entangled_imagenet, "PUBLISHED", TINY)
    found = dry_run.step(FOLDER / name, side=32)
    assert np.isfinite(found["loss"])
    assert found["update_ratio"] > 0
    assert found["memory"] > 1e7


def test_the_dry_run_of_a_published_network(tasks):
    """Inception v3, the smallest of the three, at the least size that it takes."""
    dry_run = importlib.import_module("dry_run")
    found = dry_run.step(FOLDER / "imagenet-inception-v3.toml", side=75)
    assert found["parameters"] == 23_834_568
    assert np.isfinite(found["loss"])
    assert found["update_ratio"] > 0
