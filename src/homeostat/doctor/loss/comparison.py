"""Whether the outputs that a loss asks for can be held against the targets: values for values, a score for each class.

Log-rates, values in another unit and embeddings cannot, however well the model is trained. Not random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.doctor.loss.black_box import BlackBox
from homeostat.doctor.loss.layout import Layout

_AGREE = 0.95  # R² of outputs that are perfect by the loss; less would pass for an illness (health.MARGIN)
_REACH = 1e3  # times the largest target: how far from zero perfect outputs are looked for
_HALVINGS = 60
_STILL = 1e-12  # of the reach: perfect outputs that differ by less are the same


def aims_at_targets(box: BlackBox, outputs: Tensor, targets: Tensor, layout: Layout) -> bool | None:
    """Whether perfect outputs, at which the loss of every example is least, are the targets, up to a little.

    Args:
        box: the loss.
        outputs: shape (N, ...); only their shape and device are used.
        targets: as many numbers as outputs.
        layout: of form "same".
    Returns: False only where perfect outputs are another increasing function of the targets, as log-rates are; None
        where there are none, or where they do not follow the targets, as those of a faulty loss.
    Example:
        >>> targets = torch.tensor([[1.0], [2.0], [5.0], [9.0], [20.0]])
        >>> layout = Layout("same")
        >>> losses = torch.nn.functional.mse_loss, torch.nn.functional.poisson_nll_loss
        >>> [aims_at_targets(BlackBox(loss), targets, targets, layout) for loss in losses]
        [True, False]
    """
    goals = layout.one_hot(outputs, targets).to(outputs.device).reshape(len(targets), -1)
    inner = (goals > goals.amin(0)) & (goals < goals.amax(0))  # at its ends a range may be reached by no output
    reach = _REACH * max(1.0, float(goals.abs().max()))
    low, high = torch.full_like(goals, -reach), torch.full_like(goals, reach)

    def slopes(at: Tensor) -> Tensor:
        gradient = box.read(at.reshape(outputs.shape), targets).gradient
        if gradient is None:
            raise ValueError("the loss has no gradient there")
        return gradient.reshape(at.shape)

    bounded = (slopes(low) < 0) & (slopes(high) > 0)
    if not inner.any() or not bool(bounded[inner].all()):
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beyond = slopes(middle) >= 0
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    spread = float(high[inner].max() - high[inner].min())
    ways = high.gather(0, goals.argsort(0)).diff(dim=0)
    if spread <= _STILL * reach or float(ways.min()) < -1e-6 * spread:
        return None
    total = (goals - goals.mean(0))[inner].square().sum()
    return bool((high - goals)[inner].square().sum() <= (1 - _AGREE) * total)


def counts_numbers(box: BlackBox, probes: list[tuple[Tensor, Tensor]], targets: Tensor) -> bool | None:
    """Whether it matters which number a class has: not to a loss that only asks which examples are of one class.

    Args:
        box: the loss.
        probes: outputs (N, ...) with the gradient of the loss there.
        targets: class numbers; negative ones are to be ignored.
    Returns: None where that cannot be asked.
    """
    present = targets[targets >= 0].unique()
    if len(present) < 2:
        return None
    others = torch.arange(int(present.max()) + 1, device=targets.device).to(targets.dtype)
    others[present.long()] = present.roll(1)
    renumbered = torch.where(targets >= 0, others[targets.clamp(min=0).long()], targets)
    for probe, gradient in probes:
        reading = box.read(probe, renumbered)
        if not reading.usable or reading.gradient is None:
            return None
        if float((reading.gradient - gradient).norm()) > 1e-6 * float(gradient.norm()):
            return True
    return False
