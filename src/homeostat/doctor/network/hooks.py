"""Hooks on the layers of a model for one batch: forward hooks, tensor hooks for gradients, and bare functions seen.

What is measured is in `signals`; the probe that uses this is in `probe`. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from homeostat.doctor.network.copies import Bare, duplicates_of
from homeostat.doctor.network.layers import LayerFacts, matrices_of, norm_of
from homeostat.doctor.network.signals import Signal, Slopes, rank_of, signal_of, similarity_of, slopes_of
from homeostat.kernels.moments import moments
from homeostat.parts.init.sites import weight_operand
from homeostat.parts.layers import role_of, tensors_in
from homeostat.parts.modes import drop_probability, dropout_asked

_FUNCTIONS = frozenset(
    {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "gelu", "silu"}
    | {"mish", "softplus", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardtanh", "hardsigmoid", "hardswish", "softsign"}
    | {"logsigmoid", "softmax", "log_softmax", "exp", "threshold", "rrelu", "prelu"}
)
"""Functions that are noted where a model calls them by itself."""


@dataclass(eq=False)
class _Seen:
    """A layer while the batch is on its way."""

    name: str
    kind: str
    role: str
    shape: tuple[int, ...]
    signal: Signal
    arriving: Signal | None
    slopes: Slopes | None
    similarity: float
    rank: float
    module: nn.Module | None
    weight: nn.Parameter | None = None
    """Of a bare function."""
    gradient_rms: float = math.nan

    def receive(self, gradient: Tensor) -> None:
        """Called by autograd with the gradient of the output."""
        if gradient.is_floating_point() and gradient.numel():
            found = moments(gradient)
            finite = not int(found.nonfinite)
            square = max(0.0, float(found.variance + found.mean.square()))
            self.gradient_rms = math.sqrt(square) if finite else math.inf

    def facts(self, weights: Bare) -> LayerFacts:
        """What is known at the end; `weights` are those of bare functions, in this layer and elsewhere."""
        found = LayerFacts(
            self.name, self.kind, self.role, self.shape, self.signal, self.arriving, self.slopes,
            self.similarity, self.rank, gradient_rms=self.gradient_rms, bare=self.module is None,
        )  # fmt: skip
        own = matrices_of(self.module) if self.weight is None else [self.weight]
        if self.role != "weight" or not own:
            return found
        norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in own))
        norms = [norm_of(p.grad) for p in own if p.grad is not None]
        bare = weights if self.weight is None else {self.weight: weights[self.weight]}
        duplicates, twins = duplicates_of(self.module, bare)
        return replace(
            found,
            weight_norm=norm,
            weight_rms=norm / math.sqrt(sum(p.numel() for p in own)),
            weight_gradient=math.sqrt(sum(each * each for each in norms)) if norms else math.nan,
            duplicates=duplicates,
            twins=twins,
        )


@dataclass
class Watcher:
    """The hooks on a copy and what they saw."""

    model: nn.Module
    examples: int
    seen: list[_Seen] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    inside: int = 0
    """How many layers are running: what they call is theirs."""
    kept: dict[nn.Module, Tensor] = field(default_factory=dict)
    """What layers were given that write into it."""
    channels_first: bool = False
    """Whether the last weight layer was a convolution."""
    last_weight: str = ""
    weights: dict[nn.Parameter, str] = field(default_factory=dict)
    """Parameters that functions were called with as weights, and the functions' names."""
    dropping: int = 0
    """How many layers are running that drop."""
    drops: list[float] = field(default_factory=list)
    """The probabilities with which dropout functions dropped that no such layer called."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Attach hooks to all layers and watch for bare functions; take everything off again."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if _is_layer(module) and (name or role_of(module)):  # a model that is one piece is no layer
                    before = module.register_forward_pre_hook(self._enter)
                    after = module.register_forward_hook(self._leaving(name), with_kwargs=True, always_call=True)
                    stack.callback(before.remove)
                    stack.callback(after.remove)
            stack.enter_context(_Functions(self))
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.inside += 1
        self.dropping += drop_probability(module) > 0
        given = _floating(args)
        if getattr(module, "inplace", False) and given is not None:
            self.kept[module] = given.detach().clone()

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            kept = self.kept.pop(module, None)
            given, made = _floating((args, kwargs)) if kept is None else kept, _floating(output)
            if self.inside == 1 and made is not None:
                self._note(name, type(module).__name__, made, given, module, module.forward)
            self.inside -= 1
            self.dropping -= drop_probability(module) > 0

        return leave

    def note_function(
        self, name: str, made: Tensor, given: Tensor, call: Callable[[Tensor], Tensor], weight: nn.Parameter | None
    ) -> None:
        """A bare function was called; with a parameter as its weight it is a layer of the parameter's name."""
        if not self.inside:
            self.inside += 1  # what the statistics call is nobody's layer
            where = f"{name}() after {self.last_weight}" if self.last_weight else f"{name}()"
            names = (each for each, parameter in self.model.named_parameters() if parameter is weight)
            self._note(next(names, where), name, made, given, None, call, weight)
            self.inside -= 1

    def _note(
        self, name: str, kind: str, made: Tensor, given: Tensor | None, module: nn.Module | None, call: Callable,
        weight: nn.Parameter | None = None,
    ) -> None:  # fmt: skip
        role = _role(module) if weight is None else "weight"
        if role == "weight":
            self.channels_first = isinstance(module, _ConvNd) or (module is None and kind.startswith("conv"))
            self.last_weight = name
        if name in self.known:
            return
        self.known.add(name)
        units = 1 if self.channels_first and made.dim() > 2 else made.dim() - 1
        slopes = None
        if role == "activation" and given is not None and given.shape == made.shape:
            slopes = slopes_of(call, given, units, (type(module).__name__ if module is not None else kind).lower())
            known = module is None or role_of(module) == "activation" or "softmax" in kind.lower()
            if not known and (slopes is None or not slopes.curved):
                role, slopes = "other", None
        elif role == "activation":
            role = "other"
        seen = self._look(name, kind, role, made, given, units, module, slopes)
        seen.weight = weight
        self.seen.append(seen)
        if made.requires_grad:
            made.register_hook(seen.receive)

    def _look(
        self, name: str, kind: str, role: str, made: Tensor, given: Tensor | None, units: int,
        module: nn.Module | None, slopes: Slopes | None,
    ) -> _Seen:  # fmt: skip
        arriving = None if given is None or given.dim() < 2 else signal_of(given, min(units, given.dim() - 1))
        by_example = made.dim() > 1 and len(made) % self.examples == 0
        similarity, rank = (similarity_of(made), rank_of(made)) if by_example else (math.nan, math.nan)
        signal = signal_of(made, units)
        return _Seen(name, kind, role, tuple(made.shape), signal, arriving, slopes, similarity, rank, module)


class _Functions(TorchFunctionMode):
    """Sees activations and dropout that are called as bare functions, and functions that take a parameter as weight."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        p, drops = dropout_asked(func, args, kwargs) or (0.0, False)
        self.watcher.drops += [p] if drops and p > 0 and not self.watcher.dropping else []
        weight = _weight_of(name.strip("_"), args, kwargs)
        if weight is not None:
            self.watcher.weights[weight] = name.strip("_")
        known = weight is not None or name in _FUNCTIONS
        if not known or self.watcher.inside or not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        given = next((x for x in args if isinstance(x, Tensor) and not isinstance(x, nn.Parameter)), args[0])
        writes = kwargs.get("inplace") or (weight is None and name.endswith("_"))
        given = given.detach().clone() if writes else given
        self.watcher.inside += 1  # what a function calls is its own
        try:
            output = func(*args, **kwargs)
        finally:
            self.watcher.inside -= 1
        if isinstance(output, Tensor) and output.is_floating_point() and given.is_floating_point() and output.dim():

            def call(x: Tensor) -> Tensor:
                return func(x, *args[1:], **kwargs)

            self.watcher.note_function(name.strip("_"), output, given, call, weight)
        return output


def _weight_of(function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Parameter | None:
    """The parameter that a function multiplies its input with."""
    operand = weight_operand(function, args, kwargs)
    return operand if isinstance(operand, nn.Parameter) and operand.dim() > 1 else None


def _is_layer(module: nn.Module) -> bool:
    return role_of(module) is not None or not any(module.children())


def _role(module: nn.Module | None) -> str:
    """What a layer is for; a module without parameters may be an activation until its slopes are known."""
    if module is None:
        return "activation"
    role = role_of(module)
    if role == "other" or (role is None and isinstance(module, nn.RNNCellBase)):
        return "weight"  # attention and recurrent layers
    if role is not None:
        return role
    if drop_probability(module) > 0 or "dropout" in type(module).__name__.lower():
        return "dropout"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "other"
    return "weight" if any(p.dim() > 1 for p in module.parameters(recurse=False)) else "activation"


def _floating(nest: Any) -> Tensor | None:
    return next((tensor for tensor in tensors_in(nest) if tensor.is_floating_point() and tensor.dim() > 0), None)
