"""Folding: every kind of layer, every way to write it down; what is not exact is refused; PyTorch's wrong answers."""

from __future__ import annotations

import copy
import io
import pickle
import re
from dataclasses import dataclass

import pytest
import torch
from fold_models import fold_with_plan, folded, norms_in, one_thread, outputs, settle  # noqa: F401 - a fixture for every test here
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import HomeostatError, InvalidType, InvalidValue, NoEffectWarning
from homeostat.nn import functional as fast
from homeostat.nn.functional import batch_norm
from homeostat.parts import surgery
from homeostat.parts.fold import fold, plan_folding
from homeostat.parts.fold.check import check_outputs, relative_difference, second_batch, tolerance
from homeostat.parts.norm import LastAxisBatchNorm, make_norm

SMALL = torch.randn(3, 6, 7, 7)
X1, X2, X3 = torch.randn(3, 4, 9), torch.randn(3, 4, 9, 9), torch.randn(3, 4, 5, 5, 5)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SAMPLES = {1: X1, 2: X2, 3: X3}


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


# Every layer


@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    affine=st.booleans(),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
)
@settings(max_examples=15, deadline=None)
def test_convolution_then_norm(dims, groups, bias, kernel, stride, padding, dilation, affine, mode):
    convolution = CONVOLUTIONS[dims](4, 8, kernel, stride, padding, dilation, groups, bias, mode)
    folded(nn.Sequential(convolution, NORMS[dims](8, affine=affine)), SAMPLES[dims], 1)


@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    kernel=st.integers(2, 3),
    stride=st.integers(2, 3),
    padding=st.integers(0, 1),
    output_padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
)
@settings(max_examples=10, deadline=None)
def test_transposed_convolution_then_norm(dims, groups, bias, kernel, stride, padding, output_padding, dilation):
    layer = TRANSPOSED[dims](4, 8, kernel, stride, padding, output_padding, groups, bias, dilation)
    folded(nn.Sequential(layer, NORMS[dims](8)), SAMPLES[dims], 1)


@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
)
@settings(max_examples=10, deadline=None)
def test_norm_then_convolution_that_does_not_pad_with_zeros(dims, groups, bias, kernel, stride, mode):
    padding = 0 if mode == "zeros" or dims == 3 else 1
    layer = CONVOLUTIONS[dims](4, 8, kernel, stride, padding, groups=groups, bias=bias, padding_mode=mode)
    folded(nn.Sequential(NORMS[dims](4), layer), SAMPLES[dims], 1)


@pytest.mark.parametrize("padding", [1, "same", (0, 1)])
def test_norm_before_zero_padding_is_refused_unless_it_has_no_shift(padding):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=padding))
    assert "pads with zeros" in reason(model, X2)
    model[0].running_mean.zero_()
    model[0].bias.data.zero_()
    assert len(plan_folding(model, X2).folded) == 1
    assert relative_difference(outputs(model, X2)[0], outputs(fold(model, X2), X2)[0]) < 1e-5


def test_norm_before_a_transposed_convolution_only_without_shift():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False))
    assert "pads with zeros" in reason(model, X2)
    model[0].running_mean.zero_()
    model[0].bias.data.zero_()
    new = fold(model, X2)
    assert isinstance(new[0], nn.Identity)
    assert new[1].bias is None
    assert relative_difference(outputs(model, X2)[0], outputs(new, X2)[0]) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_linear_then_norm_and_norm_then_linear(bias):
    folded(nn.Sequential(nn.Linear(6, 5, bias=bias), nn.BatchNorm1d(5)), torch.randn(7, 6), 1)
    folded(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5, bias=bias)), torch.randn(7, 6), 1)


def test_norm_between_two_layers_goes_into_the_first():
    _, plan = folded(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)), torch.randn(7, 6), 1)
    assert plan.folded[0].into == ("0 (Linear)",)


def test_two_norms_around_one_layer():
    folded(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)), torch.randn(7, 6), 2)


def test_norms_in_a_row():
    folded(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6), hs.nn.BatchNorm2d(6)), X2, 3)


def test_input_without_a_batch():
    class Unbatched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.bn(self.conv(x).unsqueeze(0))

    folded(Unbatched(), torch.randn(4, 9, 9), 1)


# Shapes between


def test_linear_on_sequences_with_the_norm_on_channels():
    """(N, L, C) → (N, C, L) for BatchNorm1d and back."""
    model = Calls(
        lambda self, x: self.bn(self.linear(x).transpose(1, 2)).transpose(1, 2),
        linear=nn.Linear(6, 5, bias=False),
        bn=nn.BatchNorm1d(5),
    )
    folded(model, torch.randn(3, 7, 6), 1)


def test_sequences_as_rows():
    model = Calls(
        lambda self, x: self.bn((y := self.linear(x)).flatten(0, 1)).reshape_as(y),
        linear=nn.Linear(6, 5),
        bn=nn.BatchNorm1d(5),
    )
    folded(model, torch.randn(3, 7, 6), 1)


def test_norm_of_images_before_a_linear_layer():
    model = nn.Sequential(nn.MaxPool2d(3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(36, 5))
    new, _ = folded(model, X2, 1)
    assert [type(module) for module in (new[1], new[3])] == [nn.Identity, nn.Identity]


def test_linear_layer_that_makes_images():
    model = nn.Sequential(nn.Linear(6, 4 * 3 * 3), nn.Unflatten(1, (4, 3, 3)), nn.BatchNorm2d(4))
    folded(model, torch.randn(3, 6), 1)


@pytest.mark.parametrize("shuffle", [nn.PixelShuffle(2), nn.PixelUnshuffle(3), nn.ChannelShuffle(2)])
def test_shuffled_channels(shuffle):
    channels = shuffle(torch.zeros(1, 8, 6, 6)).shape[1]
    model = nn.Sequential(nn.Conv2d(4, 8, 4), shuffle, nn.BatchNorm2d(channels))
    count = 0 if isinstance(shuffle, nn.PixelUnshuffle) else 1  # there one channel becomes nine
    folded(model, X2, count, 1 - count) if count else reason(model, X2)


def test_cropped_output():
    """Causal convolutions pad on both sides and cut the right one off."""
    model = Calls(
        lambda self, x: self.bn(self.conv(x)[..., :-2]), conv=nn.Conv1d(4, 6, 3, padding=2), bn=nn.BatchNorm1d(6)
    )
    folded(model, X1, 1)


def test_channels_that_mix_are_refused():
    model = Calls(
        lambda self, x: self.bn(self.conv(x).flatten(2).transpose(1, 2)),
        conv=nn.Conv2d(4, 49, 3),
        bn=nn.BatchNorm1d(49),
    )
    assert "several" in reason(model, X2)
    model = Calls(lambda self, x: self.linear(self.bn(x)), linear=nn.Linear(9, 3), bn=nn.BatchNorm1d(4))
    assert "mix" in reason(model, X1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_stays(memory_format):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 3, groups=2), nn.BatchNorm2d(4)
    )
    model = model.to(memory_format=memory_format)
    new, _ = folded(model, X2.to(memory_format=memory_format), 2)
    for layer in (new[0], new[2]):
        assert layer.weight.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    )
    model = settle(model).to(dtype)
    new, _ = folded(model, X2.to(dtype), 2, rtol=tolerance(X2.to(dtype), 1e-12))
    assert {parameter.dtype for parameter in new.parameters()} == {dtype}


# Ways to write a model down


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)])
        self.norms = nn.ModuleDict({"b": nn.BatchNorm2d(channels), "a": nn.BatchNorm2d(channels)})
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.act(self.norms["a"](self.layers[0](x)))
        y = self.norms["b"](self.layers[1](y))
        y += x
        return self.act(y)


def test_containers_branches_and_in_place_operations():
    """The names and the order of children mislead on purpose."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), Block(4), nn.Sequential(Block(4)))
    new, _ = folded(model, X2, 6)
    assert type(new[3]) is Block


def test_concatenation_of_branches():
    model = Calls(
        lambda self, x: self.conv(torch.cat([self.a(x), self.b(x)], 1)),
        a=nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)),
        b=nn.Sequential(nn.Conv2d(4, 2, 3, padding=1), nn.BatchNorm2d(2)),
        conv=nn.Conv2d(5, 4, 1),
    )
    folded(model, X2, 2)


def test_one_norm_before_several_layers():
    model = Calls(
        lambda self, x: [part(y) for y in [self.bn(x)] for part in (self.q, self.k, self.v)],
        bn=nn.BatchNorm1d(6), q=nn.Linear(6, 5), k=nn.Linear(6, 5, bias=False), v=nn.Linear(6, 2),
    )  # fmt: skip
    _, plan = folded(model, torch.randn(4, 6), 1)
    assert len(plan.folded[0].into) == 3


@dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


def test_outputs_in_dataclasses_and_dictionaries_are_compared():
    def forward(self, x):
        y = self.bn(self.conv(x))
        return {"result": Result(y.mean((2, 3)), (y,)), "list": [y.relu()]}

    new, _ = folded(Calls(forward, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)), X2, 1)
    new.conv.weight.data[2] *= 1.5
    with pytest.raises(InvalidValue, match=r"result\.logits"):
        check_outputs("fold", Calls(forward, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)), new, X2, 1e-4)


def test_keyword_arguments_and_several_inputs():
    model = Calls(lambda self, x, *, y: self.bn(self.conv(x)) + y, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6))
    folded(model, {"x": X2, "y": torch.randn(3, 6, 7, 7)}, 1)


def test_the_whole_model_is_one_sequential_that_is_used_twice():
    """A shared backbone: every call of the convolution is followed by the same norm, so folding is exact."""
    part = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    folded(Calls(lambda self, x, y: self.part(x) - self.part(y), part=part), (X2, X2 * 2), 1)


def test_one_norm_behind_two_layers():
    model = Calls(
        lambda self, x: self.bn(self.a(x)) + self.bn(self.b(x)),
        a=nn.Conv2d(4, 6, 3), b=nn.Conv2d(4, 6, 3, bias=False), bn=nn.BatchNorm2d(6),
    )  # fmt: skip
    folded(model, X2, 1)


def test_tied_weights_are_untied_where_they_must():
    model = Calls(
        lambda self, x: self.bn(self.a(x)) + self.b(x), a=nn.Linear(6, 6), b=nn.Linear(6, 6), bn=nn.BatchNorm1d(6)
    )
    model.b.weight = model.a.weight
    new, _ = folded(model, torch.randn(4, 6), 1)
    assert torch.equal(new.b.weight, model.b.weight)
    assert not torch.equal(new.a.weight, model.a.weight)


def test_settings_of_parameters_stay():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))
    model[0].weight.requires_grad_(False)
    new, _ = folded(model, X2, 1)
    assert not new[0].weight.requires_grad
    assert not new[0].bias.requires_grad
    assert new[1].num_features == 6


def test_a_folded_model_is_saved_pickled_copied_and_trained():
    model = settle(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), Functional(6)))
    new = fold(model, X2)
    expected = outputs(new, X2)[0]
    for copied in (pickle.loads(pickle.dumps(new)), copy.deepcopy(new)):
        assert torch.equal(outputs(copied, X2)[0], expected)
    file = io.BytesIO()
    torch.save(new.state_dict(), file)
    file.seek(0)
    again = fold(settle(copy.deepcopy(model), 5), X2)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(outputs(again, X2)[0], expected)
    new(X2).sum().backward()
    assert new[0].bias.grad is not None


def test_folding_twice_changes_nothing_more():
    model = settle(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), Functional(6)))
    once = fold(model, X2)
    assert not plan_folding(once, X2).folded
    assert torch.equal(outputs(fold(once, X2), X2)[0], outputs(once, X2)[0])


# Functions instead of modules


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


def test_functional_calls_are_rewritten():
    new, _ = folded(nn.Sequential(Functional(4), Functional(4)), X2, 2)
    assert not {"weight", "running_mean"} & {name.split(".")[1] for name in new.state_dict()}
    assert type(new[0]).__name__ == "Functional"
    assert new[0].note == "kept"


def test_a_functional_model_by_itself_is_rewritten():
    folded(Functional(4), X2, 1)
    folded(Functional(4), (X2, X2), 1)


def test_a_rewritten_forward_insists_on_the_arguments_it_saw():
    model = settle(Calls(lambda self, x, scale=2.0: self.part(x, None, scale), part=Functional(4)))
    new = fold(model, X2)
    assert torch.allclose(new(X2), model.eval()(X2), atol=1e-4)
    with pytest.raises(InvalidValue, match=re.escape("scale must be 2.0")):
        new(X2, scale=3.0)


def test_the_function_on_a_modules_parameters():
    """As in PyTorch issue #122070: nothing but the run shows this norm."""

    def forward(self, x):
        bn = self.bn
        return torch.batch_norm(
            self.conv(x), bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps, False
        )

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)

    Model.forward = forward
    folded(Model(), X2, 1)


def test_a_forward_that_cannot_be_traced_is_refused():
    class Branching(Functional):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    assert "cannot be rewritten" in reason(Branching(4), X2)


class Varying(nn.Module):
    """Passes on what it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x, *args, **kwargs):
        bn = self.bn
        y = F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias)
        return self.rest(y, *args, **kwargs)

    def rest(self, y, residual=None, scale=1.0, *, negative=False, **more):
        y = y if residual is None else y + residual
        return (-y if negative else y) * scale


@pytest.mark.parametrize(
    ("sample", "others", "why"),
    [
        ((X2,), ((X2, SMALL),), r"places of args must be \[\]"),
        ((X2, SMALL), ((X2,), (X2, X2, 2.0)), r"places of args must be \[0\]"),
        ((X2, None, 2.0), ((X2, None, 3.0),), r"args\[1\] must be 2\.0"),
        ({"x": X2, "negative": True}, ({"x": X2}, {"x": X2, "scale": 1.0}), r"keys of kwargs must be \['negative'\]"),
        ({"x": X2, "negative": True, "other": 1}, ({"x": X2, "negative": False, "other": 1},), r"kwargs\['negative'\]"),
        ({"x": X2, "residual": SMALL}, (), ""),
    ],
)
def test_a_rewritten_forward_with_variable_arguments(sample, others, why):
    new, _ = folded(Varying(), sample, 1)
    for copied in (new, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert relative_difference(outputs(new, sample)[0], outputs(copied, sample)[0]) == 0
        for other in others:
            with pytest.raises(InvalidValue, match=why):
                outputs(copied, other)


class FastCall(nn.Module):
    """Batch normalization by homeostat's function, with all that it can do more."""

    def __init__(self, activation=None, residual=False, behind=False):
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(4, 6, 3)
        self.head = nn.Conv2d(6, 3, 1)
        self.activation, self.residual, self.behind = activation, residual, behind

    def forward(self, x):
        y = self.conv(x).sigmoid() if self.behind else self.conv(x)
        function = fast.batch_norm if self.residual else batch_norm  # by either way
        residual = self.other(x) if self.residual else None
        bn = self.bn
        y = function(
            y, bn.running_mean, bn.running_var, bn.weight, bn.bias, activation=self.activation, residual=residual
        )
        return self.head(y)


@pytest.mark.parametrize("activation", [None, "identity", "relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("residual", [False, True])
def test_homeostats_function_is_rewritten(activation, residual):
    new, plan = folded(FastCall(activation, residual), X2, 1)
    assert plan.folded[0].into == ("conv (Conv2d)",)
    assert relative_difference(outputs(new, X2)[0], outputs(pickle.loads(pickle.dumps(new)), X2)[0]) == 0


def test_homeostats_function_before_a_layer():
    _, plan = folded(FastCall(behind=True), X2, 1)
    assert plan.folded[0].into == ("head (Conv2d)",)
    assert "activation or a residual" in reason(FastCall("relu", behind=True), X2)
    assert "activation or a residual" in reason(FastCall(None, True, behind=True), X2)


@pytest.mark.parametrize(
    "between", [hs.nn.Dropout(0.3, mode="scaled"), hs.nn.Dropout2d(0.9, mode="scaled"), Calls(lambda self, x: x * -0.5)]
)
def test_a_constant_factor_between(between):
    """The factor stays, and the shift takes it into account."""
    new, plan = folded(nn.Sequential(nn.Conv2d(4, 6, 3), between, nn.BatchNorm2d(6)), X2, 1)
    assert plan.folded[0].into == ("0 (Conv2d)",)
    assert type(new[1]) is type(between)
    _, plan = folded(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(4), between, nn.Flatten(), nn.Linear(324, 3)), X2, 1)
    assert plan.folded[0].into == ("4 (Linear)",)


def test_a_factor_of_zero_or_of_a_tensor_stops_it():
    for between in (hs.nn.Dropout(1.0, mode="scaled"), Calls(lambda self, x: x * torch.tensor(2.0))):
        assert "not into what is before it" in reason(nn.Sequential(nn.Conv2d(4, 6, 3), between, nn.BatchNorm2d(6)), X2)


def test_a_factor_that_differs_from_call_to_call_stops_it():
    model = Calls(
        lambda self, x: self.bn(self.conv(x) * 2.0) + self.bn(self.conv(x)),
        conv=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm2d(6),
    )
    assert "multiplied differently" in reason(model, X2)


def test_a_very_deep_model():
    """Deeper than Python's stack."""
    layers = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Tanh()) for _ in range(250)]
    folded(nn.Sequential(*layers), torch.randn(2, 2, 3, 3), 250, rtol=1e-4)


def test_subclasses_of_layers():
    class Padded(nn.Conv2d):
        """Pads by itself; does take a bias."""

        def forward(self, input):
            size = max(1, int(input.shape[-1]) % 2)
            return F.conv2d(F.pad(input, [size] * 4), self.weight, self.bias)

    class NormAct(nn.BatchNorm2d):
        def forward(self, input):
            return F.silu(super().forward(input))

    class Biasless(nn.Conv2d):
        """Takes no bias whatever is there."""

        def forward(self, input):
            return F.conv2d(input, self.weight, None, self.stride)

    folded(nn.Sequential(Padded(4, 6, 3, bias=False), NormAct(6)), X2, 1)
    folded(nn.Sequential(Biasless(4, 6, 3, bias=False), nn.BatchNorm2d(6)), X2, 1)
    folded(nn.Sequential(Biasless(4, 6, 3), nn.BatchNorm2d(6)), X2, 1)


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return scale * x + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


def test_frozen_norm_by_its_arithmetic():
    new, _ = folded(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), FrozenBatchNorm2d(6), nn.ReLU()), X2, 1)
    assert isinstance(new[1], nn.Identity)


def test_frozen_norm_that_does_more_is_refused():
    class ReluFrozenBatchNorm2d(FrozenBatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    assert "more than a constant scale" in reason(nn.Sequential(nn.Conv2d(4, 6, 3), ReluFrozenBatchNorm2d(6)), X2)


# homeostat's own layers


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "gelu", "tanh"])
def test_fused_layers_leave_their_activation(activation):
    model = nn.Sequential(nn.Conv2d(4, 6, 3), hs.nn.BatchNorm2d(6, activation=activation), hs.nn.Dropout2d(0.3))
    new, _ = folded(model, X2, 1)
    assert not any(type(module).__module__.startswith("homeostat.nn") for module in new.modules())


def test_fused_layers_leave_their_addition():
    model = Calls(
        lambda self, x: self.bn(self.conv(x), residual=x),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        bn=hs.nn.BatchNorm2d(4, activation="relu"),
    )
    folded(model, X2, 1)
    model.function = lambda self, x: self.bn(y := self.conv(x), y)
    assert "goes to BatchNorm2d" in reason(model, X2)


def test_last_axis_norm():
    model = nn.Sequential(
        nn.Linear(6, 5), LastAxisBatchNorm(5, activation="relu"), LastAxisBatchNorm(5), nn.Linear(5, 2)
    )
    folded(model, torch.randn(3, 7, 6), 2)


def test_a_model_after_surgery():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(294, 8), nn.ReLU(), nn.Linear(8, 2))
    surgery.set_norm_(model, "batch", X2)
    surgery.set_dropout_(model, 0.4, "all", sample=X2)
    _, plan = folded(model, X2, 2)
    assert len(plan.removed) == 3


def test_stochastic_depth_and_dropped_weights_are_removed():
    class StochasticDropPath(nn.Module):
        def forward(self, x):
            return x if not self.training else x * 0

    model = nn.Sequential(
        hs.nn.DropConnectLinear(6, 5), nn.BatchNorm1d(5), hs.nn.DropPath(0.2), StochasticDropPath(), nn.AlphaDropout()
    )
    new, plan = folded(model, torch.randn(4, 6), 1)
    assert len(plan.removed) == 4
    assert [type(module) for module in new] == [nn.Linear, *[nn.Identity] * 4]


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_homeostats_own_models(model):
    task = hs.load_task("digits")
    recipe = hs.Recipe(model=model, norm="batch", dropout=0.2, epochs=1, batch_size=256)
    trained = hs.fit(task, recipe, seed=0).model
    sample = task.sample(8)[0]
    plan = plan_folding(trained, sample)
    assert plan.folded
    assert not plan.refused
    new = fold(trained, sample)
    assert relative_difference(outputs(trained, sample)[0], outputs(new, sample)[0]) < 1e-5


# Wrong answers of others, and everything that must stay


def test_convolution_shared_with_a_path_without_norm():
    """pytorch/pytorch#197539 and #104593: the fused weights leak into the second path."""
    model = settle(
        Calls(lambda self, x, y: (self.bn(self.conv(x)), self.conv(y)), conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6))
    )
    assert "returns or keeps" in reason(model, (X2, X2))
    model.function = lambda self, x, y: self.conv(x) + self.bn(self.conv(y))
    assert "goes to add" in reason(model, (X2, X2))
    with pytest.warns(NoEffectWarning, match="changed nothing"):
        new = fold(model, (X2, X2 + 1))
    assert torch.equal(outputs(new, (X2, X2 + 1))[0], outputs(model, (X2, X2 + 1))[0])


def test_convolution_shared_by_two_norms():
    """As in inductor's test_folded_conv_bn_with_multi_bn_share_conv."""
    model = Calls(
        lambda self, x: self.a(self.conv(x)) + self.b(self.conv(x)),
        conv=nn.Conv2d(4, 6, 3), a=nn.BatchNorm2d(6), b=nn.BatchNorm2d(6),
    )  # fmt: skip
    settle(model)
    plan = plan_folding(model, X2)
    assert not plan.folded
    assert len(plan.refused) == 2


def test_norm_called_on_a_layer_and_on_something_else():
    model = Calls(
        lambda self, x: self.bn(self.conv(x)) + self.bn(x[:, :, 1:-1, 1:-1]),
        conv=nn.Conv2d(4, 4, 3),
        bn=nn.BatchNorm2d(4),
    )
    assert "model's input" in reason(model, X2)


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda self, x: (y := self.conv(x), self.bn(y)), "returns or keeps"),
        (lambda self, x: self.bn(y := self.conv(x)) + y.mean(), "goes to mean"),
        (lambda self, x: self.bn(y := self.conv(x)) * float(y.max()), "goes to max"),
        (lambda self, x: self.bn(self.conv(x).relu()), "that is relu"),
        (lambda self, x: self.bn(self.conv(x).relu_()), "that is relu"),
        (lambda self, x: self.bn(F.pad(self.conv(x), [1, 1])), "that is pad"),
        (lambda self, x: self.bn(self.conv(x)) + self.conv.weight.mean(), "uses weights of"),
        (lambda self, x: self.bn(F.dropout(self.conv(x), training=True)), "that is dropout"),
        (lambda self, x: self.bn(self.conv(x).double().float()), "that is float"),
        (lambda self, x: setattr(self, "kept", self.conv(x)) or self.bn(self.kept), "returns or keeps"),
        (lambda self, x: self.bn(F.conv2d(x, self.conv.weight * 2)), "computed"),
    ],
)
def test_what_else_sees_the_output_stops_it(forward, why):
    assert why in reason(Calls(forward, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)), X2)


def test_writing_into_the_output_through_a_view_stops_it():
    def forward(self, x):
        y = self.conv(x)
        y[:, :2].zero_()
        return self.bn(y)

    assert "that is zero" in reason(Calls(forward, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)), X2)


@pytest.mark.parametrize("hooked", ["conv", "bn", ""])
def test_hooks_stop_it(hooked):
    model = Calls(lambda self, x: self.bn(self.conv(x)), conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6))
    seen = []
    model.get_submodule(hooked).register_forward_hook(lambda module, args, output: seen.append(output.sum()))
    if hooked:
        assert "a hook of" in reason(model, X2)
    else:
        folded(model, X2, 1)


def test_norms_that_use_the_batch_are_refused():
    class Forced(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(True)

    for norm in (
        nn.BatchNorm2d(6, track_running_stats=False),
        Forced(6),
        hs.nn.BatchNorm2d(6, track_running_stats=False),
    ):
        assert "batch's own statistics" in reason(nn.Sequential(nn.Conv2d(4, 6, 3), norm), X2)


def test_computed_weights_are_refused():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6))
    assert "computed" in reason(model, X2)
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)), nn.BatchNorm1d(6))
    assert "computed" in reason(model, torch.randn(4, 6))


def test_a_norm_that_did_not_run_stays():
    model = Calls(lambda self, x: self.conv(x), conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6))
    assert "did not run" in reason(model, X2)


def test_other_norms_are_left_alone():
    model = nn.Sequential(
        *[m for kind in ("layer", "group", "instance") for m in (nn.Conv2d(4, 4, 1), make_norm(kind, 4, 2))]
    )
    plan = plan_folding(model, X2)
    assert not plan
    assert not plan.refused
    assert torch.equal(fold(model, X2)(X2), model.eval()(X2))


# What the user is told


def test_fold_does_what_the_plan_says():
    model = settle(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout()))
    assert fold_with_plan(model, X2)[1] == plan_folding(model, X2)


def test_the_plan_reads_well():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout())
    text = str(plan_folding(model, X2))
    assert text.splitlines()[0] == "Folding of Sequential"
    assert "  1 (BatchNorm2d) goes into 0 (Conv2d), before it" in text
    assert "  3 (BatchNorm2d) stays: not into what is before it: that is relu in '2'" in text
    assert "  4 (Dropout) is removed" in text


def test_a_difference_is_an_error():
    class Twice(nn.Module):
        """Reads the norm's parameters in a way that a run on tensors does not tell apart."""

        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x):
            y = self.bn(self.conv(x))
            return y if isinstance(self.bn, nn.BatchNorm2d) else y * 2

    with pytest.raises(InvalidValue, match=r"the output may differ by 1\.0e-04, but got"):
        fold(settle(Twice()), X2)


def test_a_model_that_no_longer_runs_is_an_error():
    model = Calls(
        lambda self, x: self.bn(self.conv(x)) * self.bn.weight[0], conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)
    )
    with pytest.raises(InvalidValue, match=r"run without its norms.*fails with AttributeError"):
        fold(settle(model), X2)


def test_wrong_arguments():
    with pytest.raises(InvalidType, match=r"model must be a torch\.nn\.Module"):
        fold(lambda x: x, X2)
    for rtol in (0, -1.0, 1, "small", True, float("nan")):
        with pytest.raises(InvalidValue, match="rtol"):
            fold(nn.Linear(2, 2), torch.randn(3, 2), rtol=rtol)
    with pytest.raises(InvalidValue, match="any DataParallel"):
        plan_folding(nn.DataParallel(nn.Linear(2, 2)), torch.randn(3, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fold(nn.Linear(2, 2), torch.randn(3, 5))
    with pytest.raises(InvalidValue, match="hold numbers"):
        fold(nn.Linear(2, 2), torch.randn(0, 2))
    model = nn.Linear(2, 2)
    model.lock = (part for part in ())
    with pytest.raises(HomeostatError, match="copyable"):
        fold(model, torch.randn(3, 2))


def test_global_seeds_change_nothing():
    model = settle(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(fold(model, X2))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0][0].weight, results[1][0].weight)
    first, second = second_batch(X2), second_batch({"x": [X2]})["x"][0]
    assert torch.equal(first, second)
    assert not torch.equal(first, X2)


def test_relative_differences():
    inf, nan = float("inf"), float("nan")
    same = torch.tensor([1.0, inf, nan, -inf])
    assert relative_difference(same, same) == 0
    assert relative_difference(same, torch.tensor([1.0, inf, nan, inf])) == inf
    assert relative_difference(torch.tensor([1.0]), torch.tensor([nan])) != 0
    assert relative_difference(torch.zeros(2), torch.ones(2)) == inf
    assert relative_difference(torch.zeros(2), torch.zeros(3)) == inf
    assert relative_difference(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) == inf
    assert relative_difference(torch.zeros(0), torch.zeros(0)) == 0
    assert relative_difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == inf


def test_nothing_is_left_of_the_norm():
    model = settle(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    assert norms_in(model, X2) == 1
    assert norms_in(fold(model, X2), X2) == 0
