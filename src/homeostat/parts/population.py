"""Running statistics of batch normalization, computed anew from data with the weights as they are.

What layers keep while they train is a moving average over changing weights. Here every batch is normalized by its own
statistics, as in training, and what each layer saw is averaged in float64. Nothing else of the model changes.
Random only where asked: dropout, and whatever the loader draws, run on a stream of their own.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import UninitializedBuffer

from homeostat import seeds
from homeostat.errors import NoEffectWarning, invalid, invalid_type, unknown
from homeostat.kernels.backend import widest_dtype
from homeostat.kernels.moments import moments
from homeostat.parts.modes import device_of, dropping, map_tensors, only_training, uncompiled

ESTIMATORS: tuple[str, ...] = ("minibatch", "pooled")
"""How `update_statistics_` can average."""

_WHERE = "update_statistics_"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def update_statistics_(
    model: nn.Module,
    loader: Iterable[Any],
    num_batches: int | None = None,
    *,
    estimator: str = "minibatch",
    forward: Callable[[Any], Any] | None = None,
    device: str | torch.device | None = None,
    dropout: bool = False,
    seed: int = 0,
) -> list[str]:
    """Set the running statistics of all batch norm layers to those of the data, with the weights as they are.

    With n_b values per channel in batch b, their mean m_b and their variance v_b (with 1/n_b):
    minibatch: mean = Σ n_b m_b / Σ n_b and variance = Σ n_b [n_b / (n_b - 1)] v_b / Σ n_b;
    pooled: mean and variance (with 1/(n - 1)) of all n = Σ n_b values, merged by Chan's formula.
    The pooled variance also holds the spread of the batches' means, which is large where batches are small or sorted.

    Args:
        model: changed in place, in nothing but running means and variances. While it runs, layers with running
            statistics normalize by the batch's own, whatever mode they are in, so that what deeper layers see depends
            on the batch size as in training; everything else is in evaluation mode.
        loader: gives batches: a tensor, a tuple or list whose first item is the input, or a mapping, of which the
            model gets those entries as keywords that its forward names. Read once; a generator will do.
        num_batches: at most so many; None: all.
        estimator: minibatch or pooled.
        forward: called with each batch instead of the model, such as `lambda batch: model(batch["image"])`.
        device: where batches are moved; None: the model's device.
        dropout: whether dropout drops meanwhile. False gives what evaluation will see.
        seed: of the stream from which dropout and the loader draw.
    Returns: the names of the layers with new statistics. Layers that no batch reached keep theirs; a NoEffectWarning
        says if that is all of them. A layer called several times averages over all its calls.
    Raises: InvalidValue for a batch with one value per channel, values that are not finite, or no batch; whatever the
        model or the loader raises. The statistics are the old ones then. Modes, momentum, the count of batches and
        global random state are as before in any case.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2; Wu & Johnson 2021, arXiv:2105.07576 (both estimators);
        Chan, Golub & LeVeque 1979, STAN-CS-79-773; Li et al. 2019, arXiv:1801.05134 (after dropout).
    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> update_statistics_(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        ['0']
        >>> model[0].running_mean, model[0].running_var
        (tensor([4.]), tensor([2.]))
    """
    _check(model, loader, num_batches, estimator, seed)
    estimates = _estimates(model, pooled=estimator == "pooled")
    run = forward or (lambda batch: call_on_batch(model, batch))
    target = device_of(model) if device is None else torch.device(device)
    if estimates:
        with seeds.isolated(seed, "population"), _measuring(model, estimates, dropout):
            count = 0
            for batch in itertools.islice(loader, num_batches):
                run(map_tensors(lambda tensor: tensor.to(target), batch))
                count += 1
        if not count:
            raise invalid(_WHERE, "loader", "give at least one batch", "none", "A generator can be read only once.")
    reached = [estimate for estimate in estimates if estimate.count]
    for estimate in reached:
        estimate.check()
    for estimate in reached:
        estimate.store()
    if not reached:
        text = "no batch reached a layer" if estimates else "the model has no layer"
        warnings.warn(f"{_WHERE}: {text} with running statistics; nothing changed.", NoEffectWarning, stacklevel=3)
    return [estimate.name for estimate in reached]


class _Estimate:
    """What one layer has seen so far."""

    def __init__(self, name: str, layer: _NormBase, pooled: bool) -> None:
        self.name = name
        self.layer = layer
        self.pooled = pooled
        self.unbiased = bool(getattr(layer, "unbiased", True))  # homeostat's layers can keep the population's variance
        self.count = 0
        self.mean: Any = 0.0  # a tensor from the first batch on, and so is the spread
        self.spread: Any = 0.0  # pooled: the sum of squared deviations; else the mean of variances

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a call: whether the batch has statistics at all, and a place for them without a past."""
        input = _input(args, kwargs)
        if not isinstance(self.layer, _InstanceNorm) and input.numel() <= self.layer.num_features:
            cure = f"It came to layer {self.name!r}. Set drop_last=True in the loader, or choose another batch size."
            raise invalid(_WHERE, "a batch", "have more than one value per channel", input, cure)
        self.layer.reset_running_stats()

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After a call: momentum was 1, so the layer's buffers hold this batch's statistics."""
        input = _input(args, kwargs)
        wide = widest_dtype(input.device)
        count = input.numel() // self.layer.num_features
        if self.pooled and isinstance(self.layer, _InstanceNorm):  # its buffers lack the spread between instances
            seen = moments(input, dim=input.dim() - self.layer._get_no_batch_dim())
            mean, variance = seen.mean.to(wide), seen.variance.to(wide)
        else:
            mean, variance = self.layer.running_mean.to(wide), self.layer.running_var.to(wide)  # type: ignore[union-attr]
            if self.pooled and self.unbiased:
                variance = variance * (count - 1) / count
        total = self.count + count
        difference = mean - self.mean
        if self.pooled:
            self.spread = self.spread + count * variance + difference.square() * (self.count * count / total)
        else:
            self.spread = self.spread + (variance - self.spread) * (count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def variance(self) -> Any:
        """The estimate of the variance."""
        return self.spread / (self.count - self.unbiased) if self.pooled else self.spread

    def check(self) -> None:
        """Raise an error if the statistics cannot be used."""
        for statistic in (self.mean, self.variance()):
            if not bool(torch.isfinite(statistic).all()):
                cure = "Look for NaN or infinity in the data, and for weights that have diverged."
                raise invalid(_WHERE, f"the input of layer {self.name!r}", "be finite", statistic, cure)

    def store(self) -> None:
        """Write the estimate into the layer's buffers."""
        self.layer.running_mean.copy_(self.mean)  # type: ignore[union-attr]
        self.layer.running_var.copy_(self.variance())  # type: ignore[union-attr]


def call_on_batch(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch as a data loader gives it, targets and all.

    A tensor is the input; of a tuple or list the first item is; of a mapping the entries that the model's forward names
    become keywords, or, if it names none of them, the mapping itself is the input.

    Example:
        >>> call_on_batch(nn.Identity(), (torch.ones(2), "target"))
        tensor([1., 1.])
    """
    if isinstance(batch, tuple | list):
        return call_on_batch(model, batch[0])
    if not isinstance(batch, Mapping):
        return model(batch)
    inner = model
    while isinstance(wrapped := getattr(inner, "_orig_mod", getattr(inner, "module", None)), nn.Module):
        inner = wrapped  # a wrapper's own forward names nothing
    named = inspect.signature(inner.forward).parameters
    keywords = {key: value for key, value in batch.items() if key in named}
    return model(**keywords) if keywords else model(batch)


@contextmanager
def _measuring(model: nn.Module, estimates: list[_Estimate], dropout: bool) -> Iterator[None]:
    """Every layer in training mode with momentum 1 on buffers of its own; hooks read them; then all as before."""
    layers = [estimate.layer for estimate in estimates]
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        stack.enter_context(dropping(model, layers) if dropout else only_training(model, layers))
        for estimate in estimates:
            layer = estimate.layer
            stack.callback(_put_back, layer, dict(layer._buffers), layer.momentum, layer.track_running_stats)
            layer._buffers |= {name: _fresh(layer._buffers.get(name)) for name in _STATISTICS}
            layer.momentum, layer.track_running_stats = 1.0, True
            stack.callback(layer.register_forward_pre_hook(estimate.enter, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(estimate.leave, with_kwargs=True).remove)
        yield


def _fresh(buffer: Tensor | None) -> Tensor:
    return torch.tensor(0, device="cpu") if buffer is None else buffer.clone()


def _put_back(layer: _NormBase, buffers: dict[str, Tensor | None], momentum: float | None, track: bool) -> None:
    layer._buffers.clear()
    layer._buffers.update(buffers)
    layer.momentum, layer.track_running_stats = momentum, track


def _estimates(model: nn.Module, pooled: bool) -> list[_Estimate]:
    """One for every layer that normalizes by running statistics in evaluation."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            if isinstance(module.running_mean, UninitializedBuffer):
                cure = "Its number of channels is still open: run one batch through the model first."
                raise invalid(_WHERE, "model", "hold no lazy layer", name, cure)
            found.append(_Estimate(name, module, pooled))
    return found


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["input"]
    return found


def _check(model: nn.Module, loader: Any, num_batches: int | None, estimator: str, seed: int) -> None:
    if not isinstance(model, nn.Module):
        raise invalid_type(_WHERE, "model", "be a torch.nn.Module", model, "The model comes first, then the loader.")
    if isinstance(loader, Tensor | Mapping | str) or not hasattr(loader, "__iter__"):
        cure = "For a single batch pass a list with it; for a Dataset, a DataLoader."
        raise invalid_type(_WHERE, "loader", "be an iterable of batches", loader, cure)
    if num_batches is not None and (isinstance(num_batches, bool) or not isinstance(num_batches, int)):
        raise invalid_type(_WHERE, "num_batches", "be an integer or None", num_batches)
    if num_batches is not None and num_batches < 1:
        raise invalid(_WHERE, "num_batches", "be at least 1", num_batches)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise invalid_type(_WHERE, "seed", "be an integer", seed)
    if estimator not in ESTIMATORS:
        raise unknown(_WHERE, "estimator", estimator, ESTIMATORS)
