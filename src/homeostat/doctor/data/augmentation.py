"""What an augmentation does to labels: small networks trained on clean and on augmented data, scored on either.

A network trained on clean data tells whether augmented examples of one class look like another, both ways, as a six
upside down and a nine do; unfamiliar examples all fall to one class, and do not count. A network trained on augmented
data tells how much of what there was to learn is left. Random in weights, order and the augmentation itself, all under
`seeds.isolated`: global random state stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat import seeds
from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.flat import channel_dim, numbers_of, sample
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score

MOST_TRAIN = 2000
MOST_ASKED = 1000
LEAST_ROWS = 64  # of which a quarter is asked
STEPS = 200  # of 64 examples: six passes over 2000, after which such a network reads 95 % of handwritten digits
_BATCH = 64
_SIDE = 16  # larger images are averaged down to this: what tells digits and clothes apart is still there
_RATE = 3e-3
_FEW_OF_A_CLASS = 10


@dataclass(frozen=True)
class Confusion:
    """Two classes that an augmentation makes into each other."""

    first: int
    second: int
    shares: tuple[float, float]
    """Of augmented examples of the first that look like the second, and the other way, beyond that of clean ones."""
    error: float
    """The standard error of the smaller."""


@dataclass(frozen=True)
class AugmentFacts:
    """What becomes of labels under augmentation; skill is accuracy or R² on the way from chance (0) to perfect (1)."""

    rows: int
    """Examples asked."""
    clean: float
    """Skill of a network trained on clean examples, on clean ones."""
    kept: float
    """Skill on clean examples of a network trained on augmented ones: what augmented training still teaches."""
    left: float
    """Skill of that network on augmented examples: what they still tell."""
    error: float
    """The standard error of a skill."""
    factor: float
    """Deviation of augmented numbers / of clean ones."""
    nonfinite: float
    """The share of augmented examples with numbers that are not finite."""
    swapped: Confusion | None = None
    """The two classes that are most often made into each other."""


def examine_augmentation(
    augment: Callable[[Any], Any], train: Examples, score: Score, deadline: Deadline, seed: int = 0
) -> AugmentFacts | None:
    """What `augment` does to the labels of the training split; None where that cannot be asked.

    Args:
        augment: inputs -> inputs, as the training has it; it gets copies.
        train: the training split.
        score: tells what the labels are.
        deadline: the networks are trained no longer than this; None if the first does not get through.
        seed: of everything drawn.
    """
    if score.kind == "other" or score.dense or numbers_of(train) is None or len(train) < LEAST_ROWS:
        return None
    chosen = sample(train, MOST_TRAIN + MOST_ASKED, seed, "augmentation")
    labels = _labels(chosen, score)
    if labels is None:
        return None
    with seeds.isolated(seed, "doctor", "augmentation"):
        rows = torch.randperm(len(chosen))
        count = min(MOST_ASKED, len(rows) // 4)
        parts = [(chosen.inputs[part].detach().cpu(), labels[part]) for part in (rows[count:], rows[:count])]
        return _compared(augment, parts[0], parts[1], score, deadline)


Part = tuple[Tensor, Tensor]


def _compared(
    augment: Callable[[Any], Any], known: Part, asked: Part, score: Score, deadline: Deadline
) -> AugmentFacts | None:
    augmented = _in_batches(augment, asked[0])
    if not isinstance(augmented, Tensor) or augmented.shape[0] != len(asked[0]):
        return None
    finite = torch.isfinite(augmented.flatten(1)).all(1)
    if not finite.any():
        return AugmentFacts(len(asked[0]), math.nan, 0.0, 0.0, 0.0, math.nan, 1.0)
    ready = _Scaling(known[0])
    plain = _trained(known, lambda x: x, ready, score, deadline.share(0.5))
    changed = _trained(known, augment, ready, score, deadline)
    if plain is None or changed is None:
        return None
    outputs = {
        "clean": _answers(plain, ready(asked[0])),
        "turned": _answers(plain, ready(augmented)),
        "kept": _answers(changed, ready(asked[0])),
        "left": _answers(changed, ready(augmented)),
    }
    skills = {name: _skill(output, asked[1], score) for name, output in outputs.items()}
    spread = float(augmented[finite].double().std() / known[0].double().std().clamp_min(1e-12))
    return AugmentFacts(
        rows=len(asked[0]),
        clean=skills["clean"],
        kept=skills["kept"],
        left=skills["left"],
        error=1.0 / math.sqrt(len(asked[0])),
        factor=spread,
        nonfinite=1.0 - float(finite.double().mean()),
        swapped=_swapped(outputs["clean"], outputs["turned"], asked[1]) if _is_classes(score) else None,
    )


class _Scaling:
    """Inputs made ready for the networks: images small, numbers finite, by the mean and deviation of clean inputs."""

    def __init__(self, inputs: Tensor) -> None:
        self._columns = inputs.dim() <= 2
        small = self._small(inputs)
        dims = 0 if self._columns else tuple(range(small.dim()))
        self._mean, deviation = small.mean(dims), small.std(dims)
        self._deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.nan_to_num((self._small(inputs) - self._mean) / self._deviation, 0.0, 0.0, 0.0)

    def _small(self, inputs: Tensor) -> Tensor:
        values = inputs.detach().float()
        if values.dim() == 4:
            values = values.movedim(3, 1) if channel_dim(values.shape) == 3 else values
            height, width = (min(_SIDE, size) for size in values.shape[2:])
            if values[0, 0].numel() > height * width:
                values = F.adaptive_avg_pool2d(values, (height, width))
            return values.contiguous(memory_format=torch.channels_last)  # a third faster on a processor
        return values.flatten(1)


def _trained(
    known: Part, augment: Callable[[Any], Any], ready: _Scaling, score: Score, deadline: Deadline
) -> nn.Module | None:
    """A small network trained on augmented examples; None if time is up before half of its steps."""
    torch.manual_seed(seeds.derive(0, "doctor", "augmentation", "network"))
    inputs, labels = known
    model = _network(ready(inputs[:2]), labels, score)
    optimizer = torch.optim.Adam(model.parameters(), _RATE)
    done = 0
    while done < STEPS:
        for rows in torch.randperm(len(inputs)).split(_BATCH):
            if done >= STEPS:
                break
            if deadline.passed:
                return model.eval() if done >= STEPS // 2 else None
            optimizer.zero_grad()
            batch = augment(inputs[rows].clone())
            _loss(model(ready(batch)), labels[rows], score).backward()
            optimizer.step()
            done += 1
    return model.eval()


def _network(inputs: Tensor, labels: Tensor, score: Score) -> nn.Module:
    """Three convolutions for images, else two layers; small enough for a second of training on one core."""
    outputs = score.classes if _is_classes(score) else labels.shape[1]
    if inputs.dim() != 4 or min(inputs.shape[2:]) < 8:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 64), nn.ReLU(), nn.Linear(64, outputs))
    layers: list[nn.Module] = []
    for source, width in ((inputs.shape[1], 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(source, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers[:-1], nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(32 * 9, outputs))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _loss(output: Tensor, labels: Tensor, score: Score) -> Tensor:
    if _is_classes(score):
        return F.cross_entropy(output, labels)
    if score.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(output, labels)
    return F.mse_loss(output, labels)


def _answers(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in inputs.split(256)])


def _skill(output: Tensor, labels: Tensor, score: Score) -> float:
    """From 0 for the best constant answer to 1."""
    if score.kind == "regression":
        residual = float(((output - labels) ** 2).mean())
        return max(0.0, 1.0 - residual / max(float(labels.var(0, correction=0).mean()), 1e-12))
    if score.kind == "multilabel":
        right = float(((output > 0) == (labels > 0.5)).float().mean())
        share = labels.mean(0)
        chance = float(torch.maximum(share, 1 - share).mean())
    else:
        right = float((output.argmax(1) == labels).float().mean())
        chance = float(labels.bincount().max() / len(labels))
    return max(0.0, (right - chance) / max(1.0 - chance, 1e-12))


def _swapped(clean: Tensor, turned: Tensor, labels: Tensor) -> Confusion | None:
    """The pair of classes with the largest share of examples made into the other, the smaller of both ways."""
    classes = clean.shape[1]
    counts = labels.bincount(minlength=classes)
    usable = counts >= _FEW_OF_A_CLASS
    if int(usable.sum()) < 2:
        return None
    tables = []
    for answers in (turned, clean):
        table = torch.zeros(classes, classes)
        table.index_put_((labels, answers.argmax(1)), torch.ones(len(labels)), accumulate=True)
        tables.append(table / counts.clamp_min(1)[:, None])
    more = torch.where(usable[:, None] & usable[None, :], tables[0] - tables[1], 0.0).fill_diagonal_(0.0)
    mutual = torch.minimum(more, more.T)
    first, second = divmod(int(mutual.argmax()), classes)
    if first == second:
        return None
    shares = (float(more[first, second]), float(more[second, first]))
    least = first if shares[0] <= shares[1] else second
    return Confusion(first, second, shares, math.sqrt(0.25 / int(counts[least])))


def _in_batches(augment: Callable[[Any], Any], inputs: Tensor) -> Any:
    parts = [augment(part.clone()) for part in inputs.split(_BATCH)]
    return torch.cat(parts).detach().cpu() if all(isinstance(part, Tensor) for part in parts) else None


def _labels(examples: Examples, score: Score) -> Tensor | None:
    """Class numbers (N,) int64; columns (N, K) float32, those of values standardized; None if some cannot be used."""
    labels = score.labels(examples.targets).cpu()
    if _is_classes(score):
        usable = labels.dim() == 1 and bool((labels >= 0).all()) and bool((labels < score.classes).all())
        return labels if usable and len(labels.unique()) > 1 else None
    values = labels.float()
    if not torch.isfinite(values).all() or values.shape[1] > 64:
        return None
    if score.kind == "multilabel":
        return values if bool((values >= 0).all()) else None
    deviation = values.std(0)
    if not bool((deviation > 0).any()):
        return None
    return (values - values.mean(0)) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def _is_classes(score: Score) -> bool:
    return score.kind in ("multiclass", "binary")
