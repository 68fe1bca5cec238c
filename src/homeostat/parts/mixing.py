"""Mixing of examples within a batch: mixup blends two, cutmix pastes a box of one into the other; targets follow.

`mixup` and `cutmix` are functions; `Mixup` is a callable with timm's arguments that does one or the other. Random, but
only through the given generator (None: torch's own on the CPU); the input is not changed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown

MODES: tuple[str, ...] = ("batch", "elem")
"""Whether a batch shares one draw, as in the papers, or each example (timm's "element") has its own."""


def mixup(
    input: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    *,
    num_classes: int | None = None,
    generator: torch.Generator | None = None,
    label_smoothing: float = 0.0,
    per_batch: bool = False,
) -> tuple[Tensor, Tensor]:
    """Blend every example with another one of the batch, and their targets in the same proportion.

    x̃ = λ x + (1 - λ) x', ỹ = λ y + (1 - λ) y', with λ ~ Beta(α, α) and x' from a random permutation of the batch.

    Args:
        input: (N, ...), floating, or uint8, which is rounded.
        target: class indices, int64 (N,), or floating targets (N, ...), which are mixed as they are: soft labels,
            or numbers to be predicted.
        alpha: of the Beta distribution; positive. Small values leave most examples nearly as they are.
        num_classes: how many columns class indices become; needed for them, and only for them.
        generator: where draws come from, on any device.
        label_smoothing: which share of a class index's weight is spread over all classes, in [0, 1].
        per_batch: True: one λ for the whole batch, as in the paper; False: one for each example.
    Returns: the input's shape and dtype, and floating targets: (N, num_classes), float32 or the input's float64, for
        class indices. torch.nn.functional.cross_entropy takes them as they are.
    Raises: InvalidValue, InvalidType for arguments outside of what is said above.
    Source: Zhang et al. 2018, arXiv:1710.09412.
    Example:
        >>> images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed, soft = mixup(images, labels, 0.2, num_classes=3, generator=torch.Generator().manual_seed(0))
        >>> mixed.shape, soft.sum(1)
        (torch.Size([4, 3, 8, 8]), tensor([1., 1., 1., 1.]))
    """
    _check_alpha("mixup", "alpha", alpha)
    soft = _soft("mixup", input, target, num_classes, label_smoothing)
    draws = _Draws(generator)
    lam = draws.beta(alpha, 1 if per_batch else len(input)).expand(len(input))
    partner = draws.permutation(len(input)).to(input.device)
    return _blended(input, partner, lam), _blended(soft, partner, lam)


def cutmix(
    input: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    *,
    num_classes: int | None = None,
    generator: torch.Generator | None = None,
    label_smoothing: float = 0.0,
    per_batch: bool = False,
) -> tuple[Tensor, Tensor]:
    """Paste a box of another example into every example, and mix their targets by the areas.

    With λ ~ Beta(α, α), the box has sides √(1 - λ) as long as the image's; its center is uniform over the image, and
    what sticks out is cut off. The targets' proportion is that of the pixels that were really replaced.

    Args:
        input: images (N, C, H, W), any dtype.
        target, alpha, num_classes, generator, label_smoothing: as for `mixup`.
        per_batch: True: one λ and one box for the whole batch, as in the paper; False: one for each example.
    Returns: like `mixup`.
    Raises: InvalidValue, InvalidType for arguments outside of what is said for `mixup`, and for inputs without height
        and width.
    Source: Yun et al. 2019, arXiv:1905.04899.
    Example:
        >>> images, labels = torch.eye(2)[:, :, None, None].expand(2, 2, 10, 10), torch.tensor([0, 1])
        >>> mixed, soft = cutmix(images, labels, num_classes=2, generator=torch.Generator().manual_seed(1))
        >>> torch.allclose(mixed.mean((2, 3)), soft)
        True
    """
    _check_alpha("cutmix", "alpha", alpha)
    soft = _soft("cutmix", input, target, num_classes, label_smoothing)
    _check_images("cutmix", input)
    draws = _Draws(generator)
    count = 1 if per_batch else len(input)
    boxes = _boxes(draws, draws.beta(alpha, count), input.shape[2], input.shape[3])
    partner = draws.permutation(len(input)).to(input.device)
    covered = _covered(boxes, input).expand(len(input), -1, -1, -1)
    return torch.where(covered, input[partner], input), _blended(soft, partner, _visible(boxes, input))


class Mixup:
    """Mixup or cutmix, example by example or batch by batch, with the arguments of timm.data.Mixup.

    Each time one of the two is chosen: cutmix with probability `switch_prob` where both are on. Differences from timm:
    the partner is drawn, not the batch's mirror image; batches may be odd; the input is not changed; a generator is
    accepted. timm's mode "pair" does not exist here.

    Args:
        mixup_alpha, cutmix_alpha: of the Beta distributions; 0 turns mixup, or cutmix, off.
        cutmix_minmax: instead of drawing the area by `cutmix_alpha`, draw each side of the box uniformly between these
            shares of the image's, and place it inside.
        prob: how often a batch, or an example, is mixed at all.
        switch_prob: how often it is cutmix where both are on.
        mode: "batch": one draw for all examples; "elem": one for each.
        correct_lam: whether targets follow the area that was really replaced, or the one drawn, before clipping.
        label_smoothing: which share of a target's weight is spread over all classes, also where nothing is mixed.
        num_classes: how many classes there are.
        generator: where draws come from; None takes torch's own on the CPU.
    Attributes:
        mixup_enabled: set it to False to only turn class indices into (smoothed) soft targets.
    Source: Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899; Wightman 2019, timm.
    Example:
        >>> mix = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=10, generator=torch.Generator().manual_seed(0))
        >>> images, targets = mix(torch.rand(5, 3, 32, 32), torch.arange(5))
        >>> targets.shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: tuple[float, float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            _check_alpha("Mixup", name, alpha, zero=True)
        for name, share in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
            _check_share("Mixup", name, share)
        if cutmix_minmax is not None:
            _check_minmax(cutmix_minmax)
            cutmix_alpha = 1.0
        if not mixup_alpha and not cutmix_alpha:
            raise invalid("Mixup", "mixup_alpha", "be positive where cutmix is off", mixup_alpha)
        if mode not in MODES:
            raise unknown("Mixup", "mode", mode, MODES)
        _check_classes("Mixup", num_classes)
        self.mixup_alpha, self.cutmix_alpha, self.cutmix_minmax = mixup_alpha, cutmix_alpha, cutmix_minmax
        self.prob, self.switch_prob, self.mode, self.correct_lam = prob, switch_prob, mode, correct_lam
        self.label_smoothing, self.num_classes, self.generator = label_smoothing, num_classes, generator
        self.mixup_enabled = True

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed batch.

        Args:
            x: images (N, C, H, W); anything (N, ...) where cutmix is off.
            target: class indices, int64 (N,), or soft targets (N, num_classes).
        """
        soft = _soft("Mixup", x, target, self.num_classes, self.label_smoothing)
        if self.cutmix_alpha:
            _check_images("Mixup", x)
        if not self.mixup_enabled:
            return x, soft
        n, draws = len(x), _Draws(self.generator)
        count = 1 if self.mode == "batch" else n
        acts = draws.uniform(count) < self.prob
        cuts = acts & (draws.uniform(count) < self._share_of_cutmix())
        partner = draws.permutation(n).to(x.device)
        lam = torch.ones(count, dtype=torch.float64, device="cpu")
        if self.mixup_alpha:
            lam = torch.where(acts & ~cuts, draws.beta(self.mixup_alpha, count), lam)
        blended = _blended(x, partner, lam.expand(n)) if self.mixup_alpha else x
        if not self.cutmix_alpha:
            return blended, _blended(soft, partner, lam.expand(n))
        area = draws.beta(self.cutmix_alpha, count)
        boxes = self._boxes(draws, area, x) * cuts[:, None]
        mixed = torch.where(_covered(boxes, x).expand(n, -1, -1, -1), x[partner], blended)
        exact = self.correct_lam or self.cutmix_minmax is not None
        lam = torch.where(cuts, _visible(boxes, x) if exact else area, lam)
        return mixed, _blended(soft, partner, lam.expand(n))

    def _share_of_cutmix(self) -> float:
        return (self.switch_prob if self.mixup_alpha else 1.0) if self.cutmix_alpha else 0.0

    def _boxes(self, draws: _Draws, lam: Tensor, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.cutmix_minmax is None:
            return _boxes(draws, lam, height, width)
        low, high = self.cutmix_minmax
        edges = []
        for size in (height, width):
            least, most = round(size * low), round(size * high)
            length = least + (draws.uniform(len(lam)) * (most - least + 1)).long()
            first = (draws.uniform(len(lam)) * (size - length + 1)).long()
            edges += [first, first + length]
        return torch.stack(edges, 1)

    def __repr__(self) -> str:
        names = "mixup_alpha cutmix_alpha cutmix_minmax prob switch_prob mode correct_lam label_smoothing num_classes"
        return f"Mixup({', '.join(f'{name}={getattr(self, name)!r}' for name in names.split())})"


class _Draws:
    """Draws of one call, all from one number that the generator gave."""

    def __init__(self, generator: torch.Generator | None) -> None:
        device = "cpu" if generator is None else generator.device
        words = torch.empty(2, dtype=torch.int64, device=device).random_(generator=generator)
        self._numbers = np.random.default_rng(words.tolist())

    def beta(self, alpha: float, count: int) -> Tensor:
        return torch.from_numpy(self._numbers.beta(alpha, alpha, count))

    def uniform(self, count: int) -> Tensor:
        return torch.from_numpy(self._numbers.random(count))

    def permutation(self, count: int) -> Tensor:
        return torch.from_numpy(self._numbers.permutation(count))


def _boxes(draws: _Draws, lam: Tensor, height: int, width: int) -> Tensor:
    """Boxes of area 1 - λ before they are clipped: (top, bottom, left, right), int64 (N, 4)."""
    edges = []
    for size in (height, width):
        length = ((1 - lam).sqrt() * size).long()
        first = (draws.uniform(len(lam)) * size).long() - length // 2
        edges += [first.clamp(min=0), (first + length).clamp(max=size)]
    return torch.stack(edges, 1)


def _covered(boxes: Tensor, images: Tensor) -> Tensor:
    """Where the boxes are, (N, 1, H, W)."""
    top, bottom, left, right = boxes.to(images.device)[:, :, None].unbind(1)
    row, column = (torch.arange(size, device=images.device) for size in images.shape[2:])
    return ((row >= top) & (row < bottom))[:, None, :, None] & ((column >= left) & (column < right))[:, None, None, :]


def _visible(boxes: Tensor, images: Tensor) -> Tensor:
    """The share of the image that is not in the box, float64 (N,)."""
    top, bottom, left, right = boxes.unbind(1)
    return 1 - ((bottom - top) * (right - left)).double() / (images.shape[2] * images.shape[3])


def _blended(values: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """λ v + (1 - λ) v', in the values' own dtype; λ is float64 (N,) or (1,)."""
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    share = lam.to(wide).to(values.device).view(-1, *[1] * (values.dim() - 1))
    blended = share * values.to(wide) + (1 - share) * values[partner].to(wide)
    if values.dtype == torch.uint8:
        blended = blended.round()
    return torch.where(share == 1, values, blended.to(values.dtype))  # untouched, even beside what is not finite


def _soft(where: str, input: Tensor, target: Tensor, num_classes: int | None, label_smoothing: float) -> Tensor:
    """The targets as floating numbers; raise an error for what cannot be mixed."""
    if not isinstance(input, Tensor) or not (input.is_floating_point() or input.dtype == torch.uint8):
        raise invalid_type(where, "input", "be a floating or uint8 tensor", input)
    if not isinstance(target, Tensor):
        raise invalid_type(where, "target", "be a tensor", target)
    if not input.dim() or not target.dim() or len(target) != len(input):
        raise invalid(where, "target", f"have one entry per example ({len(input) if input.dim() else 0})", target)
    _check_share(where, "label_smoothing", label_smoothing)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    if target.is_floating_point():
        if num_classes is not None and (target.dim() != 2 or target.shape[1] != num_classes):
            raise invalid(where, "target", f"have shape (N, {num_classes}), or be class indices", target)
        if label_smoothing and num_classes is None:
            raise invalid(where, "label_smoothing", "be 0 for targets that are no classes", label_smoothing)
        return target * (1 - label_smoothing) + label_smoothing / num_classes if num_classes else target
    if target.dtype == torch.bool or target.dim() != 1:
        raise invalid(where, "target", "be class indices (N,) or floating", target)
    if num_classes is None:
        raise invalid(where, "num_classes", "be given for class indices", None, "Soft targets have a column per class.")
    _check_classes(where, num_classes)
    least, most = (int(value) for value in target.aminmax()) if len(target) else (0, 0)
    if least < 0 or most >= num_classes:
        raise invalid(where, "target", f"lie in 0..{num_classes - 1}", [least, most], "These are its extremes.")
    off = label_smoothing / num_classes
    soft = torch.full((len(target), num_classes), off, dtype=wide, device=target.device)
    return soft.scatter_(1, target.long()[:, None], 1 - label_smoothing + off)


def _check_alpha(where: str, name: str, alpha: Any, *, zero: bool = False) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise invalid_type(where, name, "be a number", alpha)
    if not (math.isfinite(alpha) and (alpha > 0 or (zero and alpha == 0))):
        raise invalid(where, name, f"be finite and {'at least 0' if zero else 'positive'}", alpha)


def _check_share(where: str, name: str, share: Any) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise invalid_type(where, name, "be a number", share)
    if not 0 <= share <= 1:
        raise invalid(where, name, "lie in [0, 1]", share)


def _check_minmax(pair: Any) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise invalid_type("Mixup", "cutmix_minmax", "be two numbers, such as (0.2, 0.8)", pair)
    for share in pair:
        _check_share("Mixup", "cutmix_minmax", share)
    if pair[0] > pair[1]:
        raise invalid("Mixup", "cutmix_minmax", "give the least number first", pair)


def _check_classes(where: str, count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise invalid(where, "num_classes", "be an integer of at least 1", count)


def _check_images(where: str, input: Tensor) -> None:
    if input.dim() != 4 or not all(input.shape[2:]):
        cure = "cutmix pastes boxes of height and width; mixup blends anything."
        raise invalid(where, "input", "be images (N, C, H, W)", input, cure)
