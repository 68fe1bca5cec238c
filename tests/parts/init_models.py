"""What the tests of activation-aware initialization share: functions, deep nets, seeded inputs."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed))


class Calls(nn.Module):
    """A model written as a function of its layers."""

    def __init__(self, function, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return input * torch.sigmoid(input)

    @staticmethod
    def backward(ctx, gradient):
        (input,) = ctx.saved_tensors
        s = torch.sigmoid(input)
        return gradient * (s + input * s * (1 - s))


def leaky_by_hand(x):
    return torch.where(x > 0, x, 0.3 * x)


def odd(x):
    return x * torch.sigmoid(3 * x) + 0.1 * torch.sin(x)


FUNCTIONS = {
    "relu": F.relu,
    "relu_": lambda x: F.relu(x, inplace=True),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish by hand": lambda x: x * x.sigmoid(),
    "custom autograd": Swish.apply,
    "where": leaky_by_hand,
    "masked": lambda x: (x > 0).to(x.dtype) * x,
    "hardswish": F.hardswish,
    "squared relu": lambda x: F.relu(x).square(),
    "odd": odd,
}
KNOWN = {**FUNCTIONS, "relu_": F.relu}


def deep(function, width=128, depth=30):
    layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])

    def forward(self, x):
        for layer in self.layers:
            x = function(layer(x))
        return self.head(x)

    return Calls(forward, layers=layers, head=nn.Linear(width, 10))


def hidden(done):
    return [row.mean_square for row in done.rows[:-1]]


# What arrives at a layer may differ from theory by a factor of 2 before the gain is corrected, and the mean square of
# what it makes of that by 5 standard errors of a mean of 128 squares of normal numbers that all examples may share:
# 5 · √(2 / 128) = 0.625. So every mean square lies within 2 · 1.625 and (1 - 0.625) / 2, a factor of 5.4.
BOUND = 2 / (1 - 5 * math.sqrt(2 / 128))
