"""The rules on labels and classes: each finds its pattern."""

import pytest
import torch
from data_charts import chart, classified, digits, fitted, found, only
from data_examples import shuffled
from small_trainings import plane, rings

from homeostat.doctor.rules.data_labels import (
    ConstantTargets,
    ContradictingLabels,
    ImbalancedClasses,
    MissingClasses,
    NoisyLabels,
    NoRelation,
    UnrelatedLabels,
)


def test_labels_shuffled_apart_from_their_inputs():
    (x, y), valid = digits()
    suspect = only(UnrelatedLabels, classified((x, shuffled(y)), valid, outputs=10))
    assert (suspect.certainty, suspect.severity) == ("certain", "error")
    assert "training" in suspect.message


def test_values_shuffled_apart_from_their_inputs():
    (x, y), valid = plane(), plane(200, 5)
    assert only(UnrelatedLabels, fitted((x, shuffled(y)), valid)).certainty == "certain"


def test_validation_labels_shuffled():
    train, (x, y) = digits()
    suspect = only(UnrelatedLabels, classified(train, (x, shuffled(y)), outputs=10))
    assert "validation" in suspect.message


def test_classes_numbered_differently():
    train, (x, y) = digits()
    assert "numbered" in only(UnrelatedLabels, classified(train, (x, 9 - y), outputs=10)).message


def test_a_training_that_learned_is_not_accused_of_its_labels():
    (x, y), valid = digits()
    seen = chart(classified((x, shuffled(y)), valid, outputs=10))
    seen.course.marks[-1] = seen.course.marks[-1]._replace(valid_score=0.5)
    assert not list(UnrelatedLabels().check(seen))


@pytest.mark.parametrize(("share", "severity"), [(0.25, "info"), (0.6, "warning")])
def test_wrong_labels(share, severity):
    (x, y), valid = digits(1200, 597)
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(y), generator=generator) < share
    noisy = torch.where(wrong, torch.randint(0, 10, (len(y),), generator=generator), y)
    assert only(NoisyLabels, classified((x, noisy), valid, outputs=10)).severity == severity


@pytest.mark.parametrize(("valid_too", "certainty"), [(False, "likely"), (True, "certain")])
def test_equal_targets(valid_too, certainty):
    x, y = rings()
    same = torch.zeros_like(y)
    suspect = only(ConstantTargets, classified((x, same), (x[:90], same[:90] if valid_too else y[:90])))
    assert suspect.certainty == ("certain" if not valid_too else "likely")
    assert certainty in ("likely", "certain")


def test_rare_classes():
    (x, y), valid = digits()
    kept = (y > 2) | (torch.arange(len(y)) % 25 == 0)
    suspect = only(ImbalancedClasses, classified((x[kept], y[kept]), valid, outputs=10))
    assert suspect.certainty == "likely"
    assert suspect.changes[0].slug == "balance-classes"

    x, y = rings(2000)
    few = (y == 0) | (torch.arange(len(y)) % 20 == 0)
    split = x[few], y[few]
    natural = found(ImbalancedClasses, classified((split[0][:700], split[1][:700]), (split[0][700:], split[1][700:])))
    assert [suspect.certainty for suspect in natural if suspect.severity != "info"] == ["possible"]


def test_missing_classes():
    (x, y), valid = digits()
    suspect = only(MissingClasses, classified((x[y != 4], y[y != 4]), valid, outputs=10))
    assert suspect.certainty == "certain"
    assert "Classes 4" in suspect.message


def test_contradicting_labels_are_a_remark():
    x, y = rings()
    suspect = only(ContradictingLabels, classified((x.repeat(2, 1), torch.cat([y, 1 - y])), rings(200, 5)))
    assert suspect.severity == "info"
    assert suspect.evidence["share"] == 1.0


def test_no_relation_at_all_is_a_remark():
    x, xv = rings()[0], rings(200, 5)[0]
    noise = torch.randint(0, 2, (600,), generator=torch.Generator().manual_seed(2))
    suspects = found(NoRelation, classified((x, noise[:400]), (xv, noise[400:])))
    assert [suspect.severity for suspect in suspects] == ["info"]
