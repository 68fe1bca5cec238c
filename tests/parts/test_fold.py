"""Folding: every kind of layer, every way to write it down as modules."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass

import pytest
import torch
from fold_models import Calls, Functional, folded, outputs, reason, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import homeostat as hs
from homeostat.errors import InvalidValue
from homeostat.parts.fold import fold, plan_folding
from homeostat.parts.fold.check import check_outputs, relative_difference, tolerance

pytestmark = pytest.mark.usefixtures("one_thread")

X1, X2, X3 = torch.randn(3, 4, 9), torch.randn(3, 4, 9, 9), torch.randn(3, 4, 5, 5, 5)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SAMPLES = {1: X1, 2: X2, 3: X3}


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
