"""Running a model for initialization: setting each weight when it is reached, and measuring what the result does.

Both runs are in evaluation mode, but for batch normalization, which uses the batch's statistics as in training where
the batch has more than one value per channel; the model is left as it was. Not random but for the cotangent, which has
a seed of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from homeostat import seeds
from homeostat.kernels.backend import widest_dtype
from homeostat.parts.dataflow import replace
from homeostat.parts.init.sites import Site
from homeostat.parts.layers import Sample, call_once, tensors_in, untouched


@dataclass
class Signal:
    """Mean squares at a layer: of its input and output, and of the gradients with respect to them; NaN if unknown."""

    input: float = math.nan
    output: float = math.nan
    input_gradient: float = math.nan
    output_gradient: float = math.nan

    @property
    def forward(self) -> float:
        """Of the output over that of the input."""
        return self.output / self.input if self.input else math.nan

    @property
    def backward(self) -> float:
        """Of the gradient with respect to the input over that with respect to the output."""
        return self.input_gradient / self.output_gradient if self.output_gradient else math.nan


def mean_square(tensor: Tensor) -> float:
    """The mean of the squares; NaN without any."""
    return float(wide(tensor).square().mean()) if tensor.numel() else math.nan


def wide(tensor: Tensor) -> Tensor:
    """The numbers in float64, or float32 on devices that have no more."""
    return tensor.detach().to(widest_dtype(tensor.device))


class Visits(TorchFunctionMode):
    """Calls back at the first use of each site: `entering` before it, `leaving` after.

    `entering` may return other tensors to go in, `leaving` another output to go on with; `again` computes it once more.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__()
        self.modules: dict[nn.Module, list[Site]] = {}
        self.bare: dict[int, Site] = {}
        self.seen: set[Site] = set()
        for site in sites:
            if site.bare:
                self.bare[id(site.target.layer._parameters[site.target.attribute])] = site
            elif site.calls:
                self.modules.setdefault(site.module, []).append(site)

    def entering(self, site: Site, tensors: list[Tensor]) -> list[Tensor] | None:
        """Before the first use of a site, with the tensors that go in."""

    def leaving(self, site: Site, again: Callable[[], Any], output: Tensor) -> Tensor | None:
        """After it, with what came out first."""

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Attach the hooks; take them off again."""
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, _NormBase):
                    stack.callback(module.register_forward_pre_hook(_batch_statistics).remove)
            for module in self.modules:
                entering = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                leaving = module.register_forward_hook(self._leave, with_kwargs=True)
                stack.callback(entering.remove)
                stack.callback(leaving.remove)
            if self.bare:
                stack.enter_context(self)
            yield

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        for site in self.modules[module]:
            if site not in self.seen:
                args, kwargs = self._offer(site, args, kwargs)
        return args, kwargs

    def _offer(self, site: Site, args: Any, kwargs: Any) -> Any:
        """Let `entering` see, and perhaps exchange, the floating point tensors among the arguments."""
        tensors = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
        others = self.entering(site, tensors)
        if others is None:
            return args, kwargs
        return _exchange((args, kwargs), tensors, others)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        for site in self.modules[module]:
            if site in self.seen:
                continue
            self.seen.add(site)
            if site.output is None:
                continue
            first = tensors_in(output)[0]
            other = self.leaving(site, lambda: tensors_in(module.forward(*args, **kwargs))[0], first)
            if other is not None:
                output = _exchange(output, [first], [other])
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        site = next((self.bare[id(t)] for t in tensors_in((args, kwargs)) if id(t) in self.bare), None)
        if site is None or site in self.seen or getattr(func, "__name__", "").strip("_") != site.kind[2:]:
            return func(*args, **kwargs)
        self.seen.add(site)
        weight = site.target.layer._parameters[site.target.attribute]
        given = [t for t in tensors_in((args, kwargs)) if t is not weight and not isinstance(t, nn.Parameter)]
        others = self.entering(site, given)
        if others is not None:
            args, kwargs = _exchange((args, kwargs), given, others)
        output = func(*args, **kwargs)
        other = self.leaving(site, lambda: func(*args, **kwargs), output)
        return output if other is None else other


def _exchange(nest: Any, tensors: list[Tensor], others: list[Tensor]) -> Any:
    """The nest with other tensors in the place of some."""
    exchanged = {id(tensor): other for tensor, other in zip(tensors, others, strict=True)}
    return replace(nest, Tensor, lambda tensor: exchanged.get(id(tensor), tensor))


def _batch_statistics(module: nn.Module, args: Any) -> None:
    """Switch a batch normalization layer to training mode where that is possible and it is not frozen."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    frozen = bool(trained) and not any(trained)
    tensor = args[0] if args else None
    if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.numel() > tensor.shape[1] and not frozen:
        module.training = True


def run(model: nn.Module, sample: Sample, visits: Visits) -> Any:
    """Run the model with a visitor; it is left as it was, but for what the visitor changes."""
    with untouched(model), visits.attached(model):
        return call_once(model, sample)


class _Meter(Visits):
    """Notes the tensors that go into and out of every site, as copies that only the site has to do with."""

    def __init__(self, sites: Iterable[Site]) -> None:
        super().__init__(sites)
        self.ins: dict[Site, Tensor] = {}
        self.outs: dict[Site, Tensor] = {}

    def entering(self, site: Site, tensors: list[Tensor]) -> list[Tensor] | None:
        if not tensors:
            return None
        copies: dict[int, Tensor] = {}
        for tensor in tensors:
            copy = tensor.clone()
            copies.setdefault(id(tensor), copy if copy.requires_grad else copy.requires_grad_())
        others = [copies[id(tensor)] for tensor in tensors]
        self.ins[site] = others[0]
        return others

    def leaving(self, site: Site, again: Callable[[], Any], output: Tensor) -> Tensor | None:
        self.outs[site] = output
        return output.clone()  # what follows may write into it


def measure(model: nn.Module, sample: Sample, sites: list[Site]) -> dict[Site, Signal]:
    """Mean squares forward and backward at every site that the sample reaches.

    The gradients are those of ⟨c, output⟩ for a standard normal c, seeded, over all floating point outputs.
    """
    meter = _Meter(sites)
    with untouched(model), torch.enable_grad(), meter.attached(model):
        outputs = call_once(model, sample)
        watched = [
            (site, name, tensors[site])
            for site in meter.seen
            for name, tensors in (("input", meter.ins), ("output", meter.outs))
            if site in tensors
        ]
        gradients = _gradients(outputs, [tensor for *_, tensor in watched])  # before buffers are put back
    signals = {site: Signal() for site in meter.seen}
    for (site, name, tensor), gradient in zip(watched, gradients, strict=True):
        setattr(signals[site], name, mean_square(tensor))
        if gradient is not None:
            setattr(signals[site], f"{name}_gradient", mean_square(gradient))
    return signals


def _gradients(outputs: Any, tensors: list[Tensor]) -> Iterable[Tensor | None]:
    roots = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad and tensor.is_floating_point()]
    followed = [tensor for tensor in tensors if tensor.requires_grad]
    if not roots or not followed:
        return [None] * len(tensors)
    generator = seeds.torch_generator(0, "cotangent")
    cotangents = [torch.randn(root.shape, generator=generator, device="cpu").to(root) for root in roots]
    try:
        gradients = iter(torch.autograd.grad(roots, followed, cotangents, allow_unused=True))
    except RuntimeError:  # the model overwrites what its gradient needs, or uses a function without one
        return [None] * len(tensors)
    return [next(gradients) if tensor.requires_grad else None for tensor in tensors]
