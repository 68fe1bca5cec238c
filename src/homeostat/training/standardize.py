"""Input standardization: (x - mean) / deviation, with constants measured once on the training split.

Per channel for images, per column for vectors; measured in double precision, applied in float32. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from homeostat.errors import invalid
from homeostat.training.sources import Source


@dataclass(frozen=True)
class Standardization:
    """The constants of (x - mean) / deviation: one pair per channel of an image or per column of a vector.

    Example:
        >>> Standardization((2.0,), (4.0,)).apply(torch.tensor([[10.0]]))
        tensor([[2.]])
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    _rows: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict, repr=False, compare=False, init=False)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.deviation) or not self.mean:
            lengths = (len(self.mean), len(self.deviation))
            raise invalid("Standardization", "mean and deviation", "have the same length, at least 1", lengths)
        if not all(value > 0 for value in self.deviation):
            raise invalid("Standardization", "deviation", "be positive", self.deviation)

    def __reduce__(self) -> tuple[Any, ...]:
        return Standardization, (self.mean, self.deviation)  # without the rows, which may lie on a device

    def apply(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W) or (N, C), of any number type, as standardized float32; images come out channels_last.

        A batch is treated as rows of H·W·C numbers against rows of constants of that length: broadcasting over a last
        dimension of three channels took five times as long on a CPU.
        """
        image = x.ndim == 4
        if x.ndim not in (2, 4) or x.shape[1] != len(self.mean):
            expected = f"have {len(self.mean)} channels or columns in its second dimension"
            raise invalid("Standardization.apply", "x", expected, x)
        stored = x.permute(0, 2, 3, 1).contiguous() if image else x
        rows = stored.reshape(len(x), -1)
        mean, scale, shift = self._constants(rows.shape[1], x.device)
        if x.dtype == torch.uint8:
            # x·scale + shift: one pass after the conversion, and exact enough for values up to 255
            result = torch.addcmul(shift, rows.to(torch.float32), scale)
        else:
            # the mean is taken off first: columns such as a year have a mean much larger than their deviation
            result = (rows.to(torch.float32) - mean).mul_(scale)
        return result.reshape(stored.shape).permute(0, 3, 1, 2) if image else result

    def to_dict(self) -> dict[str, Sequence[float]]:
        """The constants, JSON-able."""
        return {"mean": list(self.mean), "deviation": list(self.deviation)}

    def _constants(self, length: int, device: torch.device) -> tuple[Tensor, ...]:
        """Rows of mean, 1/deviation and -mean/deviation, repeated to `length`; kept per length and device."""
        found = self._rows.get((length, device))
        if found is None:
            mean, deviation = torch.tensor(self.mean).double(), torch.tensor(self.deviation).double()
            rows = torch.stack([mean, 1 / deviation, -mean / deviation]).repeat(1, length // len(self.mean))
            found = self._rows[length, device] = tuple(rows.to(device, torch.float32))
        return found


def measured(source: Source, kind: str) -> Standardization:
    """The mean and deviation of a split's inputs, per channel or column, in one pass (Chan's merge, double precision).

    A channel or column that never varies gets the deviation 1.

    Raises: InvalidValue if the inputs are neither images nor vectors, or the source is a stream.
    """
    if kind not in ("image", "vector") or source.fixed_batches:
        cure = "Standardize inside the dataset or the model, and pass standardize=False."
        raise invalid("Task", "standardize", "be False for a stream or for inputs of this shape", True, cure)
    count = 0
    mean = square = torch.zeros(())
    for x, _ in source.batches(0, 0, 1024):
        values = x.double().transpose(0, 1).flatten(1).cpu()
        part_count = values.shape[1]
        part_variance, part_mean = torch.var_mean(values, dim=1, correction=0)
        delta, total = part_mean - mean, count + part_count
        square = square + part_variance * part_count + delta.square() * (count * part_count / total)
        mean = mean + delta * (part_count / total)
        count = total
    deviation = (square / count).sqrt()
    # a column that is constant up to rounding has no deviation to divide by
    deviation = torch.where(deviation > 1e-12 * (1 + mean.abs()), deviation, torch.ones_like(deviation))
    return Standardization(tuple(mean.tolist()), tuple(deviation.tolist()))
