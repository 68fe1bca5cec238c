"""What `watch` can find, by code: pattern, causes, severity and remedy in one table. Nothing here is random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from homeostat.doctor.finding import Finding, Severity


class _Notice(NamedTuple):
    slug: str
    severity: Severity
    causes: tuple[str, ...]
    remedy: str


_NOTICES: dict[str, _Notice] = {
    "OPT008": _Notice(
        "parameters-not-in-optimizer",
        "warning",
        ("parameters_not_optimized", "frozen_parameters"),
        "Give them to the optimizer: add_param_group, or make it of model.parameters() once the model is complete. "
        "If they are meant to stay as they are, requires_grad_(False) says so and saves their gradients.",
    ),
    "OPT009": _Notice(
        "missing-zero-grad",
        "error",
        ("missing_zero_grad",),
        "Call optimizer.zero_grad() once per step, before backward().",
    ),
    "GRD001": _Notice(
        "vanishing-gradient",
        "warning",
        ("vanishing_gradient",),
        "Use activations that do not saturate (relu, gelu) with the initialization that suits them, normalization, or "
        "skip connections.",
    ),
    "GRD002": _Notice(
        "exploding-gradient",
        "warning",
        ("exploding_gradient",),
        "Lower the learning rate, clip the gradient's norm, or normalize inputs and layers.",
    ),
    "GRD003": _Notice(
        "disconnected-parameters",
        "warning",
        ("disconnected_parameters", "frozen_parameters"),
        "Look for detach(), no_grad(), .data, .item() or argmax between these parameters and the loss.",
    ),
    "NRM010": _Notice(
        "eval-mode-while-training",
        "warning",
        ("eval_mode_while_training",),
        "Call model.train() before the training steps, and again after each validation.",
    ),
    "SIG003": _Notice(
        "dead-units",
        "warning",
        ("dying_relu",),
        "Lower the learning rate, normalize the layer's inputs, start biases at 0, or use a leaky activation.",
    ),
    "SIG007": _Notice(
        "non-finite",
        "error",
        ("nonfinite_values", "loss_diverging"),
        "Look at the layer named and at what comes before it: a learning rate that is too high, the logarithm or root "
        "of 0, a division by 0, float16 beyond 65504, or such values in the data.",
    ),
}

_SHOWN = 4  # names in a message; the evidence has more
_LISTED = 50


def notice(
    code: str,
    message: str,
    *,
    layer: str | None = None,
    evidence: Mapping[str, Any] | None = None,
    severity: Severity | None = None,
    remedy: str | None = None,
    causes: tuple[str, ...] | None = None,
) -> Finding:
    """The finding of a code; severity, causes and remedy are the table's unless given."""
    entry = _NOTICES[code]
    return Finding(
        code,
        entry.slug,
        severity or entry.severity,
        entry.causes if causes is None else causes,
        message,
        entry.remedy if remedy is None else remedy,
        layer,
        dict(evidence or {}),
    )


def named(names: Sequence[str]) -> str:
    """The first few names for a message.

    Example:
        >>> named(["a", "b"]), named(list("abcdef"))
        ('a, b', 'a, b, c, d and 2 more')
    """
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def listed(names: Sequence[str]) -> list[str]:
    """The names for evidence, a bounded number."""
    return list(names[:_LISTED])
