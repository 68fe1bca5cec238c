"""On CPU tensors, layers and parts do the same whatever torch's default device is."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import homeostat as hs
from homeostat.kernels import norm_channels_cpu, norm_rows_cpu
from homeostat.parts.ensemble import Ensemble, bootstrap
from homeostat.parts.masks import enumerate_masks

LAYERS = {
    "batch norm": (lambda: hs.nn.BatchNorm2d(4, activation="relu"), (6, 4, 8, 8)),
    "batch norm of few examples": (lambda: hs.nn.BatchNorm1d(4), (2, 4)),
    "cumulative batch norm": (lambda: hs.nn.BatchNorm1d(4, momentum=None), (300, 4)),
    "instance norm": (lambda: hs.nn.InstanceNorm2d(4), (2, 4, 8, 8)),
    "group norm": (lambda: hs.nn.GroupNorm(2, 4), (2, 4, 8, 8)),
    "group norm of vectors": (lambda: hs.nn.GroupNorm(2, 4), (6, 4)),
    "layer norm": (lambda: hs.nn.LayerNorm(9), (300, 9)),
    "layer norm without weights": (lambda: hs.nn.LayerNorm(11, elementwise_affine=False), (3, 11)),
    "layer norm of long rows": (lambda: hs.nn.LayerNorm(20001), (2, 20001)),
    "RMS norm": (lambda: hs.nn.RMSNorm(9), (3, 9)),
    "dropout": (hs.nn.Dropout, (6, 40)),
    "channel dropout": (hs.nn.Dropout2d, (6, 4, 3, 3)),
    "alpha dropout": (hs.nn.AlphaDropout, (6, 40)),
    "Gaussian dropout": (hs.nn.GaussianDropout, (6, 40)),
    "stochastic depth": (lambda: hs.nn.DropPath(0.5), (6, 40)),
    "DropConnect": (lambda: hs.nn.DropConnectLinear(5, 3), (6, 5)),
    "pooling": (lambda: hs.nn.MaxPool2d(2), (2, 4, 8, 8)),
}


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")


def pictures(*shape):
    return draw(*shape).mul(60).add(128).clamp(0, 255).to(torch.uint8)


def tensors_of(value):
    """All tensors in a result, for comparison."""
    if isinstance(value, Tensor):
        return [value.detach()]
    if isinstance(value, nn.Module):
        return list(value.state_dict().values())
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, list | tuple) else []


def both_ways(prepare):
    """What a call returns with torch's meta device as default, which has no memory, and without."""
    found = []
    for device in ("meta", "cpu"):
        torch.manual_seed(0)
        norm_rows_cpu.constant.cache_clear()
        vars(norm_channels_cpu._kept).clear()
        call = prepare()
        with torch.device(device):
            found.append(tensors_of(call()))
    return found


def check(prepare):
    actual, expected = both_ways(prepare)
    assert expected
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    make, shape = LAYERS[name]
    form = torch.channels_last if len(shape) == 4 else torch.contiguous_format

    def prepare():
        layer, input = make(), draw(*shape).contiguous(memory_format=form).requires_grad_()

        def call():
            output = layer(input)
            output.backward(draw(*output.shape))
            gradients = [parameter.grad for parameter in layer.parameters()]
            return [output, input.grad, *gradients, *layer.buffers(), layer.eval()(input)]

        return call

    check(prepare)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), hs.nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def trained(model):
    model.train()
    model(draw(4, 3, 8, 8)).sum().backward()
    return model


def dropping():
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 2))


def initialized(model):
    hs.init.initialize_(model, "he", sample=draw(4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return model


def clipped(model):
    norm = hs.clip_grad_norm_(model.parameters(), 0.1)
    return [norm, *(parameter.grad for parameter in model.parameters()), hs.clip_grad_norm_([], 1.0)]


def measured(model):
    hs.update_statistics_(model, [draw(4, 3, 8, 8)], estimator="pooled")
    return model


def augmented():
    parts = "rotate+blur+crop+flip+noise", "randaugment+cutout", "trivialaugment", "color_jitter"
    return [hs.augment.make_augment(spec)(pictures(4, 3, 16, 16), seed=3) for spec in parts]


def mixed():
    mix = hs.mixing.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, num_classes=2, mode="elem")
    return mix(draw(6, 3, 8, 8), torch.tensor([0, 1] * 3, device="cpu"))


def with_model(make, use):
    def prepare():
        model = make()
        return lambda: use(model)

    return prepare


PARTS = {
    "moments": lambda: lambda: [*hs.moments(draw(70, 33), dim=1, bound=1.0), *hs.moments(draw(5000), bound=1.0)],
    "augmentation": lambda: augmented,
    "mixing": lambda: mixed,
    "bootstrap": lambda: lambda: bootstrap(20, 0),
    "ensemble": with_model(lambda: Ensemble([dropping().eval(), dropping().eval()]), lambda model: model(draw(2, 3))),
    "Monte Carlo dropout": with_model(dropping, lambda model: hs.mc_dropout(model, samples=4, seed=0)(draw(2, 3))),
    "all masks": with_model(dropping, lambda model: enumerate_masks(model, draw(2, 3))),
    "initialization": with_model(net, initialized),
    "clipping": with_model(lambda: trained(net()), clipped),
    "penalties": with_model(net, lambda model: [hs.penalty.l2_penalty(model.parameters()), hs.penalty.l2_penalty([])]),
    "folding": with_model(lambda: trained(net()).eval(), lambda model: hs.fold(model, draw(4, 3, 8, 8))),
    "population statistics": with_model(net, measured),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts(name):
    check(PARTS[name])


@pytest.mark.parametrize("name", hs.CORRUPTIONS)
def test_corruptions(name):
    check(lambda: lambda: hs.corrupt(pictures(2, 3, 32, 32), name, 3))
