"""Changes of weights: drawn anew, for the whole model or for named layers; no longer frozen.

Parameters stay the same objects; what the optimizer remembers of those that changed is forgotten. New weights come from
a stream of their own, so that applying the change twice gives the same. Random by seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from homeostat import seeds
from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.changes.optimizer import AddParameters
from homeostat.doctor.changes.places import find
from homeostat.errors import HomeostatError
from homeostat.parts.init.initialize import initialize_

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

_SAMPLE = 256  # examples on which the model is run: enough for mean squares within some percent


@dataclass(frozen=True)
class Reinitialize(Change):
    """Draw weights anew by a scheme that knows what stands between the layers; biases become 0.

    Args:
        layers: names of the layers; () for the whole model. Frozen parameters stay.
        scheme: as in `parts.init.initialize_`; "he" makes up for the functions that the model computes.
        seed: of the stream that the weights are drawn from.
    """

    layers: tuple[str, ...] = ()
    scheme: str = "he"
    seed: int = 0

    slug: ClassVar[str] = "reinitialize"
    family: ClassVar[str] = "init"
    safety: ClassVar[Safety] = "unsafe"

    def apply(self, training: Training) -> None:
        model = training.model
        chosen = [find(model, name) for name in self.layers]
        held = list(model.parameters()) if not chosen else [p for module in chosen for p in module.parameters()]
        before = [p.detach().clone() for p in held]
        with _frozen(model, held):
            done = _initialize(training, self.scheme, self.seed)
        done |= _reset_the_rest(model, chosen, done, self.seed)
        changed = [p for p, old in zip(held, before, strict=True) if not torch.equal(p.detach(), old)]
        if not done:
            raise CannotApply("none of the layers can be drawn anew")
        for parameter in changed:
            training.optimizer.state.pop(parameter, None)

    @property
    def what(self) -> str:
        return f"weights drawn anew ({self.scheme})"

    @property
    def where(self) -> tuple[str, ...]:
        return self.layers

    @property
    def diff(self) -> str:
        lines = ["+from homeostat.parts.init import initialize_"]
        if self.layers:
            lines += [
                f"+for name, parameter in model.named_parameters():  # only {', '.join(self.layers)}",
                f"+    parameter.requires_grad_(name.rpartition('.')[0] in {list(self.layers)!r})",
            ]
        lines.append(f"+initialize_(model, {self.scheme!r}, sample=x_train[:{_SAMPLE}])")
        if self.layers:
            lines.append("+model.requires_grad_(True)")
        return "\n".join(lines)


@dataclass(frozen=True)
class Unfreeze(Change):
    """Train parameters that require no gradient, and give them to the optimizer.

    Args:
        names: of the parameters.
    """

    names: tuple[str, ...]

    slug: ClassVar[str] = "unfreeze"
    family: ClassVar[str] = "frozen"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        for name in self.names:
            layer, _, attribute = name.rpartition(".")
            parameter = getattr(find(training.model, layer), attribute, None)
            if not isinstance(parameter, nn.Parameter):
                raise CannotApply(f"the model has no parameter {name!r} now")
            parameter.requires_grad_(True)
        AddParameters.of(training).apply(training)

    @property
    def what(self) -> str:
        return f"{len(self.names)} frozen parameters trained"

    @property
    def where(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.names))

    @property
    def diff(self) -> str:
        return "-parameter.requires_grad = False\n+model.requires_grad_(True)  # before the optimizer is made"


@contextmanager
def _frozen(model: nn.Module, but: list[nn.Parameter]) -> Iterator[None]:
    """Freeze every other parameter, which initialization then leaves alone."""
    kept = {id(parameter) for parameter in but}
    held = [p for p in model.parameters() if id(p) not in kept and p.requires_grad]
    try:
        for parameter in held:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def _initialize(training: Training, scheme: str, seed: int) -> set[str]:
    """The names of parameters that were set; without a run where the model cannot be followed."""
    generator = seeds.torch_generator(seed, "doctor", "reinitialize")
    sample = training.examples("train").head(_SAMPLE).inputs
    try:
        return set(initialize_(training.model, scheme, sample=sample, generator=generator))
    except Exception:  # a model that cannot be followed, or fails in evaluation mode on these inputs
        generator = seeds.torch_generator(seed, "doctor", "reinitialize")
        plain = {"he": "he_normal", "xavier": "xavier_normal"}.get(scheme, scheme)
    try:
        return set(initialize_(training.model, plain, generator=generator))
    except HomeostatError as error:
        raise CannotApply(str(error)) from error


def _reset_the_rest(model: nn.Module, chosen: list[nn.Module], done: set[str], seed: int) -> set[str]:
    """Named layers that no scheme knows, such as recurrent ones, by their own `reset_parameters`."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = set()
    for module in chosen:
        own = {names[id(p)] for p in module.parameters(recurse=False) if p.requires_grad}
        reset = getattr(module, "reset_parameters", None)
        if own and not own & done and callable(reset):
            with seeds.isolated(seed, "doctor", "reset", min(own)):
                reset()
            found |= own
    return found
