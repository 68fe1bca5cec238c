import copy
from collections import namedtuple

import pytest
import torch
from loss_programs import CLASSES, ONE_HOT, TRUTH, VALUES, Called, N, X, mlp, training_of
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.changes.change import CannotApply
from homeostat.doctor.changes.data import StandardizeTargets
from homeostat.doctor.changes.loss import MeanLoss, NegateLoss, ReplaceLoss, ShapeTargets
from homeostat.doctor.changes.output import ChangeOutput
from homeostat.doctor.loss.layout import layout_of
from homeostat.errors import InvalidValue

WIDE = layout_of(torch.zeros(N, 4), CLASSES)
NARROW = layout_of(torch.zeros(N, 1), VALUES)
CE = nn.CrossEntropyLoss()


class Shared(nn.Module):
    """One activation module at two places."""

    def __init__(self, activation):
        super().__init__()
        self.hidden, self.last, self.activation = nn.Linear(6, 8), nn.Linear(8, 4), activation

    def forward(self, x):
        return self.activation(self.last(self.activation(self.hidden(x))))


class Returning(nn.Module):
    """Returns its probabilities among other things."""

    def __init__(self, form):
        super().__init__()
        self.last, self.form = nn.Linear(6, 4), form

    def forward(self, x):
        return self.form(self.last(x).softmax(1))


def by_hand(z):
    return z.exp() / z.exp().sum(1, keepdim=True)


def outputs_of(training):
    training.model.eval()
    with torch.no_grad():
        return training.predict(X)


def gradients_of(training):
    training.optimizer.zero_grad()
    training.loss(training.predict(X), training.train[1]).backward()
    return {id(p) for p in training.model.parameters() if p.grad is not None and p.grad.any()}


def held(training):
    return {id(p) for group in training.optimizer.param_groups for p in group["params"]}


ENDING = {
    "module": lambda: mlp(4, nn.Softmax(1)),
    "module and a shape behind it": lambda: mlp(4, nn.Softmax(1), nn.Flatten()),
    "function": lambda: Called(4, lambda z: F.softmax(z, dim=1)),
    "method": lambda: Called(4, lambda z: z.softmax(-1)),
    "by hand": lambda: Called(4, by_hand),
    "module as attribute": lambda: Called(4, nn.Softmax(1)),
}


@pytest.mark.parametrize("ending", ENDING.values(), ids=ENDING)
def test_a_softmax_is_taken_off_wherever_it_is(ending):
    """What is left are logits: their softmax is what the model gave."""
    training = training_of(ending(), CE, X, CLASSES)
    before = outputs_of(training)
    weights = [id(p) for p in training.model.parameters()]
    ChangeOutput("", WIDE).apply(training)
    after = outputs_of(training)
    torch.testing.assert_close(after.softmax(1), before)
    assert not torch.allclose(after, before)
    assert [id(p) for p in training.model.parameters()] == weights
    assert gradients_of(training) == held(training) == set(weights)


@pytest.mark.parametrize("activation", [F.relu, torch.sigmoid, torch.tanh, F.softplus, F.elu], ids=lambda f: f.__name__)
@pytest.mark.parametrize("shared", [False, True])
def test_other_activations_too_also_if_they_are_used_elsewhere(activation, shared):
    model = Shared(activation) if shared else Called(4, activation)
    training = training_of(model, CE, X, CLASSES)
    before = outputs_of(training)
    ChangeOutput("", WIDE).apply(training)
    torch.testing.assert_close(activation(outputs_of(training)), before)


@pytest.mark.parametrize("activation", ["softmax", "log_softmax", "sigmoid", "tanh", "softplus"])
@pytest.mark.parametrize("model", [mlp(4), Called(4, lambda z: z), mlp(4, nn.ReLU())], ids=["plain", "class", "relu"])
def test_an_activation_is_put_on_or_in_the_place_of_another(model, activation):
    bare = training_of(model, CE, X, CLASSES).copy()
    ChangeOutput("", WIDE).apply(bare)
    training = training_of(model, CE, X, CLASSES).copy()
    ChangeOutput(activation, WIDE).apply(training)
    function = getattr(F, activation)
    arguments = {"dim": 1} if "softmax" in activation else {}
    torch.testing.assert_close(outputs_of(training), function(outputs_of(bare), **arguments))


@pytest.mark.parametrize("activation", ["", "softmax", "sigmoid"])
@pytest.mark.parametrize("ending", [*ENDING.values(), lambda: Called(4, F.relu)], ids=[*ENDING, "relu"])
def test_twice_is_once_and_a_copy_is_the_same(ending, activation):
    training = training_of(ending(), CE, X, CLASSES)
    change = ChangeOutput(activation, WIDE, "cross entropy on logits")
    change.apply(training)
    once, loss = outputs_of(training), training.loss_fn
    change.apply(training)
    torch.testing.assert_close(outputs_of(training), once, rtol=0, atol=0)
    assert training.loss_fn is loss
    torch.testing.assert_close(outputs_of(training.copy()), once, rtol=0, atol=0)


def test_a_softmax_over_the_examples_gives_way_to_one_over_the_classes():
    for model in (mlp(4, nn.Softmax(0)), Called(4, lambda z: z.softmax(0))):
        training = training_of(model, CE, X, CLASSES)
        ChangeOutput("softmax", WIDE).apply(training)
        torch.testing.assert_close(outputs_of(training).sum(1), torch.ones(N))


Answer = namedtuple("Answer", ["probabilities", "extra"])


@pytest.mark.parametrize(
    ("form", "output"),
    [
        (lambda p: {"logits": p, "extra": 1}, None),
        (lambda p: {"p": p, "extra": 1}, "p"),
        (lambda p: (1, p), 1),
        (lambda p: [p, 1], 0),
        (lambda p: Answer(p, 1), 0),
    ],
)
def test_whatever_the_model_returns_keeps_its_form(form, output):
    training = training_of(Returning(form), CE, X, CLASSES, output=output)
    before, kind = outputs_of(training), type(training.model(X))
    ChangeOutput("", WIDE).apply(training)
    torch.testing.assert_close(outputs_of(training).softmax(1), before)
    ChangeOutput("sigmoid", WIDE).apply(training)
    assert type(training.model(X)) is kind
    assert outputs_of(training).max() <= 1


def test_the_mode_and_the_hooks_of_the_model_stay():
    seen = []
    model = mlp(4, nn.Softmax(1))
    model.train()
    model[3].register_forward_hook(lambda *_: seen.append(1))
    training = training_of(model, CE, X, CLASSES)
    ChangeOutput("sigmoid", WIDE).apply(training)
    assert all(module.training for module in training.model.modules())
    training.model(X)
    assert seen


def test_what_cannot_be_taken_off_is_said():
    scaled = training_of(Called(4, lambda z: 3 * z.sigmoid() ** 2), CE, X, CLASSES)
    hidden = training_of(Called(1, lambda z: z.sigmoid()), nn.BCELoss(), X, TRUTH, output=lambda returned: returned)
    for training, change in ((scaled, ChangeOutput("", WIDE)), (hidden, ChangeOutput("tanh", NARROW))):
        with pytest.raises(CannotApply):
            change.apply(training)
    with pytest.raises(InvalidValue, match="Did you mean 'softmax'"):
        ChangeOutput("sotfmax", WIDE)


def test_a_known_loss_takes_the_place_and_a_penalty_stays():
    model = mlp(1)
    bare = training_of(model, nn.L1Loss(), X, VALUES)
    penalized = training_of(model, lambda o, t: F.l1_loss(o, t) + model[0].weight.square().sum(), X, VALUES)
    for training in (bare, penalized):
        ReplaceLoss("squared error", NARROW).apply(training)
        outputs = training.predict(X)
        torch.testing.assert_close(training.loss(outputs, VALUES), F.mse_loss(outputs, VALUES))
        gradient = torch.autograd.grad(training.loss(outputs, VALUES), model[0].weight, retain_graph=True)[0]
        own = torch.autograd.grad(F.mse_loss(outputs, VALUES), model[0].weight)[0]
        extra = 2 * model[0].weight if training is penalized else 0
        torch.testing.assert_close(gradient, own + extra)
    copied = penalized.copy()
    assert copied.loss_fn.penalizing is not penalized.loss_fn.penalizing


def test_means_signs_and_shapes():
    outputs = torch.randn(N, 1)
    summed = training_of(mlp(1), nn.MSELoss(reduction="sum"), X, VALUES)
    MeanLoss().apply(summed)
    torch.testing.assert_close(summed.loss(outputs, VALUES), F.mse_loss(outputs, VALUES))
    negative = training_of(mlp(1), lambda o, t: -F.mse_loss(o, t), X, VALUES)
    NegateLoss().apply(negative)
    torch.testing.assert_close(negative.loss(outputs, VALUES), F.mse_loss(outputs, VALUES))
    spread = training_of(mlp(1), nn.MSELoss(), X, VALUES[:, 0])
    ShapeTargets().apply(spread)
    torch.testing.assert_close(spread.loss(outputs, VALUES[:, 0]), F.mse_loss(outputs, VALUES))


@pytest.mark.parametrize("model", [lambda: mlp(1, nn.ReLU()), lambda: Called(1, F.relu)], ids=["plain", "class"])
def test_standardized_targets_go_with_another_output_and_loss(model):
    """In either order: the scale stays last, and the loss is taken on standardized numbers."""
    change, scale = ChangeOutput("", NARROW, "Huber loss"), StandardizeTargets()
    losses, outputs = [], []
    for changes in ((change, scale), (scale, change), (scale, change, change, scale)):
        training = training_of(model(), nn.MSELoss(), X, VALUES)
        for each in changes:
            each.apply(training)
        outputs.append(outputs_of(training))
        losses.append(training.loss(outputs[-1], VALUES))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    mean, scale = VALUES.mean(), VALUES.std(correction=0)
    expected = F.huber_loss((outputs[0] - mean) / scale, (VALUES - mean) / scale)
    torch.testing.assert_close(torch.stack(losses), expected.expand(3))


@pytest.mark.parametrize("change", [ReplaceLoss("Huber loss", NARROW), MeanLoss(), NegateLoss(), ShapeTargets()])
def test_a_loss_is_changed_once(change):
    training = training_of(mlp(1), nn.MSELoss(), X, VALUES)
    change.apply(training)
    once = training.loss_fn
    change.apply(training)
    assert training.loss_fn is once
    assert copy.copy(change) == change
    assert all(line[0] in "+-" for line in change.diff.splitlines())


def test_a_loss_for_other_targets_is_refused():
    with pytest.raises(CannotApply):
        ReplaceLoss("cross entropy on logits", NARROW).apply(training_of(mlp(1), nn.MSELoss(), X, VALUES))


def test_the_code_of_a_change_of_output_and_loss():
    change = ChangeOutput("", layout_of(torch.zeros(N, 4), ONE_HOT), "cross entropy on logits", "softmax", "head.act")
    assert change.where == ("head.act",)
    assert change.what == "last activation softmax → none, loss → cross entropy on logits"
    assert change.diff.splitlines() == [
        "-output = output.softmax(1)  # head.act",
        "-loss = loss_fn(output, target)",
        "+loss = torch.nn.functional.cross_entropy(output, target)",
    ]
