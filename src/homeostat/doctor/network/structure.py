"""What stands between the weight layers of a model, read off one run: activations, normalization, dropout, sums.

A link leads from a weight layer (or the model's input) to the next one (or to what the model returns); its steps are
whatever the model computed in between, by modules and by bare functions alike. Dropout, which computes nothing in
evaluation mode, is seen too. How ways are found is in `ways`. Not random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from homeostat.doctor.network.ways import Role as Role
from homeostat.doctor.network.ways import Step as Step
from homeostat.doctor.network.ways import Ways
from homeostat.errors import HomeostatError
from homeostat.parts.dataflow import Dataflow, Node, Value, record
from homeostat.parts.init.residual import find_branches
from homeostat.parts.layers import Sample
from homeostat.parts.modes import drop_probability, dropout_asked
from homeostat.parts.norm import is_norm

Output: TypeAlias = str | int | Callable[[Any], Any] | None


class Unreadable(HomeostatError):
    """A model whose structure cannot be read; its text says why."""


@dataclass(frozen=True)
class Link:
    """One way from a weight layer to the next."""

    source: str | None
    """The weight layer it starts behind; None: the model's input."""
    target: str | None
    """The weight layer it ends in front of; None: the model's output."""
    steps: tuple[Step, ...]

    @property
    def linear(self) -> bool:
        """Whether nothing on the way is nonlinear, so that two weight layers do the work of one."""
        return all(step.linear for step in self.steps)

    def of(self, role: Role) -> tuple[Step, ...]:
        """The steps with this role."""
        return tuple(step for step in self.steps if step.role == role)


@dataclass(frozen=True)
class Structure:
    """The weight layers of a model and what connects them."""

    weights: tuple[str, ...]
    """The names of weight layers in the order of their first call; a parameter's name where there is no layer."""
    links: tuple[Link, ...]
    depth: int
    """The most weight layers on a way through the model."""
    residual: bool
    """Whether some branch is added to what it branched off."""
    norms: tuple[str, ...]
    """The names of normalization layers that ran."""
    dropouts: tuple[str, ...]
    """The names of dropout layers that ran."""
    functional: frozenset[str]
    """"norm", "dropout" and "activation", where bare functions do their work."""
    dropping: tuple[float, ...]
    """The probabilities with which dropout functions drop in evaluation mode too, one for each call."""

    def into(self, target: str | None) -> tuple[Link, ...]:
        """The links that end in front of a weight layer; None: at the output."""
        return tuple(link for link in self.links if link.target == target)

    def behind(self, source: str | None) -> tuple[Link, ...]:
        """The links that start behind a weight layer; None: at the input."""
        return tuple(link for link in self.links if link.source == source)

    @cached_property
    def tail(self) -> tuple[Step, ...]:
        """What stands between the last weight layer and the output."""
        ends = self.into(None)
        order = {name: place for place, name in enumerate(self.weights)}
        last = max(ends, key=lambda link: order.get(link.source or "", -1), default=None)
        return last.steps if last is not None else ()

    @cached_property
    def activations(self) -> tuple[str, ...]:
        """The names of modules that act as activations, in the order of the links."""
        steps = [step for link in self.links for step in link.of("activation")]
        return tuple(dict.fromkeys(step.module for step in steps if step.module is not None))

    @cached_property
    def hidden(self) -> tuple[Step, ...]:
        """Every activation whose result a weight layer takes, each once; not gates, which are multiplied with it."""
        found = (step for link in self.links if link.target is not None for step in _passed_on(link))
        return tuple(dict.fromkeys(found))

    def is_cut(self, step: Step) -> bool:
        """Whether every way from the input to the output leads through a step; False where there is no way."""
        return _connected(self.links) and not _connected([link for link in self.links if step not in link.steps])

    @property
    def last(self) -> tuple[str, ...]:
        """The weight layers that lead to the output and to no further one."""
        ends = dict.fromkeys(link.source for link in self.into(None))
        followed = {link.source for link in self.links if link.target is not None}
        return tuple(name for name in ends if name is not None and name not in followed)


def read(model: nn.Module, sample: Sample, output: Output = None) -> Structure:
    """The structure of a model, found by running it once in evaluation mode; the model is left as it was.

    Args:
        model: any module that can run.
        sample: what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments; a few
            examples are enough.
        output: picks the output from what the model returns, as `Training` does; None takes what is named logits, or
            the first floating tensor.
    Raises: Unreadable for models that cannot be followed (compiled, scripted, wrapped for several devices) or fail on
        the sample.
    Example:
        >>> import torch
        >>> found = read(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)), torch.zeros(3, 4))
        >>> [(link.source, link.target, [step.name for step in link.steps]) for link in found.links]
        [(None, '0', []), ('0', '3', ['relu', 'dropout']), ('3', None, [])]
    """
    try:
        with _visible_dropout(model) as dropping:
            flow = record(model, sample)
        return _structure(flow, output, tuple(dropping))
    except Exception as error:  # whatever somebody else's model may raise: the examination goes on without structure
        raise Unreadable(f"{type(model).__name__} cannot be followed: {type(error).__name__}: {error}") from error


class _VisibleDropout(TorchFunctionMode):
    """Dropout functions that hand back their input give a copy of it, which shows in a dataflow; those that drop are
    noted."""

    def __init__(self) -> None:
        super().__init__()
        self.dropping: list[float] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result, asked = func(*args, **kwargs), dropout_asked(func, args, kwargs)
        if asked is None:
            return result
        p, training = asked
        self.dropping += [p] if training and p > 0 else []
        given = args[0] if args else kwargs.get("input")
        return given.clone() if isinstance(given, Tensor) and result is given else result


@contextmanager
def _visible_dropout(model: nn.Module) -> Iterator[list[float]]:
    """The same for dropout layers, also for those that return early when they do not train.

    Gives the probabilities with which functions drop.
    """

    def copied(module: nn.Module, args: Any, output: Any) -> Any:
        return output.clone() if isinstance(output, Tensor) and any(output is given for given in args) else output

    drops = [module for module in model.modules() if _drops(module)]
    handles = [module.register_forward_hook(copied) for module in drops]
    try:
        with _VisibleDropout() as functions:
            yield functions.dropping
    finally:
        for handle in handles:
            handle.remove()


def _passed_on(link: Link) -> Iterator[Step]:
    """The activations of a link that nothing multiplies with something else further on."""
    for place, step in enumerate(link.steps):
        if step.role == "activation" and all(after.role != "other" or after.linear for after in link.steps[place:]):
            yield step


def _connected(links: Sequence[Link]) -> bool:
    """Whether links lead from the input to the output."""
    reached: set[str | None] = set()
    while more := {link.target for link in links if link.source is None or link.source in reached} - reached:
        reached |= more
    return None in reached


def _structure(flow: Dataflow, output: Output, dropping: tuple[float, ...]) -> Structure:
    ways, returned = Ways(flow), _returned(flow, output)
    targets = ways.targets()
    ends: list[tuple[str | None, Value]] = [*targets, *([] if returned is None else [(None, returned)])]
    found = dict.fromkeys(Link(way.source, name, way.steps) for name, value in ends for way in ways.to(value))
    return Structure(
        weights=tuple(dict.fromkeys(name for name, _ in targets)),
        links=tuple(found),
        depth=ways.depth(returned),
        residual=bool(find_branches(ways.paths)),
        norms=tuple(dict.fromkeys(call.name for call in flow.calls if is_norm(call.module))),
        dropouts=tuple(dict.fromkeys(call.name for call in flow.calls if _drops(call.module))),
        functional=_functional(ways, found),
        dropping=dropping,
    )


def _functional(ways: Ways, links: Iterable[Link]) -> frozenset[str]:
    """Which work bare functions do."""
    norms = [layer for layer, _ in ways.wiring.norms.values() if isinstance(layer, Node)]
    modules = {call.module for call in ways.flow.calls if is_norm(call.module)}
    found = {"norm"} if any(node.module not in modules for node in norms) else set()
    bare = {step.role for link in links for step in link.steps if step.module is None}
    return frozenset(found | (bare & {"dropout", "activation"}))


def _drops(module: nn.Module) -> bool:
    """Whether a module is there to drop; attention and recurrent layers that drop inside are not."""
    return drop_probability(module) > 0 and not isinstance(module, nn.MultiheadAttention | nn.RNNBase)


def _returned(flow: Dataflow, output: Output) -> Value | None:
    """The value that the user takes for the output."""
    nest = flow.output
    if callable(output):
        try:
            nest = output(nest)
        except Exception:  # a function of tensors, given values that stand for them
            nest = flow.output
    elif output is not None:
        nest = nest[output]
    elif isinstance(nest, dict) and isinstance(nest.get("logits"), Value):
        nest = nest["logits"]
    return next((value for value in _values(nest) if value.tensor.is_floating_point()), None)


def _values(nest: Any) -> list[Value]:
    if isinstance(nest, Value):
        return [nest]
    parts = nest.values() if isinstance(nest, dict) else nest if isinstance(nest, tuple | list) else ()
    return [value for part in parts for value in _values(part)]
