"""A whole model on other layers: the same objects, names, hooks, optimizer, and equal outputs."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import surgery_models as models
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import homeostat as hs
from homeostat.errors import InvalidType, InvalidValue, NoEffectWarning
from homeostat.parts.layers import call, tensors_in
from homeostat.parts.norm import LastAxisBatchNorm
from homeostat.parts.use import plan_use, use

EVERY = {
    "BatchNorm1d": ((4,), (5, 4, 3)),
    "BatchNorm2d": ((4,), (5, 4, 3, 3)),
    "BatchNorm3d": ((4,), (5, 4, 2, 2, 2)),
    "InstanceNorm1d": ((4,), (5, 4, 3)),
    "InstanceNorm2d": ((4,), (5, 4, 3, 3)),
    "InstanceNorm3d": ((4,), (5, 4, 2, 2, 2)),
    "GroupNorm": ((2, 4), (5, 4, 3)),
    "LayerNorm": ((4,), (5, 4)),
    "RMSNorm": ((4,), (5, 4)),
    "Dropout": ((0.4,), (5, 4)),
    "Dropout1d": ((0.4,), (5, 4, 3)),
    "Dropout2d": ((0.4,), (5, 4, 3, 3)),
    "Dropout3d": ((0.4,), (5, 4, 2, 2, 2)),
    "AlphaDropout": ((0.4,), (5, 4)),
    "FeatureAlphaDropout": ((0.4,), (5, 4, 3)),
}


class Positive(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight.abs() + 1


def mixed():
    """Layers of many kinds, one of them shared."""
    shared = nn.LayerNorm(6)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.0), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4),
        nn.Flatten(), nn.Linear(64, 6), shared, nn.Linear(6, 6), shared, nn.RMSNorm(6), nn.Dropout(0.0),
        nn.BatchNorm1d(6, momentum=None),
    )  # fmt: skip


def with_gradients(model, x):
    model.zero_grad()
    output = model(x)
    output.pow(3).sum().backward()
    return output.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def homes(model):
    return {type(module).__module__.split(".")[0] for module in model.modules() if type(module).__name__ in EVERY}


@pytest.mark.parametrize("name", EVERY)
def test_every_layer_goes_there_and_back(name):
    arguments, shape = EVERY[name]
    layer = getattr(nn, name)(*arguments)
    attributes, x = set(vars(layer)), torch.randn(shape)
    expected = layer.eval()(x)
    assert use(layer) is layer
    assert type(layer) is getattr(hs.nn, name)
    assert not layer.training
    torch.testing.assert_close(layer(x), expected)
    assert repr(layer) == repr(getattr(nn, name)(*arguments))
    layer.train()(x)
    use(layer, "torch")
    assert type(layer) is getattr(nn, name)
    assert set(vars(layer)) == attributes
    fresh = use(getattr(hs.nn, name)(*arguments), "torch")
    assert type(fresh) is getattr(nn, name)
    assert set(vars(fresh)) == attributes


def test_training_gives_the_same_outputs_gradients_and_statistics():
    model, x = mixed(), torch.randn(8, 3, 6, 6)
    twin, third = copy.deepcopy(model), use(use(copy.deepcopy(model)), "torch")
    use(twin)
    for _ in range(3):
        expected = with_gradients(model, x)
        torch.testing.assert_close(with_gradients(twin, x), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(with_gradients(third, x), expected, atol=0, rtol=0)
        torch.testing.assert_close(twin.state_dict(), model.state_dict(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    assert homes(twin) == {"homeostat"}
    assert homes(third) == {"torch"}


@pytest.mark.filterwarnings("ignore::homeostat.errors.NoEffectWarning")  # some have no such layers
@pytest.mark.parametrize("name", models.ALL)
def test_models_of_all_kinds(name):
    model, sample = models.ALL[name]()
    expected = tensors_in(call(model.eval(), sample))
    use(model)
    torch.testing.assert_close(tensors_in(call(model, sample)), expected)
    use(model, "torch")
    torch.testing.assert_close(tensors_in(call(model, sample)), expected)


def test_nothing_else_changes():
    model = mixed()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.zero_grad()
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    optimizer.step()
    seen, modules = [], dict(model.named_modules())
    states = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    handle = model[8].register_forward_hook(lambda *call: seen.append(call))
    use(model)
    assert dict(model.named_modules()) == modules
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == states
    assert [module.training for module in model.modules()] == modes
    assert not model[4].weight.requires_grad
    assert model[8] is model[10]
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    assert len(seen) == 2
    handle.remove()
    before = model[8].weight.clone()
    optimizer.step()
    assert not torch.equal(model[8].weight, before)


def test_twice_is_once_and_mixed_models_are_completed():
    model = nn.Sequential(nn.LayerNorm(3), hs.nn.LayerNorm(3))
    for _ in range(2):
        use(model)
        assert homes(model) == {"homeostat"}
    assert str(plan_use(model)) == "use('homeostat'): 0 layers\n     2 already there"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torchs_encoder_with_and_without_its_fast_path(training, grad, padded):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=False)
    model = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16)).train(training)
    x = torch.randn(3, 5, 16)
    mask = torch.arange(5) >= torch.tensor([[5], [3], [4]]) if padded else None
    with torch.set_grad_enabled(grad):
        expected = model(x, src_key_padding_mask=mask)
        torch.testing.assert_close(use(model)(x, src_key_padding_mask=mask), expected)
        assert torch.equal(use(model, "torch")(x, src_key_padding_mask=mask), expected)


def test_dropout_inside_torchs_encoder_is_dropped_by_the_kernel():
    model = use(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.5, batch_first=True))
    assert type(model.dropout1) is hs.nn.Dropout
    x, outputs = torch.randn(3, 5, 16), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_parametrized_layers_keep_their_parametrizations():
    layer, x = nn.LayerNorm(4), torch.randn(3, 4)
    for name in ("weight", "bias"):
        parametrize.register_parametrization(layer, name, Positive())
    twin, expected = copy.deepcopy(layer), layer(x)
    use(layer)
    assert isinstance(layer, hs.nn.LayerNorm)
    assert not isinstance(twin, hs.nn.LayerNorm)
    assert type(layer).__name__ == "ParametrizedLayerNorm"
    for other in (layer, copy.deepcopy(layer)):
        torch.testing.assert_close(other(x), expected)
        with parametrize.cached():
            torch.testing.assert_close(other(x), expected)
    torch.testing.assert_close(use(layer, "torch")(x), expected)
    use(layer)
    parametrize.remove_parametrizations(layer, "weight")
    parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is hs.nn.LayerNorm
    torch.testing.assert_close(layer(x), expected)


def test_parametrized_weights_of_other_layers_do_not_matter():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.LayerNorm(4)).eval()
    x = torch.randn(3, 4)
    expected = model(x)
    torch.testing.assert_close(use(model)(x), expected)


def test_compiled_models_compile_anew():
    graphs = []

    def backend(graph, example):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.LayerNorm(8))

        def forward(self, x):
            return self.layers(x)

    x = torch.randn(6, 4)
    for in_place in (False, True):
        graphs.clear()
        torch.compiler.reset()
        model = Block().eval()
        if in_place:
            model.compile(backend=backend, fullgraph=True)
            compiled = model
        else:
            compiled = torch.compile(model, backend=backend, fullgraph=True)
        expected = compiled(x)
        use(compiled)
        torch.testing.assert_close(compiled(x), expected)
        assert len(graphs) == 2
        assert "homeostat.norm_rows.default" in graphs[1] - graphs[0]
        use(compiled, "torch")
        torch.testing.assert_close(compiled(x), expected)
    trained = torch.compile(use(Block()), backend="aot_eager", fullgraph=True)
    trained(x).sum().backward()


def test_copies_pickles_and_state_dicts():
    model, x = use(mixed()).eval(), torch.randn(2, 3, 6, 6)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert homes(other) == {"homeostat"}
        assert torch.equal(other(x), expected)
    plain = mixed().eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(plain(x), expected)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert homes(averaged) == {"homeostat"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model, x = mixed().to(dtype).eval(), torch.randn(2, 3, 6, 6, dtype=dtype)
    expected = model(x)
    tolerance = 1e-7 if dtype is torch.float64 else 0.05
    torch.testing.assert_close(use(model)(x), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's RMS norm says so
def test_under_autocast_vmap_and_on_the_meta_device():
    model, x = mixed().eval(), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        assert use(copy.deepcopy(model))(x).dtype == expected.dtype
        torch.testing.assert_close(use(copy.deepcopy(model))(x), expected, atol=0.1, rtol=0.1)
    layers = nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.5)).eval()
    expected = layers(x[0, :, :, :4])
    torch.testing.assert_close(torch.func.vmap(use(layers))(x[0, :, :, :4]), expected)
    with torch.device("meta"):
        assert use(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))(torch.randn(2, 4)).device.type == "meta"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_left_alone_is_counted_with_its_reason():
    class Own(nn.LayerNorm):
        def forward(self, input):
            return super().forward(input) + 1

    class Named(nn.Dropout):
        pass

    class LlamaRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight

    patched, foreign = nn.LayerNorm(4), nn.LayerNorm(4)
    patched.forward = lambda x: x
    foreign.activation = "own"
    layers = [
        nn.LayerNorm(4), Own(4), Named(0.5), LlamaRMSNorm(), nn.SyncBatchNorm(4), nn.LazyBatchNorm1d(), patched,
        foreign, torch.jit.script(nn.LayerNorm(4)), nn.LocalResponseNorm(2), LastAxisBatchNorm(4), hs.nn.DropPath(0.1),
    ]  # fmt: skip
    model = nn.ModuleList(layers)
    plan = plan_use(model)
    assert len(plan) == 1
    assert [(where, why) for where, _, why in plan.left] == [
        ("1", "a subclass of LayerNorm"),
        ("2", "a subclass of Dropout"),
        ("3", "not one of torch.nn's layers"),
        ("4", "its statistics are those of all processes"),
        ("5", "lazy: run a batch through the model first"),
        ("6", "a forward of its own"),
        ("7", "activation='own'"),
        ("8", "scripted"),
    ]
    classes = [type(layer) for layer in layers]
    use(model)
    assert [type(layer) for layer in model] == [hs.nn.LayerNorm, *classes[1:]]
    back = {where: why for where, _, why in plan_use(model, "torch").left}
    assert back["10"] == back["11"] == "torch.nn has no such layer"
    use(model, "torch")
    assert [type(layer) for layer in model] == classes


def test_probabilities_of_other_types():
    model = nn.Sequential(nn.Dropout(np.float32(0.25)), nn.Dropout(torch.tensor(0.25)), nn.Dropout(0))
    plan = plan_use(use(model))
    assert model[0].p == 0.25
    assert type(model[0].p) is float
    assert plan.settled == 2
    assert [(where, why) for where, _, why in plan.left] == [("1", "p=tensor(0.2500), which is no number")]
    assert model(torch.ones(3)).shape == (3,)


def test_a_shared_layer_is_named_by_all_its_names():
    plan = plan_use(mixed())
    assert [names for names, module, _ in plan.swapped if isinstance(module, nn.LayerNorm)] == ["8, 10"]
    assert "1 × BatchNorm2d → homeostat.nn.BatchNorm2d" in str(plan)


def test_what_torch_cannot_express_is_refused_before_anything_changes():
    model = nn.Sequential(
        hs.nn.LayerNorm(4), hs.nn.BatchNorm1d(4, activation="relu"), hs.nn.Dropout(0.5, mode="scaled"),
        hs.nn.BatchNorm1d(4, unbiased=False), hs.nn.BatchNorm1d(4, activation="identity", backend="reference"),
    )  # fmt: skip
    classes = [type(layer) for layer in model]
    with pytest.raises(InvalidValue) as caught:
        use(model, "torch")
    for part in ("'1' (BatchNorm1d) has activation='relu'", "'2' (Dropout) has mode='scaled'", "unbiased=False"):
        assert part in str(caught.value)
    assert [type(layer) for layer in model] == classes
    assert "refused: '1'" in str(plan_use(model, "torch"))
    for layer in (model[1], model[3]):
        layer.activation, layer.unbiased = None, True
    model[2].mode = "inverted"
    use(model, "torch")
    assert homes(model) == {"torch"}
    with pytest.raises(TypeError):
        model[1](torch.ones(3, 4), residual=torch.ones(3, 4))


def test_models_without_such_layers_give_a_warning():
    with pytest.warns(NoEffectWarning, match=r"use\('homeostat'\) changed nothing in Linear: it has no modules that"):
        use(nn.Linear(2, 2))
    with pytest.warns(NoEffectWarning, match=r"(?s)no layer of it can be swapped.*'0' \(SyncBatchNorm\)"):
        use(nn.Sequential(nn.SyncBatchNorm(3)))


def test_arguments_that_cannot_be_used_are_refused():
    with pytest.raises(InvalidType, match=r"use: model must be a torch.nn.Module, but got"):
        use("model")
    with pytest.raises(InvalidValue, match=r"unknown layers 'touch'. Did you mean 'torch'"):
        use(nn.LayerNorm(3), "touch")
