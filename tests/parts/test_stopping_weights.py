import os
import signal
import subprocess
import sys
import textwrap
import threading
from functools import partial

import pytest
import torch
from torch import nn

from homeostat.errors import InvalidValue
from homeostat.parts.stopping import GL, EarlyStopping, early
from homeostat.parts.stopping import weights as stopping_weights


class Network(nn.Module):
    """Tied weights, a frozen parameter, buffers of several kinds, one of them not in the state_dict."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.decoder = nn.Linear(3, 4)
        self.decoder.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.register_buffer("hidden", torch.zeros(2, dtype=torch.float16), persistent=False)
        self.register_buffer("spread", torch.zeros(1).expand(5))


def fill(model, number):
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            (tensor[:1] if tensor.ndim and not tensor.stride(0) else tensor).fill_(number)


def contents(model):
    return {float(value) for tensor in [*model.parameters(), *model.buffers()] for value in tensor.detach().unique()}


def train(stopping, model, losses, end=None):
    """As many epochs as there are losses; weights are filled with the number of their epoch."""
    for epoch, loss in enumerate(losses):
        fill(model, epoch)
        stopping.update(loss)
        if stopping.should_stop:
            break
    if end is not None:
        fill(model, 99)
        end()


def throw(error):
    raise error


LOSSES = [3.0, 2.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("patience", [1, 2, None])
def test_the_best_weights_are_back_when_training_stops_or_runs_out(device, patience):
    stopping, model = EarlyStopping(patience=patience), Network()
    objects = list(model.parameters())
    with stopping.keeping(model, device=device) as given:
        assert given is stopping
        train(stopping, model, LOSSES)
    assert contents(model) == {2.0}
    assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))
    assert model.decoder.weight is model.embedding.weight


# Keras, keras/src/callbacks/early_stopping_test.py: test_early_stopping_final_weights_when_restoring_model_weights.
@pytest.mark.parametrize(
    ("settings", "losses", "trained"),
    [
        ({"patience": 2}, [0.2, 0.15, 0.1, 0.11, 0.12], 5),
        ({"patience": 5, "baseline": 0.5}, [0.9, 0.8, 0.7, 0.71, 0.72, 0.73], 5),
        ({"patience": 5, "baseline": 0.5}, [0.9, 0.8, 0.7, 0.71], 4),
    ],
)
def test_the_weights_are_those_that_keras_restores(settings, losses, trained):
    model = Network()
    with EarlyStopping("val_loss", **settings).keeping(model) as stopping:
        train(stopping, model, losses)
        assert {trained - 1.0} == contents(model)
    assert contents(model) == {2.0}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, torch.OutOfMemoryError])
def test_the_best_weights_are_back_whatever_is_raised(error):
    stopping, model = EarlyStopping(), Network()
    with pytest.raises(error), stopping.keeping(model):
        train(stopping, model, LOSSES[:4], partial(throw, error()))
    assert contents(model) == {2.0}


def test_the_best_weights_are_back_after_return_and_continue_and_in_a_generator():
    def epochs(model):
        with EarlyStopping(patience=None).keeping(model) as stopping:
            for epoch, loss in enumerate(LOSSES):
                fill(model, epoch)
                stopping.update(loss)
                yield epoch

    model = Network()
    for epoch in (steps := epochs(model)):
        if epoch == 4:
            break
    assert contents(model) == {4.0}
    steps.close()
    assert contents(model) == {2.0}

    def returning():
        with EarlyStopping(patience=None).keeping(model) as stopping:
            return train(stopping, model, LOSSES)

    returning()
    assert contents(model) == {2.0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_a_handler_turns_into_exceptions(number):
    before = signal.signal(number, lambda *_: throw(KeyboardInterrupt()))
    try:
        stopping, model = EarlyStopping(), Network()
        with pytest.raises(KeyboardInterrupt), stopping.keeping(model):
            train(stopping, model, LOSSES[:4], partial(os.kill, os.getpid(), number))
        assert contents(model) == {2.0}
    finally:
        signal.signal(number, before)


def signals_at(step, number=signal.SIGINT):
    """A trace function that sends a signal before the step-th line that runs in the modules under test."""
    files, state = {early.__file__, stopping_weights.__file__}, {"lines": 0}

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            state["lines"] += 1
            if state["lines"] == step:
                signal.raise_signal(number)
        return trace

    return trace, state


def traced(step, action, number=signal.SIGINT):
    trace, state = signals_at(step, number)
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return state["lines"] < step  # nothing was left to interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_at_any_line_of_restoring_leaves_the_best_weights(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, lambda *_: throw(SystemExit(1)))
    outcomes = []
    try:
        for step in range(1, 500):
            stopping, model = EarlyStopping(), Network()
            through = False
            try:
                with stopping.keeping(model):
                    train(stopping, model, LOSSES[:4])
                    sys.settrace(signals_at(step, number)[0])
                    raise KeyboardInterrupt  # the first
            except (KeyboardInterrupt, SystemExit) as error:
                through = error.__context__ is None and isinstance(error, KeyboardInterrupt)
            finally:
                sys.settrace(None)
            outcomes.append(contents(model))
            assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
            if through:
                break
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])
    assert len(outcomes) > 20
    assert all(outcome in ({2.0}, {3.0}) for outcome in outcomes), "never half of them"
    # Only before the very first line, where nothing of ours runs yet, can the signal come too early.
    assert all(outcome == {2.0} for outcome in outcomes[1:])


def test_ctrl_c_at_any_line_of_update_leaves_weights_and_state_of_one_epoch():
    for step in range(1, 500):
        stopping, model = EarlyStopping(rules=GL(500)), Network()
        done = interrupted = False
        try:
            with stopping.keeping(model):
                train(stopping, model, LOSSES[:2])
                fill(model, 2)
                done = traced(step, partial(stopping.update, 1.0))
        except KeyboardInterrupt:
            interrupted = True
        assert contents(model) == {float(stopping.best_epoch)}
        assert (stopping.best_epoch, stopping.best) in ((1, 2.0), (2, 1.0))
        assert done != interrupted
        if done:
            break
    assert 30 < step < 499


def test_ctrl_c_at_any_line_of_entering_leaves_a_usable_object():
    for step in range(1, 100):
        stopping, model, done = EarlyStopping(), Network(), False
        trace, state = signals_at(step)
        try:
            sys.settrace(trace)
            with stopping.keeping(model):
                sys.settrace(None)
                done = state["lines"] < step
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if done:
            break
        with stopping.keeping(model):
            train(stopping, model, LOSSES)
        assert contents(model) == {2.0}


def test_ctrl_c_in_a_process_of_its_own():
    script = """
        import torch
        from torch import nn
        from homeostat.parts.stopping import EarlyStopping
        model = nn.Linear(300, 300)
        try:
            with EarlyStopping(patience=None).keeping(model) as stopping:
                for epoch in range(10**9):
                    nn.init.constant_(model.weight, epoch)
                    nn.init.constant_(model.bias, epoch)
                    stopping.update(max(5 - epoch, 0.0) if epoch < 9 else 1.0)
                    if epoch == 20:
                        print("ready", flush=True)
        except KeyboardInterrupt:
            print({float(v) for p in model.parameters() for v in p.unique()} == {stopping.best_epoch}, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "True\n"


def test_it_works_in_a_thread():
    stopping, model = EarlyStopping(), Network()

    def work():
        with stopping.keeping(model):
            train(stopping, model, LOSSES)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert contents(model) == {2.0}


def test_a_copy_that_fails_leaves_the_weights_of_the_best_epoch_before(monkeypatch):
    stopping, model = EarlyStopping(), Network()
    with stopping.keeping(model):
        train(stopping, model, [3.0, 2.0])
        monkeypatch.setattr(early, "copy_weights", lambda *_: throw(torch.OutOfMemoryError()))
        fill(model, 2)
        with pytest.raises(torch.OutOfMemoryError):
            stopping.update(1.0)
    assert contents(model) == {1.0}
    assert stopping.best_epoch == 1


def test_nothing_is_put_back_where_nothing_was_best_or_where_it_is_not_wanted():
    model = Network()
    with EarlyStopping().keeping(model) as stopping:
        train(stopping, model, [float("nan")])
    assert contents(model) == {0.0}
    assert stopping.best_weights is None
    with EarlyStopping(restore_best_weights=False, patience=None).keeping(model) as stopping:
        train(stopping, model, LOSSES)
    assert contents(model) == {4.0}
    assert (stopping.best_weights["frozen"] == 2).all()
    with EarlyStopping(start_from_epoch=3, patience=None).keeping(model) as stopping:
        train(stopping, model, [1.0, 2.0, 3.0, 5.0, 6.0])
    assert contents(model) == {3.0}


def test_a_wrapped_model():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    model = Network()
    for wrapped in (Wrapper(model), nn.DataParallel(model), nn.ModuleList([model, nn.Linear(1, 1)])):
        with EarlyStopping(patience=None).keeping(wrapped) as stopping:
            train(stopping, wrapped, LOSSES)
        assert contents(model) == contents(wrapped) == {2.0}


def test_a_resumed_run_needs_the_best_weights_of_before_and_puts_them_back():
    first, model = EarlyStopping(), Network()
    with pytest.raises(RuntimeError), first.keeping(model):
        train(first, model, [3.0, 1.0, 2.0], partial(throw, RuntimeError()))
    state, weights = first.state_dict(), first.best_weights
    resumed, model = EarlyStopping(), Network()
    resumed.load_state_dict(state)
    with pytest.raises(InvalidValue, match=r"weights must be given, as epoch 1 was measured before.*reset\(\)"):
        resumed.keeping(model).__enter__()
    with resumed.keeping(model, weights=weights):
        fill(model, 7)
        resumed.update(5.0)
    assert contents(model) == {1.0}
    resumed.reset()
    with resumed.keeping(model):
        fill(model, 7)
        resumed.update(5.0)
    assert contents(model) == {7.0}


def test_weights_that_are_given_are_copied():
    model = Network()
    fill(model, 5)
    with EarlyStopping().keeping(model, weights=dict(model.state_dict(keep_vars=True))):
        fill(model, 6)
    assert {float(value) for tensor in model.parameters() for value in tensor.detach().unique()} == {5.0}


def test_one_object_keeps_one_model_at_a_time():
    stopping, model = EarlyStopping(), Network()
    with stopping.keeping(model), pytest.raises(InvalidValue, match="not stand in another"):
        stopping.keeping(model).__enter__()
    with stopping.keeping(model):
        pass


def test_a_changed_structure_is_an_error_that_changes_no_weight():
    stopping, model = EarlyStopping(), Network()
    block = stopping.keeping(model)
    block.__enter__()
    train(stopping, model, LOSSES)
    model.decoder.bias = nn.Parameter(torch.full((6,), 4.0))
    with pytest.raises(InvalidValue, match=r"hold decoder.bias in the shape \(6,\)"):
        block.__exit__(None, None, None)
    assert contents(model) == {4.0}
    with pytest.raises(InvalidValue, match="have names of the model alone"):
        EarlyStopping().keeping(
            nn.Linear(1, 1), weights={**dict(nn.Linear(1, 1).state_dict()), "x": torch.ones(1)}
        ).__enter__()


def test_a_buffer_that_grew_or_came_later():
    model = Network()
    with EarlyStopping().keeping(model) as stopping:
        train(stopping, model, LOSSES)
        model.hidden = torch.full((7,), 9.0)
        model.register_buffer("late", torch.full((1,), 2.0))
    assert model.hidden.shape == (2,)
    assert contents(model) == {2.0}


def test_training_goes_on_with_the_same_optimizer_after_the_block():
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with EarlyStopping().keeping(model) as stopping:
        stopping.update(1.0)
        best = model.weight.detach().clone()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert torch.equal(model.weight, best)
    optimizer.step()
    assert not torch.equal(model.weight, best)
