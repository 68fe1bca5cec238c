import copy

import pytest
import torch
from loss_programs import CLASSES, ONE_HOT, TRUTH, TRUTHS, VALUES, G, N, supervised_contrastive
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.examples import Examples
from homeostat.doctor.loss.metamorphic import examine_loss
from homeostat.doctor.score import score_of
from homeostat.doctor.training import Training

LOGITS = torch.randn(N, 4, generator=G)
SINGLE = torch.randn(N, 1, generator=G)


class Given(nn.Module):
    """Stands for a model: only its outputs count here."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


def facts_of(loss, outputs, targets, batch=32):
    model = Given()
    loss = loss(model) if getattr(loss, "__name__", "") == "of_model" else loss
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = (outputs, targets)
    training = Training(model, loss, optimizer, data, data, batch_size=batch, epochs=1)
    score = score_of(None, outputs, targets, loss)
    return examine_loss(training, Examples(outputs[:batch], targets[:batch], None), outputs[:batch], score)


def mse_all_pairs(o, t):
    return (o - t.squeeze(1)).square().mean()


def dice(o, t):
    p = o.sigmoid()
    return 1 - 2 * (p * t).sum() / (p.sum() + t.sum())


@pytest.mark.parametrize(
    ("loss", "growth"),
    [
        (nn.MSELoss(), 1),
        (nn.MSELoss(reduction="sum"), 2),
        (lambda o, t: F.mse_loss(o, t).sqrt(), 1),
        (lambda o, t: torch.linalg.vector_norm(o - t), 2**0.5),
        (mse_all_pairs, 1),
    ],
)
def test_a_doubled_batch_tells_a_sum_from_a_mean(loss, growth):
    assert facts_of(loss, SINGLE, VALUES).growth == pytest.approx(growth, rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "paired", "operation"),
    [
        (mse_all_pairs, False, "sub of (32, 1) and (32,) gave (32, 32)"),
        (lambda o, t: F.mse_loss(o, t.squeeze(1)), False, "mse_loss of (32, 1) and (32,) gave (32, 32)"),
        (nn.MSELoss(), True, ""),
        (nn.L1Loss(), True, ""),
        (lambda o, t: (o - t).abs().max(), True, ""),
    ],
)
@pytest.mark.filterwarnings("error")
def test_exchanged_targets_and_the_operation_that_spread_them(loss, paired, operation):
    facts = facts_of(loss, SINGLE, VALUES)
    assert (facts.paired, facts.broadcast) == (paired, operation)


def test_what_a_broken_loss_was_meant_to_be_is_seen_on_equal_targets():
    facts = facts_of(mse_all_pairs, SINGLE, VALUES)
    assert facts.match is None
    assert facts.meant.name == "squared error"


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "coupled"),
    [
        (nn.CrossEntropyLoss(), LOGITS, CLASSES, False),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0, 1.0, 3.0])), LOGITS, CLASSES, False),
        (lambda o, t: F.mse_loss(o, t).sqrt(), SINGLE, VALUES, False),
        (lambda o, t: F.nll_loss(o.log_softmax(0), t), LOGITS, CLASSES, True),
        (dice, SINGLE, TRUTH, True),
    ],
)
def test_whether_examples_depend_on_each_other(loss, outputs, targets, coupled):
    assert facts_of(loss, outputs, targets).coupled is coupled


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.CrossEntropyLoss(), LOGITS, CLASSES),
        (nn.NLLLoss(), LOGITS, CLASSES),
        (nn.BCEWithLogitsLoss(), SINGLE, TRUTH),
        (nn.BCELoss(), SINGLE.sigmoid(), TRUTH),
        (nn.MultiLabelSoftMarginLoss(), torch.randn(N, 3, generator=G), TRUTHS),
        (nn.L1Loss(), SINGLE, VALUES),
        (lambda o, t: torch.maximum(0.9 * (t - o), 0.1 * (o - t)).mean(), SINGLE, VALUES),
        (dice, SINGLE, TRUTH),
    ],
)
def test_toward_the_targets_the_loss_falls_and_its_negative_rises(loss, outputs, targets):
    assert facts_of(loss, outputs, targets).agreement == pytest.approx(1)
    assert facts_of(lambda o, t: -loss(o, t), outputs, targets).agreement == pytest.approx(-1)


def test_losses_without_targets_or_outputs():
    assert facts_of(lambda o, t: o.square().mean(), SINGLE, VALUES).uses_targets is False
    assert facts_of(lambda o, t: F.cross_entropy(o, o.argmax(1)), LOGITS, CLASSES).uses_targets is False
    assert facts_of(lambda o, t: torch.ones(()), SINGLE, VALUES).uses_outputs is False
    counted = facts_of(lambda o, t: (o.argmax(1) != t).float().mean().requires_grad_(), LOGITS, CLASSES)
    assert counted.uses_outputs is False
    assert counted.detached
    normalized = facts_of(lambda o, t: -(t * (o / o.sum(1, keepdim=True)).log()).mean(), SINGLE.sigmoid(), TRUTH)
    assert normalized.uses_outputs is False
    assert not normalized.detached


def test_a_loss_of_the_model_itself_is_not_said_to_ignore_outputs():
    def of_model(model):
        return lambda o, t: model.weight.square().sum()

    facts = facts_of(of_model, SINGLE, VALUES)
    assert facts.penalizes
    assert facts.uses_outputs is None


def test_truth_values_that_have_no_gradient():
    assert facts_of(lambda o, t: -(t * o.log()).mean(), SINGLE.sigmoid(), TRUTH).ignored == 0
    assert facts_of(lambda o, t: (1 - o * t).clamp(min=0).mean(), SINGLE, TRUTH).ignored == 0
    assert facts_of(nn.BCELoss(), SINGLE.sigmoid(), TRUTH).ignored is None


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "expects", "shifts"),
    [
        (nn.CrossEntropyLoss(), LOGITS, CLASSES, "logits", (1,)),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LOGITS, CLASSES, "logits", (1,)),
        (lambda o, t: F.nll_loss(o.log_softmax(0), t), LOGITS, CLASSES, None, (0,)),
        (lambda o, t: -(t * o.clamp(1e-7, 1).log()).sum(1).mean(), LOGITS.softmax(1), ONE_HOT, "probabilities", ()),
        (lambda o, t: ((1 - o).square() * -t * o.log()).sum(1).mean(), LOGITS.softmax(1), ONE_HOT, "probabilities", ()),
        (nn.NLLLoss(), LOGITS.log_softmax(1), CLASSES, "log-probabilities", ()),
        (nn.MSELoss(), LOGITS, ONE_HOT, "values", ()),
    ],
)
def test_what_outputs_a_loss_takes(loss, outputs, targets, expects, shifts):
    facts = facts_of(loss, outputs, targets)
    assert (facts.expects, facts.shifts) == (expects, shifts)


class Centers(nn.Module):
    """Class numbers are known to the loss alone, which has a direction for each."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, o, t):
        return F.cross_entropy(9 * F.normalize(o, dim=1) @ F.normalize(self.weight.to(o.dtype), dim=1).T, t)


SHARE = SINGLE.sigmoid()


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "comparable"),
    [
        (nn.MSELoss(), SINGLE, VALUES, True),
        (nn.L1Loss(), SINGLE, 1e6 * VALUES, True),
        (lambda o, t: torch.maximum(0.9 * (t - o), 0.1 * (o - t)).mean(), SINGLE, VALUES, True),
        (lambda o, t: F.mse_loss(o, t).sqrt(), SINGLE, VALUES, True),
        (lambda o, t: F.mse_loss(o, t.log1p()), SINGLE, VALUES.abs(), False),
        (lambda o, t: F.mse_loss(o, (t - 40) / 3), SINGLE, VALUES + 40, False),
        (nn.PoissonNLLLoss(), SINGLE, VALUES.abs().round(), False),
        (nn.PoissonNLLLoss(), SINGLE, CLASSES.clamp(max=2).float()[:, None], False),
        (nn.BCEWithLogitsLoss(), SINGLE, SHARE, False),
        (lambda o, t: -F.mse_loss(o, t), SINGLE, VALUES, None),
        (lambda o, t: F.mse_loss(o, -t), SINGLE, VALUES, None),
        (lambda o, t: F.mse_loss(o, t.roll(1, 0)), SINGLE, VALUES, None),
        (lambda o, t: F.mse_loss(o, t.mean().expand_as(o)), SINGLE, VALUES, None),
        (mse_all_pairs, SINGLE, VALUES, None),
        (nn.BCEWithLogitsLoss(), SINGLE, VALUES, None),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LOGITS, CLASSES, True),
        (lambda o, t: -F.cross_entropy(o, t), LOGITS, CLASSES, True),
        (lambda o, t: F.nll_loss(o.log_softmax(0), t), LOGITS, CLASSES, True),
        (supervised_contrastive, LOGITS, CLASSES, False),
        (Centers(), LOGITS, CLASSES, False),
    ],
)
def test_whether_outputs_can_be_held_against_targets(loss, outputs, targets, comparable):
    assert facts_of(loss, outputs, targets).comparable is comparable


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.MSELoss(), lambda o, t: (1 - o * (2 * t - 1)).clamp(min=0).mean()])
def test_balanced_truth_values_do_not_look_like_a_softmax_over_the_batch(loss):
    """The slopes of both sides cancel for every small shift."""
    targets = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    assert facts_of(loss, SINGLE[:4].sigmoid(), targets, batch=4).shifts == ()


def test_what_perfect_probabilities_leave_of_a_loss_on_logits():
    """Of 4 classes: (log(e + 3) - 1) / log 4; a loss on probabilities is done."""
    assert facts_of(nn.CrossEntropyLoss(), LOGITS, CLASSES).floor == pytest.approx(0.5365, abs=0.001)
    assert facts_of(nn.BCELoss(), SINGLE.sigmoid(), TRUTH).floor == pytest.approx(0, abs=1e-6)
    assert facts_of(nn.BCEWithLogitsLoss(), SINGLE, TRUTH).floor > 0.5


def test_where_a_loss_is_flat_and_where_it_overflows():
    def clamped(o, t):
        return -(t * o.clamp(1e-7, 1).log()).sum(1).mean()

    def bare(o, t):
        return -(t * o.log() + (1 - t) * (1 - o).log()).mean()

    assert facts_of(clamped, LOGITS, ONE_HOT).flat > 0.3
    assert facts_of(clamped, LOGITS.softmax(1), ONE_HOT).flat == 0
    assert facts_of(bare, SINGLE.sigmoid(), TRUTH).overflows == ("a probability of exactly 0 or 1",)
    assert facts_of(nn.BCELoss(), SINGLE.sigmoid(), TRUTH).overflows == ()
    assert facts_of(lambda o, t: -(t * o.clamp(0.01, 1).log()).mean(), SINGLE, VALUES).blind > 0.9


def test_few_or_equal_targets_in_the_batch_are_helped_out_by_the_training_data():
    rows = TRUTH[:, 0].argsort()
    outputs, targets = SINGLE[rows], TRUTH[rows]
    assert targets[:16].unique().numel() == 1
    facts = facts_of(lambda o, t: o.square().mean(), outputs, targets, batch=2)
    assert facts.uses_targets is False
    assert facts_of(nn.BCEWithLogitsLoss(), outputs, targets, batch=2).agreement == 1


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: o - t,
        lambda o, t: 1.0,
        lambda o, t: o.numpy().mean(),
        lambda o, t: o.sum() * float("nan"),
    ],
)
def test_a_loss_that_cannot_be_asked_is_no_error(loss):
    facts = facts_of(loss, SINGLE, VALUES)
    assert facts.uses_outputs is None
    assert facts.agreement is None


def test_nothing_of_the_user_s_changes():
    """Neither global random state, nor outputs and targets that a loss writes into, nor a loss' own buffers."""

    class Smoothed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, o, t):
            loss = (o.add_(torch.rand(())) - t.mul_(2)).square().mean()
            self.mean.mul_(0.9).add_(loss.detach())
            return loss

    loss, outputs, targets = Smoothed(), SINGLE.clone(), VALUES.clone()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    facts = facts_of(loss, outputs, targets)
    assert facts.growth == pytest.approx(1)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(outputs, SINGLE)
    assert torch.equal(targets, VALUES)
    assert loss.mean == 0


def test_positions_are_rows_and_many_classes_are_bounded():
    words, vocabulary = torch.randint(0, 1000, (4, 100), generator=G), 1000
    outputs = torch.randn(4, 100, vocabulary, generator=G)
    facts = facts_of(lambda o, t: F.cross_entropy(o.reshape(-1, vocabulary), t.reshape(-1)), outputs, words, batch=4)
    assert facts.match.known.name == "cross entropy on logits"
    assert facts.shifts == (2,)


def test_facts_are_values():
    facts = facts_of(nn.MSELoss(), SINGLE, VALUES)
    assert copy.deepcopy(facts) == facts
