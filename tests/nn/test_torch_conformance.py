"""torch's own databases of inputs, and what its test suite asks of these layers, with torch.nn as the truth."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn as torch_nn
from torch.nn import functional as torch_functional

import homeostat.nn as nn
from homeostat.errors import InvalidValue
from homeostat.nn import functional

NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")


@pytest.fixture(scope="module")
def databases():
    """torch.testing's tables of inputs, operators and modules: no public interface, but torch's own truth."""
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    return op_db, module_db


def copied(value):
    """The same numbers in memory of their own, as a leaf."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def outcome(function, sample):
    """Output, arguments afterwards and gradients of a call on copies of a sample's arguments."""
    args = [copied(value) for value in (sample.input, *sample.args)]
    kwargs = {name: copied(value) for name, value in sample.kwargs.items()}
    output = function(*args, **kwargs)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    grads = torch.autograd.grad(output, leaves, weights, materialize_grads=True) if output.requires_grad else ()
    return output.detach(), [tensor.detach() for tensor in tensors], grads


@pytest.mark.parametrize("name", NORMS)
def test_functions_agree_with_torch_on_its_samples(databases, name):
    function, truth = getattr(functional, name), getattr(torch_functional, name)
    operators = [entry for entry in databases[0] if entry.name == f"nn.functional.{name}"]
    compared = 0
    for operator, needed in itertools.product(operators, (True, False)):
        for sample in operator.sample_inputs("cpu", torch.float64, requires_grad=needed):
            if sample.input.dim() == 1 and name == "batch_norm":  # torch takes an empty input without channels
                continue
            torch.testing.assert_close(outcome(function, sample), outcome(truth, sample), equal_nan=True)
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("name", ["group_norm", "rms_norm"])
def test_functions_refuse_what_torch_refuses(databases, name):
    operator = next(entry for entry in databases[0] if entry.name == f"nn.functional.{name}")
    for error in operator.error_inputs("cpu"):
        with pytest.raises(InvalidValue):
            getattr(functional, name)(error.sample_input.input, *error.sample_input.args, **error.sample_input.kwargs)


MODULES = (
    *(f"BatchNorm{dims}d" for dims in (1, 2, 3)),
    *(f"InstanceNorm{dims}d" for dims in (1, 2, 3)),
    *("GroupNorm", "LayerNorm", "RMSNorm"),
)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_modules_agree_with_torch_on_its_samples(databases, name, training):
    """Outputs, gradients to the input and to every parameter, and buffers."""
    (entry,) = (entry for entry in databases[1] if entry.module_cls is getattr(torch_nn, name))
    settings = {"device": "cpu", "dtype": torch.float64, "requires_grad": True, "training": training}
    samples = entry.module_inputs_func(entry, **settings)
    assert len(samples) >= 2
    for sample in samples:
        made = sample.constructor_input
        truth = entry.module_cls(*made.args, **made.kwargs).double().train(training)
        module = getattr(nn, name)(*made.args, **made.kwargs).double().train(training)
        module.load_state_dict(truth.state_dict())
        results = []
        for each in (module, truth):
            x = copied(sample.forward_input.args[0])
            output = each(x)
            grads = torch.autograd.grad(output.pow(3).sum(), (x, *each.parameters()))
            results.append((output, grads, dict(each.named_parameters()), dict(each.named_buffers())))
        torch.testing.assert_close(*results)


def negative_view(values):
    """The same values behind torch's lazy minus: the memory holds the opposite numbers."""
    view = torch._neg_view(-values.detach())
    assert view.is_neg()
    return view


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.batch_norm(x, None, None, training=True),
        lambda x: functional.batch_norm(x, torch.zeros(6), torch.ones(6)),
        lambda x: functional.group_norm(x, 2),
        lambda x: functional.layer_norm(x, (5,)),
        lambda x: functional.rms_norm(x, (5,)),
        lambda x: functional.dropout(x, 0.5, seed=1),
        lambda x: functional.dropout1d(x, 0.5, seed=1),
        lambda x: functional.drop_path(x, 0.5, True, seed=1),
    ],
)
def test_a_lazy_minus_counts_in_inputs_and_gradients(function):
    x, grad = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    plain = x.clone().requires_grad_()
    truth = function(plain)
    (expected,) = torch.autograd.grad(truth, plain, grad)
    for input, received in ((negative_view(x), grad), (x.clone(), negative_view(grad))):
        output = function(input.requires_grad_())
        torch.testing.assert_close(output, truth)
        torch.testing.assert_close(torch.autograd.grad(output, input, received)[0], expected)


def test_a_lazy_minus_counts_in_weights_and_residuals():
    x, weight, residual = torch.randn(4, 6), torch.randn(6), torch.randn(4, 6)
    for function in (lambda *args, **more: functional.layer_norm(x, (6,), *args, **more),
                     lambda *args, **more: functional.group_norm(x, 2, *args, **more)):  # fmt: skip
        output = function(negative_view(weight), residual=negative_view(residual))
        torch.testing.assert_close(output, function(weight, residual=residual))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # compiled, and plain torch
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_dropout_keeps_the_order_of_dimensions_in_memory(order, dtype):
    inverse = [order.index(dim) for dim in range(4)]
    dense = torch.ones(2, 3, 4, 5).permute(order).contiguous().permute(inverse).to(dtype)
    for x in (dense, dense[1:], dense[:, 1:], dense[..., ::2]):
        output = functional.dropout(x, 0.5, seed=3)
        assert output.stride() == torch_functional.dropout(x, 0.5).stride()
        assert torch.equal(output, functional.dropout(x.contiguous(), 0.5, seed=3))
        fake = torch._subclasses.FakeTensorMode()
        with fake:
            assert functional.dropout(fake.from_tensor(x), 0.5).stride() == output.stride()


def test_group_norm_takes_a_negative_eps_as_torch_does():
    x = torch.randn(2, 6, 50)
    torch.testing.assert_close(functional.group_norm(x, 2, eps=-0.5), torch_functional.group_norm(x, 2, eps=-0.5))
    torch.testing.assert_close(nn.GroupNorm(2, 6, eps=-0.5)(x), torch_nn.GroupNorm(2, 6, eps=-0.5)(x))


@pytest.mark.parametrize("function", [functional.batch_norm, functional.instance_norm])
def test_one_running_statistic_alone_is_refused(function):
    x, ones = torch.randn(4, 6, 5), torch.ones(6)
    for given, missing in (((ones, None), "running_var"), ((None, ones), "running_mean")):
        for own in (True, False):
            with pytest.raises(InvalidValue, match=missing):
                function(x, *given, None, None, own)
    assert torch.equal(ones, torch.ones(6))


@pytest.mark.parametrize("function", [functional.batch_norm, functional.instance_norm])
def test_running_statistics_that_require_a_gradient_are_refused(function):
    x, ones = torch.randn(4, 6, 5), torch.ones(6)
    wanting = torch.ones(6, requires_grad=True)
    for given, name in (((wanting, ones), "running_mean"), ((ones, wanting), "running_var")):
        for own in (True, False):
            with pytest.raises(InvalidValue, match=f"{name} must not require a gradient"):
                function(x, *given, None, None, own)
    with torch.no_grad():
        torch.testing.assert_close(
            function(x, wanting, ones, None, None, False), x / (1 + 1e-5) ** 0.5 - 1, atol=1e-4, rtol=0
        )


def test_warnings_of_dropout_begin_as_torchs_do():
    with pytest.warns(
        UserWarning, match=r"Received a 3-D input to dropout2d.*channel-wise 1D dropout behavior is desired"
    ):
        nn.Dropout2d()(torch.ones(1, 2, 2))
    with pytest.warns(UserWarning, match="Received a 5-D input to dropout2d"):
        nn.Dropout2d()(torch.ones(1, 2, 2, 2, 2))
    with pytest.warns(UserWarning, match="Received a 6-D input to dropout3d"):
        nn.Dropout3d()(torch.ones(1, 2, 2, 2, 2, 2))
