"""Options of an optimizer, one per group: read, set, and shown as lines of code. Not random."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Numbers = tuple[float, ...]


def settings_of(optimizer: Optimizer, option: str) -> Numbers:
    """A number of every group that has it."""
    found = [group[option] for group in optimizer.param_groups if isinstance(group.get(option), int | float | Tensor)]
    return tuple(float(value) for value in found)


def momenta_of(optimizer: Optimizer) -> Numbers:
    """The momentum of every group, by whatever name it goes."""
    found = [group["betas"][0] if "betas" in group else group.get("momentum") for group in optimizer.param_groups]
    return tuple(float(value) for value in found if value is not None)


def set_option(group: dict[str, Any], option: str, value: float) -> None:
    """Set a number of a group; one that is a tensor, as in captured graphs, stays one."""
    if isinstance(group.get(option), Tensor):
        group[option] = torch.full_like(group[option], value)
    else:
        group[option] = value


def shown(values: Numbers) -> str:
    """A few numbers; one where all are the same."""
    return ", ".join(f"{value:g}" for value in dict.fromkeys(values)) or "?"


def option_diff(kind: str, option: str, before: Numbers, after: Numbers) -> str:
    """The lines that change an option of an optimizer, in its constructor where all groups agree."""
    if len(set(before)) <= 1 and len(set(after)) <= 1:
        old, new = shown(before), shown(after)
        return changed_line(
            f"torch.optim.{kind}(model.parameters(), {option}={old})",
            f"torch.optim.{kind}(model.parameters(), {option}={new})",
        )
    lines = []
    for index, (old_value, new_value) in enumerate(zip(before, after, strict=True)):
        if not math.isclose(old_value, new_value, rel_tol=1e-12):
            lines += [
                f'-optimizer.param_groups[{index}]["{option}"] = {old_value:g}',
                f'+optimizer.param_groups[{index}]["{option}"] = {new_value:g}',
            ]
    return "\n".join(lines)


def changed_line(old: str, new: str) -> str:
    """The lines that make an optimizer otherwise."""
    return f"-optimizer = {old}\n+optimizer = {new}"
