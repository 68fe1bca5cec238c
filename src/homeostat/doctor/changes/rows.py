"""Changes of what the splits hold: classes balanced, rows left out, order, augmentation, one prepared as the other.

Tensors are changed as tensors; a Dataset is wrapped, so that what it draws anew each time stays so; a DataLoader is
made again over it with the settings it had. Random in the rows that balancing repeats, by a fixed stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from homeostat import seeds
from homeostat.doctor.budget import Deadline
from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.course import evaluating
from homeostat.doctor.data.facts import takes_features_last
from homeostat.doctor.data.flat import channel_dim
from homeostat.doctor.data.rows import rows_in_both
from homeostat.doctor.data.scale import bounded, columns_of, finite_rows
from homeostat.doctor.data.splits import TURNS, Mismatch, compare_splits
from homeostat.doctor.examples import Examples, examples_of, is_pair_of_tensors
from homeostat.doctor.score import score_of
from homeostat.parts.modes import map_tensors

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

Split = Literal["train", "valid"]
_BALANCED = 1.2  # between the largest and the smallest class: as good as equal
_READING = 5.0  # seconds for reading a shuffled loader's dataset in its own order
_ASKED = 64  # examples of which the loss says which class it leaves out


@dataclass(frozen=True)
class BalanceClasses(Change):
    """Draw as many training examples of every class, as many in all as there were."""

    slug: ClassVar[str] = "balance-classes"
    family: ClassVar[str] = "data"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        examples = _in_own_order(training, "train")
        labels = _class_numbers(training, examples)
        present, counts = np.unique(labels[labels >= 0], return_counts=True)
        if len(present) < 2:
            raise CannotApply("there is one class only")
        if counts.max() <= _BALANCED * counts.min():
            return
        rng = seeds.numpy_generator(0, "doctor", "balance")
        share = math.ceil(counts.sum() / len(present))
        drawn = [_drawn(np.flatnonzero(labels == number), share, rng) for number in present]
        _keep(training, "train", examples, torch.from_numpy(rng.permutation(np.concatenate(drawn))))

    @property
    def what(self) -> str:
        return "training examples drawn evenly from all classes"

    @property
    def diff(self) -> str:
        return (
            "+weights = 1 / torch.bincount(labels)[labels]\n"
            "+sampler = torch.utils.data.WeightedRandomSampler(weights, len(labels))\n"
            "-loader = DataLoader(train, batch_size, shuffle=True)\n"
            "+loader = DataLoader(train, batch_size, sampler=sampler)"
        )


@dataclass(frozen=True)
class DropAugmentation(Change):
    """Train on the examples as they are."""

    slug: ClassVar[str] = "drop-augmentation"
    family: ClassVar[str] = "augmentation"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        training.augment = None

    @property
    def what(self) -> str:
        return "no augmentation"

    @property
    def diff(self) -> str:
        return "-x = augment(x)"


@dataclass(frozen=True)
class Shuffle(Change):
    """Take the training examples in a new random order each epoch."""

    slug: ClassVar[str] = "shuffle"
    family: ClassVar[str] = "order"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        if training.shuffle:
            return
        loader = training.train
        if isinstance(loader, torch_data.DataLoader):
            if isinstance(loader.dataset, torch_data.IterableDataset):
                raise CannotApply("a stream has no other order")
            _put(training, "train", _loader_like(loader, loader.dataset, shuffle=True), training.examples("train"))
        training.shuffle = True

    @property
    def what(self) -> str:
        return "examples in random order"

    @property
    def diff(self) -> str:
        return "-loader = DataLoader(train, batch_size)\n+loader = DataLoader(train, batch_size, shuffle=True)"


@dataclass(frozen=True)
class DropNonFinite(Change):
    """Leave out the examples of both splits whose inputs or targets are not finite."""

    slug: ClassVar[str] = "drop-nonfinite"
    family: ClassVar[str] = "data"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        splits: tuple[Split, ...] = ("train", "valid")
        for split in splits:
            if training.valid is None and split == "valid":
                continue
            examples = _in_own_order(training, split)
            finite = finite_rows(examples)
            if not finite.any():
                raise CannotApply(f"no example of {split} is finite")
            if not finite.all():
                _keep(training, split, examples, finite.nonzero()[:, 0])

    @property
    def what(self) -> str:
        return "examples with numbers that are not finite left out"

    @property
    def diff(self) -> str:
        return "+finite = x.isfinite().flatten(1).all(1) & y.isfinite().flatten(1).all(1)\n+x, y = x[finite], y[finite]"


@dataclass(frozen=True)
class DropShared(Change):
    """Leave out the validation examples whose inputs occur in training."""

    slug: ClassVar[str] = "drop-shared"
    family: ClassVar[str] = "validation"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        valid = _in_own_order(training, "valid")
        kept = (~rows_in_both(training.examples("train"), valid)).nonzero()[:, 0]
        if not len(kept):
            raise CannotApply("every validation example occurs in training")
        if len(kept) < len(valid):
            _keep(training, "valid", valid, kept)

    @property
    def what(self) -> str:
        return "validation examples that occur in training left out"

    @property
    def diff(self) -> str:
        return (
            "+known = {row.numpy().tobytes() for row in x_train}\n"
            "+new = torch.tensor([row.numpy().tobytes() not in known for row in x_valid])\n"
            "+x_valid, y_valid = x_valid[new], y_valid[new]"
        )


@dataclass(frozen=True)
class MatchSplits(Change):
    """Bring the inputs of one split to the scale, or the orientation, of the other split's.

    Args:
        side: the split that is changed.
    """

    side: Split = "train"

    slug: ClassVar[str] = "match-splits"
    family: ClassVar[str] = "data"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        first, second = training.examples("train"), training.examples("valid")
        sequence = takes_features_last(training.model)
        found = compare_splits(first, second, sequence=sequence)
        if found is None or not (found.gross or found.turned):
            return
        changed, like = (first, second) if self.side == "train" else (second, first)
        if found.turned in TURNS:
            _transform(training, self.side, _Turn(found.turned))
            return
        _transform(training, self.side, _affine(changed, like, sequence, found))

    @property
    def what(self) -> str:
        other = "validation" if self.side == "train" else "training"
        return f"{'training' if self.side == 'train' else 'validation'} inputs prepared as {other} inputs are"

    @property
    def diff(self) -> str:
        a, b = ("x_train", "x_valid") if self.side == "train" else ("x_valid", "x_train")
        return (
            f"+{a} = ({a} - {a}.mean(0)) / {a}.std(0) * {b}.std(0) + {b}.mean(0)  # better: prepare both in one place"
        )


@dataclass(frozen=True, eq=False)
class _Affine:
    """input · factor + shift."""

    factor: Tensor
    shift: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        return (inputs * self.factor.to(inputs.device) + self.shift.to(inputs.device)).to(inputs.dtype)


@dataclass(frozen=True)
class _Turn:
    """Images turned over as one of `TURNS` says."""

    name: str

    def __call__(self, inputs: Tensor) -> Tensor:
        last = channel_dim(inputs.shape) == 3
        images = inputs.movedim(3, 1) if last else inputs
        turned = torch.stack([TURNS[self.name](image) for image in images])
        return turned.movedim(1, 3) if last else turned


class _Mapped(torch_data.Dataset):
    """A Dataset of pairs with a function on the inputs."""

    def __init__(self, dataset: Any, function: Callable[[Tensor], Tensor]) -> None:
        self.dataset, self.function = dataset, function

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        inputs, *rest = self.dataset[index]
        return (self.function(torch.as_tensor(inputs)[None])[0], *rest)


def _affine(changed: Examples, like: Examples, sequence: bool, found: Mismatch) -> _Affine:
    """Factor and shift that give features of `changed` the mean and deviation of `like`; one of all where it is common.

    A shift is left out where the factor alone brings the means together: both began at the same zero.
    """
    tables = [columns_of(bounded(split).inputs, sequence) for split in (changed, like)]
    common, sign = found.common or found.turned == "inverted", -1.0 if found.turned == "inverted" else 1.0
    if common:
        tables = [table.reshape(-1, 1) for table in tables]
    (mean, deviation), (goal, spread) = ((table.mean(0), table.std(0)) for table in tables)
    usable = (deviation > 0) & (spread > 0)
    if not common:
        usable &= np.isin(np.arange(len(mean)), found.different)
    factor = sign * np.where(usable, spread / np.where(deviation > 0, deviation, 1.0), 1.0)
    shift = np.where(usable, goal - factor * mean, 0.0)
    if common and bool((np.abs(shift) < 0.1 * spread).all()):
        shift = np.zeros_like(shift)
    shape = [1] * max(2, changed.inputs.dim())
    shape[channel_dim(changed.inputs.shape, last=sequence) if not common else -1] = len(factor)
    return _Affine(torch.from_numpy(factor).reshape(shape), torch.from_numpy(shift).reshape(shape))


def _drawn(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the rows, each as often as the others up to one."""
    rounds = math.ceil(count / len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:count]


def _class_numbers(training: Training, examples: Examples) -> np.ndarray:
    """The class of every example; -1 where the loss leaves it out."""
    with evaluating(training.model), seeds.isolated(0, "doctor", "classes"):
        outputs = training.predict(examples.head(_ASKED).inputs)
    score = score_of(training.task, outputs, examples.targets, training.loss)
    if score.kind not in ("multiclass", "binary") or score.dense:
        raise CannotApply("examples have no classes")
    return np.asarray(score.labels(examples.targets).cpu().numpy())


def _in_own_order(training: Training, split: Split) -> Examples:
    """All examples of a split in the order of what holds them; a shuffled loader's dataset is read again for that."""
    source = getattr(training, split)
    examples = training.examples(split)
    if isinstance(source, torch_data.DataLoader) and not isinstance(source.sampler, torch_data.SequentialSampler):
        _check_loader(source)
        plain = torch_data.DataLoader(source.dataset, source.batch_size, collate_fn=source.collate_fn)
        examples = examples_of(plain, training.unpack, split, Deadline(_READING)).to(examples.targets.device)
    if not examples.complete:
        raise CannotApply(f"only a part of {split} was read")
    return examples


def _keep(training: Training, split: Split, examples: Examples, rows: Tensor) -> None:
    """Let a split hold these rows, in this order, some perhaps more than once."""
    source: Any = getattr(training, split)
    chosen = examples.select(rows)
    chosen = Examples(chosen.inputs, chosen.targets, len(rows))
    if is_pair_of_tensors(source):
        new: Any = map_tensors(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), tuple(source))
    elif isinstance(source, torch_data.DataLoader):
        subset = torch_data.Subset(source.dataset, rows.tolist())
        new = _loader_like(source, subset, shuffle=split == "train" and training.shuffle)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        new = torch_data.Subset(source, rows.tolist())
    else:
        raise CannotApply(f"{split} is a stream")
    _put(training, split, new, chosen)


def _transform(training: Training, split: Split, function: Callable[[Tensor], Tensor]) -> None:
    """Let a split give its inputs through a function."""
    source: Any = getattr(training, split)
    known = training.examples(split)
    changed = Examples(function(known.inputs), known.targets, known.total)
    if is_pair_of_tensors(source):
        new: Any = (function(source[0]), source[1])
    elif training.unpack is not None:
        raise CannotApply(f"{split} is unpacked by a function, which would have to change")
    elif isinstance(source, torch_data.DataLoader):
        shuffle = isinstance(source.sampler, torch_data.RandomSampler)
        new = _loader_like(source, _Mapped(source.dataset, function), shuffle=shuffle)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        new = _Mapped(source, function)
    else:
        raise CannotApply(f"{split} is a stream")
    _put(training, split, new, changed)


def _put(training: Training, split: Split, source: Any, examples: Examples) -> None:
    """Exchange a split whose examples are known already."""
    training.with_data(split, source)
    training._read = {**training._read, split: examples}


def _check_loader(loader: torch_data.DataLoader) -> None:
    """Raise CannotApply for a loader that cannot be made again over other examples."""
    if isinstance(loader.dataset, torch_data.IterableDataset):
        raise CannotApply("a stream's examples cannot be chosen")
    if loader.batch_size is None or not isinstance(
        loader.sampler, torch_data.SequentialSampler | torch_data.RandomSampler
    ):
        raise CannotApply("the loader has a sampler of its own, which chooses the examples")


def _loader_like(loader: torch_data.DataLoader, dataset: Any, *, shuffle: bool) -> torch_data.DataLoader:
    """A loader with the settings of another one, over other data."""
    _check_loader(loader)
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    return torch_data.DataLoader(
        dataset,
        batch_size=loader.batch_size,
        shuffle=shuffle,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        **workers,
    )
