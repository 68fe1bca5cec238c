"""What the tests of folding share: batch normalization that does something, and a count of what is left of it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.parts.dataflow import record
from homeostat.parts.fold import Folding, fold, folding, plan_folding
from homeostat.parts.fold.check import relative_difference
from homeostat.parts.layers import call, named_tensors_in, untouched

_NAMES = ("weight", "bias", "running_mean", "running_var")


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm random statistics and parameters, as if trained: fresh ones are nearly the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        running_var = getattr(module, "running_var", None)
        if not isinstance(running_var, Tensor):
            continue
        mean, variance = module.running_mean, running_var
        with torch.no_grad():
            mean.copy_(torch.randn(mean.shape, generator=generator) * 0.2)
            variance.copy_(torch.rand(variance.shape, generator=generator) + 0.5)
            for name, base in (("weight", 1.0), ("bias", 0.0)):
                held = getattr(module, name, None)
                if isinstance(held, Tensor):
                    held.copy_(base + torch.randn(held.shape, generator=generator) * 0.2)
    return model


def outputs(model: nn.Module, sample: Any) -> list[Tensor]:
    with untouched(model):
        return [tensor for _, tensor in named_tensors_in(call(model, sample))]


def norms_in(model: nn.Module, sample: Any) -> int:
    """How many batch normalizations a run of the model still does."""
    nodes = record(model, sample).nodes
    return sum(
        node.name in ("batch_norm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LastAxisBatchNorm") for node in nodes
    )


def fold_with_plan(model: nn.Module, sample: Any) -> tuple[nn.Module, Folding]:
    """What fold returns, and the plan it made on the way: the same as plan_folding's, in half the time."""
    plans: list[Folding] = []
    inner = folding._fold

    def watched(*args: Any) -> tuple[nn.Module, Folding]:
        new, plan = inner(*args)
        plans.append(plan)
        return new, plan

    with mock.patch.object(folding, "_fold", watched):
        new = fold(model, sample)
    return new, plans[0]


def folded(model: nn.Module, sample: Any, count: int, stay: int = 0, rtol: float = 1e-5) -> tuple[nn.Module, Folding]:
    """Fold, and check that `count` norms went, `stay` stayed, the outputs are equal and the model is untouched."""
    settle(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    new, plan = fold_with_plan(model, sample)
    assert (len(plan.folded), len(plan.refused)) == (count, stay), str(plan)
    assert not any(module.training for module in new.modules())
    expected, actual = outputs(model, sample), outputs(new, sample)
    assert len(expected) == len(actual) > 0
    assert max(map(relative_difference, expected, actual)) < rtol
    if count and not stay:
        assert norms_in(new, sample) == 0
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not {id(tensor) for tensor in (*model.parameters(), *model.buffers())} & {
        id(tensor) for tensor in (*new.parameters(), *new.buffers())
    }
    return new, plan


def reason(model: nn.Module, sample: object) -> str:
    """Why the only norm of a model stays."""
    settle(model)
    plan = plan_folding(model, sample)
    assert not plan.folded
    assert len(plan.refused) == 1
    return plan.refused[0].reason


class Calls(nn.Module):
    """A model made of a function of itself, for forwards of one line."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Functional(nn.Module):
    """Everything by torch.nn.functional, with parameters of its own."""

    def __init__(self, channels, name="running_mean"):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, channels, 3, 3) * 0.2)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.inner = nn.ReLU()
        self.note = "kept"

    def forward(self, x, residual=None, scale=1.0):
        y = F.conv2d(x, self.kernel, padding=1)
        y = F.batch_norm(y, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, 1e-3)
        y = F.dropout(y, 0.5, self.training)
        if residual is not None:
            y = y + residual
        return self.inner(y) * scale
