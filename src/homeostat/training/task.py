"""A task: the data, how they are standardized, what is minimized and what is measured.

Everything is checked when a task is made, before any training. Nothing here is random but for splits that were not
given, which are drawn from the task's seed. Loading named tasks and files is `datasets`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from homeostat.errors import HomeostatError, invalid, invalid_type, unknown
from homeostat.training.given import all_splits, check_splits, class_count
from homeostat.training.metrics import LOSSES, METRICS, Goal
from homeostat.training.sources import Batch, Source
from homeostat.training.standardize import Standardization, measured

Kind = Literal["image", "vector", "other"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Task:
    """What a network is to learn: three splits of data, a loss and a metric, and perhaps a model.

    Args:
        data: (train, valid, test), each a pair (x, y) of tensors or arrays, a map-style Dataset, or a DataLoader.
            Images are (N, C, H, W), best uint8. `valid` or `test` may be None: a fifth of the training data is then
            split off for it, stratified by class, by `seed`. See `given.as_source` for what of a DataLoader is used.
        model: a function that builds a fresh nn.Module; None: a built-in model, chosen by the recipe.
        loss: "cross_entropy", "mse", "mae", "bce_with_logits", or a function (outputs, targets) -> scalar.
        metric: "accuracy", "rmse", "mae", "r2", or a function (outputs, targets) -> number, called once with a whole
            split; None: the one that goes with the loss.
        goal: "maximize" or "minimize" the metric; known for named metrics, needed for a function.
        name: how the task is called in reports.
        classes: the classes' names, or their number; None: counted in the training targets.
        standardize: True: inputs get mean 0 and deviation 1 by constants of the training split alone, per channel for
            images, per column for vectors; False: they are only made float32; a Standardization: these constants.
            None: True for uint8 inputs, and for all inputs where `model` is None; False for streams.
        target_unit: (mean, deviation) with which regression targets were standardized before; metrics are then reported
            in the original unit (losses are not).
        default_model: the built-in model for a recipe that names none; None: "cnn" for images, "mlp" for vectors.
        seed: the data seed, for splits that are not given.
        description: what is known about the data's origin, JSON-able; sizes, shapes, classes and goal are added.
    Raises: InvalidValue or InvalidType, naming the split and the cure, for data that cannot be learned from.
    Example:
        >>> x, y = torch.arange(40.0).reshape(20, 2), torch.arange(20) % 2
        >>> task = Task(data=((x, y), None, None), name="parity")
        >>> len(task.train), len(task.valid), len(task.test), task.input_shape, task.outputs, task.metric_name
        (12, 4, 4, (2,), 2, 'accuracy')
    """

    data: Sequence[Any]
    model: Callable[[], nn.Module] | None = None
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy"
    metric: str | Callable[[Tensor, Tensor], float | Tensor] | None = None
    goal: Goal | None = None
    name: str = "task"
    classes: int | Sequence[str] | None = None
    standardize: bool | Standardization | None = None
    target_unit: tuple[float, float] | None = None
    default_model: str | None = None
    seed: int = 0
    description: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_model(self.model)
        metric, goal = _measure(self.loss, self.metric, self.goal)
        given, split = all_splits(self.data, self.loss, self.seed)
        check_splits(given, self.loss, self.classes)
        settle = object.__setattr__  # the dataclass is frozen for everybody else
        settle(self, "data", given)
        settle(self, "metric", metric)
        settle(self, "goal", goal)
        kind = _kind(given[0], self.model is not None)
        settle(self, "kind", kind)
        settle(self, "default_model", self.default_model or ("cnn" if kind == "image" else "mlp"))
        settle(self, "description", {**self._facts(), **({"split": split} if split else {}), **self.description})

    kind: Kind = field(init=False)

    @property
    def train(self) -> Source:
        """The training split."""
        return self.data[0]

    @property
    def valid(self) -> Source:
        """The validation split: what decisions during training and the choice of a recipe may look at."""
        return self.data[1]

    @property
    def test(self) -> Source:
        """The test split: touched once, after training."""
        return self.data[2]

    @property
    def loss_name(self) -> str:
        """The loss's name; of a function, its own name."""
        return _name_of(self.loss, "loss")

    @property
    def metric_name(self) -> str:
        """The metric's name; of a function, its own name."""
        return _name_of(self.metric, "metric")

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input: (C, H, W) of images, (F,) of vectors."""
        return tuple(self.train.head(1)[0].shape[1:])

    @cached_property
    def outputs(self) -> int:
        """How many numbers a built-in model puts out: one per class, or one per number to be predicted."""
        if self.classes is not None:
            return class_count(self.classes)
        first = self.train.head(1)[1]
        if self.loss == "cross_entropy" or (not isinstance(self.loss, str) and not first.is_floating_point()):
            targets = self.train.targets()
            if targets is None:
                raise HomeostatError("Task: the number of classes of a stream is unknown; pass Task(classes=...).")
            return int(targets.max()) + 1
        return 1 if first.ndim == 1 else int(first.shape[1:].numel())

    @cached_property
    def standardization(self) -> Standardization | None:
        """The constants of `prepare`, from the training split alone; None where inputs are only made float32."""
        if isinstance(self.standardize, Standardization):
            return self.standardize
        wanted = self.standardize
        if wanted is None:
            uint8 = self.train.head(1)[0].dtype == torch.uint8
            wanted = self.kind != "other" and not self.train.fixed_batches and (uint8 or self.model is None)
        return measured(self.train, self.kind) if wanted else None

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 hex digest of the data, the targets and the settings.

        Tensors are hashed whole; of a Dataset, the length and up to eight items; of a stream, the first batch; of
        functions and classes their names (see `Objective.base` for their source).
        """
        constants = self.standardize if isinstance(self.standardize, Standardization) else None
        settings = {
            "version": 1,
            "model": _qualified(self.model),
            "loss": _qualified(self.loss),
            "metric": _qualified(self.metric),
            "goal": self.goal,
            "kind": self.kind,
            "classes": list(self.classes) if isinstance(self.classes, Sequence) else self.classes,
            "standardize": constants.to_dict() if constants else self.standardization is not None,
            "target_unit": self.target_unit,
            "default_model": self.default_model,
            "data": [split.digest() for split in self.data],
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def prepare(self, x: Tensor) -> Tensor:
        """A raw batch as the network wants it: float32, standardized, images channels_last, on the device it is on.

        Integers that are neither pictures nor columns of a built-in model, such as token numbers, pass unchanged.
        """
        if self.kind == "other" and not x.is_floating_point() and x.dtype != torch.uint8:
            return x
        if self.standardization is not None:
            return self.standardization.apply(x)
        prepared = x.to(torch.float32)
        if x.ndim == 4:
            prepared = prepared.contiguous(memory_format=torch.channels_last)
        # a model that writes in place must not reach the stored data through a view of them
        return prepared.clone() if prepared is x and x._is_view() else prepared

    def prepared_values(self, channels: int, device: torch.device) -> Tensor:
        """What `prepare` makes of the values 0..255 of uint8 images, channel by channel: float32 (channels, 256)."""
        pixels = torch.arange(256, dtype=torch.uint8, device=device).view(256, 1, 1, 1)
        return self.prepare(pixels.expand(-1, channels, 1, 1))[:, :, 0, 0].T.contiguous()

    def sample(self, count: int) -> Batch:
        """A prepared batch of the first training examples, at most `count` of them."""
        x, y = self.train.head(count)
        return self.prepare(x), y

    def build_model(self) -> nn.Module:
        """A fresh module from the user's builder."""
        if self.model is None:
            raise HomeostatError(f"Task {self.name!r}: it has no model of its own; the recipe chooses a built-in one.")
        built = self.model()
        if not isinstance(built, nn.Module):
            raise invalid_type("Task", "model", "return an nn.Module", built)
        previous = self.__dict__.get("_built")
        if previous is not None and previous() is built:
            cure = "Every fit needs fresh weights: make the module inside the function."
            raise invalid("Task", "model", "build a new module at every call", "the same module twice", cure)
        self.__dict__["_built"] = weakref.ref(built)
        return built

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_built"}

    def loss_function(self, label_smoothing: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss as a function (outputs, targets) -> scalar, the mean over the batch.

        Raises: InvalidValue if `label_smoothing` is asked of a loss other than cross_entropy.
        """
        named = LOSSES[self.loss] if isinstance(self.loss, str) else None
        if label_smoothing and (named is None or not named.smooths):
            cure = f"This task's loss is {self.loss_name}: only cross_entropy can smooth its labels."
            raise invalid("Task", "label_smoothing", "be 0", label_smoothing, cure)
        if named is None:
            return self.loss  # type: ignore[return-value]
        compute = named.compute
        return lambda outputs, targets: compute(outputs, targets, label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric over a whole split, in the target's original unit."""
        if self.target_unit is not None:
            mean, deviation = self.target_unit
            outputs, targets = outputs.double() * deviation + mean, targets.double() * deviation + mean
        compute = METRICS[self.metric].compute if isinstance(self.metric, str) else self.metric
        value = compute(outputs, targets)  # type: ignore[misc]
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise invalid_type("Task", "metric", "return one number", value, "Average over the examples.") from None

    def __repr__(self) -> str:
        sizes = " / ".join(str(size) for size in self.description["sizes"].values())
        return f"Task({self.name!r}, {sizes} examples, inputs {self.input_shape}, {self.loss_name}, {self.metric_name})"

    def loaded_as(self, name: str, seed: int) -> Task:
        """The same task under another name and data seed, without checking the data again."""
        other = copy.copy(self)
        object.__setattr__(other, "name", name)
        object.__setattr__(other, "seed", seed)
        object.__setattr__(other, "description", {**self.description, "name": name})
        return other

    def _facts(self) -> dict[str, Any]:
        sizes: dict[str, int | None] = {}
        for name, split in zip(("train", "valid", "test"), self.data, strict=True):
            try:
                sizes[name] = len(split)
            except TypeError:
                sizes[name] = None
        named = list(self.classes) if isinstance(self.classes, Sequence) else None
        return {
            "name": self.name,
            "kind": self.kind,
            "sizes": sizes,
            "input_shape": list(self.input_shape),
            "loss": self.loss_name,
            "metric": self.metric_name,
            "goal": self.goal,
            **({"classes": named} if named else {}),
            **({"target_unit": list(self.target_unit)} if self.target_unit else {}),
        }


def _check_model(model: object) -> None:
    if isinstance(model, nn.Module):
        cure = "Every fit needs fresh weights: pass a function that builds the module, such as lambda: Net()."
        raise invalid_type("Task", "model", "be a function that builds an nn.Module", type(model).__name__, cure)
    if model is not None and not callable(model):
        raise invalid_type("Task", "model", "be a function that builds an nn.Module", model)


def _measure(loss: Any, metric: Any, goal: Any) -> tuple[Any, Goal]:
    """The metric and its goal, settled; names are known and fit together."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise unknown("Task", "loss", loss, LOSSES)
    elif not callable(loss):
        raise invalid_type("Task", "loss", "be a name or a function (outputs, targets) -> scalar", loss)
    if metric is None:
        if not isinstance(loss, str):
            raise invalid(
                "Task", "metric", "be given with a loss function of your own", None, f"Known: {_list(METRICS)}."
            )
        metric = LOSSES[loss].metric
    if goal not in (None, "maximize", "minimize"):
        raise invalid("Task", "goal", 'be "maximize" or "minimize"', goal)
    if isinstance(metric, str):
        if metric not in METRICS:
            raise unknown("Task", "metric", metric, METRICS)
        known = METRICS[metric]
        if isinstance(loss, str) and loss not in known.losses:
            fitting = _list(name for name, other in METRICS.items() if loss in other.losses)
            raise invalid("Task", "metric", f"suit the loss {loss!r}", metric, f"Suitable: {fitting}.")
        if goal not in (None, known.goal):
            raise invalid("Task", "goal", f"be {known.goal!r} for the metric {metric!r}", goal)
        return metric, known.goal
    if not callable(metric):
        raise invalid_type("Task", "metric", "be a name or a function (outputs, targets) -> number", metric)
    if goal is None:
        cure = 'Whether a larger value is better cannot be guessed: pass goal="maximize" or goal="minimize".'
        raise invalid("Task", "goal", "be given with a metric of your own", None, cure)
    return metric, goal


def _kind(train: Source, own_model: bool) -> Kind:
    x, _ = train.head(1)
    numbers = x.is_floating_point() or x.dtype == torch.uint8 or not own_model
    if x.ndim == 4 and numbers:
        return "image"
    if x.ndim == 2 and numbers:
        return "vector"
    if not own_model:
        cure = "Pass images (N, C, H, W) or vectors (N, F), or a model of your own."
        raise invalid("Task", "inputs", "be images or vectors for a built-in model", x, cure)
    return "other"


def _name_of(thing: Any, fallback: str) -> str:
    name = thing if isinstance(thing, str) else getattr(thing, "__name__", type(thing).__name__)
    return name if name.isidentifier() else fallback


def _qualified(thing: Any) -> str | None:
    """A name that is the same in every process: module and qualified name, never a memory address."""
    if thing is None or isinstance(thing, str):
        return thing
    owner = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{owner.__module__}.{owner.__qualname__}"


def _list(names: Any) -> str:
    return ", ".join(names)
