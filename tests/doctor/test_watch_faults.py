"""What `watch` finds in loops with a fault."""

import pytest
import torch
from torch import nn
from watched_loops import STEPS, batches, classifier, codes, loss_of, sgd, train

from homeostat.doctor.finding import CAUSES
from homeostat.doctor.watching.notices import _NOTICES
from homeostat.doctor.watching.watch import watch


def test_every_notice_speaks_the_doctors_words():
    assert all(set(entry.causes) <= CAUSES and entry.causes for entry in _NOTICES.values())


@pytest.mark.parametrize("clip", [None, "norm", "value"])
def test_a_missing_zero_grad_is_found(clip):
    model = classifier()
    optimizer = sgd(model, lr=0.01)
    with watch(model, optimizer) as w:
        for batch in batches():
            loss_of(model, batch).backward()
            if clip == "norm":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            elif clip == "value":
                nn.utils.clip_grad_value_(model.parameters(), 0.05)
            optimizer.step()
    assert codes(w) == ["OPT009"]
    assert w.findings[0].severity == "error"
    assert w.findings[0].causes == ("missing_zero_grad",)


def test_a_zero_grad_of_another_model_is_found():
    model, other = classifier(), classifier()
    optimizer = sgd(model, lr=0.01)
    with watch(model, optimizer) as w:
        for batch in batches():
            other.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    assert codes(w) == ["OPT009"]


def test_the_optimizer_without_zero_grad_is_named():
    model = classifier()
    optimizers = [sgd(model[0], 0.01), sgd(model[-1], 0.01)]
    with watch(model, optimizers) as w:
        for batch in batches():
            optimizers[0].zero_grad()
            loss_of(model, batch).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert codes(w) == ["OPT009"]
    assert w.findings[0].evidence["optimizer"] == 1


def test_a_zero_grad_behind_backward_is_found():
    model = classifier()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for batch in batches():
            loss_of(model, batch).backward()
            optimizer.zero_grad(set_to_none=False)
            optimizer.step()
    assert "GRD003" in codes(w)
    assert any("cleared between backward() and step()" in finding.message for finding in w.findings)


def test_parameters_that_no_optimizer_holds_are_found():
    model = classifier()
    optimizer = torch.optim.Adam(model[-1].parameters())
    w = train(model, optimizer)
    assert codes(w) == ["OPT008"]
    assert w.findings[0].evidence["parameters"] == ["0.weight", "0.bias"]


def test_an_optimizer_of_another_model_is_an_error():
    model, optimizer = classifier(), sgd(classifier())
    with watch(model, optimizer, every=1) as w:
        for batch in batches():
            model.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    assert codes(w, least=("error",)) == ["OPT008"]
    assert "holds none of the model's parameters" in w.findings[0].message


class Cut(nn.Module):
    """A net whose first layer cannot learn, beside a head that nobody asks."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.aside, self.unused = (
            nn.Linear(6, 6),
            nn.Linear(6, 3),
            nn.Linear(6, 2),
            nn.Linear(2, 2),
        )

    def forward(self, x):
        hidden = self.first(x).relu().detach()
        output = self.last(hidden)
        self.aside(hidden)
        return output


def test_parameters_without_a_gradient_are_found():
    model = Cut()
    w = train(model, sgd(model))
    assert codes(w) == ["GRD003"]
    assert w.findings[0].evidence["parameters"] == ["first.weight", "first.bias"]
    remarks = [finding.evidence["parameters"][0] for finding in w.findings if finding.severity == "info"]
    assert sorted(remarks) == ["aside.weight", "unused.weight"]


@pytest.mark.parametrize("every", [1, 1000])
@pytest.mark.parametrize("norm", [False, True])
def test_an_eval_that_was_forgotten_is_found(norm, every):
    model = classifier(dropout=0.5, norm=norm)
    optimizer = sgd(model)
    with watch(model, optimizer, every=every) as w:
        for count, batch in enumerate(batches()):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            if count == 3:
                model.eval()
    assert codes(w) == ["NRM010"]
    assert w.findings[0].evidence["first_step"] == 4
    assert ("batchnorm_running_stats_not_updated" in w.findings[0].causes) == norm


def test_evaluation_mode_that_changes_nothing_is_fine():
    model = classifier()
    model.eval()
    assert train(model, sgd(model)).findings == []


def test_the_layer_and_step_where_values_cease_to_be_finite_are_named():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)
            self.norm = nn.LayerNorm(6)
            self.count = 0

        def forward(self, x):
            self.count += 1
            return self.norm(self.inner(x) / (0.0 if self.count == 8 else 1.0))[:, :3]

    model = Breaks()
    w = train(model, sgd(model))
    assert codes(w) == ["SIG007"]
    assert w.findings[0].layer == "norm"
    assert w.findings[0].evidence["step"] == 7
    assert w.findings[0].evidence["last_finite_step"] == 6


def test_weights_that_are_lost_on_a_step_that_is_not_watched_are_noticed():
    model = classifier()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1000) as w:
        for count, batch in enumerate(batches()):
            optimizer.zero_grad()
            (loss_of(model, batch) * (float("nan") if count == 5 else 1.0)).backward()
            optimizer.step()
    assert codes(w) == ["SIG007"]
    assert w.findings[0].evidence["step"] == 5


def test_a_gradient_that_is_not_finite_is_found_where_it_begins():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for inputs, _ in batches():
            optimizer.zero_grad()
            hidden = model[0](inputs)
            (model[1](hidden).square().mean() + (0 * hidden.sum()).sqrt()).backward()
            optimizer.step()
    assert w.findings[0].code == "SIG007"
    assert w.findings[0].layer == "0"
    assert w.findings[0].evidence["what"] == "gradients"


def test_a_layer_that_died_is_found_and_one_that_lives_is_not():
    model = classifier()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    assert [(f.layer, f.severity) for f in long(model).findings if f.code == "SIG003"] == [("1", "error")]
    assert long(classifier()).findings == []


def test_a_dead_layer_is_no_error_where_gradients_find_a_way_past_it():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.dead = nn.Linear(6, 16), nn.Linear(16, 2), nn.ReLU()
            self.outer, self.last = nn.Linear(2, 16), nn.Linear(16, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(x * self.outer(self.dead(self.inner(x))).sigmoid())

    torch.manual_seed(0)
    model = Gated()
    with torch.no_grad():
        model.inner.bias.fill_(-100.0)
    assert [(f.layer, f.severity) for f in long(model).findings if f.code == "SIG003"] == [("dead", "warning")]


def long(model):
    """Enough examples to be sure of a unit."""
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for batch in batches(20):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    return w


def deep(depth, width, *activation):
    torch.manual_seed(0)
    layers = [module() for _ in range(depth) for module in (lambda: nn.Linear(width, width), *activation)]
    return nn.Sequential(nn.Linear(6, width), *layers, nn.Linear(width, 3))


def test_a_vanishing_gradient_is_found():
    model = deep(12, 6, nn.Sigmoid)
    assert codes(train(model, sgd(model))) == ["GRD001"]


def test_an_exploding_gradient_is_found():
    # Batch normalization without skips: the gradient grows by sqrt(pi / (pi - 1)) = 1.21 per layer of relu units, over
    # the two thirds of the layers that are compared (Yang et al. 2019, arXiv:1902.08129)
    model = deep(90, 16, lambda: nn.BatchNorm1d(16), nn.ReLU)
    assert codes(train(model, sgd(model, lr=1e-9))) == ["GRD002"]


def test_steps_longer_than_the_weights_are_found():
    model = nn.Linear(6, 1, bias=False)
    optimizer = sgd(model, lr=1.05)  # the Hessian is 2: each step goes to -1.1 times the weights
    with watch(model, optimizer, every=1) as w:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.eye(6)).square().sum().backward()
            optimizer.step()
    assert codes(w) == ["GRD002"]
    assert "lr_too_high" in w.findings[0].causes
    assert w.findings[0].evidence["update"] == pytest.approx(2.1, rel=1e-3)


def test_weights_that_start_at_zero_are_fine():
    model = nn.Linear(6, 3)
    nn.init.zeros_(model.weight)
    assert train(model, sgd(model, lr=0.5, momentum=0.9)).findings == []


def test_a_divergence_says_how_the_gradient_grew():
    model = nn.Linear(6, 1)
    optimizer = sgd(model, lr=1e4)
    with watch(model, optimizer, every=1) as w:
        for inputs, _ in batches():
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    assert w.findings[0].code == "SIG007"
    assert "exploding_gradient" in w.findings[0].causes
    assert "had grown" in w.findings[0].message


def test_a_deep_net_with_skips_is_fine():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x):
            return x + self.inner(self.norm(x)).relu()

    model = nn.Sequential(*(Skip() for _ in range(12)), nn.Linear(6, 3))
    assert train(model, sgd(model)).findings == []
