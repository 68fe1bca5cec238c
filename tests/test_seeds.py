import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._utils import _LazySeedTracker

from homeostat import seeds

PURPOSES = st.lists(st.one_of(st.text(max_size=8), st.integers(-(2**40), 2**40)), max_size=4)


@given(st.integers(), PURPOSES, st.integers(), PURPOSES)
def test_distinct_purposes_have_distinct_streams(seed, purpose, other_seed, other_purpose):
    same = seed == other_seed and purpose == other_purpose
    assert (seeds.derive(seed, *purpose) == seeds.derive(other_seed, *other_purpose)) == same


def test_derived_seeds_stay_the_same_across_versions():
    # Results of studies depend on these; a change here is a change of every published number.
    assert seeds.derive(0, "order", 3) == 1269565860694870387
    assert 0 <= seeds.derive(-5) < 2**63


def test_streams_look_independent():
    draws = np.stack([seeds.numpy_generator(seed, "a").random(1000) for seed in range(20)])
    correlations = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(1000)  # five standard errors; 190 pairs


def test_generators_do_not_read_or_change_global_state():
    torch.manual_seed(1)
    first = torch.rand(3, generator=seeds.torch_generator(7, "x")), seeds.numpy_generator(7, "x").random(3)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    random.seed(99)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(first[0], torch.rand(3, generator=seeds.torch_generator(7, "x")))
    assert np.array_equal(first[1], seeds.numpy_generator(7, "x").random(3))


def _draw():
    return random.random(), np.random.rand(), float(torch.rand(()))


def test_isolated_code_draws_the_same_whatever_the_global_state_was():
    with seeds.isolated(3, "weights"):
        first = _draw()
    torch.manual_seed(5)
    random.seed(5)
    with seeds.isolated(3, "weights"):
        assert _draw() == first


def test_isolated_puts_the_state_back_even_after_an_error():
    before = seeds.global_state()
    expected = _draw()
    seeds.set_global_state(before)
    with pytest.raises(ZeroDivisionError), seeds.isolated(3):
        _draw()[0] / 0
    assert _draw() == expected


@pytest.fixture
def waiting(monkeypatch):
    """The seeds that wait for CUDA, on a machine that has it; it has not come up yet."""
    tracker = _LazySeedTracker()
    monkeypatch.setattr(torch.cuda, "_lazy_seed_tracker", tracker)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    return tracker


def test_isolated_leaves_the_seed_that_waits_for_cuda(waiting):
    torch.cuda.manual_seed_all(7)
    before = waiting.get_calls()
    with seeds.isolated(3, "weights"):
        assert waiting.get_calls() != before  # what comes up in here draws from the stream
    assert waiting.get_calls() == before


def test_where_cuda_comes_up_meanwhile_it_then_gets_the_seed_that_waited(waiting, monkeypatch):
    seeded = []
    waiting.queue_seed_all(lambda: seeded.append("waited"), [])
    with seeds.isolated(3, "weights"):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert seeded == ["waited"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    waiting.__init__()
    monkeypatch.setattr(torch.cuda, "seed_all", lambda: seeded.append("any"))
    with seeds.isolated(3, "weights"):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert seeded == ["waited", "any"]


def test_isolated_puts_the_state_of_devices_in_use_back(monkeypatch):
    states = {"cuda": [torch.zeros(2)], "mps": torch.ones(2)}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states["cuda"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda new: states.update(cuda=new))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states["mps"])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: states.update(mps=new))
    before = dict(states)
    with seeds.isolated(3):
        states.update(cuda=[], mps=None)
    assert states == before
