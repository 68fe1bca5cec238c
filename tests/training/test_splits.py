"""Splits are seeded, disjoint, complete, and have the classes in proportion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.errors import InvalidValue
from homeostat.training.splits import plain_split, stratified_split

COUNTS = st.lists(st.integers(2, 40), min_size=1, max_size=8).filter(lambda counts: sum(counts) >= 12)


@given(counts=COUNTS, seed=st.integers(0, 5))
def test_parts_hold_every_example_once_and_every_class_in_proportion(counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = stratified_split(labels, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(part) - share * len(labels)) <= 2
        held = np.bincount(labels[part], minlength=len(counts))
        assert np.all(np.abs(held - share * np.array(counts)) < 2)
    assert set(labels[parts[0]]) == set(range(len(counts)))  # every class is trained on


def test_large_classes_are_split_to_the_example():
    labels = np.repeat(np.arange(10), 6000)
    train, valid = stratified_split(labels, (5 / 6, 1 / 6))
    assert (len(train), len(valid)) == (50_000, 10_000)
    assert np.bincount(labels[valid]).tolist() == [1000] * 10


def test_a_split_depends_on_its_seed_and_on_nothing_else():
    labels = np.arange(60) % 3
    first = stratified_split(labels, seed=1)
    np.random.seed(5)
    again = stratified_split(labels, seed=1)
    other = stratified_split(labels, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(plain_split(60, seed=1)[0], plain_split(60, seed=2)[0])


def test_a_class_with_one_example_is_named():
    with pytest.raises(InvalidValue, match="class 'okapi' must have at least two examples, but got 1"):
        stratified_split(np.array([0, 0, 0, 1]), names=["zebra", "okapi"])


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_examples_are_refused(count):
    with pytest.raises(InvalidValue, match="be enough for 3 parts"):
        plain_split(count)


@given(count=st.integers(3, 500))
def test_plain_parts_have_the_right_sizes(count):
    try:
        parts = plain_split(count)
    except InvalidValue:
        assert count < 5
        return
    assert sum(map(len, parts)) == count
    assert all(abs(len(part) - share * count) <= 1 for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True))
