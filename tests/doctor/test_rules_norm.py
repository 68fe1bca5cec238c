"""Rules of normalization: planted faults found by what they do, frozen and healthy layers left in peace."""

import pytest
import torch
from small_trainings import chart_of, made, mlp, rings, suspects, training
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from homeostat.doctor.network.statistics import norm_facts
from homeostat.doctor.rules.norm import (
    BiasBeforeNorm,
    DecayOnNorms,
    DeepWithoutNorm,
    DropoutBeforeBatchNorm,
    NormOfOneValue,
    SmallBatchInBatchNorm,
)
from homeostat.doctor.rules.norm_statistics import BatchOfOne, EvalModeWhileTraining, StaleStatistics, TrainEvalGap

ALL = [
    *(BiasBeforeNorm, DropoutBeforeBatchNorm, SmallBatchInBatchNorm, StaleStatistics, TrainEvalGap, DecayOnNorms),
    *(DeepWithoutNorm, BatchOfOne, NormOfOneValue, EvalModeWhileTraining),
]


def shifted(*args):
    """Inputs that are far from mean 0 and deviation 1."""
    x, y = rings(*args)
    return 3 * x + 5, y


def normed(momentum=0.1, norm=nn.BatchNorm1d, **options):
    model = mlp(norm=norm)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = momentum
    return training(model, data=shifted, **options)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d, nn.LayerNorm])
def test_a_training_that_works_is_neither_certainly_nor_likely_at_fault(norm):
    chart = chart_of(training(mlp(norm=norm), epochs=20))
    assert not chart.ill
    found = [suspect for rule in ALL for suspect in rule().check(chart) if suspect.severity != "info"]
    assert found == []


@pytest.mark.parametrize("rule", ALL)
def test_every_rule_has_its_page(rule):
    for section in (
        "What it checks",
        "Why it hurts",
        "Threshold and its source",
        "False alarms",
        "Repair and its safety",
    ):
        assert f"{section}:" in rule.__doc__
    assert rule.code.startswith("NRM")


@pytest.mark.parametrize("how", ["momentum", "tracking"])
def test_statistics_that_are_never_updated_are_certain_where_new_ones_help(how):
    given = normed(0.0 if how == "momentum" else 0.1, epochs=20)
    if how == "tracking":
        for module in given.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.track_running_stats = False
    chart = chart_of(given)
    (found,) = StaleStatistics().check(chart)
    assert (found.certainty, found.severity) == ("certain", "warning")
    assert "100% of its initial statistics" in found.message
    facts = norm_facts(chart)
    assert facts.stale > 0.1
    assert facts.batches > facts.running + 0.1
    assert not bool(chart.course.model[1].running_mean.any())
    altered = given.copy()
    found.changes[0].apply(altered)
    assert list(StaleStatistics().check(chart_of(altered))) == []


def test_momentum_too_small_for_the_length_of_training():
    (found,) = suspects(StaleStatistics, normed(1e-4, epochs=10))
    assert found.evidence["initial_left"] == pytest.approx((1 - 1e-4) ** 200)


def test_frozen_statistics_of_a_pretrained_model_are_left_in_peace():
    trained = chart_of(normed(epochs=20)).course.model
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.0
    given = training(trained, data=shifted, lr=1e-3, epochs=5)
    assert suspects(StaleStatistics, given) == []
    trained.eval()
    trained.training = True  # as a fine-tuning loop leaves it that freezes its normalization
    assert suspects(EvalModeWhileTraining, given, steps=5) == []


def test_layers_that_were_never_trained_and_are_in_evaluation_mode():
    given = normed()
    given.model[1].eval()
    (found,) = suspects(EvalModeWhileTraining, given, steps=5)
    assert (found.certainty, found.layer, found.changes[0].layers) == ("likely", "1", ("1",))


def sessions(*args):
    """Examples in blocks of 20, each block measured with an offset of its own."""
    x, y = rings(*args)
    offsets = 5 * torch.randn(len(x) // 20, 1, generator=torch.Generator().manual_seed(9))
    return x + offsets.repeat_interleave(20, 0), y


def test_batches_that_share_more_than_chance_open_a_gap_between_training_and_evaluation():
    chart = chart_of(training(mlp(norm=nn.BatchNorm1d), data=sessions, epochs=20, shuffle=False))
    facts = norm_facts(chart)
    assert facts.batches - max(facts.running, facts.measured) > 0.1
    (found,) = TrainEvalGap().check(chart)
    assert (found.certainty, [change.slug for change in found.changes]) == ("likely", ["add-norm", "batch-size"])
    chart = chart_of(normed(epochs=20))
    assert norm_facts(chart).gap < 0.05
    assert list(TrainEvalGap().check(chart)) == []


@pytest.mark.parametrize(("count", "batch_size", "severity"), [(41, 20, "warning"), (40, 1, "error"), (40, 20, None)])
def test_a_batch_of_one(count, batch_size, severity):
    given = training(mlp(norm=nn.BatchNorm1d), data=lambda *args: rings(count), batch_size=batch_size, epochs=1)
    found = (
        suspects(BatchOfOne, given, steps=1) if batch_size > 1 else list(BatchOfOne().check(chart_without_trial(given)))
    )
    assert [suspect.severity for suspect in found] == ([severity] if severity else [])
    if found:
        assert "more than 1 value per channel" in found[0].message
        assert count % found[0].changes[0].batch_size != 1


def chart_without_trial(given):
    """A training whose every step fails."""
    other = training(mlp(), epochs=1)
    chart = chart_of(other, steps=1)
    chart.training, chart.train = given, given.examples("train")
    return chart


def test_a_loader_that_drops_the_rest_and_positions_in_an_image_make_no_batch_of_one():
    x, y = rings(41)
    loader = DataLoader(TensorDataset(x, y), batch_size=20, drop_last=True)
    given = training(mlp(norm=nn.BatchNorm1d), data=lambda *args: (x, y), epochs=1)
    given.train, given.batch_size = loader, 20
    assert suspects(BatchOfOne, given, steps=1) == []
    images = made(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)))
    pictures = torch.randn(41, 1, 8, 8), torch.arange(41) % 2
    assert suspects(BatchOfOne, training(images, data=lambda *args: pictures, epochs=1), steps=1) == []


def test_places_are_read_off_the_structure():
    (found,) = suspects(BiasBeforeNorm, normed(), steps=1)
    assert (found.severity, found.evidence["layers"]) == ("info", 2)
    assert suspects(BiasBeforeNorm, normed(norm=nn.LayerNorm), steps=1) == []
    layers = [
        nn.Linear(4, 8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
    ]
    model = made(lambda: nn.Sequential(*layers, nn.Linear(8, 2)))
    (found,) = suspects(DropoutBeforeBatchNorm, training(model), steps=1)
    assert (found.certainty, found.layer, found.changes[0].where) == ("possible", "2", ("2",))
    assert suspects(DropoutBeforeBatchNorm, normed(), steps=1) == []


def test_few_examples_per_batch_are_possible():
    (found,) = suspects(SmallBatchInBatchNorm, normed(batch_size=4, epochs=1), steps=5)
    assert (found.certainty, [change.slug for change in found.changes]) == ("possible", ["batch-size", "add-norm"])
    assert suspects(SmallBatchInBatchNorm, training(batch_size=4, epochs=1), steps=5) == []


def test_decay_on_scales_is_a_remark():
    model = mlp(norm=nn.BatchNorm1d)
    given = training(model, torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.01))
    (found,) = suspects(DecayOnNorms, given, steps=1)
    assert (found.severity, found.evidence["decayed"], found.evidence["of_norms"]) == ("info", 7, 4)
    found.changes[0].apply(given)
    assert suspects(DecayOnNorms, given, steps=1) == []


def test_a_deep_plain_net_in_which_the_gradient_vanishes():
    given = training(mlp(depth=12, activation=nn.Sigmoid), epochs=2)
    (found,) = suspects(DeepWithoutNorm, given)
    assert found.evidence["depth"] == 13
    assert found.evidence["gradient_ratio"] < 1e-2
    assert "vanishing_gradient" in found.causes
    assert [change.kind for change in found.changes] == ["batch", "layer"]
    assert suspects(DeepWithoutNorm, training(mlp(depth=12, norm=nn.LayerNorm), epochs=2)) == []
    assert suspects(DeepWithoutNorm, training(mlp(depth=3, activation=nn.Sigmoid), epochs=2)) == []


class Single(nn.Module):
    """A norm over the one value that is left of each example."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 1)
        self.norm = nn.LayerNorm(1)
        self.leave = nn.Linear(1, 2)

    def forward(self, x):
        return self.leave(self.norm(self.enter(x)))


def test_a_norm_of_one_value_is_certain_and_zeroed_scales_are_not():
    (found,) = suspects(NormOfOneValue, training(made(Single), epochs=1))
    assert (found.certainty, found.layer) == ("certain", "norm")
    zeroed = normed(norm=nn.LayerNorm, epochs=1)
    nn.init.zeros_(zeroed.model[4].weight)
    assert suspects(NormOfOneValue, zeroed) == []
