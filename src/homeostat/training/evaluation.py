"""Measuring a model on a split: as it is, adapted to the split's own inputs, or averaged over dropout's masks.

Random, where it is, through streams of the seed.
"""

from __future__ import annotations

import copy
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
        self.task = task
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.sources = {split: getattr(task, split).to(device) for split in ("train", "valid", "test")}

    def batches(self, split: str, epoch: int, size: Any, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """A split's batches on the device: shuffled in an epoch's order, or in the split's own."""
        for input, target in self.sources[split].batches(self.seed, epoch, size, shuffle=shuffle):
            yield input.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)

    def measure(self, network: Any, split: str) -> dict[str, float]:
        """Loss and metric of the network as it is, in evaluation mode and in the split's own order."""
        network.eval()
        with torch.no_grad():
            return self._measured(network, split, shuffle=False)

    def measure_finally(self, model: nn.Module, split: str) -> dict[str, float]:
        """Loss and metric with what the recipe does at prediction time; the model stays as it is.

        Adapting looks at several examples at once, so the split is shuffled then: sorted by class, batches would
        mislead it.
        """
        recipe = self.recipe
        model.eval()
        if recipe.adapt != "none" and split != "train":
            return self._measured_adapting(copy.deepcopy(model), split)
        with torch.no_grad():
            if recipe.mc_samples and split != "train":
                return self._measured(self._averaged(model), split, shuffle=False)
            return self._measured(model, split, shuffle=False)

    def _measured_adapting(self, model: nn.Module, split: str) -> dict[str, float]:
        if not batch_norms(model):
            text = f"adapt={self.recipe.adapt!r} found no batch normalization: predictions are the model's own."
            warnings.warn(text, NoEffectWarning, stacklevel=4)
            with torch.no_grad():
                return self._measured(model, split, shuffle=False)
        if self.recipe.adapt == "tent":
            return self._measured(Tent(model), split, shuffle=True)
        with torch.no_grad():
            return self._measured(BatchNormAdaptation(model), split, shuffle=True)

    @property
    def changes_predictions(self) -> bool:
        """Whether `measure_finally` differs from `measure`."""
        return self.recipe.adapt != "none" or self.recipe.mc_samples > 0

    def summarize(
        self, split: str, losses: list[Tensor], outputs: list[Tensor], targets: list[Tensor]
    ) -> dict[str, float]:
        """The mean loss and the metric, from the batches' summed losses, outputs and targets."""
        target = torch.cat(targets)
        loss = float(torch.stack(losses).sum()) / len(target)
        return {
            f"{split}_loss": loss,
            f"{split}_{self.task.metric_name}": self.task.measure(torch.cat(outputs), target),
        }

    def precision(self) -> AbstractContextManager[Any]:
        """The recipe's precision of a forward pass."""
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.recipe.precision])

    def _measured(self, predict: Predict, split: str, shuffle: bool) -> dict[str, float]:
        criterion = self.task.loss_function()
        losses, outputs, targets = [], [], []
        with seeds.isolated(self.seed, "evaluate", split):
            for input, target in self.batches(split, 0, _BATCH, shuffle):
                with self.precision():
                    output = predict(self.task.prepare(input))
                outputs.append(output.detach().float())
                losses.append(criterion(outputs[-1], target) * len(target))
                targets.append(target)
        return self.summarize(split, losses, outputs, targets)

    def _averaged(self, model: nn.Module) -> Predict:
        """Predictions averaged over masks; mean probabilities go back to logits, which loss and metric take."""
        kind = {"cross_entropy": "classification", "bce_with_logits": "binary"}.get(self.task.loss_name, "regression")
        predictor = mc_dropout(model, self.recipe.mc_samples, seed=self.seed, kind="regression")
        return lambda input: mean_outputs(predictor(input).samples, kind)
