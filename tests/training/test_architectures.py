import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.errors import InvalidValue
from homeostat.parts.dropout import is_dropout
from homeostat.parts.init import initialize_
from homeostat.parts.norm import NORMS
from homeostat.training.architectures import Beside, alexnet, inception
from homeostat.training.models import mlp


def trainable(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def images(count=2, channels=3, height=28, width=28):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, height, width, generator=generator)


# Zhang et al. 2017, arXiv:1611.03530, table 1.
@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lambda: inception((3, 28, 28), 10), 1_649_402),
        (lambda: inception((3, 28, 28), 10, norm="none"), 1_649_402),
        (lambda: alexnet((3, 28, 28), 10), 1_387_786),
        (lambda: mlp(3 * 28 * 28, 10, widths=(512, 512, 512)), 1_735_178),
        (lambda: mlp(3 * 28 * 28, 10, widths=(512,)), 1_209_866),
    ],
    ids=["inception", "inception-without-batch-norm", "alexnet", "mlp-3x512", "mlp-1x512"],
)
def test_parameters_are_as_many_as_in_the_table(model, count):
    network = model()
    assert trainable(network) == sum(parameter.numel() for parameter in network.parameters()) == count
    assert network(images()).shape == (2, 10)


def test_inception_is_the_figure():
    """Zhang et al. 2017, figure 3, computed by hand from the network's weights in their order."""
    torch.manual_seed(0)
    network = inception((3, 28, 28), 10, norm="none")
    parameters = list(network.parameters())
    convolutions = iter(zip(parameters[0:-2:2], parameters[1:-2:2], strict=True))

    def convolve(x, size, stride=1):
        weight, bias = next(convolutions)
        assert weight.shape[2:] == (size, size)
        return F.relu(F.conv2d(x, weight, bias, stride, size // 2))

    x = images()
    expected = convolve(x, 3)
    for channels in ("32+32", "32+48", "80", "112+48", "96+64", "80+80", "48+96", "96", "176+160", "176+160"):
        if "+" in channels:
            sides = [convolve(expected, 1), convolve(expected, 3)]
            assert "+".join(str(side.shape[1]) for side in sides) == channels
        else:
            sides = [convolve(expected, 3, stride=2), F.max_pool2d(expected, 3, 2, 1)]
            assert str(sides[0].shape[1]) == channels
        expected = torch.cat(sides, 1)
    assert next(convolutions, None) is None
    assert expected.shape == (2, 336, 7, 7)
    expected = F.linear(F.avg_pool2d(expected, 7).flatten(1), *parameters[-2:])
    torch.testing.assert_close(network(x), expected)


def test_alexnet_is_the_description():
    torch.manual_seed(0)
    network = alexnet((3, 28, 28), 10)
    weights = list(network.parameters())
    x = images()
    expected = x
    for index in (0, 2):
        expected = F.max_pool2d(F.relu(F.conv2d(expected, *weights[index : index + 2], padding=2)), 3, 2, 1)
        # tf.nn.lrn(depth_radius=4, bias=1.0, alpha=0.001 / 9.0, beta=0.75): the sum of squares over 9 channels
        squares = F.pad(expected.square(), (0, 0, 0, 0, 4, 4)).unfold(1, 9, 1).sum(-1)
        expected = expected / (1.0 + 0.001 / 9.0 * squares) ** 0.75
    assert expected.shape == (2, 64, 7, 7)
    expected = expected.flatten(1)
    for index in (4, 6):
        expected = F.relu(F.linear(expected, *weights[index : index + 2]))
    torch.testing.assert_close(network(x), F.linear(expected, *weights[8:]))


@pytest.mark.parametrize("build", [alexnet, inception])
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_trains_every_parameter(build, norm):
    if norm == "instance" and build is alexnet:
        with pytest.raises(InvalidValue, match="outputs of a Linear have none"):
            build((3, 28, 28), 4, norm=norm)
        return
    network = build((3, 8, 8), 4, norm=norm, activation="gelu", dropout=0.5, input_dropout=0.1)
    output = network(images(8, 3, 8, 8))
    output.square().sum().backward()
    assert output.shape == (8, 4)
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("build", [alexnet, inception])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (5, 33, 47), (1, 8, 8), (1, 1, 1)])
def test_images_of_any_size_and_number_of_channels(build, shape):
    network = build(shape, 7).eval()
    assert network(images(2, *shape)).shape == (2, 7)


def test_the_batch_norm_is_torchs_with_a_scale_of_one():
    torch.manual_seed(0)
    network = inception((3, 28, 28), 10)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + 8 * 2 + 2
    assert all([name for name, _ in norm.named_parameters()] == ["bias"] for norm in norms)
    assert all(module.bias is None for module in network.modules() if isinstance(module, nn.Conv2d))
    layer, plain = norms[0], nn.BatchNorm2d(96)
    nn.init.uniform_(layer.bias)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 96, 5, 5)
    torch.testing.assert_close(layer(x), plain(x).relu())
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x).relu())
    layer.reset_parameters()
    assert not layer.bias.any()
    twin = copy.deepcopy(network)
    twin.load_state_dict(network.state_dict())
    torch.testing.assert_close(twin.eval()(images()), network.eval()(images()))


@pytest.mark.parametrize("build", [alexnet, inception])
def test_treatments_of_one_seed_share_their_weights(build):
    def drawn(**parts):
        torch.manual_seed(3)
        network = build((3, 28, 28), 10, **parts)
        return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]

    base = drawn(norm="none")
    for parts in ({"norm": "batch"}, {"norm": "group", "dropout": 0.5, "activation": "tanh"}):
        assert all(torch.equal(a, b) for a, b in zip(base, drawn(**parts), strict=True))


def test_dropout_stands_where_the_papers_have_it():
    def before_and_after(network):
        return [
            (type(network[i - 1]).__name__, type(network[i + 1]).__name__, module.p)
            for i, module in enumerate(network)
            if is_dropout(module)
        ]

    assert before_and_after(alexnet((3, 28, 28), 10, dropout=0.5)) == [("ReLU", "Linear", 0.5)] * 2
    assert before_and_after(inception((3, 28, 28), 10, dropout=0.4)) == [("AdaptiveAvgPool2d", "Flatten", 0.4)]
    for build in (alexnet, inception):
        kinds = build((3, 28, 28), 10, dropout=0.5, dropout_kind="alpha").modules()
        assert any("AlphaDropout" in type(module).__name__ for module in kinds)
        assert is_dropout(build((3, 28, 28), 10, input_dropout=0.2)[0])


def test_what_stands_beside_is_put_together_along_the_channels():
    sides = Beside(nn.Identity(), nn.Conv2d(3, 5, 1))
    x = images()
    assert torch.equal(sides(x)[:, :3], x)
    assert sides(x).shape == (2, 8, 28, 28)


@pytest.mark.parametrize("build", [alexnet, inception])
def test_what_is_not_an_image_is_refused(build):
    for shape in ((784,), (28, 28), (3, 0, 28)):
        with pytest.raises(InvalidValue, match=r"input_shape must be \(channels, height, width\)"):
            build(shape, 10)


def test_a_smaller_inception_has_the_modules_that_it_is_given():
    network = inception((1, 7, 7), 3, stem=4, modules=((2, 3), (5,), (6, 7)))
    assert [module for module in network.modules() if isinstance(module, Beside)]
    assert network[-1].in_features == 13
    assert network(images(2, 1, 7, 7)).shape == (2, 3)


@pytest.mark.parametrize("scheme", ["he_normal", "he"])
def test_a_scale_that_is_a_constant_is_not_initialized(scheme):
    network = inception((3, 8, 8), 3, stem=4, modules=((2, 3), (5,)))
    initialize_(network, scheme, sample=images(8, 3, 8, 8) if scheme == "he" else None)
    scales = [module.weight for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert scales
    assert all(bool((scale == 1).all()) for scale in scales)
