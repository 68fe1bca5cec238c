"""Every differentiable function of homeostat.nn.functional: gradients and second gradients against differences."""

from __future__ import annotations

import inspect

import pytest
import torch

from homeostat.nn import functional as F

ACTIVATIONS = (None, "relu", "leaky_relu", "silu", "tanh")


def numbers(*shape, seed=0):
    """Values away from the kinks of piecewise linear activations, with probability one."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def images(function, dims):
    x, weight, bias = numbers(2, 2, *(2,) * dims), numbers(2, 1, *(2,) * dims, seed=1), numbers(2, seed=2)

    def call(x, weight, bias, per_example=False):
        return function(x, weight, bias, 1, 1, 2, 2, p=0.3, per_example=per_example, seed=4)

    return [(call, (x, weight, bias)), (lambda *args: call(*args, per_example=True), (x, weight, bias))]


def drops(function, *shape, **settings):
    return [(lambda x: function(x, 0.4, True, **settings, seed=3), (numbers(*shape),))]


def both_modes(function, *shape):
    scaled = (lambda x: function(x, 0.4, False, mode="scaled"), (numbers(*shape),))
    return [*drops(function, *shape), *drops(function, *shape, mode="scaled"), scaled]


def linear(function, **settings):
    tensors = numbers(3, 2, 4), numbers(5, 4, seed=1), numbers(5, seed=2)
    return [(lambda x, w, b: function(x, w, b, 0.3, **settings), tensors)]


def norms(function, *shape, parameters, settings=(), buffers=()):
    """With every activation, with and without residual and parameters."""
    x, residual = numbers(*shape), numbers(*shape, seed=1)
    given = [numbers(*size, seed=place + 2) for place, size in enumerate(parameters)]
    cases = []
    for activation in ACTIVATIONS:

        def call(x, residual, *given, activation=activation):
            return function(x, *settings, *buffers, *given, activation=activation, residual=residual)

        cases.append((call, (x, residual, *given)))
    return [*cases, (lambda x: function(x, *settings, *buffers), (x,))]


STATISTICS = (torch.linspace(-1, 1, 4).double(), torch.linspace(0.5, 2, 4).double())

CASES = {
    "dropout": lambda: both_modes(F.dropout, 3, 4),
    "dropout1d": lambda: both_modes(F.dropout1d, 2, 3, 2),
    "dropout2d": lambda: both_modes(F.dropout2d, 2, 3, 2, 2),
    "dropout3d": lambda: both_modes(F.dropout3d, 2, 2, 1, 2, 2),
    "drop_path": lambda: [*drops(F.drop_path, 5, 3), *drops(F.drop_path, 5, 3, scale_by_keep=False)],
    "alpha_dropout": lambda: drops(F.alpha_dropout, 3, 4),
    "feature_alpha_dropout": lambda: drops(F.feature_alpha_dropout, 3, 4, 2),
    "gaussian_dropout": lambda: drops(F.gaussian_dropout, 3, 4),
    "drop_connect_linear": lambda: [
        *linear(F.drop_connect_linear, seed=5),
        *linear(F.drop_connect_linear, seed=5, per_example=True),
    ],
    "drop_connect_conv1d": lambda: images(F.drop_connect_conv1d, 1),
    "drop_connect_conv2d": lambda: images(F.drop_connect_conv2d, 2),
    "drop_connect_conv3d": lambda: images(F.drop_connect_conv3d, 3),
    "drop_connect_moments": lambda: linear(F.drop_connect_moments),
    "drop_connect_expectation": lambda: linear(F.drop_connect_expectation, activation="leaky_relu", samples=3, seed=6),
    "batch_norm": lambda: [
        *norms(F.batch_norm, 3, 4, 2, parameters=[(4,), (4,)], buffers=STATISTICS),
        (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (numbers(3, 4, 2), numbers(4), numbers(4, seed=1))),
    ],
    "instance_norm": lambda: norms(F.instance_norm, 2, 4, 5, parameters=[(4,), (4,)], buffers=(None, None)),
    "group_norm": lambda: [
        *norms(F.group_norm, 2, 4, 3, parameters=[(4,), (4,)], settings=(2,)),
        *norms(F.group_norm, 2, 4, parameters=[(4,), (4,)], settings=(2,)),
    ],
    "layer_norm": lambda: norms(F.layer_norm, 2, 3, 4, parameters=[(3, 4), (3, 4)], settings=((3, 4),)),
    "max_pool2d": lambda: [
        (lambda x, form=form: F.max_pool2d(x.contiguous(memory_format=form), 2), (numbers(2, 3, 5, 4),))
        for form in (torch.contiguous_format, torch.channels_last)
    ],
    "rms_norm": lambda: norms(F.rms_norm, 2, 5, parameters=[(5,)], settings=((5,),)),
}


def test_every_function_is_here():
    names = {name for name, value in vars(F).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert names == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_second_gradients(name):
    for function, tensors in CASES[name]():
        assert torch.autograd.gradcheck(function, tensors)
        assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("name", CASES)
def test_functional_derivatives_are_autograds(name):
    """torch.func.grad goes another way into the operators."""
    for function, tensors in CASES[name]():

        def total(*tensors, function=function):
            output = function(*tensors)
            return sum(part.pow(2).sum() for part in (output if isinstance(output, tuple) else (output,)))

        expected = torch.autograd.grad(total(*tensors), tensors)
        plain = tuple(tensor.detach() for tensor in tensors)
        torch.testing.assert_close(torch.func.grad(total, argnums=tuple(range(len(plain))))(*plain), expected)
