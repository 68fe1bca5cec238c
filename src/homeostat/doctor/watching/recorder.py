"""Measures a network on watched steps and writes a row of `Vitals` for each; on other steps it is as good as absent.

A step begins where the last one ended: behind the step of the optimizer, or of the last of several. Hooks on layers
stand only during watched steps, since seven idle ones cost a small net more on every step than attaching them now and
then. They take one pass over each output and keep numbers, no tensors of the network. Copies of weights are bounded
samples. Gradients come from `.grad`, so there are no backward hooks. Not random, and no result of training depends on
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from homeostat.doctor.watching.anatomy import Anatomy
from homeostat.doctor.watching.cadence import Cadence
from homeostat.doctor.watching.outputs import Outputs
from homeostat.doctor.watching.steps import Steps
from homeostat.doctor.watching.vitals import STATISTICS, Vitals
from homeostat.kernels.operator import is_eager

_LAG = 3
"""An optimizer that is so many steps behind another no longer ends the steps."""

_LOSS, _RATE = STATISTICS.index("loss"), STATISTICS.index("learning_rate")


class Listener:
    """Is told what happens while a network is watched; every method may be left as it is."""

    def armed(self, optimizer: int) -> bool:
        """Whether it wants to be told of this optimizer's next step, watched or not."""
        return False

    def before(self, recorder: Recorder, optimizer: int) -> None:
        """An optimizer is about to step, on the gradients there are."""

    def after(self, recorder: Recorder, optimizer: int) -> None:
        """An optimizer has stepped."""

    def mode_changed(self, recorder: Recorder, training: bool) -> None:
        """The step under way, watched or not, is taken in another mode than those before; the first is training."""

    def finished(self, recorder: Recorder, step: int) -> None:
        """A watched step is over and in the table."""

    def alarmed(self, recorder: Recorder, step: int) -> None:
        """A weight is no longer finite behind this step, watched or not."""

    def stopped(self, recorder: Recorder) -> None:
        """Nothing is watched any more: let go of everything."""


class Recorder:
    """Hooks on a model and its optimizers that fill a table of vitals.

    Args:
        anatomy: of the model.
        optimizers: in the order in which they step.
        cadence: says which steps are watched.
        loss_fn: a module whose output is the loss; None if there is none or it is told by `note_loss`.
        listeners: are told what happens.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        optimizers: Sequence[Optimizer],
        cadence: Cadence,
        loss_fn: nn.Module | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.anatomy, self.optimizers, self.cadence = anatomy, tuple(optimizers), cadence
        self.vitals = Vitals(anatomy.names)
        self.step = 0
        """The step that is under way; the number of those that are over."""
        self.watching = False
        """Whether this step is watched."""
        self.outputs = Outputs(anatomy)
        self.steps = Steps(anatomy)
        self.order: list[int] = list(range(len(anatomy.names)))
        """The layers as the table has them: in the order of their first call."""
        self.alarm: int | None = None
        """The first step behind which a weight was seen that is not finite."""
        self._loss_fn, self._listeners = loss_fn, tuple(listeners)
        self._handles: list[RemovableHandle] = []
        self._hooks: list[RemovableHandle] = []
        self._counts = [0] * len(self.optimizers)
        self._last = len(self.optimizers) - 1
        self._armed = [False] * len(self.optimizers)
        self._sentinels: list[NDArray] = []
        self._model, self._training = anatomy.model, True
        self._losses: list[Tensor | float] = []
        self._own = 0.0

    def start(self) -> None:
        """Attach the hooks on optimizers, and watch if it is time."""
        self.anatomy.match(self.optimizers)
        if not self.step:
            self.outputs.warm_up(self.anatomy.parameters[0].parameter if self.anatomy.parameters else None)
        for place, optimizer in enumerate(self.optimizers):
            self._handles.append(optimizer.register_step_pre_hook(partial(self._before, place)))
            self._handles.append(optimizer.register_step_post_hook(partial(self._after, place)))
        self._sentinels = self.anatomy.sentinels()
        self.cadence.start()
        self._go_on(self.cadence.due(self.step))

    def stop(self) -> None:
        """Take all hooks off again and forget what a step under way has measured."""
        self.cadence.stop()
        self._go_on(False)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sentinels = []
        self._armed = [False] * len(self.optimizers)
        self.steps.forget()
        for listener in self._listeners:
            listener.stopped(self)

    def note_loss(self, loss: Tensor | float) -> None:
        """The loss of the step under way; the mean is kept where there are several."""
        if self.watching:
            self._losses.append(loss.detach().float().mean() if isinstance(loss, Tensor) else float(loss))

    def saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A layer was called on `args`: the hook on layers."""
        if self.watching and torch.is_grad_enabled():
            started = self.cadence.clock()
            self.outputs.take(module, args, output)
            self._own += self.cadence.clock() - started

    def saw_loss(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The loss was computed: the hook on `loss_fn`."""
        if torch.is_grad_enabled() and isinstance(output, Tensor) and output.requires_grad and is_eager(output):
            self.note_loss(output)

    def _before(self, place: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The hook in front of an optimizer's step."""
        if not self.watching and not self._armed[place]:
            return
        started = self.cadence.clock()
        if self.watching and not _skips(optimizer):
            if place == self._last:
                self.anatomy.match(self.optimizers)
                if len(self.optimizers) > 1 or not _closure(args, kwargs):
                    self.steps.gradients(None)
            self.steps.before(place)
            if not _closure(args, kwargs):
                self.steps.gradients(place, _scale(optimizer))
        if not _closure(args, kwargs):
            for listener in self._listeners:
                listener.before(self, place)
        self._own += self.cadence.clock() - started

    def _after(self, place: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The hook behind an optimizer's step; what follows the first line is all that most steps cost."""
        if self.watching or self._armed[place]:
            self._after_watched(place, _closure(args, kwargs), _skips(optimizer))
        self._counts[place] += 1
        if place != self._last:
            if self._counts[place] <= self._counts[self._last] + _LAG:
                return
            self._last = place  # the one that used to end the steps no longer steps
        if self._model.training is not self._training:
            self._training = self._model.training
            for listener in self._listeners:
                listener.mode_changed(self, self._training)
        step, self.step = self.step, self.step + 1
        broken = not all(math.isfinite(values.item(0)) for values in self._sentinels)
        due = broken or self.cadence.due(self.step)
        if due or self.watching or self._own:
            self._finish(step, due)
        if broken:
            self._raise_alarm(step)

    def _after_watched(self, place: int, closure: bool, skipped: bool) -> None:
        started = self.cadence.clock()
        if closure:  # it computed the gradients inside the step, several times perhaps: here are the last
            if self.watching:
                if place == self._last and len(self.optimizers) == 1:
                    self.steps.gradients(None)
                self.steps.gradients(place)
            for listener in self._listeners:
                listener.before(self, place)
        if self.watching and not skipped:
            self.steps.after(place)
        for listener in self._listeners:
            listener.after(self, place)
        self._armed[place] = any(listener.armed(place) for listener in self._listeners)
        self._own += self.cadence.clock() - started

    def _finish(self, step: int, due: bool) -> None:
        """End a step: write down what was measured, and make ready for the next."""
        started = self.cadence.clock()
        watched = self.watching
        if watched:
            self._write(step)
        self._go_on(due)
        spent = self._own + self.cadence.clock() - started
        self._own = 0.0
        if watched:
            self.cadence.watched(step, spent)
        else:
            self.cadence.spent += spent

    def _write(self, step: int) -> None:
        row = self.vitals.blank()  # in the order of the anatomy
        self.outputs.write(row)
        self.steps.write(row, self.outputs.order)
        if self._losses:
            loss = sum(float(loss) for loss in self._losses) / len(self._losses)
            row[-1, _LOSS] = loss if math.isfinite(loss) else math.inf
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups if "lr" in group]
        if rates:
            row[-1, _RATE] = max(float(rate) for rate in rates)
        if not len(self.vitals):
            self.order = self.anatomy.ordered(self.outputs.order)
            self.vitals.reorder([self.anatomy.names[layer] for layer in self.order])
        self.vitals.append(step, row[[*self.order, -1]])
        for listener in self._listeners:
            listener.finished(self, step)

    def _go_on(self, watching: bool) -> None:
        """Watch the coming step, or do not."""
        self.outputs.reset()
        self.steps.reset()
        self._losses.clear()
        if watching and not self._hooks:
            look = Hook(self, "saw")
            self._hooks = [module.register_forward_hook(look) for module in self.anatomy.hooked]
            if self._loss_fn is not None:
                self._hooks.append(self._loss_fn.register_forward_hook(Hook(self, "saw_loss")))
        elif not watching and self._hooks:
            for handle in self._hooks:
                handle.remove()
            self._hooks = []
        self.watching = watching

    def _raise_alarm(self, step: int) -> None:
        self.alarm = step
        self._sentinels = []
        for listener in self._listeners:
            listener.alarmed(self, step)


class Hook:
    """A hook on a module; copied or pickled with the module, it is blind and holds nothing."""

    __slots__ = ("method",)
    __torch_unserializable__ = True

    def __init__(self, recorder: Recorder | None = None, method: str = "") -> None:
        self.method = None if recorder is None else getattr(recorder, method)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.method is not None:
            self.method(module, args, output)

    def __deepcopy__(self, memo: Any) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


def _closure(args: Any, kwargs: Any) -> bool:
    """Whether an optimizer's step was called with a closure; `args` starts with the optimizer."""
    return (args[1] if len(args) > 1 else kwargs.get("closure")) is not None


def _scale(optimizer: Optimizer) -> float:
    """What the gradients are multiplied by while a GradScaler leaves the division to a fused optimizer."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _skips(optimizer: Optimizer) -> bool:
    """Whether a GradScaler has told a fused optimizer to do nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and float(found) > 0
