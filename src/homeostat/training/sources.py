"""Where a split's examples come from: tensors, a map-style Dataset, or a DataLoader that is iterated as it is.

A `Source` gives batches (x, y) as raw as they are stored: uint8 images stay uint8, standardization is `Task.prepare`.
Images are held as (N, H, W, C), so that a batch is channels_last without a copy beyond the gather. The order of an
epoch is a pure function of (seed, epoch). Code that is not ours (a dataset's transforms, a sampler) draws its random
numbers under `seeds.isolated`, batch by batch; global random state is put back before a batch is handed out.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils import data as torch_data

from homeostat import seeds
from homeostat.errors import HomeostatError, invalid, invalid_type

Batch: TypeAlias = tuple[Tensor, Tensor]
BatchSize: TypeAlias = int | Literal["full"]


class Source(ABC):
    """One split of a task: counts its examples and hands them out in batches."""

    fixed_batches = False  # True where the batches are the user's own and a recipe's batch size has no effect

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples; TypeError where it is unknown (a stream)."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """The examples at `indices`, an int64 tensor of shape (B,): inputs (B, ...) and targets (B, ...), raw."""

    @abstractmethod
    def batches(self, seed: int, epoch: int, batch_size: BatchSize, shuffle: bool = False) -> Iterator[Batch]:
        """The batches of one pass over the split.

        A batch may be a view of the stored data: read it, never write to it in place.

        Args:
            seed: the trial's seed; with `epoch` it fixes the order and every draw of a dataset's transforms.
            epoch: the number of the pass.
            batch_size: examples per batch, or "full" for the whole split at once.
            shuffle: True to train: a seeded order; a last batch of one example joins the batch before it, because
                one example has no batch statistics. False to evaluate: the stored order, every example once.
        """

    @abstractmethod
    def head(self, count: int) -> Batch:
        """The first examples in stored order, at most `count` of them."""

    @abstractmethod
    def digest(self) -> str:
        """A sha256 hex digest of what the split holds."""

    def count_batches(self, batch_size: BatchSize) -> int | None:
        """How many batches a pass of training has; None where only the pass itself can tell."""
        return len(_bounds(len(self), _size(batch_size, len(self)), join_last=True))

    def targets(self) -> Tensor | None:
        """All targets in stored order; None for a stream. A Dataset is read through once."""
        if self.fixed_batches:
            return None
        return torch.cat([y for _, y in self.batches(0, 0, 1024)])

    def to(self, device: str | torch.device) -> Source:
        """The same split with its tensors on `device`, where a source holds tensors; else the source itself."""
        return self


class TensorSource(Source):
    """A split held as two tensors.

    Args:
        x: inputs (N, ...); four dimensions mean images (N, C, H, W).
        y: targets (N, ...).
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._image = x.ndim == 4
        self._stored = (x.permute(0, 2, 3, 1) if self._image else x).contiguous()
        self.y = y.contiguous()

    @property
    def x(self) -> Tensor:
        """The inputs as they were given: images as (N, C, H, W), in channels_last memory."""
        return self._shown(self._stored)

    def __len__(self) -> int:
        return self._stored.shape[0]

    def batch(self, indices: Tensor) -> Batch:
        indices = indices.to(self._stored.device)
        # index_select copies rows; advanced indexing (x[indices]) took 20 times as long on 128 CIFAR images
        return self._shown(self._stored.index_select(0, indices)), self.y.index_select(0, indices)

    def batches(self, seed: int, epoch: int, batch_size: BatchSize, shuffle: bool = False) -> Iterator[Batch]:
        count = len(self)
        size = _size(batch_size, count)
        if not shuffle or size >= count:
            for start, stop in _bounds(count, size, join_last=False):
                yield self._shown(self._stored[start:stop]), self.y[start:stop]
            return
        order = _permutation(count, seed, epoch).to(self._stored.device)
        for start, stop in _bounds(count, size, join_last=True):
            yield self.batch(order[start:stop])

    def head(self, count: int) -> Batch:
        return self._shown(self._stored[:count]), self.y[:count]

    def select(self, indices: Tensor | Sequence[int]) -> TensorSource:
        """A source of the examples at `indices`, copied."""
        return TensorSource(*self.batch(torch.as_tensor(indices, dtype=torch.int64)))

    def with_targets(self, y: Tensor) -> TensorSource:
        """The same inputs with other targets."""
        return TensorSource(self.x, y)

    def targets(self) -> Tensor:
        return self.y

    def to(self, device: str | torch.device) -> TensorSource:
        if self._stored.device == torch.device(device):
            return self
        return TensorSource(self.x.to(device), self.y.to(device))

    def digest(self) -> str:
        sha = hashlib.sha256()
        for tensor in (self._stored, self.y):
            _feed(sha, tensor)
        return sha.hexdigest()

    def _shown(self, stored: Tensor) -> Tensor:
        return stored.permute(0, 3, 1, 2) if self._image else stored


class DatasetSource(Source):
    """A split held by a map-style Dataset, read in this process, item by item.

    Args:
        dataset: has `__len__` and `__getitem__`; an item is a pair (x, y).
        collate: makes a batch of a list of items; None: torch's default.
        sampler: a user's own sampler, whose order is respected; None: the seeded order of homeostat.
        drop_last: True to leave out the last, smaller batch while training, as the user's DataLoader did.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        sampler: Any = None,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self._collate = collate or torch_data.default_collate
        self._sampler = sampler
        self._drop_last = drop_last

    def __len__(self) -> int:
        return len(self.dataset if self._sampler is None else self._sampler)

    def batch(self, indices: Tensor) -> Batch:
        wanted = indices.tolist()
        if hasattr(self.dataset, "__getitems__"):  # torch's own convention for datasets that fetch in bulk
            return _pair(self._collate(self.dataset.__getitems__(wanted)))
        return _pair(self._collate([self.dataset[index] for index in wanted]))

    def batches(self, seed: int, epoch: int, batch_size: BatchSize, shuffle: bool = False) -> Iterator[Batch]:
        order = self._order(seed, epoch, shuffle)
        size = _size(batch_size, len(order))
        bounds = self._training_bounds(len(order), size) if shuffle else _bounds(len(order), size, join_last=False)
        for number, (start, stop) in enumerate(bounds):
            with seeds.isolated(seed, "items", epoch, number):
                found = self.batch(order[start:stop])
            yield found

    def count_batches(self, batch_size: BatchSize) -> int:
        return len(self._training_bounds(len(self), _size(batch_size, len(self))))

    def head(self, count: int) -> Batch:
        with seeds.isolated(0, "head"):
            return self.batch(self._order(0, 0, shuffle=False)[:count])

    def digest(self) -> str:
        """A digest of the length and of up to eight items spread over the split: reading all may take minutes."""
        order = self._order(0, 0, shuffle=False)
        chosen = order[torch.linspace(0, len(order) - 1, min(8, len(order))).long()]
        sha = hashlib.sha256(f"{type(self.dataset).__qualname__} {len(order)}".encode())
        for index in chosen.tolist():
            with seeds.isolated(0, "digest", index):
                for tensor in self.batch(torch.tensor([index])):
                    _feed(sha, tensor)
        return sha.hexdigest()

    def select(self, indices: Tensor | Sequence[int]) -> DatasetSource:
        """A source of the examples at `indices` of a dataset without a sampler of the user's own."""
        return DatasetSource(torch_data.Subset(self.dataset, [int(index) for index in indices]), self._collate)

    @property
    def own_order(self) -> bool:
        """Whether a sampler of the user's own decides the order and the number of examples."""
        return self._sampler is not None

    def known_targets(self) -> Tensor | None:
        """The targets where the dataset lists them (`targets` or `labels`, as torchvision's do); no item is read."""
        for name in ("targets", "labels"):
            listed = getattr(self.dataset, name, None)
            if listed is None or self.own_order:
                continue
            try:
                found = torch.as_tensor(listed)
            except (TypeError, ValueError, RuntimeError):
                continue
            if found.ndim == 1 and len(found) == len(self):
                return found
        return None

    def _training_bounds(self, count: int, size: int) -> list[tuple[int, int]]:
        bounds = _bounds(count, size, join_last=True)
        if self._drop_last and count > size and bounds[-1][1] - bounds[-1][0] < size:
            return bounds[:-1]
        return bounds

    def _order(self, seed: int, epoch: int, shuffle: bool) -> Tensor:
        if self._sampler is None:
            count = len(self.dataset)
            return _permutation(count, seed, epoch) if shuffle else torch.arange(count)
        # An evaluation visits what the sampler would draw, in one fixed order: it may hold only a part of the dataset.
        purpose = (seed, "order", epoch) if shuffle else (0, "order", "evaluation")
        _reseed((self._sampler,), *purpose)
        if shuffle and hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)
        with seeds.isolated(*purpose):
            return torch.tensor([int(index) for index in self._sampler], dtype=torch.int64)


class StreamSource(Source):
    """A split given by a DataLoader that is iterated as it is: an IterableDataset, or the user's own batch sampler.

    The batch size and the order are the loader's; the recipe's batch size and `shuffle` have no effect. Generators that
    the loader and its samplers hold are reseeded at the start of every pass, so that a pass depends on (seed, epoch).
    """

    fixed_batches = True

    def __init__(self, loader: torch_data.DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader.dataset)  # type: ignore[arg-type]  # TypeError where a stream has no length

    def count_batches(self, batch_size: BatchSize = 1) -> int | None:
        try:
            return len(self.loader)
        except TypeError:
            return None

    def batch(self, indices: Tensor) -> Batch:
        raise HomeostatError("Task: this split is a stream (a DataLoader with its own batches); it has no indices.")

    def batches(self, seed: int, epoch: int, batch_size: BatchSize = 1, shuffle: bool = False) -> Iterator[Batch]:
        samplers: tuple[Any, ...] = (self.loader.sampler, self.loader.batch_sampler)
        _reseed((self.loader, *samplers), seed, "order", epoch)
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        with seeds.isolated(seed, "order", epoch):
            iterator = iter(self.loader)
        for number in itertools.count():
            with seeds.isolated(seed, "items", epoch, number):
                found = next(iterator, None)
            if found is None:
                return
            yield _pair(found)

    def head(self, count: int) -> Batch:
        x, y = next(self.batches(0, 0), (None, None))
        if x is None or y is None:
            raise HomeostatError("Task: a DataLoader gave no batch; a split must hold at least one example.")
        return x[:count], y[:count]

    def digest(self) -> str:
        """A digest of the dataset's type and the first batch: a stream can be read only from its start."""
        sha = hashlib.sha256(type(self.loader.dataset).__qualname__.encode())
        for tensor in self.head(1 << 30):
            _feed(sha, tensor)
        return sha.hexdigest()


def _pair(batch: Any) -> Batch:
    """`batch` as (x, y), or the error that says what a dataset must give."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    shown = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else batch
    cure = "An item must be (x, y), tensors or numbers; add a transform (pictures to tensors) or a collate_fn."
    raise invalid_type("Task", "a batch of a Dataset or DataLoader", "be a pair (x, y) of tensors", shown, cure)


def _size(batch_size: BatchSize, count: int) -> int:
    if batch_size == "full":
        return max(count, 1)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise invalid("Source.batches", "batch_size", 'be a positive integer or "full"', batch_size)
    return batch_size


def _bounds(count: int, size: int, join_last: bool) -> list[tuple[int, int]]:
    """(start, stop) of each batch; with `join_last`, a last batch of one example joins the batch before it."""
    starts = list(range(0, count, size))
    if join_last and size > 1 and len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=seeds.torch_generator(seed, "order", epoch))


def _reseed(owners: Sequence[Any], *purpose: Any) -> None:
    """Put every torch generator that a user's loader or sampler holds at the start of the stream `purpose`."""
    for owner in owners:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seeds.derive(*purpose))


def _feed(sha: Any, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
