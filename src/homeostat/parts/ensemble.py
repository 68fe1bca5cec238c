"""Many models in one: Monte Carlo dropout, ensembles of models, bootstrap samples; exact enumeration in `masks`.

Random: `mc_dropout` and `bootstrap`, each on a stream of its own; global random state stays as it is.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import seeds
from homeostat.errors import NoEffectWarning, invalid, invalid_type, unknown
from homeostat.parts.masks import enumerate_masks
from homeostat.parts.modes import drop_probability, dropping, map_tensors, only_training, uncompiled
from homeostat.parts.prediction import KINDS, Prediction, mean_outputs, summarize, tensor_in

__all__ = [
    "AVERAGES",
    "Ensemble",
    "MCDropout",
    "Prediction",
    "bootstrap",
    "enumerate_masks",
    "mc_dropout",
    "mean_outputs",
    "summarize",
]

AVERAGES: tuple[str, ...] = ("outputs", "probabilities")
"""What an `Ensemble` can average."""


def mc_dropout(
    model: nn.Module,
    samples: int = 32,
    *,
    seed: int | None = None,
    kind: str | None = None,
    also: Iterable[nn.Module] = (),
) -> MCDropout:
    """Predictions with their uncertainty: the mean over passes in which dropout drops, y ≈ E_z f(x, z).

    Args:
        model: any module; it is not changed, and may be trained further between predictions.
        samples: S, how many passes each prediction takes; at least 2. Memory is that of one pass and of S outputs.
        seed: of the masks: equal inputs get equal masks, and more samples begin with the same ones. None: other masks
            at every call, by the state of torch's global generator (which is read and not advanced) and the number of
            the call.
        kind: classification, binary or regression; None: by the output's shape, see `prediction.summarize`.
        also: further modules of the model to put in training mode, for dropout that `MCDropout` says it cannot reach.
    Returns: a callable that takes what the model takes and gives a `Prediction`.
    Raises: InvalidValue for less than two samples or an unknown kind.
    Source: Gal & Ghahramani 2016, arXiv:1506.02142.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
        >>> prediction = mc_dropout(model, samples=16, seed=0)(torch.randn(5, 4))
        >>> prediction.mean.shape, prediction.samples.shape
        (torch.Size([5, 3]), torch.Size([16, 5, 3]))
    """
    return MCDropout(model, samples, seed, kind, also)


class MCDropout:
    """What `mc_dropout` returns.

    What drops: dropout layers of torch, homeostat and others (as `modes.drop_probability` knows them), attention and
    recurrent layers that drop inside, and torch's dropout functions, as in F.dropout(x, p, self.training), where p > 0.
    All else is in evaluation mode. A p that a module computes from its own mode, as in
    scaled_dot_product_attention(..., dropout_p=0.1 if self.training else 0), stays 0 unless the module is in `also`.
    """

    def __init__(
        self, model: nn.Module, samples: int, seed: int | None, kind: str | None, also: Iterable[nn.Module]
    ) -> None:
        if not isinstance(model, nn.Module):
            raise invalid_type("mc_dropout", "model", "be a torch.nn.Module", model)
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
            raise invalid("mc_dropout", "samples", "be an integer of at least 2", samples, "A variance needs two.")
        if kind is not None and kind not in KINDS:
            raise unknown("mc_dropout", "kind", kind, KINDS)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise invalid_type("mc_dropout", "seed", "be an integer or None", seed)
        self.model, self.samples, self.seed, self.kind = model, samples, seed, kind
        self.also = [also] if isinstance(also, nn.Module) and not isinstance(also, Iterable) else list(also)
        strangers = [module for module in self.also if all(module is not own for own in model.modules())]
        if strangers:
            raise invalid("mc_dropout", "also", "hold modules of the model", strangers[0])
        self._calls = 0

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Prediction:
        """The prediction for one batch; a NoEffectWarning is given if nothing in the model drops."""
        outputs = []
        stream = seeds.isolated(self._next_seed(), "mc_dropout")
        with stream, uncompiled(self.model), dropping(self.model, self.also) as calls:
            for _ in range(self.samples):
                again = map_tensors(Tensor.clone, (args, kwargs))  # a model may write into its input
                outputs.append(tensor_in("mc_dropout", self.model(*again[0], **again[1])))
        if not calls.count and not self.also and not any(drop_probability(module) for module in self.model.modules()):
            text = "mc_dropout: nothing in the model drops; all samples are equal."
            warnings.warn(text, NoEffectWarning, stacklevel=3)  # past no_grad's frame
        return summarize(torch.stack(outputs), self.kind)

    def __repr__(self) -> str:
        return f"MCDropout({type(self.model).__name__}, samples={self.samples}, seed={self.seed})"

    def _next_seed(self) -> int:
        if self.seed is not None:
            return self.seed
        self._calls += 1
        state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest()
        return seeds.derive(int.from_bytes(state[:8], "little"), "call", self._calls)


class Ensemble(nn.Module):
    """Several models as one: F(x) = (1/M) Σ_m f_m(x).

    Args:
        models: at least one; they become submodules.
        average: "outputs" (of a classifier, logits), or "probabilities": softmax over dimension 1 of outputs
            (N, C, ...) with C >= 2, else sigmoid.
    Raises: InvalidValue without a model or for an unknown average.
    Source: Breiman 1996, doi:10.1007/BF00058655; Lakshminarayanan et al. 2017, arXiv:1612.01474 (probabilities).
    Example:
        >>> ensemble = Ensemble([nn.Linear(4, 3) for _ in range(5)], average="probabilities")
        >>> ensemble(torch.randn(2, 4)).sum(1).detach()
        tensor([1..., 1...])
    """

    def __init__(self, models: Iterable[nn.Module], average: str = "outputs") -> None:
        super().__init__()
        members = list(models) if isinstance(models, Iterable) else []
        if not members or not all(isinstance(member, nn.Module) for member in members):
            raise invalid("Ensemble", "models", "be one or more torch.nn.Modules", models)
        if average not in AVERAGES:
            raise unknown("Ensemble", "average", average, AVERAGES)
        self.models = nn.ModuleList(members)
        self.average = average

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The average over the members, which are in whatever mode they are in."""
        total: Tensor | float = 0.0
        for member in self.models:
            output = tensor_in("Ensemble", member(*args, **kwargs))
            if self.average == "probabilities":
                output = output.softmax(1) if output.dim() > 1 and output.shape[1] > 1 else output.sigmoid()
            total = total + output / len(self.models)
        return torch.as_tensor(total, device=output.device)

    @torch.no_grad()
    def predict(self, *args: Any, kind: str | None = None, **kwargs: Any) -> Prediction:
        """Mean and uncertainty over the members in evaluation mode; `kind` as in `prediction.summarize`."""
        with only_training(self, ()):
            outputs = [tensor_in("Ensemble", member(*args, **kwargs)) for member in self.models]
        return summarize(torch.stack(outputs), kind)

    def extra_repr(self) -> str:
        return f"average={self.average!r}"


def bootstrap(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bootstrap sample: n of n examples, drawn with replacement, and those that were never drawn (out of bag).

    An example is out of bag with probability (1 - 1/n)^n, about 0.37.

    Returns: the drawn indices, int64 (n,), and those out of bag, ascending.
    Raises: InvalidValue if n is not a positive integer.
    Source: Efron 1979, doi:10.1214/aos/1176344552; Breiman 1996, "Out-of-bag estimation".
    Example:
        >>> drawn, out_of_bag = bootstrap(1000, seed=0)
        >>> len(drawn), set(drawn.tolist()) | set(out_of_bag.tolist()) == set(range(1000))
        (1000, True)
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise invalid("bootstrap", "n", "be a positive integer", n)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise invalid_type("bootstrap", "seed", "be an integer", seed)
    drawn = torch.randint(n, (n,), generator=seeds.torch_generator(seed, "bootstrap"), device="cpu")
    missed = torch.ones(n, dtype=torch.bool, device="cpu")
    missed[drawn] = False
    return drawn, missed.nonzero().squeeze(1)
