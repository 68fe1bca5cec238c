from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

from homeostat import nn as fast
from homeostat.errors import InvalidType, InvalidValue, NoEffectWarning
from homeostat.parts.norm import LastAxisBatchNorm
from homeostat.parts.population import call_on_batch, update_statistics_
from homeostat.training.loop import fit
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


def network(norm=nn.BatchNorm2d, flat=nn.BatchNorm1d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 5, 3), norm(5), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 6), flat(6), nn.Dropout(0.5), nn.Linear(6, 2),
    )  # fmt: skip


def batches(*sizes, shape=(3, 6, 6), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator) * 2 + 1 for size in sizes]


def statistics(model):
    return {name: value for name, value in model.state_dict().items() if "running" in name}


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("norms", [(nn.BatchNorm2d, nn.BatchNorm1d), (fast.BatchNorm2d, fast.BatchNorm1d)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minibatch_is_what_torch_computes_for_equal_batches(norms, dtype):
    ours, theirs = network(*norms).to(dtype), network(*norms).to(dtype)
    data = [x.to(dtype) for x in batches(8, 8, 8, 8)]
    theirs[9].p = 0.0
    update_bn(data, theirs)
    assert update_statistics_(ours, data) == ["1", "4", "8"]
    for name, value in statistics(theirs).items():
        # torch adds a running average in the buffer's own precision
        torch.testing.assert_close(statistics(ours)[name], value, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=5), length=st.integers(1, 4), channels=st.integers(1, 3))
def test_both_estimators_are_their_formulas_for_batches_of_any_size(sizes, length, channels):
    data = [x.double() for x in batches(*sizes, shape=(channels, length), seed=sum(sizes))]
    minibatch, pooled = nn.BatchNorm1d(channels).double(), nn.BatchNorm1d(channels).double()
    update_statistics_(minibatch, data)
    update_statistics_(pooled, data, estimator="pooled")
    values = [x.transpose(0, 1).reshape(channels, -1) for x in data]
    counts = torch.tensor([x.shape[1] for x in values]).double()
    mean = torch.cat(values, 1).mean(1)
    torch.testing.assert_close(minibatch.running_mean, mean)
    torch.testing.assert_close(pooled.running_mean, mean)
    unbiased = torch.stack([x.var(1) for x in values])
    torch.testing.assert_close(minibatch.running_var, (counts[:, None] * unbiased).sum(0) / counts.sum())
    torch.testing.assert_close(pooled.running_var, torch.cat(values, 1).var(1))


def test_pooled_does_not_lose_a_small_variance_on_a_large_mean():
    layer = nn.BatchNorm1d(1).double()
    data = [torch.tensor([[1e7], [1e7 + 1]]).double() + shift for shift in range(50)]
    update_statistics_(layer, data, estimator="pooled")
    torch.testing.assert_close(layer.running_var[0], torch.cat(data).var(), rtol=1e-9, atol=0)


def test_deeper_layers_see_what_training_shows_them():
    model, data = network(), batches(8, 8)
    update_statistics_(model, data, estimator="pooled")
    with torch.no_grad():
        seen = torch.cat([model[3](F.relu(F.batch_norm(model[0](x), None, None, training=True))) for x in data])
    torch.testing.assert_close(model[4].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(model[4].running_var, seen.var((0, 2, 3)))


@pytest.mark.parametrize("estimator", ["minibatch", "pooled"])
def test_fused_and_last_axis_layers(estimator):
    plain, fused = nn.BatchNorm1d(3), nn.Sequential(LastAxisBatchNorm(3, activation="relu"))
    data = batches(5, 2, shape=(4, 3))
    update_statistics_(fused, data, estimator=estimator)
    update_statistics_(plain, [x.reshape(-1, 3) for x in data], estimator=estimator)
    torch.testing.assert_close(fused[0].running_mean, plain.running_mean)
    torch.testing.assert_close(fused[0].running_var, plain.running_var)


def test_a_layer_that_keeps_the_population_variance_gets_it():
    layer = fast.BatchNorm1d(2, unbiased=False)
    x = batches(6, shape=(2,))[0]
    for estimator in ("minibatch", "pooled"):
        update_statistics_(layer, [x], estimator=estimator)
        torch.testing.assert_close(layer.running_var, x.var(0, correction=0))


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, fast.InstanceNorm1d])
def test_instance_normalization_with_running_statistics(kind):
    layer = kind(3, track_running_stats=True)
    data = batches(4, 2, shape=(3, 7))
    assert update_statistics_(layer, data) == [""]
    torch.testing.assert_close(layer.running_var, torch.cat(data).var(2).mean(0))
    update_statistics_(layer, data, estimator="pooled")
    torch.testing.assert_close(layer.running_mean, torch.cat(data).mean((0, 2)))
    torch.testing.assert_close(layer.running_var, torch.cat(data).var((0, 2)))


def test_a_shared_layer_averages_over_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x) + self.norm(3 * x[:2] + 1).sum()

    model, x = Twice(), batches(6, shape=(2,))[0]
    update_statistics_(model, [x], estimator="pooled")
    torch.testing.assert_close(model.norm.running_var, torch.cat([x, 3 * x[:2] + 1]).var(0))


@pytest.mark.parametrize("dropout", [False, True])
def test_everything_else_stays_in_mixed_modes_too(dropout):
    model = network().train()
    model[4].eval()
    model[9].eval()
    model[8].momentum = None
    model[1].num_batches_tracked.fill_(7)
    buffers = [model[1].running_mean, model[8].num_batches_tracked]
    modes, before = [module.training for module in model.modules()], states(model)
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1]
    model[0].weight.grad = torch.ones_like(model[0].weight)
    update_statistics_(model, batches(8, 5), dropout=dropout)
    assert modes == [module.training for module in model.modules()]
    assert [layer.momentum for layer in (model[1], model[4], model[8])] == [0.1, 0.1, None]
    assert torch.equal(random, torch.get_rng_state())
    assert np.array_equal(numpy_random, np.random.get_state()[1])
    assert buffers[0] is model[1].running_mean
    assert buffers[1] is model[8].num_batches_tracked
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(statistics(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def fails_half_way():
    yield from batches(8, 8)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (fails_half_way(), KeyboardInterrupt),
        ([*batches(8), torch.zeros(2, 5)], RuntimeError),  # the model fails
        ([*batches(8), *batches(1)], InvalidValue),  # one value per channel in the flat layer
        ([*batches(8), torch.full((4, 3, 6, 6), float("nan"))], InvalidValue),
        (iter(()), InvalidValue),
    ],
)
def test_after_an_error_all_is_as_before(data, error):
    model = network().train()
    model[1].eval()
    update_statistics_(model, batches(4))
    before, modes, random = states(model), [m.training for m in model.modules()], torch.get_rng_state()
    with pytest.raises(error):
        update_statistics_(model, data)
    assert same(before, states(model))
    assert modes == [m.training for m in model.modules()]
    assert model[1].momentum == 0.1
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_statistics_that_had_become_nan_are_healed():
    model = network()
    model[1].running_mean.fill_(float("nan"))
    update_statistics_(model, batches(8))
    assert all(torch.isfinite(value).all() for value in statistics(model).values())


def test_dropout_changes_what_layers_behind_it_see_and_is_seeded():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.ReLU())
    data = [torch.tensor([1.0, 3.0]).repeat(2000)[:, None].repeat(1, 3)]
    update_statistics_(model, data)
    torch.testing.assert_close(model[1].running_var, data[0].var(0))
    update_statistics_(model, data, dropout=True, seed=3)
    with_dropout = states(model)
    # 0, 2, 6 with probability 1/2, 1/4, 1/4: variance 6, fourth moment 72, standard error sqrt(36/4000)
    assert ((model[1].running_var - 6).abs() < 5 * 0.095).all()
    torch.manual_seed(5)
    update_statistics_(model, data, dropout=True, seed=3)
    assert same(with_dropout, states(model))
    update_statistics_(model, data, dropout=True, seed=4)
    assert not same(with_dropout, states(model))


def test_functional_dropout_is_switched_too():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(F.dropout(x, 0.5, self.training))

    model, x = Functional().train(), batches(500, shape=(3,))[0]
    update_statistics_(model, [x])
    torch.testing.assert_close(model.norm.running_mean, x.mean(0))
    update_statistics_(model, [x], dropout=True)
    assert (model.norm.running_var > 1.5 * x.var(0)).all()


def test_loaders_of_every_form():
    plain = network()
    x = torch.cat(batches(8, 8))
    update_statistics_(plain, x.split(8))
    loader = DataLoader(TensorDataset(x, torch.zeros(16)), batch_size=8)
    forms = [loader, [(x[:8], "label"), [x[8:], "label"]], (part for part in x.split(8))]
    for form in forms:
        model = network()
        update_statistics_(model, form)
        assert same(states(model), states(plain))

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, pixels, scale=1.0):
            return self.inner(pixels * scale)

    entries = [{"pixels": part, "scale": 1.0, "label": torch.zeros(8)} for part in x.split(8)]
    for model in (named := Named(), AveragedModel(Named())):
        update_statistics_(model, entries)
        assert all(
            torch.equal(a, b) for a, b in zip(statistics(model).values(), statistics(plain).values(), strict=True)
        )
    with pytest.raises(TypeError):
        update_statistics_(named, [{"image": x}])
    assert update_statistics_(named, [{"image": x}], forward=lambda batch: named(batch["image"])) != []


def test_the_number_of_batches_is_respected_and_no_more_are_read():
    read = []

    def stream():
        for number in range(10):
            read.append(number)
            yield torch.full((2, 1), float(number)) + torch.tensor([[-1.0], [1.0]])

    layer = nn.BatchNorm1d(1)
    update_statistics_(layer, stream(), 3)
    assert read == [0, 1, 2]
    assert layer.running_mean.item() == pytest.approx(1.0)


def test_layers_that_are_not_reached_keep_their_statistics():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.used(x)

    model = Unused()
    model.unused.running_mean.fill_(5)
    assert update_statistics_(model, batches(4, shape=(2,))) == ["used"]
    assert model.unused.running_mean.tolist() == [5, 5]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)])
def test_models_without_running_statistics_are_told(model):
    with pytest.warns(NoEffectWarning, match="no layer with running statistics"):
        assert update_statistics_(model, batches(4, shape=(2,))) == []


def test_synchronized_and_frozen_layers():
    class FrozenBatchNorm2d(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.register_buffer("running_mean", torch.ones(channels))

        def forward(self, x):
            return x - self.running_mean[:, None, None]

    model = nn.Sequential(FrozenBatchNorm2d(3), nn.SyncBatchNorm(3), nn.BatchNorm2d(3).eval().requires_grad_(False))
    x = batches(8)[0]
    assert update_statistics_(model, [x]) == ["1", "2"]
    assert model[0].running_mean.tolist() == [1, 1, 1]
    torch.testing.assert_close(model[1].running_mean, x.mean((0, 2, 3)) - 1)


def test_compiled_models_are_not_missed():
    model, compiled = network(), torch.compile(network(), backend="eager")
    compiled(batches(4)[0])
    model(batches(4)[0])
    update_statistics_(model, batches(8))
    assert update_statistics_(compiled, batches(8)) == ["_orig_mod.1", "_orig_mod.4", "_orig_mod.8"]
    for ours, other in zip(statistics(model).values(), statistics(compiled).values(), strict=True):
        torch.testing.assert_close(ours, other)


def test_a_fitted_model_predicts_as_well_with_its_population_statistics():
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(300) % 3
    x = (
        torch.rand(3, 1, 8, 8, generator=generator)[y] * 160 + torch.rand(300, 1, 8, 8, generator=generator) * 90
    ).byte()
    task = Task(data=((x[:200], y[:200]), (x[200:250], y[200:250]), (x[250:], y[250:])))
    model = fit(task, Recipe(model="cnn", norm="batch", epochs=4)).model
    data = [task.prepare(part) for part, _ in task.train.batches(0, 0, 32)]
    for estimator in ("minibatch", "pooled"):
        assert len(update_statistics_(model, data, estimator=estimator)) == 2
        with torch.no_grad():
            assert (model(task.prepare(x[250:])).argmax(1) == y[250:]).float().mean() > 0.9


def test_wrong_arguments_say_what_is_wrong():
    model, data = network(), batches(4)
    with pytest.raises(InvalidType, match="model comes first"):
        update_statistics_(data, model)
    for wrong in (data[0], {"x": data[0]}, 3):
        with pytest.raises(InvalidType, match="iterable of batches"):
            update_statistics_(model, wrong)
    with pytest.raises(InvalidValue, match="Known: minibatch, pooled"):
        update_statistics_(model, data, estimator="pool")
    with pytest.raises(InvalidValue, match="num_batches"):
        update_statistics_(model, data, 0)
    with pytest.raises(InvalidType, match="num_batches"):
        update_statistics_(model, data, 1.5)
    with pytest.raises(InvalidValue, match="lazy"):
        update_statistics_(nn.Sequential(nn.LazyBatchNorm1d()), data)
    with pytest.raises(InvalidValue, match="drop_last"):
        update_statistics_(nn.BatchNorm1d(2), [torch.zeros(1, 2)])


def test_call_on_batch_gives_a_mapping_whole_where_no_entry_is_named():
    class Whole(nn.Module):
        def forward(self, batch):
            return batch["a"]

    assert call_on_batch(Whole(), {"a": 1}) == 1
    assert call_on_batch(deepcopy(Whole()), [{"a": 2}, "target"]) == 2


def test_a_seed_that_is_none_is_refused():
    with pytest.raises(InvalidType, match="seed must be an integer, but got 'a'"):
        update_statistics_(nn.BatchNorm1d(2), [torch.randn(4, 2)], seed="a")
