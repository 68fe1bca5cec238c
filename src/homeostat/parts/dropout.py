"""Dropout by probability: a module, and the probability of all dropout modules that a model already has.

In training a unit is set to zero with probability p and the others are divided by 1 - p (the inverted form), so that
evaluation needs no factor. The layers are those of `homeostat.nn`; putting them into a model is the work of `surgery`.
Random in training: a seed per call from torch's global generator decides the mask.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from homeostat import nn as fast
from homeostat.errors import invalid


def make_dropout(p: float) -> fast.Dropout:
    """A new dropout layer that zeroes single units.

    Args:
        p: the probability of dropping a unit, in [0, 1].
    Raises: InvalidValue if p lies outside [0, 1].
    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, where p is that of keeping.
    """
    check_probability("make_dropout", p)
    return fast.Dropout(p)


def set_p_(model: nn.Module, p: float) -> list[str]:
    """Give every dropout layer of the model the probability p; also those for whole channels and alpha dropout.

    Attention layers that drop attention weights, and recurrent layers that drop between layers, keep their own number:
    it is not a dropout module.

    Args:
        model: changed in place; a layer that has p already is not counted.
        p: the probability of dropping, in [0, 1]; with 0 the layers stay and do nothing.
    Returns: the names of the layers that changed.
    Raises: InvalidValue if p lies outside [0, 1].
    Example:
        >>> set_p_(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), 0.1)
        ['1']
    """
    check_probability("set_p_", p)
    changed = []
    for name, module in model.named_modules():
        if is_dropout(module) and module.p != p:
            module.p = p
            changed.append(name)
    return changed


def is_dropout(module: nn.Module) -> bool:
    """Whether the module is one of torch's dropout layers."""
    return isinstance(module, _DropoutNd)


def check_probability(where: str, p: float) -> None:
    """Raise an error in `where`'s name unless p is a number in [0, 1]."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise invalid(where, "p", "be a number in [0, 1]", p, "p is the probability of dropping a unit.")
