"""What the doctor says: a finding with its code, severity, causes, evidence and remedy. Nothing here is random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")

LABELS = frozenset(
    {
        *("bad_augmentation", "bad_init_scale", "batch_size", "batch_size_too_small", "batchnorm_missing"),
        *("batchnorm_running_stats_not_updated", "class_imbalance", "constant_init", "dropout_too_high"),
        *("frozen_parameters", "gradient_sign_flipped", "inputs_underscaled", "inputs_unnormalized"),
        *("label_corruption", "loss_impl_bug", "loss_scale", "lr_negative", "lr_too_high", "lr_too_low"),
        *("missing_hidden_activation", "missing_output_activation", "missing_zero_grad", "optimizer_eps_too_low"),
        *("over_regularized", "redundant_softmax", "shape_broadcast", "softmax_wrong_axis", "targets_unnormalized"),
        *("too_few_epochs", "train_test_preprocessing_mismatch", "under_regularized", "validation_leak"),
        *("vanishing_gradient", "wrong_hidden_activation", "wrong_loss", "wrong_optimizer", "wrong_output_activation"),
    }
)
"""Faults, in the words of published collections of faulty programs."""

SYMPTOMS = frozenset(
    {
        *("constant_output", "dying_relu", "exploding_gradient", "loss_diverging", "loss_not_decreasing"),
        *("oscillating_loss", "overfitting", "saturated_units", "vanishing_gradient"),
    }
)
"""What faults look like while training."""

OURS = frozenset(
    {
        *("below_baseline", "bias_before_norm", "clipping", "constant_features", "constant_targets"),
        *("contradicting_labels", "disconnected_parameters", "dropout_before_batchnorm", "eval_mode_while_training"),
        *("l2_coupled_with_adam", "nonfinite_data", "nonfinite_values", "not_shuffled", "parameters_not_optimized"),
        *("rank_collapse", "norm_decayed", "underfitting", "nonzero_bias", "train_eval_gap", "no_signal"),
    }
)
"""Causes without a published label."""

CAUSES = LABELS | SYMPTOMS | OURS


@dataclass(frozen=True)
class Proof:
    """What an intervention showed: the same short training without and with a change, same seeds and batches."""

    change: str
    """What was changed."""
    metric: str
    before: float
    """The metric without the change; nan where that training diverged."""
    after: float
    steps: int
    """How long both were trained."""

    @property
    def text(self) -> str:
        """One sentence."""
        before = "diverged" if self.before != self.before else f"{self.before:.3g}"
        after = "diverged" if self.after != self.after else f"{self.after:.3g}"
        return f"{self.change}: {self.metric} {before} → {after} after {self.steps} steps"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, about a training.

    Example:
        >>> print(Finding("OPT003", "maximizing", "error", ("gradient_sign_flipped",), "The optimizer maximizes."))
        error OPT003 maximizing: The optimizer maximizes.
    """

    code: str
    """Stable: the letters say which file of rules, the number which rule."""
    slug: str
    """The name of the pattern."""
    severity: Severity
    causes: tuple[str, ...]
    """Words of `CAUSES`."""
    message: str
    """What was found, with numbers."""
    remedy: str = ""
    """What to do about it."""
    layer: str | None = None
    """Where; None for the training as a whole."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Names to numbers and short texts."""
    proof: Proof | None = None
    """The intervention that convicted, if one was needed."""
    consequence_of: str | None = None
    """The code of the finding that explains this one."""

    @property
    def rank(self) -> tuple[int, bool, bool, str, str]:
        """Sorts errors first; what names a cause before what says how it ends; what was proved before the rest."""
        severity = -SEVERITIES.index(self.severity)
        return severity, self.code.startswith("GEN"), self.proof is None, self.code, self.layer or ""

    @property
    def fingerprint(self) -> str:
        """What stays the same from one examination to the next: code and layer."""
        return f"{self.code}:{self.layer or ''}"

    def __str__(self) -> str:
        where = f" in {self.layer}" if self.layer else ""
        return f"{self.severity} {self.code} {self.slug}{where}: {self.message}"


def at_least(severity: Severity, least: Severity) -> bool:
    """Whether a severity counts where `least` is asked for.

    Example:
        >>> at_least("error", "warning"), at_least("info", "warning")
        (True, False)
    """
    return SEVERITIES.index(severity) >= SEVERITIES.index(least)
