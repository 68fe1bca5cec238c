"""From a raw batch to what the network trains on: prepared, augmented, mixed; and splits with corrupted images.

Random through the generator or seed that is passed.
"""

from __future__ import annotations

import copy
import weakref

import torch
from torch import Tensor

from homeostat import seeds
from homeostat.errors import invalid
from homeostat.parts.augment import make_augment
from homeostat.parts.corrupt import corrupt
from homeostat.parts.mixing import cutmix, mixup
from homeostat.training.recipe import Recipe
from homeostat.training.sources import TensorSource
from homeostat.training.task import Task

_CHUNK = 256  # images that are corrupted at a time
_KEPT = 1 << 28  # bytes of corrupted images that are kept per task: the next trial of a study may want them again
_corrupted: weakref.WeakKeyDictionary[Task, dict[str, Task]] = weakref.WeakKeyDictionary()


class Inputs:
    """What a recipe makes of a task's raw batches.

    Raises: InvalidValue if the recipe mixes what cannot be mixed.
    """

    def __init__(self, task: Task, recipe: Recipe, device: torch.device) -> None:
        if recipe.mix != "none" and callable(task.loss) and not task.train.head(1)[1].is_floating_point():
            cure = f"The loss {task.loss_name} is your own, and may not know what a mixture of two classes is."
            raise invalid("Recipe", "mix", "be none for class numbers and a loss of your own", recipe.mix, cure)
        if recipe.mix == "cutmix" and len(task.input_shape) != 3:
            cure = f"Inputs are {task.input_shape}; it cuts rectangles out of images. Use mixup."
            raise invalid("Recipe", "mix", "not be cutmix for data that are not images", recipe.mix, cure)
        self.task = task
        self.recipe = recipe
        self.augment = make_augment(recipe.augment) if recipe.augment != "none" else None
        self.device = device
        self.table: Tensor | None = None

    def for_training(
        self, input: Tensor, target: Tensor, generator: torch.Generator, mixing: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The batch prepared and augmented, uint8 images in one pass; mixed class numbers become (N, classes).

        Augmenting draws from `generator`, mixing from `mixing`, so that neither changes what the other does.
        """
        input = self._augmented(input, generator)
        if self.recipe.mix == "none":
            return input, target
        mix = mixup if self.recipe.mix == "mixup" else cutmix
        classes = self.task.outputs if self.task.loss == "cross_entropy" else None
        return mix(input, target, self.recipe.mix_alpha, num_classes=classes, generator=mixing)

    def _augmented(self, input: Tensor, generator: torch.Generator) -> Tensor:
        if self.augment is None:
            return self.task.prepare(input)
        if input.dtype != torch.uint8 or input.ndim != 4:
            return self.augment(self.task.prepare(input), generator)
        if self.table is None:
            self.table = self.task.prepared_values(input.shape[1], self.device)
        return self.augment(input, generator, self.table)


def corrupted(task: Task, corruption: str) -> Task:
    """The task with corrupted validation and test images, `corruption` as in the recipe: "fog:3" is fog of severity 3.

    What becomes of an image depends on the task's seed and the image's place in its split alone. The corruptions of a
    task that were used last are kept, since a worker's next trials may want them too.

    Raises: InvalidValue unless both splits are images held as a uint8 tensor.
    """
    if corruption == "none":
        return task
    check_corruption(task, corruption)
    kept = _corrupted.setdefault(task, {})
    if corruption in kept:
        kept[corruption] = kept.pop(corruption)  # the last one used is the last in line
        return kept[corruption]
    name, _, severity = corruption.partition(":")
    splits = [_corrupted_split(task, split, name, int(severity)) for split in ("valid", "test")]
    other = copy.copy(task)
    object.__setattr__(other, "data", (task.train, *splits))
    # from the training split, which stays: measured once, on the original
    other.__dict__["standardization"] = task.standardization
    other.__dict__.pop("fingerprint", None)
    kept[corruption] = other
    while len(kept) > 1 and sum(map(_bytes, kept.values())) > _KEPT:
        del kept[next(iter(kept))]
    return other


def check_corruption(task: Task, corruption: str) -> None:
    """Raise an error unless the task's validation and test images can be corrupted so; tries it on one image."""
    if corruption == "none":
        return
    for source in (task.valid, task.test):
        if not isinstance(source, TensorSource) or source.x.ndim != 4 or source.x.dtype != torch.uint8:
            cure = "Give the task's images as one uint8 tensor (N, C, H, W)."
            raise invalid("Recipe", "corruption", "be none unless the data are uint8 images", corruption, cure)
        name, _, severity = corruption.partition(":")
        corrupt(source.x[:1], name, int(severity))


def _corrupted_split(task: Task, split: str, name: str, severity: int) -> TensorSource:
    source = getattr(task, split)
    seed = seeds.derive(task.seed, "corrupt", split)
    pieces = [
        corrupt(images, name, severity, seed=seed, start=index * _CHUNK)
        for index, images in enumerate(source.x.split(_CHUNK))
    ]
    return TensorSource(torch.cat(pieces), source.y)


def _bytes(task: Task) -> int:
    return sum(source.x.nbytes for source in (task.valid, task.test) if isinstance(source, TensorSource))
