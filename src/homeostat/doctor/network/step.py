"""One step of the optimizer, taken on a copy and looked at: what it holds, where it goes, how far, and what decays.

Asked of the optimizer itself instead of read off its settings, so that it holds for anybody's optimizer: the step is
compared with the gradient, and with the step without decay. Random by a stream of its own: which batch, and dropout.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from homeostat import seeds
from homeostat.doctor.changes.held import held_by, needs_closure, trainable_of
from homeostat.doctor.examples import Examples
from homeostat.doctor.training import Training
from homeostat.parts.layers import tensors_in

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

_LARGEST_BATCH = 256  # examples of the step: enough for the direction of a gradient
UPHILL = 0.5
"""What the loss does along a step, from -1, it falls, to 1, it rises; in between is curvature or noise."""

_TINY = 1e-30
_PART = 1e-3  # of the weights' norm: how far along the step the loss is asked; its curvature hardly shows there
_ROUNDING = 1e-5  # relative: of the loss in single precision, with sums over a batch
_DECOUPLED = frozenset({"Adafactor", "Lion", "Muon", "SGDW", "AdamWScheduleFree", "SGDScheduleFree", "Sophia", "LAMB"})
"""Optimizers whose decay is decoupled and whose groups do not say so."""


@dataclass(frozen=True)
class StepFacts:
    """What one step showed. Norms are of all elements together; nan where there is nothing to measure."""

    missing: tuple[str, ...] = ()
    """Trainable parameters that get a gradient and are not in the optimizer."""
    unused: tuple[str, ...] = ()
    """Trainable parameters that get no gradient and are not in the optimizer."""
    hidden: tuple[str, ...] = ()
    """Those among `missing` that `model.parameters()` does not give: modules in plain lists and dicts."""
    stale: int = 0
    """Tensors in the optimizer that are not the model's and get no gradient."""
    held: int = 0
    """The model's parameters in the optimizer."""
    ascent: float = math.nan
    """Cosine between the first step without decay and the gradient of the loss: about -1 goes down, 1 goes up."""
    rise: float = math.nan
    """What the loss of the batch does along that step, by finite differences: -1 falls all along, 1 rises."""
    finite: bool = True
    """Whether the step is finite, or the gradient is not either."""
    updates: dict[str, float] = field(default_factory=dict)
    """Length of the step over length of the weight, for parameters of two and more dimensions."""
    gradients: dict[str, float] = field(default_factory=dict)
    """Root mean square of the gradient's elements, by parameter."""
    zeros: int = 0
    """Elements of the gradient that are exactly zero."""
    decay: float = math.nan
    """What weight decay adds over what the loss gives: of gradients where it is coupled, else of steps."""
    penalty: float = math.nan
    """Gradient of what the loss makes of the weights past the model's output, over the rest of the gradient."""
    total_gradient: float = math.nan
    """Norm of the gradient over all parameters."""

    @property
    def update(self) -> float:
        """The median of `updates`."""
        values = sorted(value for value in self.updates.values() if math.isfinite(value))
        return values[len(values) // 2] if values else math.nan


def examine_step(training: Training, examples: Examples) -> StepFacts | None:
    """Take one step on copies of a training, with fresh optimizer state; None where no gradient can be had.

    Args:
        training: left as it is.
        examples: of the training split.
    """
    try:
        with seeds.isolated(0, "doctor", "step"):
            return _examine(training, _batch(training, examples))
    except Exception:  # the user's code on the user's data: what fails here fails in the trial too, and is said there
        return None


def goes_up(facts: StepFacts | None) -> bool:
    """Whether the loss rises along the optimizer's step."""
    return facts is not None and facts.rise > UPHILL


def step_facts(chart: Chart) -> StepFacts | None:
    """`examine_step` at the given weights, measured when it is first asked for."""
    known = _KNOWN.setdefault(chart.training, {})
    if "first" not in known:
        known["first"] = examine_step(chart.training, chart.train)
    return known["first"]


def late_step_facts(chart: Chart) -> StepFacts | None:
    """The same at the weights after the trial, with fresh optimizer state."""
    known = _KNOWN.setdefault(chart.training, {})
    if "late" not in known:
        known["late"] = None
        if chart.course.model is not None and not chart.course.error:
            trained = chart.training.copy()
            trained.model.load_state_dict(chart.course.model.state_dict())
            known["late"] = examine_step(trained, chart.train)
    return known["late"]


def displacement(before: nn.Module, after: nn.Module | None) -> dict[str, float]:
    """How far each weight has moved, over its first length; weights that began at zero are left out."""
    if after is None:
        return {}
    trained = weights_of(after)
    found = {}
    for name, weight in weights_of(before).items():
        length = float(weight.norm())
        if name in trained and trained[name].shape == weight.shape and length > 0:
            found[name] = float((trained[name] - weight).norm()) / length
    return found


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters of two and more dimensions, by name."""
    return {name: parameter.detach() for name, parameter in trainable_of(model) if parameter.ndim > 1}


def decoupled(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether decay acts on the weights past the gradient, by the group's flag or the name of the class."""
    if "decoupled_weight_decay" in group:
        return bool(group["decoupled_weight_decay"])
    return type(optimizer).__name__ in _DECOUPLED


def _examine(training: Training, batch: Examples) -> StepFacts:
    plain = _stepped(training, batch, decayed=True)
    decays = any(_decays(training.optimizer))
    undecayed = _stepped(training, batch, decayed=False) if decays else plain  # decay may lead up the loss, on purpose
    relative = plain.relative
    own = dict(trainable_of(plain.training.model))
    registered = {id(parameter) for parameter in plain.training.model.parameters()}
    held = {id(parameter) for parameter in held_by(plain.training.optimizer)}
    absent = {name: each for name, each in own.items() if id(each) not in held}
    missing = [name for name, each in absent.items() if id(each) in plain.reached]
    known = registered | {id(parameter) for parameter in own.values()}
    stale = [key for key in held if key not in known and key not in plain.reached]
    gradients = {name: _rms(parameter.grad) for name, parameter in own.items() if parameter.grad is not None}
    return StepFacts(
        missing=tuple(missing),
        unused=tuple(name for name in absent if name not in missing),
        hidden=tuple(name for name in missing if id(own[name]) not in registered),
        stale=len(stale),
        held=len([key for key in held if key in known]),
        ascent=_cosine(undecayed.steps, undecayed.gradients),
        rise=_rise(batch, undecayed),
        finite=_finite(plain.steps) or not _finite(plain.gradients),
        updates={name: relative[id(p)] for name, p in own.items() if id(p) in relative and p.ndim > 1},
        gradients=gradients,
        zeros=sum(int((p.grad == 0).sum()) for p in own.values() if p.grad is not None),
        decay=_effect_of_decay(training.optimizer, undecayed) if decays else math.nan,
        penalty=_penalty_in_loss(training, batch),
        total_gradient=_norm(plain.gradients),
    )


@dataclass
class _Stepped:
    training: Training
    reached: set[int]
    """Ids of the leaves that the loss depends on."""
    parameters: list[Tensor]
    """Those that the optimizer holds and that have a gradient; the lists below go with it."""
    before: list[Tensor]
    gradients: list[Tensor]
    steps: list[Tensor]

    @property
    def relative(self) -> dict[int, float]:
        """Id of a parameter to the length of its step over its own; those that began at zero are left out."""
        triples = zip(self.parameters, self.steps, self.before, strict=True)
        return {id(parameter): float(step.norm() / old.norm()) for parameter, step, old in triples if bool(old.any())}


def _stepped(training: Training, batch: Examples, decayed: bool) -> _Stepped:
    """Take the step on a copy whose optimizer starts anew."""
    copy = training.copy()
    optimizer = copy.optimizer
    optimizer.state = defaultdict(dict)
    with seeds.isolated(0, "doctor", "step", "draws"):
        loss = copy.loss(copy.predict(batch.inputs), batch.targets)
    ignored = {id(tensor) for tensor in (*tensors_in(batch.inputs), batch.targets)}
    reached = {id(leaf) for leaf in _leaves(loss)} - ignored
    loss.backward()
    if not decayed:
        _stop_decay(optimizer)
    parameters = [parameter for parameter in held_by(optimizer) if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = [parameter.grad.detach().clone() for parameter in parameters if parameter.grad is not None]
    if needs_closure(optimizer):
        optimizer.step(lambda: float(loss.detach()))
    else:
        optimizer.step()
    steps = [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
    return _Stepped(copy, reached, list(parameters), before, gradients, steps)


@torch.no_grad()
def _rise(batch: Examples, plain: _Stepped) -> float:
    """The central difference of the loss along the step, over the way it goes; hooks on gradients cannot deceive it."""
    lengths = _norm(plain.steps)
    if not 0 < lengths < math.inf:
        return math.nan
    scale = _PART * _norm(plain.before) / lengths
    losses = []
    for way in (-scale, 0.0, scale):
        for parameter, old, step in zip(plain.parameters, plain.before, plain.steps, strict=True):
            parameter.copy_(old + way * step)
        with seeds.isolated(0, "doctor", "step", "draws"):
            losses.append(float(plain.training.loss(plain.training.predict(batch.inputs), batch.targets)))
    below, here, above = losses
    way_gone = abs(above - here) + abs(here - below)
    return (above - below) / way_gone if way_gone > _ROUNDING * abs(here) else math.nan


def _decays(optimizer: Optimizer) -> list[float]:
    return [float(group.get("weight_decay") or 0.0) for group in optimizer.param_groups]


def _effect_of_decay(optimizer: Optimizer, without: _Stepped) -> float:
    """Decay against loss: of the gradient's norms, or where decay passes by the gradient, of the step's."""
    factors = {
        id(parameter): decay * (float(group["lr"]) if decoupled(optimizer, group) else 1.0)
        for group, decay in zip(without.training.optimizer.param_groups, _decays(optimizer), strict=True)
        for parameter in group["params"]
    }
    terms = [without.before[i] * factors[id(p)] for i, p in enumerate(without.parameters)]
    whole = without.steps if decoupled(optimizer, optimizer.param_groups[0]) else without.gradients
    return _norm(terms) / max(_norm(whole), _TINY)


def _penalty_in_loss(training: Training, batch: Examples) -> float:
    """Norm of the gradient that reaches the model's weights past its output, over the norm of the rest.

    nan where the loss has nothing but the output and the targets to go by, or learns parameters of its own.
    """
    copy = training.copy()
    weights = [parameter for _, parameter in trainable_of(copy.model)]
    output = copy.predict(batch.inputs)
    fixed = copy.loss(output.detach(), batch.targets)
    if not fixed.requires_grad or not weights:
        return math.nan
    if {id(leaf) for leaf in _leaves(fixed)} - {id(weight) for weight in weights}:
        return math.nan
    past = torch.autograd.grad(fixed, weights, allow_unused=True)
    whole = torch.autograd.grad(copy.loss(output, batch.targets), weights, allow_unused=True)
    pairs = list(zip(past, whole, strict=True))
    rest = [b if a is None else b - a for a, b in pairs if b is not None]
    return _norm([a for a, _ in pairs if a is not None]) / max(_norm(rest), _TINY)


def _batch(training: Training, examples: Examples) -> Examples:
    count = min(len(examples), max(2, min(training.batch_size, _LARGEST_BATCH)))
    generator = seeds.torch_generator(0, "doctor", "step", "batch")
    return examples.select(torch.randperm(len(examples), generator=generator)[:count])


def _leaves(loss: Tensor) -> Iterable[Tensor]:
    """The leaves of a graph that collect gradients."""
    waiting: list[Any] = [loss.grad_fn] if loss.grad_fn is not None else []
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            yield variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def _stop_decay(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else math.nan


def _cosine(steps: list[Tensor], gradients: list[Tensor]) -> float:
    product = sum(float((a.double() * b.double()).sum()) for a, b in zip(steps, gradients, strict=True))
    lengths = _norm(steps) * _norm(gradients)
    return product / lengths if lengths > 0 and math.isfinite(lengths) else math.nan


_KNOWN: WeakKeyDictionary[Training, dict[str, StepFacts | None]] = WeakKeyDictionary()
