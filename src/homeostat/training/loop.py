"""The training loop: one recipe, one task, one seed, from the first weights to the measured result.

Every random decision of an epoch is drawn from the stream of (seed, purpose, epoch), so that an epoch's outcome is a
function of the state before it: that makes a resumed fit equal to an undisturbed one, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import seeds
from homeostat.errors import NoEffectWarning, invalid
from homeostat.parts.dropout import dropout_at, drops
from homeostat.parts.population import update_statistics_
from homeostat.parts.stopping import GL, PQ, UP, EarlyStopping, Rule
from homeostat.parts.stopping.weights import Weights
from homeostat.training.checkpoint import Checkpoints
from homeostat.training.evaluation import Evaluation
from homeostat.training.idle import idle_settings
from homeostat.training.inputs import Inputs, corrupted
from homeostat.training.models import build_model, is_built_in
from homeostat.training.recipe import Recipe
from homeostat.training.sources import Source
from homeostat.training.tally import Tally
from homeostat.training.task import Task
from homeostat.training.update import Update

_SPLITS = ("train", "valid", "test")
_TOLD_LATER = ("adapt", "bn_statistics", "mc_samples")  # the parts themselves say so when they find nothing


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """One recipe trained once with one seed.

    Attributes:
        model: the trained module, in eval mode; with the best epoch's weights where early stopping was on.
        metrics: train_, valid_ and test_ loss and metric, epochs_run, best_epoch (by what the recipe monitors),
            diverged (0 or 1), seconds_per_epoch. A diverged fit has NaN for what it could not measure.
        history: one dict per epoch: epoch, train_loss, train_<metric>, valid_loss, valid_<metric>, seconds.
        stopped: "epochs" (all were run), "diverged", or what ended it early: "patience", "gl", "pq", "up".
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
    checkpoint_every: float = 0.0,
    device: str | torch.device = "auto",
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> Fit:
    """Train `recipe` on `task` under `seed`, and measure it; the test split is touched once, at the end.

    Args:
        model: a module to train in place, instead of the one that task, recipe and seed build.
        directory: where a checkpoint is kept after every epoch; a fit that finds its own there goes on from it.
        checkpoint_every: seconds between two checkpoints at least, for epochs that are shorter than keeping one takes.
        device: "auto" is the GPU where there is one.
        on_epoch: called with each epoch's row of the history.
        on_step: called with the number of each step, counted over the whole training, and what `Update.observed` says
            of it.
    Returns: the Fit. A loss that is not finite ends training and is a result (`diverged`), not an error.
    Raises: InvalidValue if a part cannot apply to this task or model, or the directory holds another fit.
    """
    recipe = recipe or Recipe()
    checkpoints = Checkpoints(Path(directory)) if directory is not None else None
    if checkpoints is not None:
        checkpoints.prepare()
    run = _Run(task, recipe, seed, model, _device(device), on_step)
    kept = time.monotonic()
    if checkpoints is not None:
        run.resume(checkpoints)
    with run.keeping_rates():
        with run.keeping_best():
            while not run.stopped:
                started = time.perf_counter()
                row = {"epoch": float(run.epoch), **run.train_epoch(), **run.evaluation.measure(run.network, "valid")}
                run.finish_epoch({**row, "seconds": time.perf_counter() - started})
                if checkpoints is not None and time.monotonic() - kept >= checkpoint_every:
                    run.save(checkpoints)
                    kept = time.monotonic()
                if on_epoch is not None:
                    on_epoch(run.history[-1])
        return run.result()


@dataclass(eq=False)
class _Run:
    """The state of a fit between two epochs, and the steps that lead from one to the next."""

    task: Task
    recipe: Recipe
    seed: int
    given: nn.Module | None
    device: torch.device
    on_step: Callable[[int, dict[str, Any]], None] | None = None
    epoch: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    best: Weights | None = None
    """The best epoch's weights in the checkpoint that training goes on from."""

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.model = (self.given or build_model(self.task, recipe, self.seed)).to(self.device)
        self.network = torch.compile(self.model) if recipe.compile else self.model
        self.criterion = self.task.loss_function(label_smoothing=recipe.label_smoothing)
        self.inputs = Inputs(self.task, recipe, self.device)
        self.evaluation = Evaluation(corrupted(self.task, recipe.corruption), recipe, self.seed, self.device)
        self.update = Update(self.model, recipe, _steps_per_epoch(self.task.train, recipe), self.device)
        self.stopping = _early_stopping(recipe, self.task)
        self.droppers: list[Any] = [module for module in self.model.modules() if drops(module)]
        self.rates: list[float] = [module.p for module in self.droppers]
        built_in = self.given is None and is_built_in(self.task, recipe)
        for name, reason in idle_settings(recipe, self.model, built_in).items():
            if name not in _TOLD_LATER:
                warnings.warn(f"{name} has no effect: {reason}.", NoEffectWarning, stacklevel=4)

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training split; the mean loss and the metric as the batches went by."""
        self.model.train()
        self.schedule_dropout(self.epoch)
        tally = Tally(self.task)
        generator, mixing = (seeds.torch_generator(self.seed, purpose, self.epoch) for purpose in ("augment", "mix"))
        batches = self.evaluation.batches("train", self.epoch, self.recipe.batch_size, shuffle=True)
        # Masks, and whatever a user's dataset or model draws, come from torch's global generator.
        with seeds.isolated(self.seed, "epoch", self.epoch):
            for step, (input, target) in enumerate(batches):
                x, y = self.inputs.for_training(input, target, generator, mixing)
                with self.evaluation.precision():
                    output = self.network(x)
                    loss = self.criterion(output, y)
                number = self.epoch * self.update.steps + step
                if self.on_step is None:
                    self.update(loss, number)
                else:
                    self.on_step(number, self.update.observed(loss, number))
                tally.add(loss, output, target)
        return tally.metrics("train")

    def schedule_dropout(self, epoch: int) -> None:
        """Give every dropout layer the probability of an epoch."""
        if self.recipe.dropout_schedule == "constant":
            return
        progress = epoch / max(1, self.recipe.epochs - 1)
        for module, p in zip(self.droppers, self.rates, strict=True):
            module.p = dropout_at(self.recipe.dropout_schedule, p, progress)

    @contextmanager
    def keeping_rates(self) -> Iterator[None]:
        """A block that ends with the dropout layers' own probabilities, which a schedule changes; however it ends."""
        try:
            yield
        finally:
            for module, p in zip(self.droppers, self.rates, strict=True):
                module.p = p

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Take the epoch into the history, remember the best weights, and decide whether to go on."""
        self.history.append(row)
        watched = "valid_loss" if self.recipe.monitor == "valid_loss" else f"valid_{self.task.metric_name}"
        self.stopping.update(row[watched], self.epoch, train_loss=row["train_loss"])
        self.epoch += 1
        if not math.isfinite(row["train_loss"]) or not math.isfinite(row["valid_loss"]):
            self.stopped = "diverged"
        elif self.stopping.should_stop:
            fired = next((rule for rule in self.stopping.rules if rule.stopped), None)
            self.stopped = "patience" if fired is None else type(fired).__name__.lower()
        elif self.epoch >= self.recipe.epochs:
            self.stopped = "epochs"

    def keeping_best(self) -> AbstractContextManager[Any]:
        """A block that ends with the best epoch's weights, where training may end early; however it ends."""
        return self.stopping.keeping(self.model, weights=self.best) if self.recipe.stops_early else nullcontext()

    # -- the end ------------------------------------------------------------------------------------------------------

    def result(self) -> Fit:
        """The measured fit; what a diverged net without earlier weights would predict is not a measurement."""
        restored = self.stopping.best_weights is not None
        lost = self.stopped == "diverged" and not restored
        best = self.stopping.best_epoch if restored else None
        self.schedule_dropout(self.epoch - 1 if best is None else best)  # what these weights were trained with
        estimated = not lost and self.estimate_statistics()
        self.model.eval()
        metrics: dict[str, float] = {}
        for split in _SPLITS:
            names = (f"{split}_{self.task.metric_name}", f"{split}_loss")
            if lost:
                metrics |= dict.fromkeys(names, math.nan)
            elif split == "valid" and not (estimated or restored or self.evaluation.changes_predictions):
                # measured with these weights at the end of the last epoch
                metrics |= {name: self.history[-1][name] for name in names}
            else:
                metrics |= self.evaluation.measure_finally(self.model, split)
        self.update.warn_if_idle()
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

    def estimate_statistics(self) -> bool:
        """Measure batch normalization's statistics anew with the final weights, on inputs as at prediction time."""
        estimator = self.recipe.bn_statistics
        if estimator == "momentum":
            return False
        batches = self.evaluation.batches("train", self.epoch, self.recipe.batch_size, shuffle=True)
        with seeds.isolated(self.seed, "statistics"), self.evaluation.precision():
            update_statistics_(self.model, (self.task.prepare(input) for input, _ in batches), estimator=estimator)
        return True

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        return {"recipe": self.recipe.to_toml(), "seed": self.seed, "task": self.task.fingerprint}

    def save(self, checkpoints: Checkpoints) -> None:
        optimizer, state = self.update.state()
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in (self.stopping.best_weights or {}).items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.items()}
        state |= {
            "identity": self.identity(),
            "epoch": self.epoch,
            "stopped": self.stopped,
            "history": self.history,
            "stopping": self.stopping.state_dict(),
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
        self.update.load(_under(tensors, "optimizer/"), state)
        self.epoch, self.stopped, self.history = state["epoch"], state["stopped"], state["history"]
        self.stopping.load_state_dict(state["stopping"])


def _early_stopping(recipe: Recipe, task: Task) -> EarlyStopping:
    goal = task.goal if recipe.monitor == "valid_metric" else "minimize"
    rules: list[Rule] = []
    if recipe.gl_alpha is not None:
        rules.append(GL(recipe.gl_alpha))
    if recipe.pq_alpha is not None:
        rules.append(PQ(recipe.pq_alpha, recipe.strip))
    if recipe.up_strips is not None:
        rules.append(UP(recipe.up_strips, recipe.strip))
    mode = "max" if goal == "maximize" else "min"
    return EarlyStopping(
        patience=recipe.patience, min_delta=recipe.min_delta, mode=mode, check_finite=False, rules=rules
    )


def _steps_per_epoch(source: Source, recipe: Recipe) -> int:
    """Batches per epoch, which the schedule is laid out over; an unknown length is counted, if it matters."""
    known = source.count_batches(recipe.batch_size)
    if known is not None:
        return known
    varies = recipe.schedule != "constant" or recipe.warmup_epochs > 0
    return sum(1 for _ in source.batches(0, 0, recipe.batch_size, shuffle=True)) if varies else 1


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
