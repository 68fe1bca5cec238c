import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homeostat.errors import InvalidValue
from homeostat.parts.norm import (
    MAX_GROUPS,
    NORMS,
    ChannelRMSNorm,
    LastAxisBatchNorm,
    LastAxisGroupNorm,
    groups,
    is_norm,
    make_norm,
    norm_kind,
)

SHAPES = {0: (6, 8), 1: (6, 8, 5), 2: (6, 8, 5, 4), 3: (6, 8, 5, 4, 3)}
AXES = {
    "batch": lambda dims: [0, *range(2, 2 + dims)],
    "layer": lambda dims: list(range(1, 2 + dims)),
    "instance": lambda dims: list(range(2, 2 + dims)),
}


def values(shape):
    return 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "dims"), [(k, d) for k in AXES for d in SHAPES if (k, d) != ("instance", 0)])
def test_mean_and_variance_are_taken_over_the_documented_axes(kind, dims):
    x = values(SHAPES[dims])
    axes = AXES[kind](dims)
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(make_norm(kind, 8, dims).double()(x), expected)


@pytest.mark.parametrize("dims", SHAPES)
def test_group_normalization_normalizes_each_group_of_channels(dims):
    channels = 64
    x = values((3, channels, *SHAPES[dims][2:]))
    y = make_norm("group", channels, dims).double()(x)
    grouped = y.reshape(3, groups(channels, dims), -1)
    torch.testing.assert_close(grouped.mean(-1), torch.zeros_like(grouped.mean(-1)), atol=1e-6, rtol=0)
    torch.testing.assert_close(grouped.square().mean(-1), torch.ones_like(grouped.mean(-1)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dims", SHAPES)
def test_rms_gives_every_position_root_mean_square_one_over_its_channels(dims):
    y = make_norm("rms", 8, dims).double()(values(SHAPES[dims]))
    torch.testing.assert_close(y.square().mean(1), torch.ones_like(y.square().mean(1)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "rms"])
def test_without_spatial_dimensions_the_channels_are_the_last_axis(kind):
    tokens = values((4, 5, 32))
    norm = make_norm(kind, 32, 0).double()
    flat = make_norm(kind, 32, 0).double()
    torch.testing.assert_close(norm(tokens), flat(tokens.reshape(20, 32)).reshape(4, 5, 32))


def test_last_axis_batch_norm_keeps_the_state_of_batch_norm_1d():
    ours, torchs = LastAxisBatchNorm(8), nn.BatchNorm1d(8)
    x = values((6, 8)).float()
    torch.testing.assert_close(ours(x), torchs(x))
    torchs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "instance", "rms"])
def test_channels_last_memory_stays_channels_last_and_changes_no_value(kind):
    x = values((4, 8, 6, 6)).float()
    norm = make_norm(kind, 8, 2)
    y = norm(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, norm(x), atol=1e-5, rtol=1e-5)
    if kind != "instance":  # torch's own goes through a contiguous copy
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kind", "dims"), [(k, d) for k in NORMS for d in (0, 2) if (k, d) != ("instance", 0)])
def test_gradients_are_right_and_scale_starts_at_one_shift_at_zero(kind, dims):
    norm = make_norm(kind, 4, dims).double()
    for name, parameter in norm.named_parameters():
        assert (parameter == (0 if name == "bias" else 1)).all()
    x = values((3, 4, 2, 3)[: 2 + dims]).requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,), nondet_tol=0.0)


@settings(deadline=None)
@given(channels=st.integers(1, 2000), dims=st.integers(0, 3))
def test_groups_divide_the_channels_and_are_the_most_allowed(channels, dims):
    fewest = 16 if dims == 0 else 4
    count = groups(channels, dims)
    assert channels % count == 0
    assert count == 1 or (count <= MAX_GROUPS and channels // count >= fewest)
    allowed = [g for g in range(count + 1, MAX_GROUPS + 1) if channels % g == 0 and channels // g >= fewest]
    assert not allowed


def test_what_cannot_work_is_refused_with_a_reason():
    with pytest.raises(InvalidValue, match=r"unknown kind 'bach'. Did you mean 'batch'"):
        make_norm("bach", 8, 2)
    with pytest.raises(InvalidValue, match=r"be 1, 2 or 3 for instance normalization, but got 0. .* Use layer"):
        make_norm("instance", 8, 0)
    for kind in ("layer", "group", "rms"):
        with pytest.raises(InvalidValue, match=f"at least 2 for {kind} normalization, but got 1"):
            make_norm(kind, 1, 0)
    with pytest.raises(InvalidValue, match="channels must be an integer of at least 1, but got 0"):
        make_norm("batch", 0, 2)
    with pytest.raises(InvalidValue, match="dims must be 0, 1, 2 or 3, but got 4"):
        make_norm("batch", 8, 4)


def test_kinds_are_known_by_class_and_by_name():
    class LlamaRMSNorm(nn.Module):
        pass

    class BatchNormBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.BatchNorm2d(3)

    expected = {
        nn.BatchNorm3d(2): "batch",
        nn.SyncBatchNorm(2): "batch",
        nn.InstanceNorm2d(2): "instance",
        nn.LayerNorm(2): "layer",
        nn.GroupNorm(1, 4): "layer",
        nn.GroupNorm(2, 4): "group",
        nn.RMSNorm(2): "rms",
        ChannelRMSNorm(2): "rms",
        LastAxisGroupNorm(2, 4): "group",
        LlamaRMSNorm(): "rms",
        BatchNormBlock(): None,
        nn.Linear(2, 2): None,
        nn.LocalResponseNorm(2): None,
    }
    assert {module: norm_kind(module) for module in expected} == expected
    assert is_norm(nn.LayerNorm(2))
    assert not is_norm(nn.Dropout())


@pytest.mark.parametrize("kind", [kind for kind in NORMS if kind != "none"])
def test_what_is_made_is_recognized(kind):
    channels = 64
    for dims in (0, 1, 2, 3):
        if (kind, dims) != ("instance", 0):
            assert norm_kind(make_norm(kind, channels, dims)) == kind
