"""MPS has no float64: there statistics are float32. Shown on a CPU that is taken for such a device."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import homeostat as hs
from homeostat.kernels import (
    augment,
    moments,
    moments_reference,
    norm_channels,
    norm_channels_reference,
    norm_rows,
    norm_rows_reference,
)
from homeostat.nn import batchnorm

REFERENCES = (moments_reference, norm_channels_reference, norm_rows_reference)
MODULES = (augment, moments, norm_channels, norm_rows, batchnorm, *REFERENCES)


class WithoutFloat64(TorchDispatchMode):
    """Fails where an operator makes a float64 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not any(isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float64 for leaf in tree_leaves(result))
        return result


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    for module in MODULES:
        monkeypatch.setattr(module, "widest_dtype", lambda device: torch.float32)


def test_the_reference_makes_no_float64():
    x, w = torch.randn(6, 4), torch.randn(4)
    with WithoutFloat64():
        output, statistics = norm_rows_reference.normalize(x, w, w, x, 2, 2, 1e-5, True, 0.0)
        norm_rows_reference.gradient(x, x, w, w, output, statistics, 2, 2, 1e-5, True, 0.0, True)
        moments_reference.moments(x[None], 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hs.nn.LayerNorm(4, backend="reference"),
        lambda: hs.nn.RMSNorm(4, backend="reference"),
        lambda: hs.nn.GroupNorm(2, 4, backend="reference"),
        lambda: hs.nn.BatchNorm1d(4, momentum=None, backend="reference"),
    ],
)
def test_layers_train_compiled_and_not(make):
    x = torch.randn(6, 4)
    layer, compiled = make(), torch.compile(make(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    layer(x).sum().backward()
    assert all(state.dtype is not torch.float64 for state in layer.state_dict().values())


def test_moments_and_augmentation_are_float32():
    x = torch.randn(6, 4)
    assert hs.moments(x, dim=1, bound=2.0, backend="reference").mean.dtype is torch.float32
    torch.library.opcheck(torch.ops.homeostat.moments.default, (x, 1, 2.0, "reference"), test_utils="test_faketensor")
    images, seed = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([1, 2])
    assert augment.augment(images, seed, mean=1.0, std=(1.0, 2.0, 4.0))[0, :, 0, 0].tolist() == [-1.0, -0.5, -0.25]
