"""Bagging: one recipe, trained on bootstrap samples of the training split, averaged.

Every member has its own weights, order and masks, by a seed of its own. What members are in common: the model, the
standardization (by the whole training split), the validation and the test split. Random only through the seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat import seeds
from homeostat.errors import HomeostatError, invalid
from homeostat.parts.ensemble import Ensemble, bootstrap
from homeostat.parts.prediction import Prediction, mean_outputs, summarize
from homeostat.training.loop import Fit, fit
from homeostat.training.recipe import Recipe
from homeostat.training.sources import DatasetSource, Source, TensorSource
from homeostat.training.task import Task

_KINDS = {"cross_entropy": "classification", "bce_with_logits": "binary"}
_BATCH = 256


@dataclass(frozen=True, eq=False, repr=False)
class Bag:
    """One recipe, fitted to m bootstrap samples.

    Attributes:
        task: what was learned, with its whole training split.
        members: the fits, in order; a member's training metrics are over its own sample.
        drawn: for each member the indices of its examples in the training split, int64.
        metrics: of the averaged prediction: test_, valid_ and oob_ loss and metric; members_test_ and members_valid_,
            the mean over single members; oob_share, the share of training examples with an out-of-bag prediction;
            diverged, the share of members that diverged, whose predictions make the average NaN.
    """

    task: Task
    members: list[Fit]
    drawn: list[Tensor]
    metrics: dict[str, float]

    @property
    def ensemble(self) -> Ensemble:
        """The members as one module on prepared inputs: mean probabilities of classes, else mean outputs."""
        average = "probabilities" if self.task.loss in _KINDS else "outputs"
        return Ensemble((member.model for member in self.members), average).eval()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """Mean and uncertainty over the members, for a batch as raw as the task's data, in the unit of its targets."""
        return summarize(_outputs(self.task, self.members, x), _kind(self.task))

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.metrics.items() if name.startswith(("test_", "oob_"))}
        return f"Bag({len(self.members)} members, {', '.join(f'{name}={value:.4g}' for name, value in shown.items())})"


def bag(
    task: Task,
    recipe: Recipe | None = None,
    m: int = 10,
    seed: int = 0,
    *,
    device: str | torch.device = "auto",
    progress: Callable[[int, Fit], None] | None = None,
) -> Bag:
    """Train m members, each on a bootstrap sample of the training split, and measure their average.

    Class probabilities are averaged (softmax for cross_entropy, sigmoid for bce_with_logits), other outputs as they
    are: F(x) = (1/m) Σ_k f_k(x). The out-of-bag prediction of a training example averages the members that were not
    trained on it, an estimate of the test error that needs no other data (with early stopping, a member has seen the
    validation split in the choice of its epoch). With m = 10 some 1 % of the examples have none.

    Args:
        task: its training split must be tensors or a map-style Dataset.
        recipe: how every member is trained.
        m: how many members; at least 2.
        seed: member k draws its sample, weights, order and masks by (seed, k).
        device: as in `fit`.
        progress: called after every member with its number and its Fit.
    Returns: the Bag.
    Raises: InvalidValue for m < 2, a stream, or a builder that returns one module again and again.
    Source: Breiman 1996, doi:10.1007/BF00058655; Breiman 1996, "Out-of-bag estimation", Berkeley technical report.
    """
    if isinstance(m, bool) or not isinstance(m, int) or m < 2:
        raise invalid("bag", "m", "be an integer of at least 2", m, "For one member use fit.")
    train = _drawable(task.train)
    members: list[Fit] = []
    drawn: list[Tensor] = []
    left: list[Tensor] = []
    for number in range(m):
        own = seeds.derive(seed, "bag", number)
        indices, out_of_bag = bootstrap(len(train), own)
        member = fit(_trained_on(task, train.select(indices)), recipe, own, device=device)
        if any(member.model is other.model for other in members):
            cure = "Every member needs fresh weights: make the module inside the function."
            raise invalid("bag", "the task's model", "build a new module at every call", "the same module twice", cure)
        members.append(member)
        drawn.append(indices)
        left.append(out_of_bag)
        if progress is not None:
            progress(number, member)
    return Bag(task, members, drawn, _measured(task, train, members, left))


def _drawable(train: Source) -> TensorSource | DatasetSource:
    fixed = isinstance(train, DatasetSource) and train.own_order
    if fixed or not isinstance(train, TensorSource | DatasetSource):
        cure = "A stream, or a sampler of your own, cannot be drawn from with replacement: pass tensors or a Dataset."
        raise invalid("bag", "the task's training split", "have examples that can be chosen by index", train, cure)
    return train


def _trained_on(task: Task, train: Source) -> Task:
    """The same task with other training data, and with classes and standardization of the whole training split."""
    counted = task.loss == "cross_entropy" or not (
        isinstance(task.loss, str) or task.train.head(1)[1].is_floating_point()
    )
    return dataclasses.replace(
        task,
        data=(train, task.valid, task.test),
        classes=task.outputs if task.classes is None and counted else task.classes,
        standardize=task.standardization or False,
    )


@torch.no_grad()
def _measured(task: Task, train: Any, members: list[Fit], left: list[Tensor]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for split, source in (("test", task.test), ("valid", task.valid)):
        outputs, targets = [], []
        with seeds.isolated(0, "bag", split):
            for x, y in source.batches(0, 0, _BATCH):
                outputs.append(mean_outputs(_outputs(task, members, x), _kind(task)))
                targets.append(y.to(outputs[-1].device))
        metrics |= _judged(task, split, torch.cat(outputs), torch.cat(targets))
        for name in (f"{split}_{task.metric_name}", f"{split}_loss"):
            metrics[f"members_{name}"] = sum(member.metrics[name] for member in members) / len(members)
    metrics |= _out_of_bag(task, train, members, left)
    metrics["diverged"] = sum(member.metrics["diverged"] for member in members) / len(members)
    return metrics


def _out_of_bag(task: Task, train: Any, members: list[Fit], left: list[Tensor]) -> dict[str, float]:
    """Loss and metric over the training examples that some member was not trained on."""
    absent = torch.zeros(len(members), len(train), dtype=torch.bool)
    for number, indices in enumerate(left):
        absent[number, indices] = True
    found = absent.any(0).nonzero().squeeze(1)
    share = {"oob_share": len(found) / len(train)}
    if not len(found):
        return {f"oob_{task.metric_name}": math.nan, "oob_loss": math.nan, **share}
    outputs, targets = [], []
    for number, indices in enumerate(found.split(_BATCH)):
        with seeds.isolated(0, "bag", "oob", number):
            x, y = train.batch(indices)
        every = _outputs(task, members, x)
        who = absent[:, indices].to(every.device)
        outputs += [mean_outputs(every[who[:, i], i : i + 1], _kind(task)) for i in range(len(indices))]
        targets.append(y.to(every.device))
    return {**_judged(task, "oob", torch.cat(outputs), torch.cat(targets)), **share}


def _outputs(task: Task, members: list[Fit], x: Tensor) -> Tensor:
    """The members' outputs for a raw batch, float32, (M, N, ...); a model may write into its input."""
    found = []
    for member in members:
        member.model.eval()
        found.append(member.model(task.prepare(x.to(_device(member))).clone()).float())
    return torch.stack(found)


def _judged(task: Task, split: str, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    loss = float(task.loss_function()(outputs, targets))
    return {f"{split}_{task.metric_name}": task.measure(outputs, targets), f"{split}_loss": loss}


def _device(member: Fit) -> torch.device:
    parameter = next(member.model.parameters(), None)
    if parameter is None:
        raise HomeostatError("bag: a member has no parameters.")
    return parameter.device


def _kind(task: Task) -> str:
    return _KINDS.get(task.loss, "regression") if isinstance(task.loss, str) else "regression"
