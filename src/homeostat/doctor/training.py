"""A training as its user holds it: model, loss, optimizer, data. It is only held here, copied, and called on batches.

What is done with it is elsewhere: `examine`, `repair`, and `course`, which trains a copy. Not random.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import data as torch_data

from homeostat.doctor.budget import Deadline
from homeostat.doctor.copying import Memo, copy_model, copy_optimizer, rebound
from homeostat.doctor.examples import Examples, Nest, examples_of
from homeostat.errors import invalid, invalid_type, unknown
from homeostat.parts.layers import call, tensors_in
from homeostat.parts.modes import device_of

TASKS = ("multiclass", "binary", "multilabel", "regression", "other")
Clip: TypeAlias = float | tuple[Literal["norm", "value"], float]


class Training:
    """What a user already has, in one object; nothing is copied or changed by making it.

    Args:
        model: a torch.nn.Module that copy.deepcopy can copy, with the weights that training starts from.
        loss_fn: (output, target) -> scalar tensor; further arguments are bound with functools.partial.
        optimizer: holds the model's parameters.
        train: (inputs, targets) as tensors with the examples first (inputs may be a tuple or a dict of tensors, passed
            to the model as arguments or keywords), a map-style Dataset, or a DataLoader.
        valid: the same for validation; None judges by the training data, and overfitting is not seen.
        batch_size: examples per step; None takes a DataLoader's.
        epochs: passes over the training data that the user means to make.
        task: multiclass, binary, multilabel or regression; other where outputs cannot be held against targets (rates
            as logarithms, embeddings), which is judged by the loss; None finds out from outputs, targets and loss.
        augment: inputs -> inputs, applied to every training batch; None where the data do it themselves.
        clip: the bound on the gradient's norm, or ("value", bound); None does not clip.
        output: which part of what the model returns the loss takes: a key, an index, or a function; None takes a
            tensor, or what is named logits.
        unpack: makes (inputs, targets) of a batch of a DataLoader or an item of a Dataset that is not such a pair.
        shuffle: False if the training data are taken in their order; None: True, or as the DataLoader does.
    Raises: InvalidType and InvalidValue for what cannot be used, with what to pass instead.
    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> data = torch.zeros(8, 2), torch.zeros(8, 1)
        >>> training = Training(
        ...     model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1), data, data, batch_size=4, epochs=2
        ... )
        >>> training.copy().model is model
        False
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        train: Any,
        valid: Any,
        *,
        batch_size: int | None = None,
        epochs: int,
        task: str | None = None,
        augment: Callable[[Any], Any] | None = None,
        clip: Clip | None = None,
        output: str | int | Callable[[Any], Tensor] | None = None,
        unpack: Callable[[Any], Any] | None = None,
        shuffle: bool | None = None,
    ) -> None:
        _check(model, loss_fn, optimizer, augment, unpack, task)
        self.model = model
        self.loss_fn = loss_fn
        self.optimizer = optimizer
        self.train = train
        self.valid = valid
        self.batch_size = _count("batch_size", _batch_size(train) if batch_size is None else batch_size)
        self.epochs = _count("epochs", epochs)
        self.task = task
        self.augment = augment
        self.clip = _clip(clip)
        self.output = output
        self.unpack = unpack
        self.shuffle = _shuffles(train) if shuffle is None else bool(shuffle)
        self._read: dict[str, Examples] = {}

    def copy(self) -> Training:
        """New objects that training may change: model, optimizer, loss, augmentation, output; the data are shared.

        Whatever leads from those functions to the model is made anew with them.

        Raises: HomeostatError for a model or optimizer, or what refers to them, that cannot be copied.
        """
        memo: Memo = {}
        new = copy.copy(self)
        new.model = copy_model(self.model, memo)
        new.optimizer = copy_optimizer(self.optimizer, memo)
        new.loss_fn, new.augment, new.output = rebound((self.loss_fn, self.augment, self.output), memo)
        for parameter in new.model.parameters():
            parameter.grad = None
        return new

    def examples(self, split: Literal["train", "valid"], deadline: Deadline | None = None) -> Examples:
        """The examples of a split on the model's device, read once; a bounded sample of what is large."""
        if split == "valid" and self.valid is None:
            split = "train"
        source = getattr(self, split)
        known = self._read.get(split)
        if known is None:
            known = examples_of(source, self.unpack, split, deadline or Deadline()).to(device_of(self.model))
            self._read = {**self._read, split: known}
        return known

    def with_data(self, split: Literal["train", "valid"], source: Any) -> None:
        """Put other data in the place of a split; those read before are forgotten."""
        setattr(self, split, source)
        self._read = {name: known for name, known in self._read.items() if name != split}

    def predict(self, inputs: Nest) -> Tensor:
        """The model's output for a batch, in the model's present mode: what the loss takes."""
        return self._picked(call(self.model, inputs))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a tensor of one number.

        Raises: InvalidValue if the user's function returns something else.
        """
        loss = self.loss_fn(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            cure = "Reduce it: loss.mean(). Bind further arguments with functools.partial."
            raise invalid("Training", "loss_fn", "return a tensor with one number", loss, cure)
        return loss.reshape(())

    def steps_per_epoch(self, count: int) -> int:
        """Optimizer steps in one pass over `count` examples."""
        return max(1, math.ceil(count / self.batch_size))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training; of a stream of unknown length, those of what was read of it."""
        examples = self.examples("train")
        return self.epochs * self.steps_per_epoch(examples.total or len(examples))

    def _picked(self, returned: Any) -> Tensor:
        if callable(self.output):
            returned = self.output(returned)
        elif self.output is not None:
            returned = returned[self.output]
        elif isinstance(returned, Mapping) and isinstance(returned.get("logits"), Tensor):
            returned = returned["logits"]
        if isinstance(returned, Tensor):
            return returned
        shown = sorted(map(str, returned)) if isinstance(returned, Mapping) else type(returned).__name__
        cure = f"Pass output=, a key, an index or a function; it returned {len(tensors_in(returned))} tensors."
        raise invalid_type("Training", "the model's output", "be a tensor", shown, cure)


def _check(model: Any, loss_fn: Any, optimizer: Any, augment: Any, unpack: Any, task: Any) -> None:
    if not isinstance(model, nn.Module):
        raise invalid_type("Training", "model", "be a torch.nn.Module", model)
    if not callable(loss_fn):
        cure = "Pass a function (output, target) -> scalar, such as torch.nn.functional.cross_entropy."
        raise invalid_type("Training", "loss_fn", "be callable", loss_fn, cure)
    if not isinstance(optimizer, Optimizer):
        cure = "Make it first: torch.optim.Adam(model.parameters())."
        raise invalid_type("Training", "optimizer", "be a torch.optim.Optimizer", optimizer, cure)
    for name, function in (("augment", augment), ("unpack", unpack)):
        if function is not None and not callable(function):
            raise invalid_type("Training", name, "be a function or None", function)
    if task is not None and task not in TASKS:
        raise unknown("Training", "task", task, TASKS)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        cure = "A DataLoader with its own batch sampler has none: pass it." if value is None else ""
        raise invalid("Training", name, "be a whole number of at least 1", value, cure)
    return value


def _batch_size(train: Any) -> Any:
    return train.batch_size if isinstance(train, torch_data.DataLoader) else None


def _clip(clip: Any) -> tuple[str, float] | None:
    if clip is None:
        return None
    kind, bound = clip if isinstance(clip, tuple) and len(clip) == 2 else ("norm", clip)
    if kind not in ("norm", "value") or not isinstance(bound, int | float) or not 0 < bound < math.inf:
        raise invalid("Training", "clip", 'be a positive norm, or ("value", bound)', clip)
    return kind, float(bound)


def _shuffles(train: Any) -> bool:
    """Whether a loader shuffles; data that are no loader are taken in a new order each epoch."""
    if not isinstance(train, torch_data.DataLoader) or isinstance(train.dataset, torch_data.IterableDataset):
        return True
    sampler = train.sampler if train.batch_sampler is None else getattr(train.batch_sampler, "sampler", train.sampler)
    return not isinstance(sampler, torch_data.SequentialSampler)
