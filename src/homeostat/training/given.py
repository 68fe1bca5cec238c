"""What a user may give as data (tensors, Datasets, DataLoaders), checked and made into the three sources of a task.

Random only in splits that were not given, which are drawn from the task's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from homeostat.errors import invalid, invalid_type
from homeostat.training.metrics import LOSSES
from homeostat.training.sources import DatasetSource, Source, StreamSource, TensorSource
from homeostat.training.splits import plain_split, stratified_split

SPLITS = ("training", "validation", "test")
_PLAIN_SAMPLERS = (torch_data.RandomSampler, torch_data.SequentialSampler, torch_data.SubsetRandomSampler)


def all_splits(data: Any, loss: Any, seed: int) -> tuple[tuple[Source, Source, Source], str]:
    """The three sources, and a sentence on how missing ones were split off ("" if none was missing)."""
    if not isinstance(data, (tuple, list)) or len(data) != 3:
        shown = f"{len(data)} items" if isinstance(data, (tuple, list)) else data
        raise invalid_type("Task", "data", "be (train, valid, test); valid and test may be None", shown)
    if data[0] is None:
        raise invalid("Task", "data", "hold training data", None)
    sources = [None if part is None else _ready(part, name, loss) for part, name in zip(data, SPLITS, strict=True)]
    train, missing = sources[0], [index for index in (1, 2) if sources[index] is None]
    if missing:
        indices, how = _split_off(train, len(missing), loss, seed)
        parts = [train.select(part) for part in indices]  # type: ignore[union-attr]
        sources[0] = parts[0]
        for index, part in zip(missing, parts[1:], strict=True):
            sources[index] = part
        percent = "60/20/20 %" if len(missing) == 2 else f"20 % of the training data for {SPLITS[missing[0]]}"
        return (sources[0], sources[1], sources[2]), f"{percent}, {how}, seed {seed}"  # type: ignore[return-value]
    return (sources[0], sources[1], sources[2]), ""  # type: ignore[return-value]


def check_splits(splits: Sequence[Source], loss: Any, classes: int | Sequence[str] | None) -> None:
    """One input shape in all splits; targets that can be learned."""
    tensors = [split for split in splits if isinstance(split, TensorSource)]
    shapes = {tuple(split.x.shape[1:]) for split in tensors}
    if len(shapes) > 1:
        raise invalid("Task", "data", "have one input shape in all splits", sorted(shapes))
    if isinstance(loss, str) and isinstance(splits[0], TensorSource):
        train = splits[0].y
        if len(train) > 1 and bool((train == train[:1]).all()):
            raise invalid(
                "Task", "training targets", "vary", f"{train[0].tolist()} everywhere", "Nothing can be learned."
            )
        if loss == "cross_entropy" and train.ndim == 1:
            _check_classes(splits, classes)


def class_count(classes: int | Sequence[str]) -> int:
    count = classes if isinstance(classes, int) else len(classes)
    if count < 2:
        raise invalid("Task", "classes", "be at least two", classes)
    return count


def as_source(split: Any, where: str) -> Source:
    """The source for one split as a user may give it.

    A standard DataLoader (random, sequential or subset sampler) gives its dataset and collate function; homeostat draws
    the order and the recipe gives the batch size. A sampler of the user's own keeps its order; a batch sampler of the
    user's own or an IterableDataset is iterated as it is. Items are read in the calling process, except by a loader
    that is iterated as it is: trials run beside each other, and so need no loading processes of their own.

    Args:
        split: a pair (x, y) of tensors or arrays, a map-style Dataset, a DataLoader, or a Source.
        where: names the split in errors, such as "Task: training data".
    Raises: InvalidType for anything else; InvalidValue for empty, mismatched or non-finite data.
    """
    if isinstance(split, Source):
        return split
    if (
        isinstance(split, (tuple, list))
        and len(split) == 2
        and all(isinstance(part, (Tensor, np.ndarray)) for part in split)
    ):
        return _from_arrays(split[0], split[1], where)
    if isinstance(split, torch_data.DataLoader):
        return _from_loader(split, where)
    if isinstance(split, torch_data.IterableDataset):
        raise invalid_type(where, "data", "have a length", split, "Pass an IterableDataset inside its DataLoader.")
    if isinstance(split, torch_data.Dataset):
        return _from_dataset(split, where)
    cure = "A NumPy array or a tensor alone lacks its targets." if isinstance(split, (Tensor, np.ndarray)) else ""
    raise invalid_type(where, "data", "be a pair (x, y) of tensors, a Dataset or a DataLoader", split, cure)


def _ready(split: Any, name: str, loss: Any) -> Source:
    where = f"Task: {name} data"
    source = as_source(split, where)
    named = LOSSES[loss] if isinstance(loss, str) else None
    if isinstance(source, TensorSource):
        if name == SPLITS[0] and source is not split:
            _check_varies(source)
        return source.with_targets(named.ready(source.y, where)) if named else source
    _, first = source.head(1)  # says what is wrong with an item before anything is trained
    if named is not None:
        named.ready(first, where)
    return source


def _check_varies(train: TensorSource) -> None:
    """Raise unless the inputs differ somewhere; a look at the first ones is enough for almost all data."""
    first, count = train.head(1)[0], len(train)
    if count > 1 and all(bool((train.head(size)[0] == first).all()) for size in (min(count, 100), count)):
        cure = "Nothing can be learned from inputs that are all equal."
        raise invalid("Task", "training inputs", "vary", f"{count} equal examples", cure)


def _split_off(train: Any, parts: int, loss: Any, seed: int) -> tuple[list[Any], str]:
    shares = (1 - 0.2 * parts, *[0.2] * parts)
    if isinstance(train, StreamSource) or (isinstance(train, DatasetSource) and train.own_order):
        cure = "A stream or a sampler of your own cannot be split: pass (train, valid, test)."
        raise invalid("Task", "data", "hold all three splits", None, cure)
    labels = train.known_targets() if isinstance(train, DatasetSource) else train.y
    if loss == "cross_entropy" and labels is not None and labels.ndim == 1 and not labels.is_floating_point():
        return stratified_split(labels.cpu().numpy(), shares, seed=seed), "stratified"
    return plain_split(len(train), shares, seed=seed), "random"


def _check_classes(splits: Sequence[Source], classes: int | Sequence[str] | None) -> None:
    train = splits[0].targets()
    present = torch.unique(train).tolist()
    count = present[-1] + 1 if classes is None else class_count(classes)
    if classes is None and len(present) < count:
        missing = sorted(set(range(min(count, 1000))) - set(present))[:5]
        cure = "Number the classes 0..C-1, or pass classes= if some are absent on purpose."
        raise invalid("Task", "training targets", f"hold every class from 0 to {count - 1}", f"none of {missing}", cure)
    for split, name in zip(splits, SPLITS, strict=True):
        targets = split.targets() if isinstance(split, TensorSource) else None
        if targets is not None and int(targets.max()) >= count:
            cure = f"There are {count} classes, numbered from 0."
            raise invalid("Task", f"{name} targets", f"be less than {count}", int(targets.max()), cure)


def _from_arrays(x: Tensor | np.ndarray, y: Tensor | np.ndarray, where: str) -> TensorSource:
    x, y = _tensor(x, where, "x"), _tensor(y, where, "y")
    if x.ndim == 0 or y.ndim == 0 or len(x) == 0:
        raise invalid(where, "x and y", "hold at least one example", x if x.ndim == 0 or len(x) == 0 else y)
    if len(x) != len(y):
        raise invalid(where, "x and y", "have the same length", (len(x), len(y)), "Every example needs its target.")
    return TensorSource(x, y)


def _tensor(value: Tensor | np.ndarray, where: str, name: str) -> Tensor:
    """`value` as a detached tensor of at most single precision whose floats are all finite."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "buif":
            raise invalid_type(where, name, "hold numbers", value, "Encode text as class indices or features first.")
        tensor = torch.from_numpy(np.array(value)) if not value.flags.writeable else torch.from_numpy(value)
    else:
        tensor = value.detach()
    if tensor.is_complex():
        raise invalid_type(where, name, "hold real numbers", tensor)
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    if tensor.is_floating_point():
        wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
        if wrong:
            raise invalid(where, name, "hold finite numbers", f"{wrong} NaN or infinite values", "Impute or drop them.")
    return tensor


def _from_dataset(dataset: Any, where: str) -> Source:
    if isinstance(dataset, torch_data.TensorDataset):
        if len(dataset.tensors) != 2:
            raise invalid(where, "TensorDataset", "hold two tensors (x, y)", f"{len(dataset.tensors)} tensors")
        return _from_arrays(*dataset.tensors, where)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise invalid_type(where, "Dataset", "have __len__ and __getitem__", dataset)
    if len(dataset) == 0:
        raise invalid(where, "Dataset", "hold at least one example", dataset)
    if isinstance(dataset, torch_data.Subset):
        inner = _from_dataset(dataset.dataset, where)
        if isinstance(inner, TensorSource):
            return inner.select([int(index) for index in dataset.indices])
    return DatasetSource(dataset)


def _from_loader(loader: torch_data.DataLoader, where: str) -> Source:
    dataset, sampler = loader.dataset, loader.sampler
    own_batches = loader.batch_sampler is None or type(loader.batch_sampler) is not torch_data.BatchSampler
    if own_batches or isinstance(dataset, torch_data.IterableDataset):
        return StreamSource(loader)
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise invalid(where, "DataLoader", "hold at least one example", dataset)
    plain = type(sampler) in _PLAIN_SAMPLERS and not (
        type(sampler) is torch_data.RandomSampler and (sampler.replacement or sampler.num_samples != len(dataset))  # type: ignore[arg-type]
    )
    if plain and isinstance(sampler, torch_data.SubsetRandomSampler):
        dataset = torch_data.Subset(dataset, list(sampler.indices))
        if len(dataset) == 0:
            raise invalid(where, "DataLoader", "have a sampler that draws at least one example", sampler)
    collate = None if loader.collate_fn is torch_data.default_collate else loader.collate_fn
    if plain and collate is None:
        inner = _from_dataset(dataset, where)
        if isinstance(inner, TensorSource):
            return inner
    return DatasetSource(dataset, collate, None if plain else sampler, bool(loader.drop_last))
