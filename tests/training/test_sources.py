"""Every split gives the same batches for the same seed and epoch, whatever it is made of, and moves no global state."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.training.given import as_source
from homeostat.training.sources import DatasetSource, StreamSource, TensorSource


def numbered(count, *shape):
    """Inputs whose every entry is the example's number, and that number as target."""
    number = torch.arange(count)
    return number.reshape(-1, *[1] * len(shape)).expand(count, *shape).to(torch.float32).contiguous(), number


def flat(batches):
    return [number for batch in batches for number in batch]


class Jittered(Dataset):
    """A dataset whose items draw from every global random state, as augmentations of other libraries do."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = random.random() + np.random.random() + float(torch.rand(()))
        return torch.tensor([index, noise]), index


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(Jittered(self.count)[index] for index in range(self.count))


def targets_of(source, seed=0, epoch=0, batch_size=4, shuffle=True):
    return [y.tolist() for _, y in source.batches(seed, epoch, batch_size, shuffle=shuffle)]


def every_source():
    weights = torch.ones(10)
    return {
        "tensors": as_source(numbered(10, 2), "test"),
        "dataset": as_source(Jittered(10), "test"),
        "loader": as_source(DataLoader(Jittered(10), batch_size=3, shuffle=True), "test"),
        "own sampler": as_source(DataLoader(Jittered(10), sampler=WeightedRandomSampler(weights, 10)), "test"),
        "own generator": as_source(
            DataLoader(Jittered(10), sampler=WeightedRandomSampler(weights, 10, generator=torch.Generator())), "test"
        ),
        "own batches": as_source(
            DataLoader(Jittered(10), batch_sampler=BatchSampler(WeightedRandomSampler(weights, 10), 4, False)), "test"
        ),
        "stream": as_source(DataLoader(Stream(10), batch_size=4), "test"),
    }


@pytest.mark.parametrize("name", every_source())
def test_a_pass_is_a_function_of_seed_and_epoch_and_leaves_global_state_alone(name):
    source = every_source()[name]
    first = [(x.clone(), y.clone()) for x, y in source.batches(3, 5, 4, shuffle=True)]
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    again = list(source.batches(3, 5, 4, shuffle=True))
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    assert len(first) == len(again)
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, again, strict=True))
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize("name", ["tensors", "dataset", "loader", "own sampler", "own generator", "own batches"])
def test_another_epoch_or_seed_has_another_order(name):
    source = every_source()[name]
    orders = {str(targets_of(source, seed, epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4


@given(count=st.integers(1, 60), size=st.integers(1, 20) | st.just("full"), epoch=st.integers(0, 3))
def test_shuffled_batches_hold_every_example_once_and_no_last_batch_of_one(count, size, epoch):
    source = as_source(numbered(count, 2), "test")
    batches = targets_of(source, 0, epoch, size)
    assert sorted(flat(batches)) == list(range(count))
    assert len(batches) == source.count_batches(size)
    if size != 1 and count > 1:
        assert min(map(len, batches)) > 1


@given(count=st.integers(1, 60), size=st.integers(1, 20) | st.just("full"))
def test_evaluation_keeps_the_stored_order(count, size):
    for source in (as_source(numbered(count, 2), "test"), as_source(Jittered(count), "test")):
        assert flat(targets_of(source, 7, 0, size, shuffle=False)) == list(range(count))


def test_the_seeded_order_is_the_same_for_tensors_and_for_a_dataset_of_them():
    x, y = numbered(23, 2)
    plain = DatasetSource(TensorDataset(x, y))
    assert targets_of(TensorSource(x, y), 4, 2) == targets_of(plain, 4, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_image_batches_come_out_channels_last_and_unchanged(channels, dtype):
    x = (torch.rand(9, channels, 5, 4) * 255).to(dtype)
    source = as_source((x, torch.arange(9)), "test")
    wanted = torch.tensor([4, 0, 8])
    got, targets = source.batch(wanted)
    assert torch.equal(got, x[wanted])
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert targets.tolist() == [4, 0, 8]
    for got, targets in source.batches(0, 0, 4, shuffle=False):
        assert torch.equal(got, x[targets])
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_images_that_are_channels_last_already_are_not_copied():
    x = torch.zeros(4, 3, 5, 5, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert as_source((x, torch.arange(4)), "test").x.data_ptr() == x.data_ptr()


def test_one_example_and_full_batches():
    source = as_source(numbered(1, 2), "test")
    assert targets_of(source, batch_size=8) == [[0]]
    assert targets_of(as_source(numbered(5, 2), "test"), batch_size="full") == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "all"])
def test_a_batch_size_that_is_none_is_refused(size):
    with pytest.raises(InvalidValue, match='positive integer or "full"'):
        targets_of(as_source(numbered(5, 2), "test"), batch_size=size)


def test_arrays_are_taken_like_tensors_and_doubles_become_single():
    x = np.arange(6.0).reshape(3, 2)
    x.setflags(write=False)
    source = as_source((x, np.arange(3)), "test")
    assert source.x.dtype == torch.float32
    assert source.x.tolist() == x.tolist()


def test_tensor_datasets_and_their_subsets_are_held_as_tensors():
    whole = TensorDataset(*numbered(10, 2))
    assert isinstance(as_source(whole, "test"), TensorSource)
    part = as_source(Subset(whole, [7, 2, 5]), "test")
    assert isinstance(part, TensorSource)
    assert part.y.tolist() == [7, 2, 5]
    assert isinstance(as_source(DataLoader(whole, shuffle=True), "test"), TensorSource)


def test_a_subset_sampler_limits_training_and_evaluation_to_its_subset():
    loader = DataLoader(Jittered(10), batch_size=2, sampler=SubsetRandomSampler([1, 3, 5, 7, 9]))
    source = as_source(loader, "test")
    assert len(source) == 5
    assert sorted(flat(targets_of(source))) == [1, 3, 5, 7, 9]
    assert flat(targets_of(source, shuffle=False)) == [1, 3, 5, 7, 9]


def test_a_sampler_of_ones_own_decides_what_is_drawn_and_the_recipe_how_many_at_once():
    weights = [0.0] * 5 + [1.0] * 5
    source = as_source(DataLoader(Jittered(10), batch_size=2, sampler=WeightedRandomSampler(weights, 12)), "test")
    batches = targets_of(source, batch_size=5)
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert min(flat(batches)) >= 5
    assert targets_of(source, 0, 0, shuffle=False) == targets_of(source, 1, 1, shuffle=False)


def test_a_sampler_is_told_the_epoch():
    class Told(SequentialSampler):
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

    sampler = Told(range(6))
    source = as_source(DataLoader(Jittered(6), sampler=sampler), "test")
    targets_of(source, epoch=3)
    assert sampler.epoch == 3


def test_a_batch_sampler_of_ones_own_keeps_its_batches():
    loader = DataLoader(Jittered(6), batch_sampler=[[0, 5], [1, 2, 3], [4]])
    source = as_source(loader, "test")
    assert targets_of(source, batch_size=100) == [[0, 5], [1, 2, 3], [4]]
    assert source.fixed_batches
    assert source.count_batches(100) == 3
    with pytest.raises(HomeostatError, match="stream"):
        source.batch(torch.tensor([0]))


def test_a_stream_is_read_as_it_comes():
    source = as_source(DataLoader(Stream(10), batch_size=4), "test")
    assert isinstance(source, StreamSource)
    assert targets_of(source) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert source.head(3)[1].tolist() == [0, 1, 2]
    assert source.count_batches(4) is None
    assert source.targets() is None
    with pytest.raises(TypeError):
        len(source)
    with pytest.raises(HomeostatError, match="no batch"):
        as_source(DataLoader(Stream(0)), "test").head(1)


def test_drop_last_of_a_loader_holds_for_training_alone():
    source = as_source(DataLoader(Jittered(10), batch_size=4, shuffle=True, drop_last=True), "test")
    assert [len(batch) for batch in targets_of(source)] == [4, 4]
    assert source.count_batches(4) == 2
    assert [len(batch) for batch in targets_of(source, shuffle=False)] == [4, 4, 2]


def test_a_collate_function_and_bulk_fetching_are_used():
    class Bulk(Jittered):
        def __getitems__(self, indices):
            return [(torch.tensor([index]), index) for index in indices]

    def doubled(items):
        return torch.stack([x for x, _ in items]) * 2, torch.tensor([y for _, y in items])

    source = as_source(DataLoader(Bulk(4), collate_fn=doubled), "test")
    assert source.batch(torch.tensor([3, 1]))[0].tolist() == [[6], [2]]


def test_a_digest_depends_on_the_data_and_on_nothing_else():
    x, y = numbered(10, 3, 4, 4)
    digest = as_source((x, y), "test").digest()
    torch.manual_seed(1)
    assert as_source((x.clone(), y.clone()), "test").digest() == digest
    changed = x.clone()
    changed[9, 2, 3, 3] += 1
    assert as_source((changed, y), "test").digest() != digest
    assert as_source((x, y.flip(0)), "test").digest() != digest
    assert as_source(Jittered(10), "test").digest() == as_source(Jittered(10), "test").digest()
    assert as_source(Jittered(10), "test").digest() != as_source(Jittered(11), "test").digest()


X, Y = numbered(6, 2)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ((X, Y[:5]), "same length"),
        ((X[:0], Y[:0]), "at least one example"),
        ((torch.tensor(1.0), Y), "at least one example"),
        ((X.log(), Y), "finite numbers, but got '2 NaN or infinite values'"),
        ((X, Y / torch.tensor([1, 1, 0, 1, 1, 1])), "y must hold finite"),
        ((np.full((6, 2), 1e300), Y), "finite"),
        (TensorDataset(X[:0], Y[:0]), "at least one example"),
        (TensorDataset(X), "two tensors"),
        (Jittered(0), "at least one example"),
        (DataLoader(Jittered(6), sampler=SubsetRandomSampler([])), "at least one example"),
    ],
)
def test_data_that_cannot_be_used_are_refused(split, says):
    with pytest.raises(InvalidValue, match=says) as caught:
        as_source(split, "Task: training data")
    assert "Task: training data" in str(caught.value)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (X, "alone lacks its targets"),
        ([1, 2, 3], "a pair"),
        ("mnist", "a pair"),
        (Stream(4), "inside its DataLoader"),
        ((np.array(["a", "b"]), np.arange(2)), "hold numbers"),
        ((X.to(torch.complex64), Y), "real numbers"),
    ],
)
def test_things_that_are_no_data_are_refused(split, says):
    with pytest.raises(InvalidType, match=says):
        as_source(split, "Task: training data")


def test_items_that_are_no_pairs_of_tensors_are_refused_with_a_cure():
    class Pictures(Jittered):
        def __getitem__(self, index):
            return {"pixels": index}

    with pytest.raises(InvalidType, match="add a transform"):
        as_source(Pictures(3), "test").head(1)
