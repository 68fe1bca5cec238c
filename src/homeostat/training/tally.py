"""What the batches of a split come to: the mean loss, and the metric. Nothing here is random."""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.training.metrics import METRICS
from homeostat.training.task import Task

_HELD = 2**24  # numbers, 64 MiB of float32: more is counted up where it can be


class Tally:
    """Adds up batches of a split, on their device and without waiting for it.

    A metric is computed once over the whole split, so outputs are kept until then; but what is a share of right answers
    can be counted in between, so that a thousand classes of a million pictures never stand in memory at once.

    Example:
        >>> import homeostat as hs
        >>> tally = Tally(hs.load_task("digits"))
        >>> tally.add(torch.tensor(0.5), torch.eye(3), torch.tensor([0, 1, 1]))
        >>> {name: round(value, 3) for name, value in tally.metrics("valid").items()}
        {'valid_loss': 0.5, 'valid_accuracy': 0.667}
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._right = METRICS[task.metric].right if isinstance(task.metric, str) else None
        self._losses: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._examples = self._held = self._answers = 0
        self._hits: list[Tensor] = []

    def add(self, loss: Tensor, output: Tensor, target: Tensor) -> None:
        """Take a batch: its mean loss, the model's output (N, ...) and the target (N, ...)."""
        self._losses.append(loss.detach() * len(target))
        self._outputs.append(output.detach())
        self._targets.append(target)
        self._examples += len(target)
        self._held += output.numel()
        if self._right is not None and self._held > _HELD:
            self._count()

    def metrics(self, split: str) -> dict[str, float]:
        """The mean loss and the metric, by their names with the split ahead."""
        loss = float(torch.stack(self._losses).sum()) / self._examples
        return {f"{split}_loss": loss, f"{split}_{self.task.metric_name}": self._measured()}

    def _measured(self) -> float:
        if not self._hits:
            return self.task.measure(torch.cat(self._outputs), torch.cat(self._targets))
        if self._outputs:
            self._count()
        return float(torch.stack(self._hits).sum()) / self._answers

    def _count(self) -> None:
        """Count the right answers of what is held, and let go of it."""
        assert self._right is not None
        right = self._right(torch.cat(self._outputs), torch.cat(self._targets))
        self._hits.append(right.sum())
        self._answers += right.numel()
        self._outputs, self._targets, self._held = [], [], 0
