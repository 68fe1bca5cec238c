import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.errors import InvalidValue
from homeostat.parts.dropout import is_dropout
from homeostat.training.architectures import Beside
from homeostat.training.imagenet import Bottleneck, inception_v3, resnet_v2, vgg

SMALL = {
    vgg: {"stages": ((8, 1), (16, 2)), "hidden": (32, 24)},
    resnet_v2: {"blocks": (2, 1), "width": 4, "small": True},
}


def trainable(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def images(count=2, channels=3, height=16, width=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, height, width, generator=generator)


def built(build, side=224, **parts):
    """A network of published size that takes no memory and no time."""
    with torch.device("meta"):
        return build((3, side, side), 1000, **parts)


def resnet_parameters(blocks, width=64, classes=1000):
    """Weights of convolutions, scale and shift of every norm, and the readout, from the paper's table and figure."""
    total, before = 3 * 49 * width + 2 * width, width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for unit in range(count):
            total += before * inner + 9 * inner**2 + 4 * inner**2 + 2 * 2 * inner
            total += 0 if stage == unit == 0 else 2 * before  # the stem's norm and activation serve the first unit
            total += 4 * before * inner if unit == 0 else 0
            before = 4 * inner
    return total + 2 * before + (before + 1) * classes


# VGG-19 and Inception v3: the counts of their published weights (the latter's without the auxiliary classifier, which
# has 3,326,696).
@pytest.mark.parametrize(
    ("build", "side", "count", "layers"),
    [
        (vgg, 224, 143_667_240, 19),
        (inception_v3, 299, 27_161_264 - 3_326_696, 95),
        (inception_v3, 224, 23_834_568, 95),
        (resnet_v2, 224, 64_666_152, 200 + 4),  # a 1x1 convolution beside the first unit of every stage
    ],
)
def test_the_published_networks_have_the_published_parameters(build, side, count, layers):
    network = built(build, side)
    assert trainable(network) == sum(parameter.numel() for parameter in network.parameters()) == count
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == layers
    assert network.eval()(torch.empty(2, 3, side, side, device="meta")).shape == (2, 1000)


def test_the_residual_networks_parameters_are_those_of_its_table():
    assert resnet_parameters((3, 24, 36, 3)) == 64_666_152
    assert trainable(built(resnet_v2, blocks=(3, 4, 6, 3))) == resnet_parameters((3, 4, 6, 3))


def test_inception_modules_put_out_what_the_paper_says():
    network = built(inception_v3, 299).eval()
    x, seen = torch.empty(2, 3, 299, 299, device="meta"), []
    for layer in network:
        x = layer(x)
        seen += [tuple(x.shape[1:])] if isinstance(layer, Beside) else []
    grids = [(35, channels) for channels in (256, 288, 288)]
    grids += [(17, 768)] * 5 + [(8, 1280), (8, 2048), (8, 2048)]
    assert seen == [(channels, side, side) for side, channels in grids]


def test_the_averages_of_inception_leave_out_what_lies_outside():
    pools = [module for module in built(inception_v3).modules() if isinstance(module, nn.AvgPool2d)]
    assert len(pools) == 9
    assert not any(pool.count_include_pad for pool in pools)


def test_vgg_is_the_table():
    torch.manual_seed(0)
    network = vgg((3, 16, 16), 5, **SMALL[vgg])
    weights = list(network.parameters())
    x = images()
    expected = F.max_pool2d(F.relu(F.conv2d(x, *weights[:2], padding=1)), 2)
    for index in (2, 4):
        expected = F.relu(F.conv2d(expected, *weights[index : index + 2], padding=1))
    expected = F.max_pool2d(expected, 2).flatten(1)
    for index in (6, 8):
        expected = F.relu(F.linear(expected, *weights[index : index + 2]))
    torch.testing.assert_close(network(x), F.linear(expected, *weights[10:]))


@pytest.mark.parametrize(("before", "stride"), [(16, 1), (16, 2), (8, 1)])
def test_a_unit_adds_what_its_branch_makes_of_the_activated_input(before, stride):
    torch.manual_seed(0)
    unit = Bottleneck(before, 4, stride=stride, norm="batch", activation="relu", active=False).eval()
    x = images(2, before)
    active = F.relu(x / (1 + 1e-5) ** 0.5)  # fresh statistics
    first, _, second, _, third = unit.branch
    expected = F.relu(F.conv2d(active, first.weight, stride=stride) / (1 + 1e-5) ** 0.5)
    expected = F.conv2d(F.relu(F.conv2d(expected, second.weight, padding=1) / (1 + 1e-5) ** 0.5), third.weight)
    expected += x if unit.shortcut is None else F.conv2d(active, unit.shortcut.weight, stride=stride)
    assert (unit.shortcut is None) == (before == 16 and stride == 1)
    torch.testing.assert_close(unit(x), expected)


def test_a_branch_of_zeros_leaves_the_identity():
    unit = Bottleneck(16, 4, stride=1, norm="batch", activation="relu", active=False)
    nn.init.zeros_(unit.branch[-1].weight)
    x = images(2, 16)
    assert torch.equal(unit(x), x)


@pytest.mark.parametrize("build", SMALL)
@pytest.mark.parametrize("norm", ["batch", "layer", "group", "instance", "rms", "none"])
def test_every_norm_trains_every_parameter(build, norm):
    torch.manual_seed(0)
    network = build((3, 16, 16), 4, norm=norm, activation="gelu", dropout=0.3, **SMALL[build])
    output = network(images(8))
    output.square().sum().backward()
    assert output.shape == (8, 4)
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("build", SMALL)
def test_treatments_of_one_seed_share_their_weights(build):
    def drawn(**parts):
        torch.manual_seed(3)
        network = build((3, 16, 16), 4, **SMALL[build], **parts)
        return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]

    base = drawn(norm="none")
    for parts in ({"norm": "batch"}, {"norm": "group", "dropout": 0.5, "activation": "tanh"}):
        assert all(torch.equal(a, b) for a, b in zip(base, drawn(**parts), strict=True))


def test_dropout_stands_where_the_papers_have_it():
    def neighbors(network):
        return [
            (type(network[i - 1]).__name__, type(network[i + 1]).__name__, module.p)
            for i, module in enumerate(network)
            if is_dropout(module)
        ]

    assert neighbors(built(vgg, dropout=0.5)) == [("ReLU", "Linear", 0.5)] * 2
    for build in (inception_v3, resnet_v2):
        assert neighbors(built(build, dropout=0.2)) == [("AdaptiveAvgPool2d", "Flatten", 0.2)]


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (vgg, (3, 31, 224), "sides of at least 32, but got .*5 stages halve"),
        (inception_v3, (3, 74, 299), "sides of at least 75, but got .*`inception` is for those"),
        (resnet_v2, (784,), r"input_shape must be \(channels, height, width\)"),
        (vgg, (3, 0, 28), r"input_shape must be \(channels, height, width\)"),
    ],
)
def test_what_a_network_cannot_take_is_refused(build, shape, message):
    with pytest.raises(InvalidValue, match=message):
        build(shape, 10)


def test_inception_takes_the_least_that_it_says():
    assert built(inception_v3, 75).eval()(torch.empty(1, 3, 75, 75, device="meta")).shape == (1, 1000)
