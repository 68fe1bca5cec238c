"""The rules on data: each finds its pattern of scale or splits, and all say nothing of a healthy training."""

import math

import pytest
import torch
from data_charts import chart, classified, digits, fitted, found, only
from small_trainings import mlp, plane, rings
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from homeostat.doctor.finding import CAUSES
from homeostat.doctor.rules import data, data_labels, data_splits
from homeostat.doctor.rules.data import (
    ConstantFeatures,
    NonFiniteData,
    UnderscaledInputs,
    UnnormalizedInputs,
    UnnormalizedTargets,
)
from homeostat.doctor.rules.data_labels import (
    ConstantTargets,
    ContradictingLabels,
    ImbalancedClasses,
    MissingClasses,
    NoisyLabels,
    NoRelation,
    UnrelatedLabels,
)
from homeostat.doctor.rules.data_splits import SharedExamples, SplitMismatch, SpoilingAugmentation, Unshuffled
from homeostat.doctor.show.rulebook import SECTIONS, page_of
from homeostat.doctor.training import Training

RULES = (
    NonFiniteData, UnnormalizedInputs, UnderscaledInputs, UnnormalizedTargets, ConstantFeatures, ConstantTargets,
    UnrelatedLabels, NoisyLabels, ImbalancedClasses, MissingClasses, ContradictingLabels, NoRelation, SplitMismatch,
    SharedExamples, Unshuffled, SpoilingAugmentation,
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- healthy


@pytest.mark.parametrize(
    "given",
    [
        lambda: classified(rings(), rings(200, 5)),
        lambda: classified(*digits(), outputs=10),
        lambda: fitted(plane(), plane(200, 5)),
        lambda: classified((rings()[0] / 4 + 0.5, rings()[1]), (rings(200, 5)[0] / 4 + 0.5, rings(200, 5)[1])),
    ],
    ids=["rings", "digits", "plane", "rings about 0..1"],
)
def test_healthy_data_give_no_suspect(given):
    seen = chart(given())
    assert [(rule.code, s.message) for rule in RULES for s in rule().check(seen) if s.severity != "info"] == []


def test_rules_without_facts_say_nothing():
    seen = chart(classified(rings(), rings(200, 5)))
    seen.data = None
    assert all(not list(rule().check(seen)) for rule in RULES)


@pytest.mark.parametrize("rule", RULES)
def test_rules_have_their_page_and_known_causes(rule):
    assert [heading for heading, _ in page_of(rule).sections] == list(SECTIONS)
    assert set(rule.causes) <= CAUSES


def test_codes_are_in_order_and_all_rules_are_here():
    assert [rule.code for rule in RULES] == [f"DAT{number:03d}" for number in range(1, len(RULES) + 1)]
    defined = {
        thing.__name__
        for module in (data, data_labels, data_splits)
        for thing in vars(module).values()
        if isinstance(thing, type) and thing.__module__ == module.__name__
    }
    assert {rule.__name__ for rule in RULES} == defined


# ---------------------------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize(
    ("scale", "shift", "certainty"),
    [(255.0, 0.0, "likely"), (1.0, 50.0, "likely"), (5.0, 0.0, "possible"), (1.0, 5.0, "possible")],
)
def test_large_inputs_and_inputs_far_from_zero(scale, shift, certainty):
    (x, y), (xv, yv) = rings(), rings(200, 5)
    suspect = only(UnnormalizedInputs, classified((x * scale + shift, y), (xv * scale + shift, yv)))
    assert suspect.certainty == certainty
    assert suspect.changes[0].family == "inputs"


def test_unlike_features():
    factors = torch.tensor([0.01, 1.0, 1.0, 3.0])
    (x, y), (xv, yv) = rings(), rings(200, 5)
    suspect = only(UnnormalizedInputs, classified((x * factors, y), (xv * factors, yv)))
    assert "varies" in suspect.message


@pytest.mark.parametrize("first", [nn.BatchNorm1d, lambda columns: Halve()])
def test_a_model_that_scales_its_inputs_is_not_suspected(first):
    (x, y), (xv, yv) = rings(), rings(200, 5)
    model = nn.Sequential(first(4), *mlp())
    given = classified((x * 255, y), (xv * 255, yv), model=model)
    assert not found(UnnormalizedInputs, given)


class Halve(nn.Module):
    """Scales raw inputs in its forward."""

    def forward(self, x):
        return x / 255


class Cast(nn.Module):
    """Makes floats of bytes, and leaves them as large as they are."""

    def forward(self, x):
        return x.float()


@pytest.mark.parametrize(("first", "suspected"), [(Cast(), True), (Halve(), False)])
def test_bytes_that_reach_a_layer_as_they_are(first, suspected):
    (x, y), (xv, yv) = digits()
    train, valid = (((part * 255).to(torch.uint8), labels) for part, labels in ((x, y), (xv, yv)))
    given = classified(train, valid, model=nn.Sequential(first, *mlp(64, 10)))
    suspects = found(UnnormalizedInputs, given)
    assert bool(suspects) == suspected
    if suspects:
        new = given.copy()
        suspects[0].changes[0].apply(new)
        assert new.predict(train[0]).abs().max() < 10


@pytest.mark.parametrize("divisor", [1e3, 1e5])
def test_inputs_that_hardly_vary(divisor):
    (x, y), (xv, yv) = rings(), rings(200, 5)
    suspect = only(UnderscaledInputs, classified((x / divisor, y), (xv / divisor, yv)))
    assert suspect.certainty == "likely"
    assert not found(UnnormalizedInputs, classified((x / divisor, y), (xv / divisor, yv)))


def test_whole_numbers_divided_twice_are_said_to_be():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 40, (400, 4), generator=generator).float() / 39 / 39
    suspect = only(UnderscaledInputs, classified((x, torch.arange(400) % 2), rings(200, 5)))
    assert "twice" in suspect.message


@pytest.mark.parametrize(
    ("scale", "shift", "certainty"), [(1e3, 0.0, "likely"), (1.0, 500.0, "likely"), (4.0, 0.0, "possible")]
)
def test_large_targets(scale, shift, certainty):
    (x, y), (xv, yv) = plane(), plane(200, 5)
    suspect = only(UnnormalizedTargets, fitted((x, y * scale + shift), (xv, yv * scale + shift)))
    assert suspect.certainty == certainty
    assert suspect.changes[0].family == "targets"


def test_unlike_columns_of_targets():
    (x, y), (xv, yv) = plane(), plane(200, 5)
    wide = [torch.cat([v, v * 1e-3], 1) for v in (y, yv)]
    assert only(UnnormalizedTargets, fitted((x, wide[0]), (xv, wide[1]))).certainty == "possible"


def test_constant_features_are_a_remark():
    (x, y), (xv, yv) = rings(), rings(200, 5)
    x[:, 2], xv[:, 2] = 3.0, 3.0
    suspect = only(ConstantFeatures, classified((x, y), (xv, yv)))
    assert (suspect.certainty, suspect.severity) == ("certain", "info")


def test_numbers_that_are_not_finite():
    x, y = rings()
    x[17, 1] = float("nan")
    suspect = only(NonFiniteData, classified((x, y), rings(200, 5)))
    assert (suspect.certainty, suspect.severity) == ("certain", "error")
    assert suspect.evidence["training_inputs"] == 1


def test_missing_targets_that_the_loss_leaves_out_are_a_remark():
    x, y = plane()
    y = y.clone()
    y[::3] = float("nan")
    model = mlp(3, 1)

    def loss(output, target):
        known = ~target.isnan()
        return (torch.where(known, output - target.nan_to_num(), torch.zeros(())) ** 2).sum() / known.sum().clamp_min(1)

    given = Training(
        model, loss, torch.optim.Adam(model.parameters(), 0.01), (x, y), plane(200, 5), batch_size=20, epochs=5
    )
    assert only(NonFiniteData, given).severity == "info"


# --------------------------------------------------------------------------------------------------------------- splits


def test_splits_prepared_differently():
    train, (x, y) = digits()
    suspect = only(SplitMismatch, classified(train, (x * 255, y), outputs=10))
    assert suspect.certainty == "likely"
    assert [change.side for change in suspect.changes] == ["train", "valid"]
    assert "times as large" in suspect.message


def test_one_drifting_feature_is_only_possible():
    (x, y), (xv, yv) = rings(), rings(200, 5)
    xv[:, 1] += 5
    assert only(SplitMismatch, classified((x, y), (xv, yv))).certainty == "possible"


def test_shared_examples():
    (x, y), (xv, yv) = digits()
    mixed = torch.cat([x[:150], xv]), torch.cat([y[:150], yv])
    suspect = only(SharedExamples, classified((x, y), mixed, outputs=10))
    assert (suspect.certainty, suspect.severity) == ("certain", "warning")
    assert "33%" in suspect.message


@pytest.mark.parametrize("valid", [None, "same"])
def test_validation_that_is_training_is_a_remark(valid):
    train, _ = digits()
    given = classified(train, None if valid is None else train, outputs=10)
    assert only(SharedExamples, given).severity == "info"


def test_bits_are_shared_by_nature():
    bits = ((torch.arange(64)[:, None] >> torch.arange(6)) & 1).float()
    y = bits[:, 0].long()
    assert not found(SharedExamples, classified((bits, y), (bits[::3], y[::3])))


def test_sorted_examples_without_shuffling():
    (x, y), valid = digits()
    order = y.argsort()
    loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=20)
    suspect = only(Unshuffled, classified(loader, valid, 10, batch_size=None))
    assert suspect.certainty == "likely"
    mixed = DataLoader(TensorDataset(x, y), batch_size=20)
    assert not found(Unshuffled, classified(mixed, valid, 10, batch_size=None))


@pytest.mark.parametrize(
    ("augment", "certainty"),
    [
        (lambda x: x + 0.02 * torch.randn_like(x), None),
        (lambda x: torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(2, 3), x), "likely"),
        (torch.randn_like, "likely"),
        (lambda x: x / 0, "certain"),
    ],
    ids=["mild", "upside down", "noise", "nan"],
)
def test_augmentation(augment, certainty):
    train, valid = ((x.reshape(-1, 1, 8, 8), y) for x, y in digits(1500))
    model = nn.Sequential(nn.Flatten(), *mlp(64, 10))
    given = classified(train, valid, outputs=10, model=model, augment=augment)
    suspects = found(SpoilingAugmentation, given, steps=1)
    assert [suspect.certainty for suspect in suspects] == ([] if certainty is None else [certainty])
    assert all(suspect.changes[0].slug == "drop-augmentation" for suspect in suspects)


def test_evidence_is_numbers():
    seen = chart(classified(*digits(), outputs=10))
    for rule in RULES:
        for suspect in rule().check(seen):
            assert all(isinstance(value, int | float | str) for value in suspect.evidence.values())
            assert not any(isinstance(v, float) and math.isnan(v) for v in suspect.evidence.values())
