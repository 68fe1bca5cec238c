"""Changes of hidden activations: another function in the place of one, or one where there is none.

Modules are exchanged by `parts.edit`, which keeps mode, hooks and sharing. What `forward` calls as a bare function is
exchanged while the model runs (`Exchange`), and the diff says what to write instead. Activations behind the last layer
are in `output`. Not random.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.changes.places import layer_of
from homeostat.errors import HomeostatError, unknown
from homeostat.parts.activation import ACTIVATIONS, make_activation
from homeostat.parts.edit import Edit

if TYPE_CHECKING:
    from homeostat.doctor.network.structure import Structure
    from homeostat.doctor.training import Training

_SAMPLE = 4  # examples on which the altered model is run


@dataclass(frozen=True)
class SwapActivation(Change):
    """Put one activation function in the place of others between weight layers.

    Args:
        to: as in `parts.activation.make_activation`.
        modules: the names of the activation modules.
        functions: bare calls, each as the function's name and which of its calls in one run it is, from 1.
        before: what they compute now, for the text.
    """

    to: str
    modules: tuple[str, ...] = ()
    functions: tuple[tuple[str, int], ...] = ()
    before: str = "activation"

    slug: ClassVar[str] = "swap-activation"
    family: ClassVar[str] = "activation"
    safety: ClassVar[Safety] = "unsafe"

    def __post_init__(self) -> None:
        _check("SwapActivation", self.to)

    @classmethod
    def of(cls, structure: Structure, to: str, names: tuple[str, ...]) -> SwapActivation | None:
        """The change for all hidden activations with one of these names; None if there are none to be exchanged."""
        steps = [step for step in structure.hidden if step.name in names]
        shared = {step.module for link in structure.into(None) for step in link.steps} | {None}
        modules = tuple(dict.fromkeys(s.module for s in steps if s.module is not None and s.module not in shared))
        functions = tuple(dict.fromkeys((s.name, s.call) for s in steps if s.module in shared and s.call))
        if not modules and not functions:
            return None
        return cls(to, modules, functions, ", ".join(dict.fromkeys(step.name for step in steps)))

    def apply(self, training: Training) -> None:
        edit = Edit(training.model, f"SwapActivation({self.to!r})")
        kind = type(make_activation(self.to))
        for name in self.modules:
            layer = layer_of(training.model, name, "activation")
            if not isinstance(layer.module, kind):
                edit.replace(layer, make_activation(self.to), f"{layer.kind} → {self.to}")
        _apply(edit, training)
        if self.functions:
            training.model = exchanged(training.model, self.to, self.functions)

    @property
    def what(self) -> str:
        return f"hidden {self.before} → {self.to}"

    @property
    def where(self) -> tuple[str, ...]:
        return (*self.modules, *(f"{name}() #{call}" for name, call in self.functions))

    @property
    def diff(self) -> str:
        shown = f"nn.{type(make_activation(self.to)).__name__}()"
        lines = [line for name in self.modules for line in (f"-{name} = {self.before}", f"+{name} = {shown}")]
        for name, call in self.functions:
            lines += [f"-x = {name}(x)  # call {call} of {name} in forward", f"+x = torch.nn.functional.{self.to}(x)"]
        return "\n".join(lines)


@dataclass(frozen=True)
class InsertActivation(Change):
    """Put an activation function behind weight layers that hand their output straight to another one.

    Args:
        after: names of the weight layers.
        kind: as in `parts.activation.make_activation`.
    """

    after: tuple[str, ...]
    kind: str = "relu"

    slug: ClassVar[str] = "insert-activation"
    family: ClassVar[str] = "activation"
    safety: ClassVar[Safety] = "unsafe"

    def __post_init__(self) -> None:
        _check("InsertActivation", self.kind)

    def apply(self, training: Training) -> None:
        edit = Edit(training.model, f"InsertActivation({self.kind!r})")
        kind = type(make_activation(self.kind))
        for name in self.after:
            layer = layer_of(training.model, name, "weight")
            if not any(_follows(module, layer.module, kind) for module in training.model.modules()):
                edit.add(layer, make_activation(self.kind), "after", f"{self.kind} added after {layer.kind}")
        _apply(edit, training)

    @property
    def what(self) -> str:
        return (
            f"{self.kind} behind {len(self.after)} weight layer{'s' if len(self.after) != 1 else ''} without activation"
        )

    @property
    def where(self) -> tuple[str, ...]:
        return self.after

    @property
    def diff(self) -> str:
        shown = f"nn.{type(make_activation(self.kind)).__name__}()"
        return "\n".join(f"+{shown}  # behind {name}" for name in self.after)


class Exchange(nn.Module):
    """A model in which some calls of activation functions compute another one.

    Args:
        model: any module that is not compiled.
        to: as in `parts.activation.make_activation`.
        calls: the function's name and which of its calls in one run, from 1; modules' calls count.
    """

    def __init__(self, model: nn.Module, to: str, calls: tuple[tuple[str, int], ...]) -> None:
        super().__init__()
        self.model = model
        self.function = make_activation(to)
        self.calls = calls
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns with the other function in those places."""
        with _Exchanging(self.function, self.calls):
            return self.model(*args, **kwargs)

    def extra_repr(self) -> str:
        """Which calls."""
        return ", ".join(f"{name} #{call}" for name, call in self.calls)


class _Exchanging(TorchFunctionMode):
    """Counts calls by name; some of them it answers itself."""

    def __init__(self, function: nn.Module, calls: tuple[tuple[str, int], ...]) -> None:
        super().__init__()
        self.function, self.calls = function, frozenset(calls)
        self.names = {name for name, _ in calls}
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        if name in self.names and args and isinstance(args[0], Tensor):
            self.counts[name] += 1
            if (name, self.counts[name]) in self.calls:
                return self.function(args[0])
        return func(*args, **(kwargs or {}))


def exchanged(model: nn.Module, to: str, calls: tuple[tuple[str, int], ...]) -> nn.Module:
    """The model with other functions in the place of bare calls; itself if it has them already."""
    if isinstance(model, Exchange) and model.calls == calls and isinstance(model.function, type(make_activation(to))):
        return model
    return Exchange(model, to, calls)


def _apply(edit: Edit, training: Training) -> None:
    sample = training.examples("train").head(_SAMPLE).inputs
    try:
        edit.apply(sample, training.optimizer, "")
    except HomeostatError as error:
        raise CannotApply(str(error)) from error


def _follows(module: nn.Module, layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is what surgery made of a layer and such an activation."""
    parts = module._modules
    return parts.get("layer") is layer and isinstance(parts.get("after"), kind)


def _check(where: str, name: str) -> None:
    if name not in ACTIVATIONS or name == "identity":
        raise unknown(where, "activation", name, [each for each in ACTIVATIONS if each != "identity"])
