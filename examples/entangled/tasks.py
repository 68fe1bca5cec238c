"""The tasks that the study files of this folder name: networks as they were published, on CIFAR-10 and on ImageNet.

ImageNet is looked for in the folder that the environment variable HOMEOSTAT_IMAGENET names: train/ and val/, in each a
folder per class, as its own tools unpack it. Pictures stay on disk; a batch of them is decoded by threads.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

import homeostat as hs
from homeostat.claims.themes import entangled, entangled_imagenet
from homeostat.errors import HomeostatError
from homeostat.training.standardize import Standardization

FOLDER = "HOMEOSTAT_IMAGENET"
SIDES = {"resnet200_v2": 224, "inception_v3": 299, "vgg19": 224}
NETWORKS = dict(zip(SIDES, entangled_imagenet.NETS, strict=True))
HELD_OUT = 50  # one of so many training pictures of a class is for validation
ZOOM = 256 / 224  # a picture's shorter side over that of the square cut out of it
COLORS = Standardization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # of ImageNet's training pictures
SUFFIXES = (".jpeg", ".jpg", ".png")


# -- CIFAR-10: 28x28 pixels of every image, at the center or at random, whitened image by image -----------------------


def inception() -> hs.Task:
    return _cifar(entangled.INCEPTION)


def inception_crop() -> hs.Task:
    return _cifar(entangled.INCEPTION, random=True)


def inception_without_bn() -> hs.Task:
    return _cifar(entangled.WITHOUT)


def alexnet() -> hs.Task:
    return _cifar(entangled.ALEXNET)


def alexnet_crop() -> hs.Task:
    return _cifar(entangled.ALEXNET, random=True)


def mlp_3x512() -> hs.Task:
    return _cifar(entangled.DEEP)


def mlp_1x512() -> hs.Task:
    return _cifar(entangled.FLAT)


def _cifar(net: str, *, random: bool = False) -> hs.Task:
    """With 49,000 images to train on: the paper had all 50,000, and nothing to choose by."""
    whole = hs.load_task("cifar10")
    (x, y), (other_x, other_y) = (split.head(len(split)) for split in (whole.train, whole.valid))
    few = len(other_y) // 10
    train = (torch.cat([x, other_x[few:]]), torch.cat([y, other_y[few:]]))
    data = (train, (other_x[:few], other_y[:few]), whole.test)
    joined = hs.Task(data=data, name="cifar10", classes=whole.classes)
    return entangled.cropped_task(joined, entangled.PUBLISHED[net], random)


# -- ImageNet ---------------------------------------------------------------------------------------------------------


def resnet200_v2() -> hs.Task:
    return _imagenet("resnet200_v2")


def inception_v3() -> hs.Task:
    return _imagenet("inception_v3")


def vgg19() -> hs.Task:
    return _imagenet("vgg19")


class Pictures(Dataset):
    """Picture files with their classes: (3, side, side) uint8, the center of the picture, and a number."""

    def __init__(self, files: list[tuple[Path, int]], side: int) -> None:
        self.files, self.side = files, side
        self.targets = [label for _, label in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as picture:
            picture.draft("RGB", (2 * self.side, 2 * self.side))  # a large JPEG is decoded at a fraction of its size
            enlarged = round(self.side * ZOOM)
            middle = (enlarged - self.side) // 2
            square = ImageOps.fit(picture.convert("RGB"), (enlarged, enlarged), Image.Resampling.BILINEAR)
        square = square.crop((middle, middle, middle + self.side, middle + self.side))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1), label

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            return list(threads.map(self.__getitem__, indices))


def _imagenet(name: str) -> hs.Task:
    root = Path(os.environ.get(FOLDER, ""))
    if not os.environ.get(FOLDER) or not (root / "train").is_dir() or not (root / "val").is_dir():
        raise HomeostatError(f"{FOLDER} must name the folder with ImageNet's train/ and val/, but is {str(root)!r}.")
    classes = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
    learned, held_out = [], []
    for label, known in enumerate(classes):
        files = [(path, label) for path in _files(root / "train" / known)]
        held_out += files[::HELD_OUT]
        learned += [file for place, file in enumerate(files) if place % HELD_OUT]
    judged = [(path, label) for label, known in enumerate(classes) for path in _files(root / "val" / known)]
    side = SIDES[name]
    return _task(name, side, tuple(Pictures(files, side) for files in (learned, held_out, judged)), len(classes))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def synthetic(name: str, *, side: int = 224, examples: int = 2, classes: int = 1000) -> hs.Task:
    """A task with random pictures and the network of that name: what a dry run steps on."""
    generator = torch.Generator().manual_seed(0)
    shape = (examples, 3, side, side)
    splits = [
        (torch.randint(256, shape, generator=generator).to(torch.uint8), torch.arange(examples) % classes)
        for _ in range(3)
    ]
    return _task(name, side, splits, classes)


def _task(name: str, side: int, data: object, classes: int) -> hs.Task:
    build = functools.partial(entangled_imagenet.PUBLISHED[NETWORKS[name]], (3, side, side), classes)
    return hs.Task(data=data, model=build, name=name, classes=classes, standardize=COLORS)
