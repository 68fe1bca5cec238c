import warnings

import pytest
import torch
from torch import nn

from homeostat.errors import InvalidValue, NoEffectWarning
from homeostat.parts.activation import make_activation
from homeostat.parts.dropout import is_dropout
from homeostat.parts.norm import norm_kind
from homeostat.training.models import ResNet, build_model, cnn, mlp
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


def weights(model, kind=(nn.Linear, nn.Conv2d)):
    return [module.weight for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet", "plain"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group", "rms"])
def test_every_model_runs_forward_and_backward_with_every_norm(image_task, model, norm):
    recipe = Recipe(model=model, norm=norm, dropout=0.3, dropout_where="all", activation="gelu")
    network = build_model(image_task, recipe, 0)
    output = network(image_task.sample(6)[0])
    assert output.shape == (6, 3)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet", "plain"])
def test_treatments_of_one_seed_share_their_weights(image_task, model):
    base = weights(build_model(image_task, Recipe(model=model, norm="none"), 5))
    varied = weights(build_model(image_task, Recipe(model=model, norm="batch", dropout=0.5), 5))
    other = weights(build_model(image_task, Recipe(model=model, norm="none"), 6))
    assert all(torch.equal(a, b) for a, b in zip(base, varied, strict=True))
    assert not torch.equal(base[0], other[0])


def test_building_does_not_depend_on_global_random_state_nor_change_it(image_task):
    torch.manual_seed(1)
    first = weights(build_model(image_task, Recipe(init="he_normal"), 0))
    after = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(2))
    again = weights(build_model(image_task, Recipe(init="he_normal"), 0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_plain_twin_is_the_residual_net_without_its_shortcuts():
    residual = ResNet((3, 32, 32), 10, depth=20)
    plain = ResNet((3, 32, 32), 10, depth=20, shortcut=False)
    assert sum(isinstance(module, nn.Conv2d) for module in plain.modules()) == 19
    # He et al. 2016, table 6: ResNet-20 has 0.27 M parameters (option A); two 1x1 projections and biases add 3,312.
    assert sum(parameter.numel() for parameter in residual.parameters()) == pytest.approx(0.27e6, rel=0.03)
    assert len(weights(residual)) == len(weights(plain)) + 2
    assert torch.isfinite(residual(torch.randn(2, 3, 32, 32))).all()


def test_the_twins_draw_the_same_weights_for_the_layers_they_share(image_task):
    residual = build_model(image_task, Recipe(model="resnet", depth=14), 3)
    plain = build_model(image_task, Recipe(model="plain", depth=14), 3)
    shared = dict(residual.named_parameters())
    assert all(torch.equal(parameter, shared[name]) for name, parameter in plain.named_parameters())


def test_image_models_and_batches_are_channels_last():
    x = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    task = Task(data=((x, torch.arange(12) % 3),) * 3)
    network = build_model(task, Recipe(model="cnn"), 0)
    batch = task.sample(4)[0]
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[0](batch).is_contiguous(memory_format=torch.channels_last)


def test_dropout_stands_where_the_recipe_says():
    def rates(**parts):
        return [module.p for module in mlp(4, 2, widths=(5, 5), **parts) if isinstance(module, nn.Dropout)]

    assert rates() == []
    assert rates(dropout=0.5) == [0.5, 0.5]
    assert rates(input_dropout=0.2) == [0.2]


@pytest.mark.parametrize("size", [1, 2, 3, 28])
def test_cnn_takes_pictures_of_any_size(size):
    assert cnn((1, size, size), 4)(torch.randn(2, 1, size, size)).shape == (2, 4)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "selu", "tanh", "sigmoid", "gelu", "silu"])
def test_where_the_pool_stands_changes_neither_function_nor_gradient(activation):
    network = cnn((3, 12, 12), 5, activation=activation, norm="batch").double()
    plain: list[nn.Module] = []  # the same layers, every activation before its pool
    for layer in network:
        if isinstance(layer, type(make_activation(activation))) and isinstance(plain[-1], nn.MaxPool2d):
            plain.insert(-1, layer)
        else:
            plain.append(layer)
    x = torch.randn(8, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected, found = nn.Sequential(*plain)(x), network(x)
    torch.testing.assert_close(found, expected)
    weight = network[0].weight
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), (x, weight)),
        torch.autograd.grad(expected.square().sum(), (x, weight)),
    )


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 16)
        self.second = nn.Linear(16, 1)

    def forward(self, input):
        return self.second(torch.relu(self.first(input)))


def own_task(task, builder=Own):
    return Task(data=task.data, model=builder, loss="mse", name="own")


def test_a_users_module_gets_the_parts_by_surgery(regression_task):
    task = own_task(regression_task)
    network = build_model(task, Recipe(norm="batch", dropout=0.4, init="he_normal"), 0)
    modules = list(network.modules())
    assert any(norm_kind(module) == "batch" for module in modules)
    assert any(is_dropout(module) and module.p == 0.4 for module in modules)
    assert network(task.sample(4)[0]).shape == (4, 1)
    assert not network.first.bias.any()


def test_a_users_module_without_parts_is_left_as_built(regression_task):
    task = own_task(regression_task)
    assert str(build_model(task, Recipe(), 0)) == str(Own())


def test_a_part_without_effect_on_a_users_module_warns(regression_task):
    task = own_task(regression_task, lambda: nn.Linear(3, 1))
    with pytest.warns(NoEffectWarning):
        build_model(task, Recipe(norm="batch"), 0)
    with pytest.warns(NoEffectWarning):
        build_model(task, Recipe(activation="gelu"), 0)


def test_a_built_in_model_may_replace_the_users(regression_task):
    task = own_task(regression_task)
    assert isinstance(build_model(task, Recipe(model="mlp", widths=(8,)), 0), nn.Sequential)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 8}, "depth must be left out unless the model is resnet or plain, but got 8"),
        ({"model": "cnn"}, "model must be mlp for data that are not images, but got 'cnn'"),
        ({"norm": "instance"}, "instance"),
    ],
)
def test_parts_that_cannot_apply_are_refused(regression_task, settings, message):
    with pytest.raises(InvalidValue, match=message):
        build_model(regression_task, Recipe(**settings), 0)


def test_resnet_needs_three_widths(image_task):
    with pytest.raises(InvalidValue, match="widths must hold the channels of three stages"):
        build_model(image_task, Recipe(model="resnet", widths=(8, 8)), 0)


def test_widths_of_a_users_module_are_refused(regression_task):
    with pytest.raises(InvalidValue, match="widths must be left out for a model of your own"):
        build_model(own_task(regression_task), Recipe(widths=(8,)), 0)


def test_no_warning_where_parts_take_effect(image_task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_model(image_task, Recipe(norm="batch", dropout=0.2, init="orthogonal"), 0)
