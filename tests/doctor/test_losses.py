import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat import seeds
from homeostat.doctor.loss.black_box import choose_box
from homeostat.doctor.loss.identify import identify, match
from homeostat.doctor.loss.known import KNOWN, FittedLoss, known
from homeostat.doctor.loss.layout import layout_of
from homeostat.errors import InvalidValue

N, C = 12, 5
GENERATOR = seeds.torch_generator(0, "test", "losses")
CLASSES = torch.arange(N) % C
ONE_HOT = F.one_hot(CLASSES, C).float()
TRUTH = (torch.arange(N) % 2).float()[:, None]
VALUES = 20 * torch.randn(N, 1, generator=GENERATOR) + 50
WIDE, NARROW = torch.zeros(N, C), torch.zeros(N, 1)
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0])


def root(o, t):
    return F.mse_loss(o, t).sqrt()


def keras(o, t):
    return -(t * (o / o.sum(-1, keepdim=True)).clamp(1e-7, 1 - 1e-7).log()).sum(-1).mean()


def by_hand(o, t):
    p = o.exp() / o.exp().sum(1, keepdim=True)
    return -(t * (p + 1e-9).log()).sum(1).mean()


def sequences(o, t):
    return F.cross_entropy(o.flatten(0, 1), t.flatten())


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "name"),
    [
        (nn.CrossEntropyLoss(), WIDE, CLASSES, "cross entropy on logits"),
        (nn.CrossEntropyLoss(weight=WEIGHTS), WIDE, CLASSES, "cross entropy on logits"),
        (nn.CrossEntropyLoss(reduction="sum"), WIDE, ONE_HOT, "cross entropy on logits"),
        (nn.CrossEntropyLoss(ignore_index=0), torch.zeros(4, C, 3), torch.arange(12).view(4, 3) % C, None),
        (sequences, torch.zeros(4, 3, C), torch.arange(12).view(4, 3) % C, "cross entropy on logits"),
        (by_hand, WIDE, ONE_HOT, "cross entropy on logits"),
        (keras, WIDE, ONE_HOT, "cross entropy on normalized probabilities"),
        (lambda o, t: F.nll_loss(o.log(), t), WIDE, CLASSES, "cross entropy on probabilities"),
        (nn.NLLLoss(), WIDE, CLASSES, "negative log-likelihood"),
        (lambda o, t: F.kl_div(o, t, reduction="batchmean"), WIDE, ONE_HOT, "negative log-likelihood"),
        (lambda o, t: F.cross_entropy(o.softmax(1), t), WIDE, CLASSES, "cross entropy of a softmax of the softmax"),
        (lambda o, t: F.mse_loss(o.softmax(1), t), WIDE, ONE_HOT, "squared error of the softmax"),
        (nn.BCELoss(), NARROW, TRUTH, "binary cross entropy on probabilities"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(4.0)), NARROW, TRUTH, "binary cross entropy on logits"),
        (lambda o, t: F.soft_margin_loss(o, 2 * t - 1), NARROW, TRUTH, "binary cross entropy on logits"),
        (lambda o, t: (1 - o * t).clamp(min=0).mean(), NARROW, 2 * TRUTH - 1, "hinge loss"),
        (nn.MSELoss(), NARROW, VALUES, "squared error"),
        (lambda o, t: F.mse_loss(o.squeeze(1), t), NARROW, VALUES[:, 0], "squared error"),
        (nn.MSELoss(), WIDE, ONE_HOT, "squared error"),
        (root, NARROW, VALUES, "squared error"),
        (nn.L1Loss(reduction="sum"), NARROW, VALUES, "absolute error"),
        (nn.SmoothL1Loss(), NARROW, VALUES, "Huber loss"),
    ],
)
def test_a_loss_is_known_however_it_is_written(loss, outputs, targets, name):
    found = identify(loss, outputs, targets)
    if name is None:
        assert found is not None
    else:
        assert found is known(name)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1), WIDE, CLASSES),
        (lambda o, t: F.nll_loss(o.log_softmax(0), t), WIDE, CLASSES),
        (lambda o, t: F.huber_loss(o, t, delta=7.0), NARROW, VALUES),
        (lambda o, t: (o - t.squeeze(1)).square().mean(), NARROW, VALUES),
        (lambda o, t: -(t * o.clamp(1e-7, 1).log()).mean(), NARROW, TRUTH),
        (lambda o, t: 1 - 2 * (o * t).sum() / (o + t).sum(), NARROW, TRUTH),
        (lambda o, t: o.square().mean(), NARROW, VALUES),
        (lambda o, t: torch.zeros(()), NARROW, VALUES),
        (lambda o, t: 1 / 0, NARROW, VALUES),
        (lambda o, t: o - t, NARROW, VALUES),
    ],
)
def test_what_is_none_of_them_is_not_named(loss, outputs, targets):
    assert identify(loss, outputs, targets) is None


def matched(loss, outputs, targets):
    return match(choose_box(loss, outputs, targets), outputs, targets, layout_of(outputs, targets))


def test_factor_sign_weights_and_penalty_do_not_hide_a_loss():
    weight = nn.Parameter(torch.ones(3))
    assert matched(nn.MSELoss(), NARROW, VALUES).factor == pytest.approx(1)
    assert matched(nn.MSELoss(reduction="sum"), NARROW, VALUES).factor == pytest.approx(N)
    assert matched(lambda o, t: -3 * F.cross_entropy(o, t), WIDE, CLASSES).factor == pytest.approx(-3)
    penalized = matched(lambda o, t: F.mse_loss(o, t) + weight.square().sum(), NARROW, VALUES)
    assert penalized.factor == pytest.approx(1)
    assert matched(nn.CrossEntropyLoss(weight=WEIGHTS), WIDE, CLASSES).weighted
    assert not matched(nn.CrossEntropyLoss(), WIDE, CLASSES).weighted
    assert matched(root, NARROW, VALUES).curved


def test_finding_out_draws_nothing_from_global_state():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    identify(lambda o, t: F.mse_loss(o + torch.randn(()), t), NARROW, VALUES)
    assert torch.equal(torch.rand(2), expected)


LAYOUTS = {
    "index": (torch.rand(6, 4, generator=GENERATOR), torch.arange(6) % 4),
    "one-hot": (torch.rand(6, 4, generator=GENERATOR), F.one_hot(torch.arange(6) % 4, 4).float()),
    "positions": (torch.rand(3, 7, 4, generator=GENERATOR), torch.arange(21).view(3, 7) % 4),
    "same": (torch.rand(6, 1, generator=GENERATOR), (torch.arange(6) % 2).float()[:, None]),
    "reshaped": (torch.rand(6, 1, generator=GENERATOR), (torch.arange(6) % 2).float()),
}


TWO_DIMENSIONS = ("margin between classes", "squared error of the softmax")  # torch has them for no more
PAIRS = [
    pytest.param(loss, *LAYOUTS[name], id=f"{loss.name}, {name}")
    for loss in KNOWN
    for name in LAYOUTS
    if loss.applies(layout_of(*LAYOUTS[name]))
    and (name != "positions" or (loss.takes == "classes" and loss.name not in TWO_DIMENSIONS))
]


@pytest.mark.parametrize(("loss", "output", "target"), PAIRS)
def test_the_line_of_code_computes_the_loss(loss, output, target):
    fitted = FittedLoss(loss, layout_of(output, target))
    written = eval(repr(fitted), {"torch": torch, "output": output, "target": target})
    assert fitted(output, target).item() == pytest.approx(written.item(), abs=1e-6)


def test_a_fitted_loss_is_copied_and_pickled():
    output, target = LAYOUTS["index"]
    fitted = FittedLoss(known("cross entropy on logits"), layout_of(output, target))
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert twin == fitted
        assert torch.equal(twin(output, target), fitted(output, target))


def test_targets_to_be_ignored_count_for_nothing():
    output = torch.rand(4, 3, generator=GENERATOR)
    target = torch.tensor([0, -100, 2, -100])
    fitted = FittedLoss(known("cross entropy on logits"), layout_of(output, target))
    assert fitted(output, target).item() == pytest.approx(F.cross_entropy(output, target).item())


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InvalidValue, match="Did you mean 'squared error'"):
        known("squared eror")


@pytest.mark.parametrize(
    ("outputs", "targets", "form", "axis"),
    [
        ((4, 3), torch.tensor([0, 1, 2, 0]), "index", 1),
        ((4, 3), torch.tensor([[0], [1], [2], [0]]), "index", 1),
        ((4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long), "index", 1),
        ((4, 8, 3), torch.zeros(4, 8, dtype=torch.long), "index", 2),
        ((4, 3), F.one_hot(torch.tensor([0, 1, 2, 0])), "one-hot", 1),
        ((4, 3), torch.full((4, 3), 1 / 3), "one-hot", 1),
        ((4, 3), torch.ones(4, 3), "same", 1),
        ((4, 1), torch.tensor([0, 1, 1, 0]), "same", 1),
        ((4, 3), torch.tensor([0, 7, 2, 0]), "unlike", 1),
        ((4, 3), torch.zeros(4), "unlike", 1),
        ((4,), torch.zeros(4), "same", 1),
    ],
)
def test_layouts(outputs, targets, form, axis):
    found = layout_of(torch.zeros(outputs), targets)
    assert (found.form, found.axis) == (form, axis)
