"""A small classifier, and the exact Hessian of its loss."""

import torch
from torch import nn

cross_entropy = nn.functional.cross_entropy


def problem(norm=None, activation=nn.Tanh, dtype=torch.float64):
    """A model of two layers and a batch of three classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), *([norm] if norm else []), activation(), nn.Linear(6, 3)).to(dtype)
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    return model, (inputs, inputs[:, :3].argmax(1))


def exact_hessian(model, batch, loss_fn):
    """With respect to all trainable parameters, in their order."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    sizes = [model.get_parameter(name).numel() for name in names]
    shapes = [model.get_parameter(name).shape for name in names]
    flat = torch.cat([model.get_parameter(name).detach().reshape(-1) for name in names])

    def loss(vector):
        parts = [part.reshape(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
        return loss_fn(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (batch[0],)), batch[1])

    return torch.autograd.functional.hessian(loss, flat)
