"""Change of what stands behind a model's last layer: an activation taken off, or put on, and the loss that fits it.

Where a module does it, the module is exchanged in its place. Where `forward` calls a function, that call is passed over
(`PassOver`), and the diff says what to write instead; probabilities that were computed by hand are undone by their
logarithm, which gives logits up to a constant. Weights, the optimizer, mode and device stay. Not random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from homeostat import seeds
from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.changes.loss import ReplaceLoss
from homeostat.doctor.changes.scaling import Restore
from homeostat.doctor.loss.known import known
from homeostat.doctor.loss.layout import Layout
from homeostat.doctor.loss.outputs import NO_ACTIVATION, LastActivation, last_activation, look
from homeostat.doctor.network.structure import read
from homeostat.errors import HomeostatError, unknown
from homeostat.parts.edit import Edit
from homeostat.parts.layers import Layer

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

_SAMPLE = 8  # examples on which a model is run before and after
_TINY = 1e-12  # under a logarithm
_CLOSE = 1e-4  # relative: outputs with an activation put back on, in single precision
_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
    "sigmoid": lambda axis: nn.Sigmoid(),
    "tanh": lambda axis: nn.Tanh(),
    "softplus": lambda axis: nn.Softplus(),
}


class Log(nn.Module):
    """The logarithm of probabilities: logits up to a constant per example."""

    def forward(self, outputs: Tensor) -> Tensor:
        """What may have stood before a softmax."""
        return outputs.clamp(min=_TINY).log()


class PassOver(nn.Module):
    """A model in which one call of an activation function gives back what it was given.

    Args:
        model: any module that is not compiled.
        name: the function's name, such as "relu", however it is called: by a module, a function or a method.
        place: which of its calls in one run is passed over, from 1.
    """

    def __init__(self, model: nn.Module, name: str, place: int) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.place = place
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns without that call."""
        with _Counting(self.name, self.place):
            return self.model(*args, **kwargs)

    def extra_repr(self) -> str:
        """Which call."""
        return f"{self.name}, {self.place}"


class _Counting(TorchFunctionMode):
    """Counts the calls of a function; one of them it passes over."""

    def __init__(self, name: str, place: int = 0) -> None:
        super().__init__()
        self.name, self.place, self.count = name, place, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, or hand on its input."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").strip("_") == self.name:
            self.count += 1
            if self.count == self.place:
                return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


class Behind(nn.Module):
    """A model with something behind its output; everything else it returns is handed on.

    Args:
        model: returns a tensor, or a tuple, list or mapping.
        last: called with the output.
        output: the output's key or index; None for a tensor, or what is named logits.
    """

    def __init__(self, model: nn.Module, last: nn.Module, output: str | int | None = None) -> None:
        super().__init__()
        self.model = model
        self.last = last
        self.output = output
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, its output altered."""
        returned = self.model(*args, **kwargs)
        if isinstance(returned, Tensor):
            return self.last(returned)
        key: Any = "logits" if self.output is None else self.output
        if isinstance(returned, Mapping):
            changed: Any = copy.copy(returned)
            changed[key] = self.last(returned[key])
            return changed
        parts = list(returned)
        parts[key] = self.last(parts[key])
        return type(returned)(*parts) if hasattr(returned, "_fields") else type(returned)(parts)


@dataclass(frozen=True)
class ChangeOutput(Change):
    """Make `activation` the last thing a model does, and take the loss that fits."""

    activation: str
    """softmax, log_softmax, sigmoid, tanh or softplus; "" for none."""
    layout: Layout
    """How outputs and targets lie; says over which axis a softmax goes."""
    loss: str = ""
    """As in `losses.KNOWN`; "" keeps the loss."""
    before: str = ""
    """The activation that is there now, for the text."""
    module: str = ""
    """The module that does it, for the text."""

    slug: ClassVar[str] = "change-output"
    family: ClassVar[str] = "output"
    safety: ClassVar[Safety] = "unsafe"

    def __post_init__(self) -> None:
        if self.activation and self.activation not in _ACTIVATIONS:
            raise unknown("ChangeOutput", "activation", self.activation, _ACTIVATIONS)

    def apply(self, training: Training) -> None:
        with _below_scale(training):
            self._change(training)
        if self.loss:
            ReplaceLoss(self.loss, self.layout).apply(training)

    def _change(self, training: Training) -> None:
        sample = training.examples("train").head(_SAMPLE).inputs
        outputs = _outputs(training, sample)
        tail = _tail(training, sample, outputs, self.layout.axis)
        if not self._is_made(tail, outputs):
            if tail.name:
                _take_off(training, tail, sample, outputs)
            if self.activation:
                axis = self.layout.axis if self.layout.form in ("index", "one-hot") else 1
                _put_on(training, _ACTIVATIONS[self.activation](axis))
            _outputs(training, sample)

    def _is_made(self, tail: LastActivation, outputs: Tensor) -> bool:
        if tail.name != self.activation:
            return False
        if self.activation not in ("softmax", "log_softmax"):
            return True
        seen = look(outputs, self.layout.axis)
        return self.layout.axis in (seen.sum_axis, seen.log_axis)

    @property
    def what(self) -> str:
        changed = f"last activation {self.before or 'none'} → {self.activation or 'none'}"
        return f"{changed}, loss → {self.loss}" if self.loss else changed

    @property
    def where(self) -> tuple[str, ...]:
        return (self.module,) if self.module else ()

    @property
    def diff(self) -> str:
        lines = []
        if self.before:
            lines.append(f"-output = {self._written(self.before)}" + (f"  # {self.module}" if self.module else ""))
        if self.activation:
            lines.append(f"+output = {self._written(self.activation)}")
        if self.loss:
            lines += ["-loss = loss_fn(output, target)", f"+loss = {known(self.loss).written(self.layout)}"]
        return "\n".join(lines)

    def _written(self, name: str) -> str:
        if name in ("softmax", "log_softmax"):
            return f"output.{name}({self.layout.axis})"
        return f"torch.nn.functional.{name}(output)" if name == "softplus" else f"output.{name}()"


@contextmanager
def _below_scale(training: Training) -> Iterator[None]:
    """Without the module that brings standardized outputs back to raw units; it is put behind again."""
    model = training.model
    last: nn.Module | None = None
    if isinstance(model, Behind) and isinstance(model.last, Restore):
        training.model, last = model.model, model.last
    elif _is_sequential(model) and len(model) and isinstance(model[-1], Restore):
        last = model._modules.popitem()[1]
    yield
    if last is not None:
        _put_on(training, last)


def _is_sequential(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a model is a plain Sequential, which others may be appended to."""
    return isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward


def _outputs(training: Training, sample: Any) -> Tensor:
    """What the model gives for the sample in evaluation mode."""
    modes = [(module, module.training) for module in training.model.modules()]
    try:
        training.model.eval()
        with seeds.isolated(0, "doctor", "output"), torch.no_grad():
            return training.predict(sample)
    finally:
        for module, mode in modes:
            module.training = mode


def _tail(training: Training, sample: Any, outputs: Tensor, axis: int) -> LastActivation:
    """The last activation; probabilities that were computed by hand count as a softmax."""
    model = training.model
    if _undone(model):
        return NO_ACTIVATION
    try:
        tail = last_activation(read(model, sample, _picker(training)), model)
    except HomeostatError as error:
        raise CannotApply(str(error)) from error
    if tail is not None:
        return tail
    if look(outputs, axis).sum_axis == axis:
        return LastActivation("softmax", None, 0.0, 1.0)
    raise CannotApply("what stands behind the model's last layer is not an activation by itself")


def _undone(module: nn.Module) -> bool:
    return isinstance(module, Behind) and isinstance(module.last, Log)


def _picker(training: Training) -> Callable[[Any], Any]:
    """What picks the output from what the model returns, for tensors and what stands for them."""
    chosen = training.output
    if callable(chosen):
        return chosen
    if chosen is not None:
        return lambda returned: returned[chosen]
    return lambda returned: returned["logits"] if isinstance(returned, Mapping) and "logits" in returned else returned


def _take_off(training: Training, tail: LastActivation, sample: Any, outputs: Tensor) -> None:
    """Exchange the module that does it, or pass over the call of the function."""
    module = dict(training.model.named_modules()).get(tail.module) if tail.module else None
    if (
        module is not None
        and module is not training.model
        and _is_plain(module)
        and _calls(training, module, sample) == 1
    ):
        edit = Edit(training.model, "ChangeOutput")
        edit.replace(Layer((tail.module or "",), module, "activation", calls=1), nn.Identity(), "removed")
        try:
            edit.apply(sample, training.optimizer, "")
        except HomeostatError as error:
            raise CannotApply(str(error)) from error
        return
    if _pass_over(training, tail.name, sample, outputs):
        return
    if tail.name != "softmax" or look(outputs, None).sum_axis == 0:
        raise CannotApply(f"{tail.name} is part of the model's forward and cannot be taken off")
    training.model = Behind(training.model, Log(), _key(training))


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is an activation and nothing else."""
    return not list(module.children()) and (isinstance(module, nn.PReLU) or not list(module.parameters()))


def _pass_over(training: Training, name: str, sample: Any, outputs: Tensor) -> bool:
    """Pass over the last call of a function if that is what made the outputs; else leave the model as it is."""
    function = getattr(nn.functional, name, None) or getattr(torch, name, None)
    if function is None:
        return False
    counting = _Counting(name)
    with counting:
        _outputs(training, sample)
    model = training.model
    training.model = PassOver(model, name, counting.count)
    bare = _outputs(training, sample)
    axes = [{"dim": axis} for axis in range(bare.dim())] if "softmax" in name else [{}]
    scale = max(1e-6, float(outputs.abs().max()))
    if counting.count and any(bool(((function(bare, **a) - outputs).abs() <= _CLOSE * scale).all()) for a in axes):
        return True
    training.model = model
    return False


def _calls(training: Training, module: nn.Module, sample: Any) -> int:
    """How often a module is called in one run."""
    calls: list[Any] = []
    handle = module.register_forward_hook(lambda module, args, output: calls.append(module))
    try:
        _outputs(training, sample)
    finally:
        handle.remove()
    return len(calls)


def _put_on(training: Training, last: nn.Module) -> None:
    """Put a module behind the model: into it if it is a plain Sequential, else around it."""
    model = training.model
    last.train(model.training)
    if _is_sequential(model):
        name = str(len(model))
        while name in model._modules:
            name += "_"
        model.add_module(name, last)
    else:
        training.model = Behind(model, last, _key(training))


def _key(training: Training) -> str | int | None:
    """The output's place in what the model returns."""
    if callable(training.output):
        raise CannotApply("the output is picked by a function; give its key or index instead")
    return training.output
