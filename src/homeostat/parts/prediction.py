"""What many outputs for the same input say together: their mean and how they differ. Not random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat.errors import invalid, invalid_type, unknown

KINDS: tuple[str, ...] = ("classification", "binary", "regression")
"""What outputs can be: logits of classes in dimension 1, logits of yes or no, numbers."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The mean over S outputs for the same input, and their uncertainty.

    Of a classification these are probabilities p_s = softmax(output_s) over dimension 1, of a binary one
    sigmoid(output_s), of a regression the outputs themselves. Entropies are in nats.
    """

    mean: Tensor
    """(N, C, ...) or (N, ...): Σ_s w_s p_s."""
    variance: Tensor
    """Like mean: with 1/(S - 1) for samples, and as it is for an exact distribution; NaN of a single sample."""
    entropy: Tensor | None
    """(N, ...): H[mean], all uncertainty; None for a regression."""
    mutual_information: Tensor | None
    """(N, ...): H[mean] - Σ_s w_s H[p_s], how much the samples disagree; None for a regression."""
    samples: Tensor
    """(S, N, C, ...) or (S, N, ...): every p_s."""
    weights: Tensor | None = None
    """(S,): the probabilities w_s of an exact distribution; None: all 1/S."""
    kind: str = "regression"
    """classification, binary or regression."""

    def __repr__(self) -> str:
        return f"Prediction({self.kind}, {len(self.samples)} samples, mean of shape {tuple(self.mean.shape)})"


def summarize(outputs: Tensor, kind: str | None = None, weights: Tensor | None = None) -> Prediction:
    """The prediction that S outputs of models make together.

    Args:
        outputs: (S, N, ...), floating, as models return them: logits of a classification.
        kind: classification, binary or regression; None: classification where outputs (N, C, ...) have C >= 2, else
            regression.
        weights: (S,), the outputs' probabilities, sum 1; None: samples of equal weight.
    Raises: InvalidValue for an unknown kind, or a classification with less than two classes.
    Source: Gal 2016, "Uncertainty in deep learning", section 3.3; mutual information: Houlsby et al. 2011,
        arXiv:1112.5745.
    Example:
        >>> sure = summarize(torch.tensor([[[-50.0, 50.0]], [[50.0, -50.0]]]))  # two models, sure of opposite classes
        >>> sure.mean, sure.mutual_information
        (tensor([[0.5000, 0.5000]]), tensor([0.6931]))
    """
    kind = kind_of(outputs, kind)
    narrow = torch.promote_types(outputs.dtype, torch.float32)
    wide = outputs.to(narrow if outputs.device.type == "mps" else torch.float64)
    if kind == "classification":
        wide = wide.softmax(2)
    elif kind == "binary":
        wide = wide.sigmoid()
    if weights is not None and weights.shape != (len(outputs),):
        raise invalid("summarize", "weights", f"have the shape ({len(outputs)},), one for each output", weights)
    exact = weights is not None
    share = torch.full((len(wide),), 1 / len(wide), device="cpu") if weights is None else weights
    share = share.to(wide)
    mean = torch.tensordot(share, wide, 1)
    squares = torch.tensordot(share, (wide - mean).square(), 1)
    variance = squares if exact else squares * (len(wide) / (len(wide) - 1) if len(wide) > 1 else torch.nan)
    entropy = information = None
    if kind != "regression":
        entropy = _entropy(mean, kind, 1)
        information = (entropy - torch.tensordot(share, _entropy(wide, kind, 2), 1)).clamp_min(0).to(narrow)
        entropy = entropy.to(narrow)
    return Prediction(mean.to(narrow), variance.to(narrow), entropy, information, wide.to(narrow), weights, kind)


def mean_outputs(outputs: Tensor, kind: str) -> Tensor:
    """The output of an ensemble in the unit of its members' outputs, (S, N, ...) -> (N, ...).

    Of a classification, logits whose softmax is the mean of the members' softmax; of a binary one the same with
    sigmoid; of a regression the mean.

    Example:
        >>> two = torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]])
        >>> mean_outputs(two, "classification").softmax(1), two.softmax(2).mean(0)
        (tensor([[0.6904, 0.3096]]), tensor([[0.6904, 0.3096]]))
    """
    kind = kind_of(outputs, kind)
    if kind == "classification":
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))
    if kind == "binary":
        return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)
    return outputs.mean(0)


def kind_of(outputs: Tensor, kind: str | None) -> str:
    """The kind of outputs (S, N, ...), checked, or found out by their shape as `summarize` says."""
    if kind is not None and kind not in KINDS:
        raise unknown("Prediction", "kind", kind, KINDS)
    classes = outputs.dim() > 2 and outputs.shape[2] > 1
    if kind == "classification" and not classes:
        cure = "A single logit is kind='binary', a number kind='regression'."
        raise invalid("Prediction", "an output", "have the shape (N, C, ...) with C >= 2", outputs[0], cure)
    return kind or ("classification" if classes else "regression")


def tensor_in(where: str, output: Any) -> Tensor:
    """The tensor in what a model returned: itself, or what an object or mapping holds as `logits`."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor) or not found.is_floating_point() or not found.dim():
        cure = "Wrap the model in a module that returns one tensor."
        shown = found if isinstance(found, Tensor) else type(output).__name__
        raise invalid_type(
            where, "the model's output", "be a floating tensor (N, ...), or hold one as 'logits'", shown, cure
        )
    return found


def _entropy(p: Tensor, kind: str, dim: int) -> Tensor:
    return (
        torch.special.entr(p).sum(dim)
        if kind == "classification"
        else torch.special.entr(p) + torch.special.entr(1 - p)
    )
