"""What `watch` finds in loops with a fault, that it is silent on healthy ones, and that it leaves nothing behind."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

from homeostat.doctor.finding import CAUSES
from homeostat.doctor.notices import _NOTICES
from homeostat.doctor.watch import watch
from homeostat.errors import HomeostatError, InvalidType, InvalidValue

STEPS = 12


def classifier(*, dropout=0.0, norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(16, 3))


def batches(count=STEPS):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        inputs = torch.randn(64, 6, generator=generator)
        yield inputs, inputs[:, :3].argmax(1)


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model, optimizer, **options):
    """A healthy loop, watched at every step."""
    with watch(model, optimizer, every=1, **options) as w:
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    return w


def codes(w, least=("warning", "error")):
    return [finding.code for finding in w.findings if finding.severity in least]


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def test_every_notice_speaks_the_doctors_words():
    assert all(set(entry.causes) <= CAUSES and entry.causes for entry in _NOTICES.values())


# --- healthy loops ---


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


# --- faults ---


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


# --- nothing is disturbed, nothing stays ---


def wide(kind):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
    )
    return model, kind(model.parameters(), lr=0.05)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("every", [None, 1, 3])
def test_training_computes_the_same_bits(kind, every):
    results = []
    for watched in (False, True):
        model, optimizer = wide(kind)
        torch.manual_seed(4)
        context = watch(model, optimizer, every=every) if watched else None
        with context or torch.enable_grad():
            for _ in range(8):
                inputs, targets = torch.randn(16, 1, 6, 6), torch.randint(0, 3, (16,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        results.append(([*model.state_dict().values()], torch.get_rng_state()))
    for one, other in zip(*(values for values, _ in results), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(results[0][1], results[1][1])


def hooks_of(model, optimizer):
    found = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    found += [len(p._backward_hooks or ()) for p in model.parameters()]
    return sum(found) + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


@pytest.mark.parametrize("where", ["forward", "backward", "step", "between"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(where, fails):
    model = classifier()
    optimizer = sgd(model)
    watching = watch(model, optimizer, every=1)

    def loop():
        with watching:
            for count, batch in enumerate(batches()):
                loss = loss_of(model, batch)
                if count == 2 and where == "forward":
                    break
                loss.backward()
                if count == 2 and where == "backward":
                    break
                optimizer.step()
                if count == 2 and where == "step":
                    break
                optimizer.zero_grad()
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            loop()
    else:
        loop()
    assert hooks_of(model, optimizer) == 0


def test_tensors_of_a_step_are_let_go():
    model = classifier()
    optimizer = sgd(model)
    alive = []
    model[1].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    with watch(model, optimizer, every=1):
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        gc.collect()
        assert [reference() for reference in alive] == [None] * STEPS


def test_a_copy_of_a_watched_model_is_not_watched():
    model = classifier()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        twin, twin_optimizer = copy.deepcopy((model, optimizer))
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for batch in batches(3):
            for other in (twin, loaded):
                loss_of(other, batch).backward()
            twin_optimizer.step()
    assert w.steps == 0
    assert len(w.vitals) == 0


def test_one_watch_goes_on_and_two_may_watch_at_once():
    model = classifier()
    optimizer = sgd(model)
    one, two = watch(model, optimizer, every=1), watch(model, optimizer, every=2)
    for _ in range(2):
        with one, two:
            for batch in batches(4):
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                optimizer.step()
    assert one.vitals.steps.tolist() == list(range(8))
    assert two.vitals.steps.tolist() == [0, 2, 4, 6]
    with one, pytest.raises(HomeostatError, match="already on"), one:
        pass
    assert hooks_of(model, optimizer) == 0


def test_a_model_that_is_compiled_is_watched_by_its_gradients():
    model = torch.compile(classifier(), backend="eager")
    w = train(model, sgd(model))
    assert w.findings == []
    assert w.vitals.last("0", "gradient") > 0


def test_transforms_and_gradients_of_gradients_pass():
    model = classifier()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for inputs, targets in batches(6):
            optimizer.zero_grad()
            parameters = {name: p.detach() for name, p in model.named_parameters()}
            torch.func.vmap(lambda x, p=parameters: torch.func.functional_call(model, p, (x,)))(inputs)
            loss = loss_of(model, (inputs, targets))
            first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            (loss + sum(g.square().sum() for g in first)).backward()
            optimizer.step()
    assert w.findings == []
    assert w.vitals.last("0", "std") > 0


def test_half_precision_and_sparse_gradients_are_measured():
    model = nn.Sequential(nn.Embedding(10, 6, sparse=True), nn.Linear(6, 3))
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randint(0, 10, (8,))).square().mean().backward()
            optimizer.step()
    assert w.vitals.last("0", "gradient") > 0
    model = nn.Linear(3, 3).to(torch.bfloat16)
    with watch(model, sgd(model), every=1) as w:
        pass
    optimizer = sgd(model)
    with watch(model, optimizer, every=1) as w:
        (1e6 * model(torch.ones(2, 3, dtype=torch.bfloat16))).sum().backward()
        optimizer.step()
    assert w.vitals.last("Linear", "gradient") > 1e6


# --- words ---


def test_the_report_says_what_was_found():
    model = classifier()
    optimizer = sgd(model, lr=0.01)
    with watch(model, optimizer, every=1) as w:
        for batch in batches():
            loss = loss_of(model, batch)
            w.loss(loss)
            loss.backward()
            optimizer.step()
    text = w.report()
    assert str(w) == text
    assert text.startswith(f"{STEPS} of {STEPS} steps watched")
    assert "OPT009 missing-zero-grad" in text
    assert "optimizer.zero_grad()" in text
    assert "\n(model)" in text
    assert "loss at step 11" in text


def test_a_watch_that_saw_nothing_says_so():
    model = classifier()
    with watch(model, sgd(model)) as w:
        pass
    assert "0 of 0 steps watched" in w.report()
    assert w.findings == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda m, o: (m.parameters(), o), "model must be a torch.nn.Module"),
        (lambda m, o: (m, m), "optimizer must be a torch.optim.Optimizer"),
        (lambda m, o: (m, []), "optimizer must be a torch.optim.Optimizer"),
        (lambda m, o: (m, [o, "adam"]), "optimizer must be a torch.optim.Optimizer"),
    ],
)
def test_what_cannot_be_watched_is_refused(arguments, message):
    model = classifier()
    with pytest.raises(InvalidType, match=message):
        watch(*arguments(model, sgd(model)))


def test_an_optimizer_given_twice_and_a_loss_without_hooks_are_refused():
    model = classifier()
    optimizer = sgd(model)
    with pytest.raises(InvalidValue, match="each optimizer once"):
        watch(model, [optimizer, optimizer])
    with pytest.raises(InvalidValue, match="hold no lazy layer"):
        watch(nn.Sequential(nn.LazyLinear(3)), optimizer)
    with pytest.raises(InvalidType, match=r"call w.loss\(loss\)"):
        watch(model, optimizer, loss_fn=nn.functional.cross_entropy)
