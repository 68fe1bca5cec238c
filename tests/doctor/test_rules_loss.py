import functools
import math

import pytest
import torch
from loss_programs import (
    CLASSES,
    IMAGES,
    ONE_HOT,
    RULES,
    SHARES,
    TRUTH,
    TRUTHS,
    VALUES,
    WORDS,
    Called,
    N,
    X,
    chart_of,
    mlp,
    suspects_of,
    training_of,
)
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.finding import CAUSES
from homeostat.doctor.loss.fitting import fitting_of
from homeostat.doctor.rules.loss import OverflowingLoss, maximizes
from homeostat.doctor.rules.loss_scale import scale_free
from homeostat.doctor.show.rulebook import SECTIONS, page_of

CE, NLL, BCE, BCE_LOGITS, MSE, MAE = (
    nn.CrossEntropyLoss(),
    nn.NLLLoss(),
    nn.BCELoss(),
    nn.BCEWithLogitsLoss(),
    nn.MSELoss(),
    nn.L1Loss(),
)


def keras(o, t):
    return -(t * (o / o.sum(-1, keepdim=True)).clamp(1e-7, 1 - 1e-7).log()).sum(-1).mean()


def unnormalized(o, t):
    return -(t * o.clamp(1e-32, 1).log()).sum(1).mean()


def clamped(o, t):
    p = o.clamp(1e-7, 1 - 1e-7)
    return -(t * p.log() + (1 - t) * (1 - p).log()).mean()


def focal(o, t):
    loss = F.cross_entropy(o, t, reduction="none")
    return ((1 - (-loss).exp()).square() * loss).mean()


def pinball(o, t):
    return torch.maximum(0.9 * (t - o), 0.1 * (o - t)).mean()


def counted(o, t):
    return (o.argmax(1) != t).float().mean().requires_grad_()


CERTAIN = {
    "constant": (mlp(1, nn.Sigmoid()), keras, X, TRUTH, "LOS001"),
    "detached": (mlp(4), lambda o, t: F.cross_entropy(o.detach(), t).requires_grad_(), X, CLASSES, "LOS001"),
    "argmax": (mlp(4), counted, X, CLASSES, "LOS001"),
    "no targets": (mlp(1), lambda o, t: o.square().mean(), X, VALUES, "LOS002"),
    "own answers": (mlp(4), lambda o, t: F.cross_entropy(o, o.argmax(1)), X, CLASSES, "LOS002"),
    "half of bce": (mlp(1, nn.Sigmoid()), lambda o, t: -(t * o.log()).mean(), X, TRUTH, "LOS002"),
    "hinge on 0 and 1": (mlp(1), lambda o, t: (1 - o * t).clamp(min=0).mean(), X, TRUTH, "LOS002"),
    "mse (N, 1), (N,)": (mlp(1), MSE, X, VALUES[:, 0], "LOS003"),
    "mae (N,), (N, 1)": (Called(1, lambda z: z.squeeze(1)), MAE, X, VALUES, "LOS003"),
    "by hand": (mlp(1), lambda o, t: (o - t.squeeze(1)).square().mean(), X, VALUES, "LOS003"),
    "negative mse": (mlp(1), lambda o, t: -F.mse_loss(o, t), X, VALUES, "LOS004"),
    "log-likelihood": (mlp(4), lambda o, t: -F.cross_entropy(o, t), X, CLASSES, "LOS004"),
    "flipped targets": (mlp(1), lambda o, t: F.binary_cross_entropy_with_logits(o, 1 - t), X, TRUTH, "LOS004"),
    "softmax over the batch": (mlp(4, nn.Softmax(0)), unnormalized, X, ONE_HOT, "LOS005"),
    "log_softmax over the batch": (mlp(4, nn.LogSoftmax(0)), NLL, X, CLASSES, "LOS005"),
    "in the loss": (mlp(4), lambda o, t: F.nll_loss(o.log_softmax(0), t), X, CLASSES, "LOS005"),
    "logits as probabilities": (mlp(4), unnormalized, X, ONE_HOT, "LOS006"),
    "logits, normalized": (mlp(4), keras, X, ONE_HOT, "LOS006"),
    "logits in nll": (mlp(4), NLL, X, CLASSES, "LOS006"),
    "numbers in bce": (mlp(1), clamped, X, TRUTH, "LOS006"),
    "softmax of one": (mlp(1, nn.Softmax(1)), BCE, X, TRUTH, "LOS007"),
    "softmax of one value": (mlp(1, nn.Softmax(1)), MSE, X, VALUES, "LOS007"),
    "relu on values": (mlp(1, nn.ReLU()), MSE, X, VALUES, "LOS007"),
    "relu in forward": (Called(1, F.relu), MSE, X, VALUES, "LOS007"),
    "tanh on values": (mlp(1, nn.Tanh()), MAE, X, VALUES, "LOS007"),
    "sigmoid on values": (mlp(1, nn.Sigmoid()), nn.HuberLoss(), X, VALUES, "LOS007"),
    "softmax, several true": (mlp(3, nn.Softmax(1)), BCE, X, TRUTHS, "LOS007"),
    "softmax twice": (mlp(4, nn.Softmax(1)), CE, X, CLASSES, "LOS008"),
    "softmax twice, smoothed": (mlp(4, nn.Softmax(1)), nn.CrossEntropyLoss(label_smoothing=0.1), X, CLASSES, "LOS008"),
    "softmax twice, focal": (Called(4, lambda z: z.softmax(1)), focal, X, CLASSES, "LOS008"),
    "softmax twice in the loss": (mlp(4), lambda o, t: F.cross_entropy(o.softmax(1), t), X, CLASSES, "LOS008"),
    "sigmoid twice": (mlp(1, nn.Sigmoid()), BCE_LOGITS, X, TRUTH, "LOS008"),
    "bce on values": (mlp(1), BCE_LOGITS, X, VALUES, "LOS009"),
    "log on values": (mlp(1), lambda o, t: -(t * o.clamp(1e-10, 1).log()).sum(), X, VALUES.abs() + 5, "LOS009"),
    "tanh in bce": (mlp(1, nn.Tanh()), clamped, X, TRUTH, "LOS010"),
}

CERTAIN_CODES = {program[-1] for program in CERTAIN.values()}

LIKELY = {
    "relu logits": (mlp(4, nn.ReLU()), CE, X, CLASSES, "LOS010"),
    "relu logits in forward": (Called(4, F.relu), CE, X, CLASSES, "LOS010"),
    "tanh logits": (mlp(4, nn.Tanh()), CE, X, CLASSES, "LOS010"),
    "sigmoid logits": (mlp(4, nn.Sigmoid()), CE, X, CLASSES, "LOS010"),
    "relu in bce": (mlp(1, nn.ReLU()), clamped, X, TRUTH, "LOS010"),
    "sigmoids, right class alone": (mlp(4, nn.Sigmoid()), unnormalized, X, ONE_HOT, "LOS010"),
    "missing logarithm": (mlp(4, nn.Softmax(1)), NLL, X, CLASSES, "LOS009"),
    "mae of classes": (mlp(4, nn.Softmax(1)), MAE, X, ONE_HOT, "LOS009"),
    "mae of truth values": (mlp(1, nn.Sigmoid()), MAE, X, TRUTH, "LOS009"),
    "one class of several": (mlp(3), CE, X, TRUTHS, "LOS009"),
    "unsupervised": (mlp(4), lambda o, t: F.cross_entropy(o @ o.T, torch.arange(len(o))), X, CLASSES, "LOS002"),
    "sum": (mlp(1), nn.MSELoss(reduction="sum"), X, VALUES, "LOS011"),
}

POSSIBLE = {
    "a mean times 1000": (mlp(4), lambda o, t: 1000 * F.cross_entropy(o, t), X, CLASSES, "LOS015"),
    "a mean over 1000": (mlp(1), lambda o, t: F.mse_loss(o, t) / 1000, X, VALUES, "LOS015"),
    "mse of classes": (mlp(4, nn.Softmax(1)), MSE, X, ONE_HOT, "LOS009"),
    "mse of truth values": (mlp(1, nn.Sigmoid()), MSE, X, TRUTH, "LOS009"),
    "mse of bare truth values": (mlp(1), MSE, X, TRUTH, "LOS006"),
    "classes as truth values": (mlp(4, nn.Softmax(1)), BCE, X, ONE_HOT, "LOS009"),
    "sigmoids, normalized": (mlp(4, nn.Sigmoid()), keras, X, ONE_HOT, "LOS010"),
    "dice": (mlp(1), lambda o, t: 1 - 2 * (o.sigmoid() * t).sum() / (o.sigmoid() + t).sum(), X, TRUTH, "LOS014"),
}


@functools.cache
def found_in(*program):
    """The suspects of a program, asked once; programs are compared by identity."""
    return suspects_of(training_of(*program))


def named(programs):
    return pytest.mark.parametrize("program", programs.values(), ids=programs)


@named(CERTAIN)
def test_faults_of_form_are_certain(program):
    *parts, code = program
    assert found_in(*parts)[code].certainty == "certain"


@named(LIKELY)
def test_what_hurts_most_trainings_is_likely(program):
    *parts, code = program
    assert found_in(*parts)[code].certainty == "likely"


@named(POSSIBLE)
def test_deviations_from_custom_are_only_possible(program):
    *parts, code = program
    found = found_in(*parts)
    assert found[code].certainty == "possible"
    assert {suspect.certainty for suspect in found.values()} == {"possible"}


def segmenting():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))


def pooled():
    """As in SqueezeNet: the last convolution is followed by a rectifier, and by the mean."""
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.read, self.say = nn.Embedding(9, 6), nn.GRU(6, 6, batch_first=True), nn.Linear(6, 9)

    def forward(self, words):
        return self.say(self.read(self.embed(words))[0])


def words(o, t):
    return F.cross_entropy(o.flatten(0, 1), t.flatten(), ignore_index=0)


PENALIZED = mlp(1)
UNIT = (VALUES - VALUES.min()) / (VALUES.max() - VALUES.min())
HEALTHY = {
    "cross entropy": (mlp(4), CE, X, CLASSES),
    "weighted": (mlp(4), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 2.0, 1.0])), X, CLASSES),
    "smoothed": (mlp(4), nn.CrossEntropyLoss(label_smoothing=0.2), X, CLASSES),
    "focal": (mlp(4), focal, X, CLASSES),
    "noisy": (mlp(4), lambda o, t: F.cross_entropy(o + 0.1 * torch.randn_like(o), t), X, CLASSES),
    "log_softmax, nll": (mlp(4, nn.LogSoftmax(1)), NLL, X, CLASSES),
    "log_softmax, cross entropy": (mlp(4, nn.LogSoftmax(1)), CE, X, CLASSES),
    "softmax, keras": (mlp(4, nn.Softmax(1)), keras, X, ONE_HOT),
    "cosines": (Called(4, F.normalize), lambda o, t: F.cross_entropy(30 * o, t), X, CLASSES),
    "margins": (mlp(4), nn.MultiMarginLoss(), X, CLASSES),
    "sigmoid, bce": (mlp(1, nn.Sigmoid()), BCE, X, TRUTH),
    "bce on logits": (mlp(1), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), X, TRUTH),
    "two logits": (mlp(2), CE, X, TRUTH[:, 0].long()),
    "support vectors": (mlp(1), lambda o, t: (1 - o * t).clamp(min=0).mean(), X, 2 * TRUTH - 1),
    "tanh on signs": (mlp(1, nn.Tanh()), MSE, X, 2 * TRUTH - 1),
    "several labels": (mlp(3), nn.MultiLabelSoftMarginLoss(), X, TRUTHS),
    "mse": (mlp(1), MSE, X, VALUES),
    "mse with a penalty": (
        PENALIZED,
        lambda o, t: F.mse_loss(o, t) + 0.1 * sum(p.square().sum() for p in PENALIZED.parameters()),
        X,
        VALUES,
    ),
    "root of mse": (mlp(1), lambda o, t: F.mse_loss(o, t).sqrt(), X, VALUES),
    "one minus R2": (mlp(1), lambda o, t: (o - t).square().sum() / (t - t.mean()).square().sum(), X, VALUES),
    "huber": (mlp(1), nn.HuberLoss(delta=0.3), X, VALUES),
    "quantile": (mlp(1), pinball, X, VALUES),
    "insensitive": (mlp(1), lambda o, t: ((o - t).abs() - 0.5).clamp(min=0).mean(), X, VALUES),
    "standardized inside": (mlp(1), lambda o, t: F.mse_loss(o, (t - 40) / 3), X, VALUES + 40),
    "scaled sigmoid": (Called(1, lambda z: 60 * z.sigmoid() - 30), MSE, X, VALUES),
    "sigmoid on unit values": (mlp(1, nn.Sigmoid()), MSE, X, UNIT),
    "relu on positive values": (mlp(1, nn.ReLU()), MSE, X, VALUES.abs()),
    "counts": (mlp(1), nn.PoissonNLLLoss(), X, VALUES.abs().round()),
    "gaussian": (mlp(2), lambda o, t: F.gaussian_nll_loss(o[:, :1], t, o[:, 1:].exp()), X, VALUES),
    "autoencoder": (mlp(6), MSE, X, X),
    "pixels": (nn.Sequential(nn.Flatten(), nn.Linear(72, 72), nn.Sigmoid()), BCE, IMAGES, IMAGES.flatten(1)),
    "soft targets": (mlp(4), CE, X, SHARES),
    "distilled": (mlp(4), lambda o, t: F.kl_div((o / 4).log_softmax(1), t, reduction="batchmean"), X, SHARES),
    "segmentation": (segmenting(), CE, IMAGES, CLASSES[:, None, None].expand(N, 6, 6).clamp(max=2)),
    "pooled": (pooled(), CE, IMAGES, CLASSES),
    "words": (Reading(), words, WORDS, WORDS.roll(-1, 1)),
    "contrastive": (mlp(4), lambda o, t: F.cross_entropy(o @ o.T, torch.arange(len(o))), X, torch.zeros(N, 1)),
}


@named(HEALTHY)
def test_sound_losses_are_not_suspected(program):
    assert suspects_of(training_of(*program)) == {}


CUSTOMARY = ("cross entropy", "log_softmax, nll", "softmax, keras", "sigmoid, bce", "bce on logits", "mse", "words")


@pytest.mark.parametrize("name", CUSTOMARY)
def test_nothing_is_mended_where_output_and_loss_are_customary(name):
    fitting = fitting_of(chart_of(training_of(*HEALTHY[name])))
    assert fitting.customary
    assert fitting.mended() == ()


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (mlp(1), nn.PoissonNLLLoss()),
        (mlp(1, nn.Softplus()), nn.PoissonNLLLoss(log_input=False)),
        (mlp(1), lambda o, t: F.mse_loss(o, t.log1p())),
    ],
    ids=["log-rates", "rates", "logarithms"],
)
def test_a_loss_of_counts_is_not_mended_by_a_squared_error(model, loss):
    for task in (None, "regression"):
        assert fitting_of(chart_of(training_of(model, loss, X, VALUES.abs().round(), task=task))).mended() == ()


@named({**CERTAIN, **LIKELY, **POSSIBLE})
def test_after_the_first_remedy_there_is_a_gradient_and_nothing_certain_left(program):
    *parts, code = program
    training = training_of(*parts).copy()
    found_in(*parts)[code].changes[0].apply(training)
    training.loss(training.predict(parts[2]), parts[3]).backward()
    assert any(p.grad is not None and p.grad.any() for p in training.model.parameters())
    if code in CERTAIN_CODES:
        assert [found for found, suspect in suspects_of(training).items() if suspect.certainty == "certain"] == []


def test_a_negative_loss_for_an_optimizer_that_maximizes_is_right():
    found = suspects_of(training_of(mlp(1), lambda o, t: -F.mse_loss(o, t), X, VALUES, maximize=True))
    assert found == {}


def test_a_sum_is_no_matter_for_batches_of_one_and_hardly_one_for_adam():
    loss = nn.MSELoss(reduction="sum")
    assert suspects_of(training_of(mlp(1), loss, X, VALUES, batch_size=1)) == {}
    training = training_of(mlp(1), loss, X, VALUES)
    training.optimizer = torch.optim.Adam(training.model.parameters())
    assert suspects_of(training)["LOS011"].certainty == "possible"


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop", "Adagrad", "AdamW", "Adadelta", "Rprop"])
def test_which_optimizers_feel_the_scale_of_the_loss(kind):
    optimizer = getattr(torch.optim, kind)([nn.Parameter(torch.ones(2))], lr=0.01)
    assert scale_free(optimizer) is (kind != "SGD")


def test_going_up_by_maximize_or_by_a_negative_rate_but_not_by_both():
    weight = [nn.Parameter(torch.ones(2))]
    assert maximizes(torch.optim.SGD(weight, 0.1, maximize=True))
    optimizer = torch.optim.SGD(weight, 0.1)
    assert not maximizes(optimizer)
    optimizer.param_groups[0]["lr"] = -0.1
    assert maximizes(optimizer)
    optimizer.param_groups[0]["maximize"] = True
    assert not maximizes(optimizer)


def test_an_overflow_counts_only_if_it_happened():
    def bare(o, t):
        return -(t * o.log() + (1 - t) * (1 - o).log()).mean()

    chart = chart_of(training_of(mlp(1, nn.Sigmoid()), bare, X, TRUTH))
    assert list(OverflowingLoss().check(chart)) == []
    chart.course.diverged = 3
    assert [suspect.certainty for suspect in OverflowingLoss().check(chart)] == ["likely"]
    chart = chart_of(training_of(Called(1, lambda z: F.relu(z - 100)), bare, X, TRUTH))
    assert not math.isfinite(chart.loss.value)
    assert [suspect.certainty for suspect in OverflowingLoss().check(chart)] == ["certain"]


def test_a_model_that_does_better_than_its_range_allows_is_left_alone():
    from homeostat.doctor.course import Mark
    from homeostat.doctor.rules.loss_outputs import UnreachableTargets

    chart = chart_of(training_of(mlp(1, nn.Tanh()), MSE, X, VALUES))
    assert list(UnreachableTargets().check(chart))
    chart.course.marks.append(Mark(1, 1.0, 0.99, 0.99, 0.0, 0.0))
    assert list(UnreachableTargets().check(chart)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_has_its_page_and_words(rule):
    assert [heading for heading, _ in page_of(rule).sections] == list(SECTIONS)
    assert set(rule.causes) <= CAUSES
    assert rule.code not in rule.requires


def test_codes_and_slugs_are_unique():
    assert len({rule.code for rule in RULES}) == len({rule.slug for rule in RULES}) == len(RULES) == 15
