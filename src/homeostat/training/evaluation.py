"""Measuring a model on a split: as it is, adapted to the split's own inputs, or averaged over dropout's masks.

Random, where it is, through streams of the seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import seeds
from homeostat.errors import NoEffectWarning, invalid
from homeostat.parts.adapt import BatchNormAdaptation, Tent, batch_norms
from homeostat.parts.ensemble import mc_dropout
from homeostat.parts.prediction import mean_outputs
from homeostat.training.recipe import Recipe
from homeostat.training.sources import DatasetSource, Source, TensorSource
from homeostat.training.tally import Tally
from homeostat.training.task import Task

_BATCH = 128  # examples; large enough to amortize a forward pass, small enough to stay in the caches
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Predict = Callable[[Tensor], Tensor]


class Evaluation:
    """Measures models on the splits of a task, under one recipe and seed.

    Raises: InvalidValue if the recipe adapts by the entropy of classes, and the task has none.
    """

    def __init__(self, task: Task, recipe: Recipe, seed: int, device: torch.device) -> None:
        if recipe.adapt == "tent" and task.loss != "cross_entropy":
            cure = f"This task's loss is {task.loss_name}, and Tent lowers the entropy of predicted classes. Use bn."
            raise invalid("Recipe", "adapt", "not be tent unless the loss is cross_entropy", recipe.adapt, cure)
        if recipe.adapt != "none" and any(_is_single(source) for source in (task.valid, task.test)):
            cure = "It looks at several examples at once, and one of these splits holds a single one."
            raise invalid("Recipe", "adapt", "be none for this validation and test split", recipe.adapt, cure)
        self.task = task
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.sources = {split: getattr(task, split).to(device) for split in ("train", "valid", "test")}

    def batches(self, split: str, epoch: int, size: Any, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """A split's batches on the device: shuffled in an epoch's order, or in the split's own."""
        return self._on_device(self.sources[split].batches(self.seed, epoch, size, shuffle=shuffle))

    def measure(self, network: Any, split: str) -> dict[str, float]:
        """Loss and metric of the network as it is, in evaluation mode and in the split's own order."""
        network.eval()
        with torch.no_grad():
            return self._measured(network, split)

    def measure_finally(self, model: nn.Module, split: str) -> dict[str, float]:
        """Loss and metric with what the recipe does at prediction time; the model stays as it is.

        Adapting looks at several examples at once, so the split is shuffled then: sorted by class, batches would
        mislead it. A batch of one joins another.
        """
        recipe = self.recipe
        model.eval()
        if recipe.adapt != "none" and split != "train":
            return self._measured_adapting(model, split)
        with torch.no_grad():
            if recipe.mc_samples and split != "train":
                return self._measured(self._averaged(model), split)
            return self._measured(model, split)

    def _measured_adapting(self, model: nn.Module, split: str) -> dict[str, float]:
        missing = lacks_adaptable(model, self.recipe.adapt)
        if missing:
            text = f"adapt={self.recipe.adapt!r} found {missing}: predictions are the model's own."
            warnings.warn(text, NoEffectWarning, stacklevel=4)
            with torch.no_grad():
                return self._measured(model, split)
        if self.recipe.adapt == "tent":
            with Tent(model) as adapted:
                return self._measured(adapted, split, adapting=True)
        with torch.no_grad():
            return self._measured(BatchNormAdaptation(model), split, adapting=True)

    @property
    def changes_predictions(self) -> bool:
        """Whether `measure_finally` differs from `measure`."""
        return self.recipe.adapt != "none" or self.recipe.mc_samples > 0

    def precision(self) -> AbstractContextManager[Any]:
        """The recipe's precision of a forward pass."""
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.recipe.precision])

    def _measured(self, predict: Predict, split: str, adapting: bool = False) -> dict[str, float]:
        criterion = self.task.loss_function()
        tally = Tally(self.task)
        batches = _in_company(self._shuffled(split)) if adapting else self.batches(split, 0, _BATCH, shuffle=False)
        with seeds.isolated(self.seed, "evaluate", split):
            for input, target in batches:
                with self.precision():
                    output = predict(self.task.prepare(input)).detach().float()
                tally.add(criterion(output, target), output, target)
        return tally.metrics(split)

    def _shuffled(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """A split's batches in a seeded order, each example once; in the split's own where that is the user's."""
        source = self.sources[split]
        if isinstance(source, TensorSource) or (isinstance(source, DatasetSource) and not source.own_order):
            generator = seeds.torch_generator(self.seed, "order", "evaluate", split)
            source = source.select(torch.randperm(len(source), generator=generator))
        return self._on_device(source.batches(self.seed, 0, _BATCH))

    def _on_device(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for input, target in batches:
            yield input.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)

    def _averaged(self, model: nn.Module) -> Predict:
        """Predictions averaged over masks; mean probabilities go back to logits, which loss and metric take."""
        kind = {"cross_entropy": "classification", "bce_with_logits": "binary"}.get(self.task.loss_name, "regression")
        predictor = mc_dropout(model, self.recipe.mc_samples, seed=self.seed, kind="regression")
        return lambda input: mean_outputs(predictor(input).samples, kind)


def lacks_adaptable(model: nn.Module, adapt: str) -> str:
    """What a model lacks for a way of adapting to act on; nothing where it lacks nothing."""
    layers = batch_norms(model)
    if not layers:
        return "no batch normalization"
    scaled = any(layer._parameters.get(name) is not None for layer in layers for name in ("weight", "bias"))
    return "" if adapt != "tent" or scaled else "no batch normalization with a scale or shift to learn"


def _in_company(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same examples in batches of at least two: a single one joins the batch behind it, the last the one before."""
    held: tuple[Tensor, Tensor] | None = None
    single: tuple[Tensor, Tensor] | None = None
    for batch in batches:
        joined = batch if single is None else _joined(single, batch)
        if len(joined[1]) == 1:
            single = joined
            continue
        if held is not None:
            yield held
        held, single = joined, None
    if single is not None:
        held = single if held is None else _joined(held, single)
    if held is not None:
        yield held


def _joined(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


def _is_single(source: Source) -> bool:
    try:
        return len(source) == 1
    except TypeError:  # a stream
        return False
