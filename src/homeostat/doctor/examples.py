"""What a split holds, as tensors: all of it, or a bounded sample of what is large or streamed.

Tensors are taken as they are; a Dataset or DataLoader is read until there are enough examples or time is up. Reading
code that is not ours happens under `seeds.isolated`, so that global random state stays as it was, and so do the
generators of a loader and its samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import data as torch_data

from homeostat import seeds
from homeostat.doctor.budget import Deadline
from homeostat.errors import HomeostatError, invalid, invalid_type
from homeostat.parts.layers import tensors_in
from homeostat.parts.modes import map_tensors

Nest: TypeAlias = Any
"""A tensor, or a tuple, list or mapping of tensors with the batch first."""

MOST_BYTES = 1 << 29  # of a split that is read from a Dataset; half a gigabyte leaves room for the model
MOST_EXAMPLES = 50_000
_TARGET_KEYS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class Examples:
    """Examples in stored order."""

    inputs: Nest
    targets: Tensor
    total: int | None
    """How many the split holds; None for a stream of unknown length."""

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: Tensor) -> Examples:
        """The examples at int64 `indices`, shape (n,)."""
        inputs = map_tensors(lambda tensor: tensor.index_select(0, indices.to(tensor.device)), self.inputs)
        return Examples(inputs, self.targets.index_select(0, indices.to(self.targets.device)), self.total)

    def slice(self, start: int, stop: int) -> Examples:
        """The examples from `start` to before `stop`, as views."""
        return Examples(
            map_tensors(lambda tensor: tensor[start:stop], self.inputs), self.targets[start:stop], self.total
        )

    def head(self, count: int) -> Examples:
        """The first examples, at most `count` of them."""
        return self.slice(0, count)

    def to(self, device: torch.device | None) -> Examples:
        """The same on another device; None is here."""
        if device is None:
            return self
        return Examples(map_tensors(lambda tensor: tensor.to(device), self.inputs), self.targets.to(device), self.total)

    def only_tensor(self) -> Tensor | None:
        """The inputs, if they are one tensor of numbers."""
        return self.inputs if isinstance(self.inputs, Tensor) and not self.inputs.is_complex() else None

    @property
    def complete(self) -> bool:
        """Whether these are all the split holds."""
        return self.total == len(self)


def examples_of(source: Any, unpack: Callable[[Any], Any] | None, split: str, deadline: Deadline) -> Examples:
    """The examples of a split as a user holds it.

    Args:
        source: (inputs, targets), a map-style Dataset, or an iterable of batches such as a DataLoader.
        unpack: makes (inputs, targets) of what the source gives; None takes pairs, and mappings with a known key.
        split: its name, for messages.
        deadline: reading stops there, with at least one batch read.
    Raises: InvalidType or InvalidValue where no (inputs, targets) can be had, with what to pass instead.
    """
    if is_pair_of_tensors(source):
        return _checked(source[0], source[1], len(source[1]), split)
    with seeds.isolated(0, "doctor", "reading", split), _generators_kept(source):
        if isinstance(source, torch_data.DataLoader):
            return _from_batches(source, unpack, split, deadline, _length(source))
        if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, Mapping):
            loader = torch_data.DataLoader(source, batch_size=min(256, max(1, len(source))))
            return _from_batches(loader, unpack, split, deadline, len(source))
        if isinstance(source, Iterable) and not isinstance(source, Mapping | str):
            return _from_batches(source, unpack, split, deadline, None)
    cure = "Give (inputs, targets), a Dataset, or a DataLoader."
    raise invalid_type("Training", split, "hold examples", source, cure)


def is_pair_of_tensors(source: Any) -> bool:
    """Whether a split is (inputs, targets), the inputs a tensor or a nest of tensors."""
    return (
        isinstance(source, tuple | list)
        and len(source) == 2
        and isinstance(source[1], Tensor)
        and (isinstance(source[0], Tensor) or (isinstance(source[0], tuple | Mapping) and bool(tensors_in(source[0]))))
    )


def unpacked(batch: Any, unpack: Callable[[Any], Any] | None, split: str) -> tuple[Nest, Tensor]:
    """(inputs, targets) of one batch; raises InvalidType where it is not clear which is which."""
    if unpack is not None:
        batch = unpack(batch)
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor) and tensors_in(batch[0]):
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        keys = [key for key in _TARGET_KEYS if isinstance(batch.get(key), Tensor)]
        if len(keys) == 1:
            return {key: value for key, value in batch.items() if key != keys[0]}, batch[keys[0]]
    shown = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
    if isinstance(batch, tuple | list):
        shown = [type(part).__name__ for part in batch]
    cure = "Pass unpack=, a function that makes (inputs, targets) of a batch; inputs may be a tensor, tuple or dict."
    raise invalid_type("Training", f"a batch of {split}", "be a pair of inputs and a tensor of targets", shown, cure)


@contextmanager
def _generators_kept(source: Any) -> Iterator[None]:
    """Put the generators of a loader and its samplers back to where they were."""
    batches = getattr(source, "batch_sampler", None)
    holders = source, getattr(source, "sampler", None), batches, getattr(batches, "sampler", None)
    found = [getattr(holder, "generator", None) for holder in holders]
    states = [(each, each.get_state()) for each in found if isinstance(each, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _from_batches(
    batches: Iterable[Any], unpack: Callable[[Any], Any] | None, split: str, deadline: Deadline, total: int | None
) -> Examples:
    inputs: list[Nest] = []
    targets: list[Tensor] = []
    count = size = 0
    for batch in batches:
        x, y = unpacked(batch, unpack, split)
        inputs.append(x)
        targets.append(y)
        count += len(y)
        size += sum(tensor.nbytes for tensor in (*tensors_in(x), y))
        if count >= MOST_EXAMPLES or size >= MOST_BYTES or deadline.passed:
            break
    else:
        total = count  # it ended by itself, perhaps earlier than its length promised
    if not targets:
        raise invalid("Training", split, "give at least one batch", batches, "Is the dataset empty, or used up?")
    try:
        found = torch.cat(targets)
        return _checked(_joined(inputs), found, total, split)
    except RuntimeError as error:
        cure = "Batches of one split must agree in every size but the first; pad them, or pass unpack= to do so."
        raise HomeostatError(f"Training: the batches of {split} cannot be joined: {error}. {cure}") from error


def _joined(parts: list[Nest]) -> Nest:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        kept = [key for key, value in first.items() if isinstance(value, Tensor)]
        return {key: _joined([part[key] for part in parts]) for key in kept}
    return tuple(_joined(list(column)) for column in zip(*parts, strict=True))


def _checked(inputs: Nest, targets: Tensor, total: int | None, split: str) -> Examples:
    lengths = {len(tensor) for tensor in tensors_in(inputs)}
    if lengths != {len(targets)}:
        cure = "The first dimension counts examples, in inputs as in targets."
        raise invalid("Training", split, "have as many inputs as targets", (sorted(lengths), len(targets)), cure)
    if not len(targets):
        raise invalid("Training", split, "hold at least one example", targets)
    if total is not None and total < len(targets):
        total = len(targets)
    return Examples(inputs, targets.detach(), total)


def _length(loader: torch_data.DataLoader) -> int | None:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:
        return None
