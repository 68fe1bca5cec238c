"""Suspects and convictions: what stands, what an intervention decides, and what a healthy training is spared."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.arms import Arms
from homeostat.doctor.budget import Deadline
from homeostat.doctor.changes.change import Change
from homeostat.doctor.chart import Chart
from homeostat.doctor.course import Course, Mark, mark_steps
from homeostat.doctor.data.baselines import Baselines, measure_baselines
from homeostat.doctor.health import illness
from homeostat.doctor.judge import Charge, judge
from homeostat.doctor.rule import Rule, Suspect
from homeostat.doctor.score import Score, score_of
from homeostat.doctor.training import Training

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=GENERATOR)
Y = (X[:, :1] * X[:, 1:2] > 0).long()[:, 0] + (X[:, 2] > 0.5).long()


@dataclass(frozen=True)
class Set(Change):
    """An attribute of the training's optimizer or its loss set to what a test wants."""

    name: str
    value: float

    slug: ClassVar[str] = "set"
    safety: ClassVar[str] = "safe"
    diff = ""

    @property
    def what(self):
        return f"{self.name} = {self.value}"

    @property
    def family(self):
        return self.name

    def apply(self, training):
        if self.name == "scale":
            before = training.loss_fn
            training.loss_fn = lambda output, target: before(output, target) * self.value
        else:
            training.optimizer.param_groups[0][self.name] = self.value


GOOD_RATE, SAME_RATE, BAD_RATE = Set("lr", 0.5), Set("lr", 1e-5), Set("lr", 1e-9)


def rule(code, requires=()):
    return type(code, (Rule,), {"code": code, "slug": "planted", "causes": ("lr_too_low",), "requires": requires,
                                "check": lambda self, chart: iter(())})()  # fmt: skip


def chart_of(lr, epochs=20, trial=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    data = (X[:200], Y[:200]), (X[200:], Y[200:])
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    training = Training(model, F.cross_entropy, optimizer, *data, batch_size=20, epochs=epochs)
    examples = training.examples("train"), training.examples("valid")
    score = score_of(None, torch.zeros(20, 3), Y)
    arms = Arms(training, examples, score, 0, mark_steps(trial or training.total_steps))
    course = arms.run(arms.arm(), trial or training.total_steps, Deadline())
    baselines = measure_baselines(*examples, score, Deadline())
    chart = Chart(training, *examples, score, None, None, None, None, None, course, baselines)
    chart.ill = illness(course, baselines, score, examples)
    return chart, arms


def findings_of(lr, *suspects, **settings):
    chart, arms = chart_of(lr, **settings)
    charges = [Charge(kind, suspect) for kind, suspect in suspects]
    return {finding.code: finding for finding in judge(chart, charges, arms, Deadline(), lambda stage, share: None)}


def suspect(certainty, *changes, severity="warning"):
    return Suspect("It is planted.", "Take it out.", certainty, severity, changes=changes)


def test_the_ill_training_is_ill_and_the_healthy_one_is_not():
    assert "It ends below nearest neighbors" in chart_of(1e-5)[0].ill
    assert chart_of(0.1)[0].ill == ""


@pytest.mark.parametrize(("score", "best", "stuck"), [(0.94, 0.95, False), (0.56, 0.56, False), (0.51, 0.56, True)])
def test_a_loss_need_not_fall_where_little_is_left_to_learn(score, best, stuck):
    course = Course(200, 20, "accuracy", [0.1] * 200)
    course.marks = [Mark(step, step / 10, score, score, 0.1, 0.1) for step in (0, 200)]
    examples = chart_of(0.1)[1].examples
    found = illness(course, Baselines(0.5, best, kind="binary", rows=400), Score("binary", 2), examples)
    assert found.startswith("The loss has not fallen") == stuck
    assert bool(found) == stuck


@pytest.mark.parametrize("certainty", ["likely", "possible"])
def test_what_recovers_an_ill_training_is_convicted_with_proof(certainty):
    found = findings_of(1e-5, (rule("OPT901"), suspect(certainty, GOOD_RATE)))["OPT901"]
    assert found.severity == "warning"
    assert found.proof.after > found.proof.before + 0.05
    assert found.proof.steps == 200


def test_who_is_cleared_while_another_is_convicted_becomes_a_remark():
    charges = (rule("OPT901"), suspect("likely", GOOD_RATE)), (rule("OPT902"), suspect("likely", BAD_RATE))
    found = findings_of(1e-5, *charges)
    assert (found["OPT901"].severity, found["OPT902"].severity) == ("warning", "info")


def test_strong_evidence_stands_in_an_ill_training_where_nobody_is_convicted():
    found = findings_of(1e-5, (rule("OPT901"), suspect("likely", BAD_RATE)), (rule("OPT902"), suspect("likely")))
    assert {finding.severity for finding in found.values()} == {"warning"}


def test_weak_evidence_is_dropped_where_the_change_does_not_help():
    assert findings_of(1e-5, (rule("OPT901"), suspect("possible", BAD_RATE))) == {}


def test_a_healthy_training_is_spared():
    charges = (rule("OPT901"), suspect("likely", SAME_RATE)), (rule("OPT902"), suspect("possible", GOOD_RATE))
    found = findings_of(0.1, *charges)
    assert {code: finding.severity for code, finding in found.items()} == {"OPT901": "info"}


def test_what_is_certain_stands_also_in_a_healthy_training():
    found = findings_of(0.1, (rule("OPT901"), suspect("certain", severity="error")))
    assert found["OPT901"].severity == "error"


def test_a_consequence_is_a_remark_beside_its_root():
    charges = (rule("SIG901", ("INI901",)), suspect("certain")), (rule("INI901"), suspect("certain"))
    found = findings_of(0.1, *charges)
    assert (found["SIG901"].severity, found["SIG901"].consequence_of) == ("info", "INI901")


def test_two_faults_that_hide_each_other_are_found_together():
    """Each of the two makes the steps 60 times as long, which is not enough alone."""
    small = Set("lr", 6e-5), Set("scale", 60.0)
    charges = [(rule("OPT901"), suspect("likely", small[0])), (rule("LOS901"), suspect("likely", small[1]))]
    found = findings_of(1e-6, *charges)
    assert {code: finding.severity for code, finding in found.items()} == {"OPT901": "warning", "LOS901": "warning"}
    assert found["OPT901"].proof is not None


def test_a_training_that_learns_and_has_not_ended_proves_nothing():
    found = findings_of(0.1, (rule("OPT901"), suspect("likely", GOOD_RATE)), trial=20, epochs=400)
    assert found["OPT901"].severity == "info"


def test_no_time_leaves_the_evidence_to_speak():
    chart, arms = chart_of(1e-5)
    charges = [Charge(rule("OPT901"), suspect("likely", GOOD_RATE))]
    found = judge(chart, charges, arms, Deadline(0), lambda stage, share: None)
    assert [(finding.severity, finding.proof) for finding in found] == [("warning", None)]
