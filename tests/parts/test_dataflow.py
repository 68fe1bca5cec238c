"""The dataflow of a model: which function was called on which tensor, however the model is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import InvalidType, InvalidValue
from homeostat.nn import functional as fast
from homeostat.parts.dataflow import record, replace

X = torch.randn(2, 3, 6, 6)


class Calls(nn.Module):
    """A model made of a function of itself."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def names(flow):
    return [node.name for node in flow.nodes]


def test_modules_functions_methods_and_operators_are_nodes():
    def forward(self, x):
        y = F.relu(self.conv(x))
        y = torch.sigmoid(y) * y + 1
        return (2 - y).flatten(1).mT

    flow = record(Calls(forward, conv=nn.Conv2d(3, 4, 3)), X)
    assert names(flow) == ["conv2d", "relu", "sigmoid", "mul", "add", "rsub", "flatten", "mT"]
    first = flow.nodes[0]
    assert first.module_name == "conv"
    assert [value.name for value in first.inputs] == [None, "conv.weight", "conv.bias"]
    assert first.inputs[0].given
    assert flow.nodes[1].module is flow.model
    for node, following in zip(flow.nodes[:-1], flow.nodes[1:], strict=True):
        assert following in node.outputs[0].consumers
        assert node.outputs[0].producer is node
    assert flow.nodes[-1].outputs[0].returned
    assert not flow.nodes[0].outputs[0].returned
    assert len(flow.nodes[1].outputs[0].consumers) == 2


def test_what_hands_back_its_input_is_no_node():
    model = nn.Sequential(nn.Dropout(), nn.Identity(), nn.Linear(6, 5), hs.nn.Dropout(), hs.nn.DropPath(0.5), nn.ReLU())
    flow = record(model, X)
    assert names(flow) == ["linear", "relu"]
    assert flow.nodes[0].inputs[0].given
    assert flow.calls_of(model[3])[0].outputs == flow.nodes[0].outputs
    assert record(Calls(lambda self, x: x.contiguous().to(x.dtype).requires_grad_(False) + 1), X).nodes[0].name == "add"


def test_questions_about_form_are_no_nodes_and_reading_is():
    def forward(self, x):
        if x.shape[0] == x.size(0) and x.dim() == x.ndim and x.dtype.is_floating_point and len(x):
            return x * float(x.max()) + np.asarray(x.detach()).sum()
        return x

    flow = record(Calls(forward), X)
    reads = [node for node in flow.nodes if not node.outputs]
    assert [node.name for node in reads] == ["float", "array"]
    assert flow.nodes[0].inputs[0].consumers[0].name == "max"


def test_layers_of_homeostat_are_one_node():
    model = Calls(
        lambda self, x: self.bn(self.conv(x), residual=x),
        conv=nn.Conv2d(3, 3, 1),
        bn=hs.nn.BatchNorm2d(3, activation="gelu"),
    )
    flow = record(model, X)
    assert names(flow) == ["conv2d", "BatchNorm2d"]
    node = flow.nodes[1]
    assert node.function is model.bn
    assert node.kwargs["residual"].given
    assert [value.name for value in node.inputs] == [
        None, None, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"
    ]  # fmt: skip
    assert node.args[0].consumers == [node]


def test_functions_of_homeostat_are_one_node():
    mean, variance = torch.zeros(3), torch.ones(3)
    flow = record(Calls(lambda self, x: fast.group_norm(fast.batch_norm(x, mean, variance), 3)), X)
    assert names(flow) == ["norm_channels_affine.default", "norm_channels.default"]
    assert flow.nodes[1].inputs[0] is flow.nodes[0].outputs[0]
    constants = [value for value in flow.nodes[0].inputs if value.producer is None and not value.given]
    assert [value.tensor is each for value, each in zip(constants, (mean, variance), strict=True)] == [True, True]


def test_writing_in_place_makes_new_values():
    def forward(self, x):
        y = self.linear(x)
        before = y * 1
        y.relu_()
        y += 1
        return before + y

    flow = record(Calls(forward, linear=nn.Linear(6, 4)), X)
    linear, _, relu, plus, last = flow.nodes
    assert relu.inputs == linear.outputs
    assert plus.inputs[0] is relu.outputs[0]
    assert last.inputs[1] is plus.outputs[0]
    assert linear.outputs[0] is not relu.outputs[0]
    assert linear.outputs[0].tensor is relu.outputs[0].tensor


@pytest.mark.parametrize("other", [lambda y: y[:, :2], lambda y: y.view(-1), lambda y: y.mT.detach()])
def test_writing_through_a_view_reaches_what_it_is_a_view_of(other):
    def forward(self, x):
        y = self.linear(x)
        other(y).mul_(2)
        return y.sum()

    flow = record(Calls(forward, linear=nn.Linear(6, 4)), X)
    total, writing = flow.nodes[-1], next(node for node in flow.nodes if node.name == "mul")
    assert total.inputs[0].producer is writing
    assert flow.nodes[0].outputs[0] in writing.inputs
    assert writing in flow.nodes[0].outputs[0].consumers


def test_assignment_and_out_arguments_write():
    def forward(self, x):
        y = torch.zeros(2, 3)
        y[0] = x[0, :, 0, 0]
        torch.add(y, 1, out=y)
        return y

    flow = record(Calls(forward), X)
    assert names(flow) == ["zeros", "getitem", "setitem", "add"]
    assert flow.nodes[2].inputs[1] is flow.nodes[1].outputs[0]
    assert flow.output is flow.nodes[3].outputs[0]


def test_values_that_the_model_keeps_count_as_returned():
    def forward(self, x):
        self.features = self.linear(x)
        return self.features.sum()

    flow = record(Calls(forward, linear=nn.Linear(6, 4)), X)
    assert flow.nodes[0].outputs[0].returned


def test_calls_of_modules_nest():
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    flow = record(nn.Sequential(inner, inner), X)
    assert [call.name for call in flow.calls] == ["", "0", "0.0", "0.1", "0", "0.0", "0.1"]
    first, second = flow.calls_of(inner)
    assert [node.name for node in flow.nodes_in(first)] == ["linear", "tanh"]
    assert second.inputs == first.outputs
    assert flow.calls[2].parent is first
    assert flow.value("1.0.weight").names == ("0.0.weight", "1.0.weight")
    assert len(flow.value("0.0.weight").consumers) == 2


def test_custom_gradients_attention_and_recurrence():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return grad

    def forward(self, x):
        y, _ = self.attention(x, x, x)
        z, _ = self.gru(Cube.apply(y))
        return self.encoder(z)

    model = Calls(
        forward,
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
        gru=nn.GRU(6, 6, batch_first=True),
        encoder=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
    )
    flow = record(model, X[:, 0])
    found = names(flow)
    assert found.count("multi_head_attention_forward") == 2
    assert "pow" in found
    assert "gru" in found
    assert all(value.producer is not None or value.names or value.given for value in flow.values)


def test_nodes_run_again_on_other_tensors():
    flow = record(nn.Sequential(nn.Linear(6, 4), nn.Softplus(beta=2), hs.nn.LayerNorm(4)), X)
    linear, softplus, norm = flow.nodes
    x = torch.linspace(-3, 3, 7)
    assert torch.equal(softplus.run({softplus.inputs[0]: x}), F.softplus(x, beta=2))
    y = torch.randn(5, 4)
    assert torch.equal(norm.run({norm.inputs[0]: y}), flow.model[2](y))
    assert torch.equal(linear.run({}), linear.outputs[0].tensor)


def test_outputs_keep_their_nest():
    model = Calls(lambda self, x: {"a": (x + 1, None), "b": [x * 2, 3]})
    flow = record(model, X)
    assert flow.output == {"a": (flow.nodes[0].outputs[0], None), "b": [flow.nodes[1].outputs[0], 3]}
    assert [value.returned for value in flow.values] == [False, True, True]


def test_the_model_is_left_as_it_was():
    class Counting(nn.BatchNorm1d):
        """Counts also in evaluation."""

        def forward(self, input):
            self.num_batches_tracked.add_(1)
            return super().forward(input) + torch.rand(())

    model = nn.Sequential(nn.Linear(6, 4), Counting(4))
    model[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    for seed in (0, 1):
        torch.manual_seed(seed)
        flows = [record(model, X[:, 0, 0]) for _ in range(2)]
        outputs = [flow.output.tensor for flow in flows]
        assert torch.equal(*outputs)
    torch.set_rng_state(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, False, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_it_is_left_as_it_was_also_when_it_fails():
    def forward(self, x):
        self.linear(x)
        raise RuntimeError("on purpose")

    model = Calls(forward, linear=nn.Linear(6, 4))
    with pytest.raises(RuntimeError, match="on purpose") as raised:
        record(model, X)
    assert "homeostat ran the model once" in "".join(raised.value.__notes__)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training
    assert torch.add(torch.ones(()), 1) == 2


def test_a_failure_that_the_model_catches():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError

    def forward(self, x):
        try:
            return self.fails(x)
        except ValueError:
            return self.linear(x)

    flow = record(Calls(forward, fails=Fails(), linear=nn.Linear(6, 4)), X)
    assert [(node.name, node.module_name) for node in flow.nodes] == [("linear", "linear")]
    assert flow.calls[-1].parent is flow.calls[0]


def test_inference_tensors():
    def forward(self, x):
        with torch.inference_mode():
            return self.linear(x).relu_() * 2

    assert names(record(Calls(forward, linear=nn.Linear(6, 4)), X)) == ["linear", "relu", "mul"]


def test_text():
    lines = str(record(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), X)).splitlines()
    assert lines == ["%3 = linear(%2, 0.weight, 0.bias)  (0)", "%4 = relu(%3)  (1)"]


def test_replace_keeps_the_form_of_a_nest():
    nest = (1, [2, {"a": slice(0, 3)}], torch.Size([4]), "text")
    assert replace(nest, int, lambda number: number + 1) == (2, [3, {"a": slice(1, 4)}], (5,), "text")


def test_wrong_arguments():
    with pytest.raises(InvalidType, match=r"record: model must be a torch\.nn\.Module"):
        record(print, X)
    with pytest.raises(InvalidValue, match="record: model must be without any DataParallel"):
        record(nn.DataParallel(nn.Linear(2, 2)), X)
    with pytest.raises(InvalidValue, match="record: model must hold no lazy layer"):
        record(nn.LazyLinear(2), X)
