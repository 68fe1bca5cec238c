"""Every layer with a torch.nn counterpart: state_dicts go both ways, strictly; pickles, copies and text are torch's."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn as torch_nn

from homeostat import nn

NORMS = [
    *((f"BatchNorm{dims}d", (4,), (5, 4, *(3,) * dims)) for dims in (1, 2, 3)),
    *((f"InstanceNorm{dims}d", (4,), (5, 4, *(3,) * dims)) for dims in (1, 2, 3)),
    ("GroupNorm", (2, 4), (5, 4, 3)),
    ("LayerNorm", ((4, 3),), (5, 4, 3)),
    ("RMSNorm", ((4, 3),), (5, 4, 3)),
]
SETTINGS = {
    "BatchNorm": [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 1e-3}],
    "InstanceNorm": [
        {},
        {"affine": True},
        {"track_running_stats": True},
        {"affine": True, "track_running_stats": True},
    ],
    "GroupNorm": [{}, {"affine": False}, {"bias": False}],
    "LayerNorm": [{}, {"elementwise_affine": False}, {"bias": False}],
    "RMSNorm": [{}, {"elementwise_affine": False}, {"eps": 1e-3}],
}
WEIGHTED = [
    ("DropConnectLinear", "Linear", (4, 6), (5, 4)),
    ("DropConnectConv1d", "Conv1d", (4, 6, 3), (5, 4, 7)),
    ("DropConnectConv2d", "Conv2d", (4, 6, 3), (5, 4, 7, 7)),
    ("DropConnectConv3d", "Conv3d", (4, 6, 3), (5, 4, 5, 5, 5)),
]
DROPOUTS = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
CASES = [
    *(
        (name, name, arguments, shape, settings)
        for name, arguments, shape in NORMS
        for settings in SETTINGS[name.rstrip("123d") if name[-1] == "d" else name]
    ),
    *((mine, theirs, arguments, shape, {}) for mine, theirs, arguments, shape in WEIGHTED),
    *((mine, theirs, arguments, shape, {"bias": False}) for mine, theirs, arguments, shape in WEIGHTED),
]


def randomized(layer, seed):
    """The layer with parameters and statistics that are not the initial ones."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5 if tensor.is_floating_point() else 7)
    return layer.eval()


@pytest.mark.parametrize(("mine", "theirs", "arguments", "shape", "settings"), CASES)
def test_state_dicts_go_both_ways(mine, theirs, arguments, shape, settings):
    fast, plain = (getattr(module, name)(*arguments, **settings) for module, name in ((nn, mine), (torch_nn, theirs)))
    x = torch.randn(shape)
    for target, source, seed in ((fast, plain, 1), (plain, fast, 2)):
        state = randomized(source, seed).state_dict()
        assert list(state) == list(target.state_dict())
        result = target.load_state_dict(state, strict=True)
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert state._metadata[""]["version"] == target.state_dict()._metadata[""]["version"]
        torch.testing.assert_close(target.eval()(x), source(x))
    names = [[name for name, _ in layer.named_parameters()] for layer in (fast, plain)]
    assert names[0] == names[1]


@pytest.mark.parametrize(("mine", "theirs", "arguments", "shape", "settings"), CASES)
def test_pickles_copies_and_text(mine, theirs, arguments, shape, settings):
    layer, x = randomized(getattr(nn, mine)(*arguments, **settings), 3), torch.randn(shape)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert type(other) is type(layer)
        assert repr(other) == repr(layer)
        assert vars(other).keys() == vars(layer).keys()
        assert torch.equal(other(x), layer(x))
    if mine == theirs:
        assert repr(layer) == repr(getattr(torch_nn, theirs)(*arguments, **settings))


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_has_no_state(name):
    fast, plain = getattr(nn, name)(0.3), getattr(torch_nn, name)(0.3)
    assert not fast.state_dict()
    fast.load_state_dict(plain.state_dict(), strict=True)
    assert repr(fast) == repr(plain)
    assert repr(pickle.loads(pickle.dumps(fast))) == repr(fast)


def test_a_state_dict_from_before_batches_were_counted():
    """torch's layers take version 1 of batch normalization, without num_batches_tracked; so do these."""
    state = torch_nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    nn.BatchNorm2d(3).load_state_dict(state, strict=True)


def test_a_whole_models_state_dict():
    def model(layers):
        return torch_nn.Sequential(
            torch_nn.Conv2d(3, 4, 3), layers.BatchNorm2d(4), layers.Dropout2d(0.1), layers.GroupNorm(2, 4),
            torch_nn.Flatten(), torch_nn.LazyLinear(6), layers.LayerNorm(6), layers.RMSNorm(6), layers.Dropout(0.5),
        )  # fmt: skip

    x, pair = torch.randn(2, 3, 6, 6), [model(layers) for layers in (nn, torch_nn)]
    for each in pair:
        each(x)
    pair[0].load_state_dict(pair[1].state_dict(), strict=True)
    pair[1].load_state_dict(pair[0].state_dict(), strict=True)
    torch.testing.assert_close(pair[0].eval()(x), pair[1].eval()(x))
