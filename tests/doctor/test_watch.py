"""`watch` disturbs nothing and leaves nothing behind; what it says, and what it refuses."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from watched_loops import STEPS, batches, classifier, loss_of, sgd, train

from homeostat.doctor.watching.watch import watch
from homeostat.errors import HomeostatError, InvalidType, InvalidValue


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
