"""A task standardizes by its training split alone, refuses what cannot be learned, and measures in the user's unit."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset

from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.training.sources import DatasetSource
from homeostat.training.standardize import Standardization
from homeostat.training.task import Task


def vectors(count, seed=0, columns=3):
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 5.0, 0.1]) + 7
    return x, torch.arange(count) % 3


def pictures(count, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([60, 120, 250])[:channels].reshape(1, -1, 1, 1)
    x = (torch.rand(count, channels, 6, 5, generator=generator) * scale).to(torch.uint8)
    return x, torch.arange(count) % 3


def regression(count, seed=0):
    x, _ = vectors(count, seed)
    return x, x.sum(1)


def three(make, **settings):
    return Task(data=(make(30, 0), make(12, 1), make(12, 2)), **settings)


class Items(Dataset):
    def __init__(self, x, y, targets=None):
        self.x, self.y = x, y
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*vectors(12), strict=True))


def build():
    return nn.Linear(3, 3)


# -- standardization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vectors, pictures, lambda count, seed: pictures(count, seed, channels=1)])
def test_constants_are_those_of_the_training_split_alone(make):
    task = three(make)
    x = make(30, 0)[0].double().numpy()
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    assert np.allclose(task.standardization.mean, x.mean(axes))
    assert np.allclose(task.standardization.deviation, x.std(axes))
    other = Task(data=(make(30, 0), make(12, 8), make(12, 9)))
    assert other.standardization == task.standardization


@pytest.mark.parametrize("make", [vectors, pictures, lambda count, seed: pictures(count, seed, channels=1)])
def test_prepare_gives_float32_with_mean_0_and_deviation_1(make):
    task = three(make)
    x, _ = task.sample(30)
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    assert x.dtype == torch.float32
    assert torch.allclose(x.mean(axes), torch.zeros(()), atol=1e-5)
    assert torch.allclose(x.std(axes, correction=0), torch.ones(()), atol=1e-5)
    if x.ndim == 4:
        assert x.is_contiguous(memory_format=torch.channels_last)
        raw = make(30, 0)[0]
        assert torch.allclose(task.prepare(raw), task.prepare(raw.float()), atol=1e-5)  # augmented batches are float
        assert task.prepare(raw[:, :, :3, :2]).shape == (30, x.shape[1], 3, 2)  # and may be cropped


@given(mean=st.floats(-1e6, 1e6), deviation=st.floats(0.5, 100))
def test_a_column_with_a_large_mean_keeps_its_precision(mean, deviation):
    x = torch.tensor([[mean], [mean + deviation]], dtype=torch.float32)
    got = Standardization((float(x.double().mean()),), (float(x.double().std(correction=0)),)).apply(x)
    assert torch.allclose(
        got, torch.tensor([[-1.0], [1.0]]), atol=1e-3 + 2.5 * abs(float(np.spacing(np.float32(mean))))
    )


def test_a_constant_column_becomes_zero():
    x, y = vectors(30)
    x[:, 1] = 4.7
    task = Task(data=((x, y), (x, y), (x, y)))
    assert task.standardization.deviation[1] == 1
    assert torch.allclose(task.sample(30)[0][:, 1], torch.zeros(()), atol=1e-6)


def test_inputs_of_a_model_of_ones_own_stay_as_they_are_unless_uint8():
    x, y = vectors(9)
    task = Task(data=((x, y), (x, y), (x, y)), model=build)
    assert torch.equal(task.sample(9)[0], x)
    assert three(vectors, model=build, standardize=True).standardization is not None
    assert three(pictures, model=build).standardization is not None
    assert three(pictures, model=build, standardize=False).sample(2)[0].max() > 1
    tokens = torch.randint(0, 50, (9, 4))
    ready = Task(data=((tokens, y), (tokens, y), (tokens, y)), model=build).sample(2)[0]
    assert torch.equal(ready, tokens[:2])
    assert ready.dtype == torch.int64


def test_given_constants_are_used():
    task = three(vectors, standardize=Standardization((7.0, 7.0, 7.0), (2.0, 2.0, 2.0)))
    assert torch.allclose(task.sample(5)[0], (vectors(30)[0][:5] - 7) / 2)
    with pytest.raises(InvalidValue, match="same length"):
        Standardization((1.0,), (1.0, 2.0))
    with pytest.raises(InvalidValue, match="positive"):
        Standardization((1.0,), (0.0,))
    with pytest.raises(InvalidValue, match="have 3 channels or columns"):
        task.prepare(torch.zeros(4, 2))


def test_a_model_that_writes_in_place_does_not_reach_the_stored_data():
    task = three(vectors, model=build)
    for x, _ in task.train.batches(0, 0, 8, shuffle=False):
        task.prepare(x).zero_()
    assert torch.equal(task.train.x, vectors(30)[0])


def test_datasets_are_standardized_by_one_reading_where_it_is_wanted():
    x, y = pictures(30)
    task = Task(data=(Items(x, y), Items(x, y), Items(x, y)))
    assert task.standardization == three(pictures).standardization
    loader = DataLoader(Stream(), batch_size=4)
    assert Task(data=(loader, loader, loader), classes=3).standardization is None
    with pytest.raises(InvalidValue, match="be False for a stream"):
        _ = Task(data=(loader, loader, loader), classes=3, standardize=True).standardization


# -- shapes, classes, splits ------------------------------------------------------------------------------------------


def test_shapes_outputs_and_defaults():
    task = three(pictures, name="zoo")
    assert (task.kind, task.input_shape, task.outputs, task.default_model) == ("image", (3, 6, 5), 3, "cnn")
    assert (task.metric_name, task.goal, task.loss_name) == ("accuracy", "maximize", "cross_entropy")
    task = three(regression, loss="mse")
    assert (task.kind, task.input_shape, task.outputs, task.default_model) == ("vector", (3,), 1, "mlp")
    assert (task.metric_name, task.goal) == ("rmse", "minimize")
    assert three(vectors, classes=5).outputs == 5
    assert three(vectors, classes=["a", "b", "c"]).outputs == 3
    x, y = vectors(12)
    pairs = (x, torch.stack([y, y], 1).float())
    assert Task(data=(pairs, pairs, pairs), loss="mae").outputs == 2
    assert Task(data=(Items(x, y), Items(x, y), Items(x, y))).outputs == 3


def test_the_description_can_be_written_as_json():
    task = three(vectors, name="points", classes=["a", "b", "c"], description={"source": "a test"})
    told = json.loads(json.dumps(task.description))
    assert told["sizes"] == {"train": 30, "valid": 12, "test": 12}
    assert (told["name"], told["source"], told["classes"]) == ("points", "a test", ["a", "b", "c"])


def test_missing_splits_are_drawn_from_training_by_seed():
    x, y = vectors(100)
    task = Task(data=((x, y), None, None), seed=3)
    assert [len(split) for split in task.data] == [60, 20, 20]
    assert all(torch.bincount(split.y).min() >= 6 for split in task.data)
    assert "stratified, seed 3" in task.description["split"]
    rows = torch.cat([split.x for split in task.data])
    assert torch.equal(rows.sort(0).values, x.sort(0).values)
    other = Task(data=((x, y), None, None), seed=4)
    assert not torch.equal(other.train.x, task.train.x)
    half = Task(data=((x, y), None, (x, y)))
    assert [len(split) for split in half.data] == [80, 20, 100]
    numbers = Task(data=((x, x[:, 0]), None, None), loss="mse")
    assert "random" in numbers.description["split"]


def test_missing_splits_of_datasets_and_what_cannot_be_split():
    x, y = vectors(60)
    listed = Task(data=(Items(x, y, targets=y.tolist()), None, None))
    assert isinstance(listed.valid, DatasetSource)
    assert torch.bincount(listed.valid.targets()).tolist() == [4, 4, 4]
    assert len(Task(data=(Items(x, y), None, None)).test) == 12
    with pytest.raises(InvalidValue, match="hold all three splits"):
        Task(data=(DataLoader(Stream()), None, None), classes=3)


# -- losses and metrics -----------------------------------------------------------------------------------------------


def test_losses_are_torchs_own():
    logits, classes = torch.randn(8, 3), torch.arange(8) % 3
    smoothed = three(vectors).loss_function(label_smoothing=0.1)(logits, classes)
    assert torch.equal(smoothed, functional.cross_entropy(logits, classes, label_smoothing=0.1))
    outputs, numbers = torch.randn(8, 1), torch.rand(8)
    for name, reference in [
        ("mse", functional.mse_loss),
        ("mae", functional.l1_loss),
        ("bce_with_logits", functional.binary_cross_entropy_with_logits),
    ]:
        x, _ = vectors(30)
        task = Task(data=((x, torch.rand(30)), None, None), loss=name)
        got = task.loss_function()(outputs, numbers)  # (N, 1) against (N,) is not broadcast to N² pairs
        assert torch.equal(got, reference(outputs.squeeze(1), numbers))


def test_metrics_of_a_whole_split():
    task = three(regression, loss="mse", metric="rmse")
    outputs, targets = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1.0, 2.0, 3.0])
    assert task.measure(outputs, targets) == pytest.approx(math.sqrt(3))
    assert three(regression, loss="mse", metric="mae").measure(outputs, targets) == pytest.approx(1)
    # 1 - 9 / 2, by hand
    assert three(regression, loss="mse", metric="r2").measure(outputs, targets) == pytest.approx(-3.5)
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
    assert three(vectors).measure(logits, torch.tensor([0, 1, 1, 1])) == 0.75
    yes = Task(data=((vectors(30)[0], torch.arange(30) % 2), None, None), loss="bce_with_logits")
    assert yes.measure(torch.tensor([[3.0], [-1.0]]), torch.tensor([1.0, 1.0])) == 0.5


def test_metrics_are_in_the_targets_original_unit():
    outputs, targets = torch.randn(50), torch.randn(50)
    plain = three(regression, loss="mse").measure(outputs * 20 + 1000, targets * 20 + 1000)
    scaled = three(regression, loss="mse", target_unit=(1000.0, 20.0)).measure(outputs, targets)
    assert scaled == pytest.approx(plain, rel=1e-4)


def test_a_diverged_network_is_measured_not_refused():
    assert math.isnan(three(regression, loss="mse").measure(torch.full((3,), math.nan), torch.ones(3)))


def test_functions_of_ones_own():
    def worst(outputs, targets):
        return (outputs - targets).abs().max()

    task = three(regression, loss=functional.huber_loss, metric=worst, goal="minimize")
    assert (task.loss_name, task.metric_name, task.goal) == ("huber_loss", "worst", "minimize")
    assert task.measure(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0])) == 3
    assert task.loss_function() is functional.huber_loss
    assert three(regression, loss=lambda a, b: a.sum(), metric=worst, goal="minimize").loss_name == "loss"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "crossentropy"}, "Did you mean 'cross_entropy'"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"metric": "rmse"}, "suit the loss 'cross_entropy', but got 'rmse'. Suitable: accuracy"),
        ({"goal": "minimize"}, "be 'maximize' for the metric 'accuracy'"),
        ({"goal": "down"}, '"maximize" or "minimize"'),
        ({"metric": lambda outputs, targets: 0.0}, "goal"),
        ({"loss": lambda outputs, targets: outputs.sum()}, "metric must be given"),
        ({"loss": 3}, "a name or a function"),
        ({"metric": 3}, "a name or a function"),
        ({"model": nn.Linear(3, 3)}, "lambda: Net()"),
        ({"model": "resnet"}, "a function that builds"),
        ({"classes": 1}, "at least two"),
        ({"classes": 2}, "training targets must be less than 2, but got 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(HomeostatError) as caught:
        three(vectors, **settings)
    assert says in str(caught.value)


def test_label_smoothing_needs_cross_entropy():
    with pytest.raises(InvalidValue, match="only cross_entropy can smooth"):
        three(regression, loss="mse").loss_function(label_smoothing=0.1)


def test_an_output_of_the_wrong_shape_is_told_before_it_is_broadcast():
    with pytest.raises(InvalidValue, match="One logit per class"):
        three(vectors).loss_function()(torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InvalidValue, match="one number per target"):
        three(regression, loss="mse").loss_function()(torch.zeros(4, 2), torch.zeros(4))


# -- data that cannot be learned from ---------------------------------------------------------------------------------

X, Y = vectors(12)


@pytest.mark.parametrize(
    ("data", "settings", "says"),
    [
        (((X, Y.float()), None, None), {}, "pass y.long()"),
        (((X, Y.reshape(-1, 1)), None, None), {}, "squeeze(1)"),
        (((X, Y - 1), None, None), {}, "Number the classes from 0"),
        (((X, Y * 2), (X, Y), (X, Y)), {}, "none of [1, 3]"),
        (((X, Y), (X, Y + 1), (X, Y)), {}, "validation targets must be less than 3"),
        (((X, Y * 0), (X, Y), (X, Y)), {}, "vary"),
        (((X * 0, Y), (X, Y), (X, Y)), {}, "training inputs must vary, but got '12 equal examples'"),
        (((X, torch.ones(12)), None, None), {"loss": "mse"}, "vary"),
        (((X, Y), None, None), {"loss": "bce_with_logits"}, "lie in [0, 1]"),
        (((X, Y), (X[:, :2], Y), (X, Y)), {}, "one input shape"),
        (((X, Y), (X, Y)), {}, "(train, valid, test)"),
        ((None, (X, Y), (X, Y)), {}, "training data"),
        (((X, Y), (X, None), (X, Y)), {}, "validation data"),
        (((X[:, :, None], Y), None, None), {}, "images or vectors for a built-in model"),
        (((X, torch.tensor([0] * 11 + [1])), None, None), {}, "class 1 must have at least two examples"),
        ((Items(X, Y.float()), Items(X, Y), Items(X, Y)), {}, "training data"),
    ],
)
def test_data_that_cannot_be_learned_from_are_refused(data, settings, says):
    with pytest.raises(HomeostatError) as caught:
        Task(data=data, **settings)
    assert says in str(caught.value)


def test_a_stream_needs_its_number_of_classes_for_a_built_in_model():
    loader = DataLoader(Stream(), batch_size=4)
    with pytest.raises(HomeostatError, match="classes="):
        _ = Task(data=(loader, loader, loader)).outputs


def test_the_models_builder_is_called_anew_and_checked():
    task = three(vectors, model=build)
    assert task.build_model() is not task.build_model()
    with pytest.raises(InvalidType, match=r"return an nn\.Module"):
        three(vectors, model=lambda: None).build_model()
    kept = build()
    same = three(vectors, model=lambda: kept)
    same.build_model()
    with pytest.raises(InvalidValue, match="a new module at every call"):
        same.build_model()
    with pytest.raises(HomeostatError, match="no model of its own"):
        three(vectors).build_model()


# -- fingerprint ------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_same_for_the_same_task_and_another_for_any_change():
    base = three(vectors).fingerprint
    torch.manual_seed(7)
    assert three(vectors).fingerprint == base
    assert three(vectors, name="other", description={"source": "elsewhere"}).fingerprint == base
    x, y = vectors(12, 2)
    changed = x.clone()
    changed[0, 0] += 1
    others = [
        Task(data=(vectors(30), vectors(12, 1), (changed, y))),
        Task(data=(vectors(30), vectors(12, 1), (x, y.flip(0)))),
        three(vectors, standardize=False),
        three(vectors, standardize=Standardization((0.0,) * 3, (1.0,) * 3)),
        three(vectors, classes=4),
        three(vectors, model=build),
        three(vectors, default_model="cnn"),
        three(regression, loss="mse"),
        three(regression, loss="mse", metric="mae"),
        three(regression, loss="mse", target_unit=(0.0, 2.0)),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == len(others) + 1
