"""`watch` is silent in healthy loops, however they are written."""

import pytest
import torch
from torch import nn
from watched_loops import STEPS, batches, classifier, loss_of, sgd, train

from homeostat.doctor.watching.watch import watch


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("where", ["before backward", "after step", "model"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_gradients_that_are_reset_in_any_way_are_fine(set_to_none, where, kind):
    model = classifier()
    optimizer = kind(model.parameters(), lr=0.01)
    with watch(model, optimizer, every=1) as w:
        for batch in batches():
            if where == "before backward":
                optimizer.zero_grad(set_to_none=set_to_none)
            elif where == "model":
                model.zero_grad(set_to_none=set_to_none)
            loss_of(model, batch).backward()
            optimizer.step()
            if where == "after step":
                optimizer.zero_grad(set_to_none=set_to_none)
    assert w.findings == []


def test_accumulation_over_batches_is_fine():
    model = classifier()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for count, batch in enumerate(batches(4 * STEPS), 1):
            (loss_of(model, batch) / 4).backward()
            if count % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert w.steps == STEPS
    assert w.findings == []


def test_gradients_that_are_assigned_are_fine():
    model = classifier()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for batch in batches():
            parameters = list(model.parameters())
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss_of(model, batch), parameters), strict=True
            ):
                parameter.grad = gradient
            optimizer.step()
    assert w.findings == []


def test_validation_between_steps_leaves_no_trace():
    model = classifier(dropout=0.5, norm=True)
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for batch in batches():
            model.train()
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            model.eval()
            loss_of(model, (1e3 * batch[0], batch[1]))  # with gradients on, and far off
    assert w.findings == []
    assert w.vitals.of("0", "std")[1].max() < 10


def test_frozen_batch_norm_is_fine():
    model = classifier(norm=True)
    model[1].eval()
    assert train(model, sgd(model)).findings == []


def test_parameters_that_are_frozen_on_purpose_are_fine():
    model = classifier()
    model[0].requires_grad_(False)
    assert train(model, torch.optim.Adam(model[-1].parameters())).findings == []
    assert train(model, torch.optim.Adam(model.parameters())).findings == []


def test_two_optimizers_for_two_parts_are_fine():
    model = classifier()
    optimizers = [sgd(model[0]), torch.optim.Adam(model[-1].parameters())]
    with watch(model, optimizers, every=1) as w:
        for batch in batches():
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, batch).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert w.steps == STEPS
    assert w.findings == []
    assert w.vitals.last("0", "update") > 0
    assert w.vitals.last("3", "update") > 0


def test_a_part_that_somebody_else_trains_is_fine():
    model = classifier()
    ours, theirs = sgd(model[-1]), sgd(model[0])
    with watch(model, ours, every=1) as w:
        for batch in batches():
            model.zero_grad()
            loss_of(model, batch).backward()
            ours.step()
            theirs.step()
    assert w.findings == []


def test_players_of_a_game_are_fine():
    torch.manual_seed(0)
    game = nn.ModuleDict(
        {"maker": nn.Linear(4, 6), "judge": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))}
    )
    judge, maker = (torch.optim.Adam(game[name].parameters()) for name in ("judge", "maker"))
    binary = nn.functional.binary_cross_entropy_with_logits
    with watch(game, [judge, maker], every=1) as w:
        for real, _ in batches():
            made = game["maker"](torch.randn(64, 4))
            judge.zero_grad()
            binary(game["judge"](real), torch.ones(64, 1)).backward()
            binary(game["judge"](made.detach()), torch.zeros(64, 1)).backward()
            judge.step()
            maker.zero_grad()
            binary(game["judge"](made), torch.ones(64, 1)).backward()  # leaves gradients in the judge
            maker.step()
    assert w.findings == []


def test_heads_that_are_trained_in_turn_are_fine():
    model = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)])
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for count, (inputs, targets) in enumerate(batches(2 * STEPS)):
            optimizer.zero_grad()
            head = model[1 + (count >= STEPS)]
            nn.functional.cross_entropy(head(model[0](inputs)), targets).backward()
            optimizer.step()
    assert w.findings == []


def test_a_closure_is_fine():
    model = classifier()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    with watch(model, optimizer, every=1) as w:
        for batch in batches():

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert w.steps == STEPS
    assert w.findings == []
    assert w.vitals.last("0", "gradient") > 0
    assert w.vitals.last("0", "update") > 0


class Scaler:
    """A GradScaler's way with an optimizer, without a device: overflow skips the step, or a fused optimizer is told."""

    def __init__(self, fused):
        self.fused, self.scale, self.count = fused, 2.0**10, 0

    def step(self, optimizer):
        self.count += 1
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        overflow = self.count in (1, 5)
        if overflow:
            for parameter in parameters:
                parameter.grad.fill_(torch.inf)
        if self.fused:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(self.scale), torch.tensor(float(overflow))
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        elif not overflow:
            for parameter in parameters:
                parameter.grad.div_(self.scale)
            optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_are_fine(fused):
    model = classifier()
    plain = train(classifier(), sgd(model)).vitals
    model = classifier()
    optimizer = sgd(model, fused=fused)
    scaler = Scaler(fused)
    with watch(model, optimizer, every=1) as w:
        for batch in batches():
            optimizer.zero_grad()
            (scaler.scale * loss_of(model, batch)).backward()
            scaler.step(optimizer)
    assert w.findings == []
    assert w.vitals.last("0", "gradient") == pytest.approx(plain.last("0", "gradient"), rel=3)
