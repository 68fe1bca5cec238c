"""The training loop: one recipe, one task, one seed, from the first weights to the measured result.

Every random decision of an epoch is drawn from the stream of (seed, purpose, epoch), so that an epoch's outcome is a
function of the state before it: that makes a resumed fit equal to an undisturbed one, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from homeostat import seeds
from homeostat.errors import HomeostatError, NoEffectWarning, invalid
from homeostat.parts.augment import make_augment
from homeostat.parts.clip import clip_grad_norm_, clip_grad_value_
from homeostat.parts.penalty import add_penalty_gradients_, decay_weights_, split_parameters
from homeostat.parts.stopping import EarlyStopping
from homeostat.training.checkpoint import Checkpoints
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.schedule import learning_rate_factor
from homeostat.training.sources import Source
from homeostat.training.task import Task

_SPLITS = ("train", "valid", "test")
_EVALUATION_BATCH = 128  # examples; large enough to amortize a forward pass, small enough to stay in the caches
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """One recipe trained once with one seed.

    Attributes:
        model: the trained module, in eval mode; with the best epoch's weights where early stopping was on.
        metrics: train_, valid_ and test_ loss and metric, epochs_run, best_epoch (by what the recipe monitors),
            diverged (0 or 1), seconds_per_epoch. A diverged fit has NaN for what it could not measure.
        history: one dict per epoch: epoch, train_loss, train_<metric>, valid_loss, valid_<metric>, seconds.
        stopped: "epochs" (all were run), "patience" or "diverged".
    """

    model: nn.Module
    recipe: Recipe
    seed: int
    metrics: dict[str, float]
    history: list[dict[str, float]]
    stopped: str

    def __repr__(self) -> str:
        ran = f"{len(self.history)} epochs, stopped={self.stopped!r}"
        measured = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items() if name.startswith("test_"))
        return f"Fit({ran}, seed={self.seed}, {measured})"


def fit(
    task: Task,
    recipe: Recipe | None = None,
    seed: int = 0,
    *,
    model: nn.Module | None = None,
    directory: Path | str | None = None,
    device: str | torch.device = "auto",
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Fit:
    """Train `recipe` on `task` under `seed`, and measure it; the test split is touched once, at the end.

    Args:
        model: a module to train in place, instead of the one that task, recipe and seed build.
        directory: where a checkpoint is kept after every epoch; a fit that finds its own there goes on from it.
        device: "auto" is the GPU where there is one.
        on_epoch: called with each epoch's row of the history.
    Returns: the Fit. A loss that is not finite ends training and is a result (`diverged`), not an error.
    Raises: InvalidValue if a part cannot apply to this task or model, or the directory holds another fit.
    """
    recipe = recipe or Recipe()
    checkpoints = Checkpoints(Path(directory)) if directory is not None else None
    if checkpoints is not None:
        checkpoints.prepare()
    run = _Run(task, recipe, seed, model, _device(device))
    if checkpoints is not None:
        run.resume(checkpoints)
    try:
        while not run.stopped:
            started = time.perf_counter()
            row = {"epoch": float(run.epoch), **run.train_epoch(), **run.evaluate("valid")}
            run.finish_epoch({**row, "seconds": time.perf_counter() - started})
            if checkpoints is not None:
                run.save(checkpoints)
            if on_epoch is not None:
                on_epoch(run.history[-1])
    finally:
        run.restore_best()
    return run.result()


@dataclass(eq=False)
class _Run:
    """The state of a fit between two epochs, and the steps that lead from one to the next."""

    task: Task
    recipe: Recipe
    seed: int
    given: nn.Module | None
    device: torch.device
    epoch: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    largest_norm: float = 0.0
    table: Tensor | None = None

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.model = (self.given or build_model(self.task, recipe, self.seed)).to(self.device)
        self.criterion = self.task.loss_function(label_smoothing=recipe.label_smoothing)
        self.augment = make_augment(recipe.augment) if recipe.augment != "none" else None
        self.decayed, exempt = split_parameters(self.model)
        self.parameters = [*self.decayed, *exempt]
        self.optimizer = _optimizer(recipe, self.parameters)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.network = torch.compile(self.model) if recipe.compile else self.model
        goal = self.task.goal if recipe.monitor == "valid_metric" else "minimize"
        patience = recipe.patience if recipe.patience is not None else recipe.epochs
        self.stopping = EarlyStopping(patience, min_delta=recipe.min_delta, mode="max" if goal == "maximize" else "min")
        self.sources = {split: getattr(self.task, split).to(self.device) for split in _SPLITS}
        self.steps = _steps_per_epoch(self.sources["train"], recipe)

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training split; the mean loss and the metric as the batches went by."""
        self.model.train()
        losses, outputs, targets = [], [], []
        augmentation = seeds.torch_generator(self.seed, "augment", self.epoch)
        # Masks, and whatever a user's dataset or model draws, come from torch's global generator.
        with seeds.isolated(self.seed, "epoch", self.epoch):
            for step, (input, target) in enumerate(self.batches("train", self.recipe.batch_size, shuffle=True)):
                output, loss = self.forward(self.prepare(input, augmentation), target)
                self.update(loss, self.epoch * self.steps + step)
                losses.append(loss.detach() * len(target))
                outputs.append(output.detach())
                targets.append(target)
        return self.measured("train", losses, outputs, targets)

    def batches(self, split: str, size: int | Literal["full"], shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """A split's batches on the device: shuffled in this epoch's order, or in the split's own."""
        for input, target in self.sources[split].batches(self.seed, self.epoch, size, shuffle=shuffle):
            yield input.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)

    def prepare(self, input: Tensor, generator: torch.Generator) -> Tensor:
        """A raw batch as the network trains on it: prepared and augmented, uint8 images in one pass."""
        if self.augment is None:
            return self.task.prepare(input)
        if input.dtype != torch.uint8 or input.ndim != 4:
            return self.augment(self.task.prepare(input), generator)
        if self.table is None:
            self.table = self.task.prepared_values(input.shape[1], self.device)
        return self.augment(input, generator, self.table)

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output and its loss, in the recipe's precision."""
        with self.precision():
            output = self.network(input)
            return output, self.criterion(output, target)

    def update(self, loss: Tensor, step: int) -> None:
        """One step of the optimizer: gradients, penalties, clipping, decay, update."""
        recipe = self.recipe
        warmup = round(recipe.warmup_epochs * self.steps)
        lr = recipe.learning_rate * learning_rate_factor(step, recipe.epochs * self.steps, warmup, recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if recipe.l1 or recipe.l2:
            add_penalty_gradients_(self.decayed, recipe.l1, recipe.l2)
        if recipe.clip_value is not None:
            clip_grad_value_(self.parameters, recipe.clip_value)
        if recipe.clip_norm is not None:
            self.largest_norm = max(self.largest_norm, float(clip_grad_norm_(self.parameters, recipe.clip_norm)))
        if recipe.decay:
            decay_weights_(self.decayed, 1 - lr * recipe.decay)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Take the epoch into the history, remember the best weights, and decide whether to go on."""
        self.history.append(row)
        watched = "valid_loss" if self.recipe.monitor == "valid_loss" else f"valid_{self.task.metric_name}"
        improved = self.stopping.update(row[watched], self.epoch)
        if improved and self.recipe.patience is not None:
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.epoch += 1
        if not math.isfinite(row["train_loss"]) or not math.isfinite(row["valid_loss"]):
            self.stopped = "diverged"
        elif self.stopping.should_stop:
            self.stopped = "patience"
        elif self.epoch >= self.recipe.epochs:
            self.stopped = "epochs"

    # -- measuring ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """Loss and metric of the model on a split, in eval mode and in the split's own order."""
        self.model.eval()
        criterion = self.task.loss_function()
        losses, outputs, targets = [], [], []
        with seeds.isolated(self.seed, "evaluate", split):
            for input, target in self.batches(split, _EVALUATION_BATCH, shuffle=False):
                with self.precision():
                    output = self.network(self.task.prepare(input))
                outputs.append(output.float())
                losses.append(criterion(outputs[-1], target) * len(target))
                targets.append(target)
        return self.measured(split, losses, outputs, targets)

    def measured(
        self, split: str, losses: list[Tensor], outputs: list[Tensor], targets: list[Tensor]
    ) -> dict[str, float]:
        target = torch.cat(targets)
        loss = float(torch.stack(losses).sum()) / len(target)
        return {
            f"{split}_loss": loss,
            f"{split}_{self.task.metric_name}": self.task.measure(torch.cat(outputs), target),
        }

    def precision(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.recipe.precision])

    def result(self) -> Fit:
        """The measured fit; what a diverged net without earlier weights would predict is not a measurement."""
        self.model.eval()
        lost = self.stopped == "diverged" and self.best is None
        metrics: dict[str, float] = {}
        for split in _SPLITS:
            names = (f"{split}_{self.task.metric_name}", f"{split}_loss")
            if lost:
                metrics |= dict.fromkeys(names, math.nan)
            elif split == "valid" and self.best is None:  # measured with these weights at the end of the last epoch
                metrics |= {name: self.history[-1][name] for name in names}
            else:
                metrics |= self.evaluate(split)
        if self.recipe.clip_norm is not None and self.largest_norm <= self.recipe.clip_norm:
            largest = f"the largest gradient norm was {self.largest_norm:.3g}"
            warnings.warn(
                f"clip_norm={self.recipe.clip_norm:g} never acted: {largest}.",
                NoEffectWarning,
                stacklevel=3,
            )
        return Fit(
            model=self.model,
            recipe=self.recipe,
            seed=self.seed,
            metrics={
                **metrics,
                "epochs_run": float(self.epoch),
                "best_epoch": math.nan if self.stopping.best_epoch is None else float(self.stopping.best_epoch),
                "diverged": float(self.stopped == "diverged"),
                "seconds_per_epoch": sum(row["seconds"] for row in self.history) / len(self.history),
            },
            history=self.history,
            stopped=self.stopped,
        )

    def restore_best(self) -> None:
        """Go back to the best epoch's weights, where early stopping keeps them; however training ended."""
        if self.best is not None:
            self.model.load_state_dict(self.best)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        return {"recipe": self.recipe.to_toml(), "seed": self.seed, "task": self.task.fingerprint}

    def save(self, checkpoints: Checkpoints) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in (self.best or {}).items()}
        optimizer = self.optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for index, slots in optimizer["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{slot}"] = value
                else:
                    scalars.setdefault(str(index), {})[slot] = value
        state = {
            "identity": self.identity(),
            "epoch": self.epoch,
            "stopped": self.stopped,
            "history": self.history,
            "stopping": self.stopping.state_dict(),
            "largest_norm": self.largest_norm,
            "scaler": self.scaler.state_dict(),
            "optimizer": scalars,
        }
        checkpoints.save(self.epoch, tensors, state)

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint in the directory, if it holds one of this very fit."""
        found = checkpoints.load()
        if found is None:
            return
        tensors, state = found
        identity = self.identity()
        differing = [name for name, value in identity.items() if state["identity"].get(name) != value]
        if differing:
            cure = f"Its fit has another {' and '.join(differing)}. Choose another directory, or delete that one."
            condition = "hold checkpoints of this recipe, seed and task, or none"
            raise invalid("fit", "directory", condition, str(checkpoints.directory), cure)
        self.model.load_state_dict(_under(tensors, "model/"))
        self.best = _under(tensors, "best/") or None
        self._load_optimizer(_under(tensors, "optimizer/"), state["optimizer"])
        self.epoch, self.stopped, self.history = state["epoch"], state["stopped"], state["history"]
        self.largest_norm = state["largest_norm"]
        self.stopping.load_state_dict(state["stopping"])
        self.scaler.load_state_dict(state["scaler"])

    def _load_optimizer(self, tensors: dict[str, Tensor], scalars: dict[str, dict[str, Any]]) -> None:
        slots: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in scalars.items()}
        for name, tensor in tensors.items():
            index, slot = name.split("/")
            parameter = self.parameters[int(index)]
            if tensor.shape == parameter.shape:  # the parameter's own memory layout, as torch would have made it
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            slots.setdefault(int(index), {})[slot] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _steps_per_epoch(source: Source, recipe: Recipe) -> int:
    """Batches per epoch, which the schedule is laid out over; an unknown length is counted, if it matters."""
    known = source.count_batches(recipe.batch_size)
    if known is not None:
        return known
    varies = recipe.schedule != "constant" or recipe.warmup_epochs > 0
    return sum(1 for _ in source.batches(0, 0, recipe.batch_size, shuffle=True)) if varies else 1


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The update rule alone: decay and penalties are the loop's. The fused forms update all parameters in one call."""
    if not parameters:
        raise HomeostatError("fit: the model has no trainable parameters. Set requires_grad on those to train.")
    options: dict[str, Any] = {"lr": recipe.learning_rate, "fused": all(p.is_floating_point() for p in parameters)}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **options)
    return torch.optim.Adam(parameters, betas=(recipe.momentum, 0.999), **options)


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
