"""LayerNorm and RMSNorm: drop-in for torch.nn's, with an activation and a residual."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from homeostat.errors import InvalidType, InvalidValue
from homeostat.nn.activation import ACTIVATIONS
from homeostat.nn.functional.layer_norm import layer_norm, rms_norm
from homeostat.nn.layernorm import LayerNorm, RMSNorm

PAIRS = [(LayerNorm, nn.LayerNorm), (RMSNorm, nn.RMSNorm)]
FUNCTIONS = [(layer_norm, functional.layer_norm), (rms_norm, functional.rms_norm)]


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
@pytest.mark.parametrize("shape", [(8,), (3, 8), (1,)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_does_what_torchs_does_with_the_same_state(ours, torchs, shape, affine, dtype):
    expected = torchs(shape, 1e-4, affine, dtype=dtype)
    for parameter in expected.parameters():
        nn.init.normal_(parameter)
    actual = ours(shape, 1e-4, affine, dtype=dtype)
    actual.load_state_dict(expected.state_dict())
    torchs(shape, 1e-4, affine, dtype=dtype).load_state_dict(actual.state_dict())
    assert isinstance(actual, torchs)
    x = torch.randn(5, *shape, dtype=dtype) if shape != (3, 8) else torch.randn(2, 5, *shape, dtype=dtype)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [module(given) for module, given in zip((actual, expected), inputs, strict=True)]
    near = {"rtol": 0.02, "atol": 0.02} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(*outputs, **near)
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel(), dtype=dtype).reshape(output.shape)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **near)
    for a, e in zip(actual.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad, **near)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ours", [LayerNorm, RMSNorm])
def test_residual_and_activation_come_last(ours, activation):
    layer = ours(6, activation=activation, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    plain = copy.deepcopy(layer)
    plain.activation = None
    x, residual = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    function = (lambda z: z) if activation == "identity" else getattr(functional, activation)
    for given in (None, residual):
        expected = function(plain(x) if given is None else plain(x) + given)
        actual = layer(x, given)
        torch.testing.assert_close(actual, expected)
        wanted = [t for t in (x, layer.weight, given) if t is not None]
        same = [t for t in (x, plain.weight, given) if t is not None]
        grad = torch.randn_like(actual)
        torch.testing.assert_close(torch.autograd.grad(actual, wanted, grad), torch.autograd.grad(expected, same, grad))


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # torch's, which is then slow
@pytest.mark.parametrize(("ours", "torchs"), FUNCTIONS)
def test_mixed_dtypes_are_as_in_torch(ours, torchs):
    x, weight = torch.randn(4, 8).bfloat16(), torch.randn(8)
    assert ours(x, (8,), weight).dtype == torch.bfloat16
    torch.testing.assert_close(ours(x, (8,), weight), torchs(x, (8,), weight), rtol=0.01, atol=0.01)


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_layer_norm_refuses_what_torch_refuses_and_rms_norm_converts_as_torch_does():
    x, weight = torch.randn(4, 8), torch.randn(8).double()
    with pytest.raises(InvalidType, match="layer_norm: weight must have the input's dtype"):
        layer_norm(x, (8,), weight)
    expected = functional.rms_norm(x, (8,), weight)
    assert rms_norm(x, (8,), weight).dtype == expected.dtype
    torch.testing.assert_close(rms_norm(x, (8,), weight), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_eps_rms_norm_takes_that_of_the_precision_it_computes_in(dtype):
    x = torch.full((1, 8), 1e-4, dtype=dtype)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    torch.testing.assert_close(rms_norm(x, (8,)), (x.double() / (x.double() ** 2 + eps).sqrt()).to(dtype))


@pytest.mark.parametrize("ours", [layer_norm, rms_norm])
def test_shapes_that_do_not_fit_are_refused(ours):
    x = torch.ones(2, 3, 4)
    name = ours.__name__
    with pytest.raises(
        InvalidValue, match=rf"{name}: input must have a shape that ends in the normalized_shape, \(5,\)"
    ):
        ours(x, (5,))
    with pytest.raises(InvalidValue, match="input must have a shape that ends in"):
        ours(x, (1, 2, 3, 4))
    with pytest.raises(InvalidValue, match="normalized_shape must have at least one element"):
        ours(x, ())
    with pytest.raises(InvalidValue, match=r"weight must have the normalized_shape, \(4,\)"):
        ours(x, [4], torch.ones(3))
    with pytest.raises(InvalidValue, match=r"weight must have the normalized_shape, \(3, 4\)"):
        ours(x, (3, 4), torch.ones(12))
    with pytest.raises(InvalidType, match=rf"{name}: normalized_shape must be a sequence of sizes, .* Write \(4,\)"):
        ours(x, 4)
    with pytest.raises(InvalidType, match="input must be a floating tensor"):
        ours(x.long(), (4,))
    with pytest.raises(InvalidValue, match="residual must have the input's shape"):
        ours(x, (4,), residual=torch.ones(3, 4))
    with pytest.raises(InvalidValue, match=r"unknown activation 'rely'\. Did you mean 'relu'"):
        ours(x, (4,), activation="rely")
    with pytest.raises(InvalidValue, match="unknown backend 'numpy'"):
        ours(x, (4,), backend="numpy")


@pytest.mark.parametrize("ours", [LayerNorm, RMSNorm])
def test_unknown_activations_are_refused_when_a_layer_is_made(ours):
    with pytest.raises(InvalidValue, match=f"{ours.__name__}: unknown activation 'swish'"):
        ours(8, activation="swish")


@pytest.mark.parametrize("ours", [LayerNorm, RMSNorm])
def test_empty_batches_pass(ours):
    layer = ours(4)
    x = torch.empty(0, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == (0, 4)
    assert torch.equal(layer.weight.grad, torch.zeros(4))


def test_the_text_of_a_layer_is_torchs_and_what_differs():
    assert repr(LayerNorm((2, 3), bias=False)) == repr(nn.LayerNorm((2, 3), bias=False))
    assert repr(RMSNorm(3)) == repr(nn.RMSNorm(3))
    assert repr(RMSNorm(3, activation="relu", backend="reference")).endswith(
        "elementwise_affine=True, activation='relu', backend='reference')"
    )


def test_a_layer_compiles_whole():
    layer = LayerNorm(8, activation="gelu")
    x, residual = torch.randn(4, 8), torch.randn(4, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, residual), layer(x, residual))
