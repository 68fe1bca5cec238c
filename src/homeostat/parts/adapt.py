"""Test-time adaptation: a trained classifier meets shifted data, and its normalization adapts, without labels.

`BatchNormAdaptation` normalizes by the statistics of the test batch, mixed with those of training if asked. `Tent` also
changes scale and shift of the normalization layers to lower the entropy of the predictions. Both wrap a model and set
modes and flags only while a batch runs. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.errors import HomeostatError, invalid, invalid_type, unknown
from homeostat.parts.layers import tensors_in
from homeostat.parts.modes import map_tensors, only_training, uncompiled
from homeostat.parts.norm import NORMS, LastAxisBatchNorm, norm_kind

LEARNING_RATE = 1e-3
"""Of the Adam that `Tent` uses where no optimizer is given, as published for CIFAR-10-C."""


class Tent(nn.Module):
    """A model that adapts to every batch it is called on, by one step down the entropy of its own predictions.

    H = mean over the batch of -Σ_c p_c log p_c, p = softmax(logits); γ, β <- optimizer(∂H/∂γ, ∂H/∂β), for the scale γ
    and shift β of the normalization layers alone. Batch norm uses the batch's statistics. As in the published code, the
    logits that come back are those from before the (last) step.

    While a batch runs, everything but the batch norm layers is in evaluation mode (the published code leaves dropout
    on). Between calls the model has its own modes, flags and gradients, and its running statistics never change.

    Args:
        model: gives logits (N, C, ...), or an object or mapping that holds them as `logits`.
        optimizer: over scales and shifts, as `collect_params` gives them; None: Adam with learning rate 1e-3.
        steps: how many steps every batch takes.
        episodic: True forgets after every batch: each starts from the model as it was given.
        kinds: which normalization layers adapt: batch (as published), layer, group, instance, rms.
        prior: how many examples the running statistics count for beside the batch's, see `BatchNormAdaptation`; with
            0, as published, a batch needs two examples.
    Raises: InvalidValue without such layers or where the optimizer holds anything else; when called, for a batch of one
        (with kind batch, without a prior), for a single logit, or for an entropy that is not finite, before any step.
    Source: Wang et al. 2021, arXiv:2006.10726; arguments and defaults as in https://github.com/DequanWang/tent.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
        >>> before = model[1].weight.clone()
        >>> with Tent(model) as adapted:
        ...     logits = adapted(torch.randn(16, 4) + 2)
        ...     moved = not torch.equal(model[1].weight, before)
        >>> logits.shape, moved, torch.equal(model[1].weight, before)
        (torch.Size([16, 3]), True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        steps: int = 1,
        episodic: bool = False,
        *,
        kinds: Sequence[str] = ("batch",),
        prior: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise invalid("Tent", "steps", "be an integer of at least 1", steps)
        _check_prior("Tent", prior)
        found = list(_scales_and_shifts("Tent", model, kinds))
        self.model = model
        self.optimizer = torch.optim.Adam(found, lr=LEARNING_RATE) if optimizer is None else optimizer
        self.steps, self.episodic, self.prior = steps, episodic, prior
        self.kinds = tuple(kinds)
        self._adapting = _checked_parameters(self.optimizer, found)
        _check_statistics("Tent", self._statistics(), prior)
        self._source = [parameter.detach().clone() for parameter in self._adapting]
        self._source_optimizer = _copied(self.optimizer.state_dict())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Adapt to the batch and return the model's output for it; a tensor comes without its graph."""
        _check_batch("Tent", args, kwargs, self._statistics(), self.prior)
        if self.episodic:
            self.reset()
        with torch.inference_mode(False), torch.enable_grad(), self._configured(args, kwargs):
            for _ in range(self.steps):
                # copies: a model may write into its input, and one made in inference mode takes no gradients
                again = map_tensors(lambda tensor: tensor.detach().clone(), (args, kwargs))
                output = self.model(*again[0], **again[1])
                entropy = softmax_entropy(_logits(output)).mean()
                if not math.isfinite(value := float(entropy.detach())):
                    cure = "Look for NaN in the batch; after earlier batches, lower the learning rate and call reset()."
                    raise invalid("Tent", "the entropy of the predictions", "be finite", value, cure)
                entropy.backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        return output.detach() if isinstance(output, Tensor) else output

    @torch.no_grad()
    def reset(self) -> None:
        """Go back to the scales, shifts and optimizer state that the model was given with."""
        for parameter, source in zip(self._adapting, self._source, strict=True):
            parameter.copy_(source)
        self.optimizer.load_state_dict(_copied(self._source_optimizer))

    def close(self) -> None:
        """The same as `reset`: between calls nothing else of the model differs. `with Tent(model) as adapted:` does it.

        To keep what was learned, do not close.
        """
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def get_extra_state(self) -> dict[str, Any]:
        """For state_dict, beside the model's own: the optimizer's state and what `reset` goes back to."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "source": list(self._source),
            "source_optimizer": self._source_optimizer,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        self.optimizer.load_state_dict(_copied(state["optimizer"]))
        pairs = zip(state["source"], self._adapting, strict=True)
        self._source = [source.detach().to(parameter).clone() for source, parameter in pairs]
        self._source_optimizer = _copied(state["source_optimizer"])

    def extra_repr(self) -> str:
        return f"steps={self.steps}, episodic={self.episodic}, kinds={self.kinds}, prior={self.prior:g}"

    def _statistics(self) -> list[_BatchNorm]:
        return batch_norms(self.model) if "batch" in self.kinds else []

    @contextmanager
    def _configured(self, args: Any, kwargs: Any) -> Iterator[None]:
        """Only scales and shifts need gradients, of which nobody has any yet; then flags and gradients as before."""
        parameters = list(self.model.parameters())
        kept = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
            for parameter in self._adapting:
                parameter.requires_grad_(True)
            with _test_statistics(self.model, self._statistics(), self.prior, _examples(args, kwargs)):
                yield
        finally:
            for parameter, wanted, gradient in kept:
                parameter.requires_grad_(wanted)
                parameter.grad = gradient


class BatchNormAdaptation(nn.Module):
    """A model whose batch norm layers normalize by the statistics of the test batch, mixed with those of training.

    mean = N/(N+n) mean_running + n/(N+n) mean_batch, and the variance likewise, for n examples in the batch and N =
    `prior`. With N = 0 it is batch norm in training mode, but that no running statistic changes; with N -> ∞ it is
    evaluation. The batch's variance has 1/n_b, as in training. Everything else is in evaluation mode; parameters, modes
    and running statistics stay as they are.

    Args:
        model: any module with batch norm layers.
        prior: N, how many examples the running statistics count for; >= 0. With 0 a batch needs two examples. Schneider
            et al. found 8 to 128 good for batches of 1 to 64.
    Raises: InvalidValue without batch norm layers, or for a prior with layers that keep no running statistics; when
        called, for a batch of one without a prior.
    Source: Schneider et al. 2020, arXiv:2006.16971; Nado et al. 2020, arXiv:2006.10963 (prior 0).
    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1, eps=0.0))
        >>> with torch.no_grad():
        ...     BatchNormAdaptation(model, prior=2)(torch.tensor([[3.0], [5.0]]))  # mean (0 + 4)/2, variance (1 + 1)/2
        tensor([[1.],
                [3.]])
    """

    def __init__(self, model: nn.Module, prior: float = 0.0) -> None:
        super().__init__()
        _check_prior("BatchNormAdaptation", prior)
        _check_model("BatchNormAdaptation", model)
        layers = batch_norms(model)
        if not layers:
            raise _no_layers("BatchNormAdaptation", ("batch",))
        _check_statistics("BatchNormAdaptation", layers, prior)
        self.model, self.prior = model, prior

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the batch."""
        layers = batch_norms(self.model)
        _check_batch("BatchNormAdaptation", args, kwargs, layers, self.prior)
        with _test_statistics(self.model, layers, self.prior, _examples(args, kwargs)):
            return self.model(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"prior={self.prior:g}"


def collect_params(model: nn.Module, kinds: Sequence[str] = ("batch",)) -> tuple[list[nn.Parameter], list[str]]:
    """The scales and shifts of a model's normalization layers, and their names: what `Tent` adapts.

    Args:
        model: searched for layers, of torch, homeostat or others, as `norm.norm_kind` knows them.
        kinds: batch, layer, group, instance, rms.
    Raises: InvalidValue if there are none, or for an unknown kind.
    Example:
        >>> collect_params(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))[1]
        ['1.weight', '1.bias']
    """
    found = _scales_and_shifts("collect_params", model, kinds)
    return list(found), list(found.values())


def configure_model(model: nn.Module, kinds: Sequence[str] = ("batch",)) -> nn.Module:
    """Put a model for good into the state that `Tent` gives it for the time of a batch; in place.

    Scales and shifts of normalization layers need gradients, nothing else does; batch norm normalizes by the batch and
    keeps its running statistics, unused; everything else is in evaluation mode. For loops of one's own: `Tent` itself
    does not need it.

    Returns: the model.
    Raises: InvalidValue if it has no such layers.
    Example:
        >>> model = configure_model(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['1.weight', '1.bias']
    """
    parameters = _scales_and_shifts("configure_model", model, kinds)
    for module in model.modules():
        module.training = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for layer in batch_norms(model) if "batch" in kinds else ():
        layer.training, layer.track_running_stats = True, False
    return model


def softmax_entropy(logits: Tensor) -> Tensor:
    """-Σ_c p_c log p_c of p = softmax over dimension 1, in nats: (N, C, ...) -> (N, ...), in at least float32.

    Example:
        >>> softmax_entropy(torch.zeros(1, 4)) / torch.log(torch.tensor(4.0))
        tensor([1.])
    """
    log_p = torch.log_softmax(logits, 1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return -(log_p.exp() * log_p).sum(1)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The model's batch norm layers: torch's, homeostat's, and their subclasses."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _scales_and_shifts(where: str, model: nn.Module, kinds: Sequence[str]) -> dict[nn.Parameter, str]:
    """What `collect_params` says, in `where`'s name."""
    _check_model(where, model)
    known = [kind for kind in NORMS if kind != "none"]
    if isinstance(kinds, str):
        raise invalid_type(where, "kinds", "be a sequence of names", kinds, f"Pass ({kinds!r},).")
    for kind in kinds:
        if kind not in known:
            raise unknown(where, "kind", kind, known)
    found: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        for own in ("weight", "bias") if norm_kind(module) in kinds else ():
            if (parameter := module._parameters.get(own)) is not None:
                found.setdefault(parameter, f"{name}.{own}" if name else own)
    if not found:
        raise _no_layers(where, kinds)
    return found


@contextmanager
def _test_statistics(model: nn.Module, layers: Sequence[_BatchNorm], prior: float, examples: int) -> Iterator[None]:
    """Evaluation mode, but `layers` normalize by the batch, mixed with `prior` examples' worth of their statistics."""
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        stack.enter_context(only_training(model, () if prior else layers))
        for layer in layers:
            stack.callback(_put_back, layer, dict(layer._buffers), layer.track_running_stats)
            layer.track_running_stats = False  # in training mode: the batch's statistics, and no trace of them
            if prior:
                mixing = _Mixing(layer, prior / (prior + examples))
                stack.callback(layer.register_forward_pre_hook(mixing, with_kwargs=True).remove)
        yield


def _put_back(layer: _BatchNorm, buffers: dict[str, Tensor | None], track: bool) -> None:
    layer._buffers.update(buffers)
    layer.track_running_stats = track


class _Mixing:
    """A hook that normalizes a layer's input by mixed statistics; the layer itself then has mean 0 and variance 1.

    So the layer's own forward scales, shifts, adds and activates, and gradients pass through the batch's statistics.
    """

    def __init__(self, layer: _BatchNorm, share: float) -> None:
        self.share = share
        self.channels, self.eps = layer.num_features, layer.eps
        self.mean: Tensor = layer.running_mean  # type: ignore[assignment]  # _check_statistics has looked for None
        self.variance: Tensor = layer.running_var  # type: ignore[assignment]
        layer._buffers["running_mean"] = torch.zeros_like(self.mean)
        layer._buffers["running_var"] = torch.full_like(self.variance, 1 - layer.eps)

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with the input normalized."""
        name, input = ("", args[0]) if args else ("input", kwargs["input"])
        channels = input.dim() - 1 if isinstance(layer, LastAxisBatchNorm) else 1
        if input.shape[channels] != self.channels:
            cure = "A layer that finds its channels elsewhere can only adapt with prior=0."
            raise invalid("BatchNormAdaptation", "input", f"have {self.channels} channels", input, cure)
        others = [dim for dim in range(input.dim()) if dim != channels]
        shape = [-1 if dim == channels else 1 for dim in range(input.dim())]
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, others, correction=0)
        mean = self.share * self.mean.to(mean) + (1 - self.share) * mean
        variance = self.share * self.variance.to(variance) + (1 - self.share) * variance
        scale = (variance + self.eps).rsqrt()
        normalized = ((wide - mean.view(shape)) * scale.view(shape)).to(input.dtype)
        return ((normalized, *args[1:]), kwargs) if not name else (args, {**kwargs, name: normalized})


def _logits(output: Any) -> Tensor:
    """The logits in what a model returns."""
    found = output
    if not isinstance(output, Tensor):
        found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        cure = "Wrap the model in a module that returns its logits."
        raise invalid_type("Tent", "the model's output", "be logits, or hold them as 'logits'", type(output), cure)
    if found.dim() < 2 or found.shape[1] < 2:
        cure = "The entropy of one class is 0 whatever is predicted; give a binary classifier two logits."
        raise invalid("Tent", "the model's output", "have the shape (N, C, ...) with C >= 2", found, cure)
    return found


def _checked_parameters(optimizer: Any, known: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The optimizer's parameters, if all of them are among the known ones."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise invalid_type("Tent", "optimizer", "be a torch.optim.Optimizer or None", optimizer)
    allowed = {id(parameter) for parameter in known}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [tuple(parameter.shape) for parameter in held if id(parameter) not in allowed]
    if strangers:
        cure = "Build it from collect_params(model, kinds)[0]; only scales and shifts may adapt."
        condition = "hold scales and shifts of the chosen normalization layers only"
        raise invalid("Tent", "optimizer", condition, f"parameters of shapes {strangers[:3]}", cure)
    return held


def _check_model(where: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise invalid_type(where, "model", "be a torch.nn.Module", model)


def _check_prior(where: str, prior: float) -> None:
    if isinstance(prior, bool) or not isinstance(prior, int | float) or not 0 <= prior < math.inf:
        raise invalid(where, "prior", "be a finite number of examples, at least 0", prior)


def _check_statistics(where: str, layers: Sequence[_BatchNorm], prior: float) -> None:
    if prior and any(layer.running_mean is None or layer.running_var is None for layer in layers):
        raise invalid(where, "prior", "be 0 where a layer keeps no running statistics", prior)


def _check_batch(where: str, args: Any, kwargs: Any, layers: Sequence[_BatchNorm], prior: float) -> None:
    examples = _examples(args, kwargs)
    if layers and not prior and examples < 2:
        cure = "Give more examples at once, or a prior, which mixes in the running statistics."
        raise invalid(where, "the batch", "have at least two examples for statistics of its own", examples, cure)


def _examples(args: Any, kwargs: Any) -> int:
    tensors = tensors_in((args, kwargs))
    if not tensors or not tensors[0].dim():
        raise HomeostatError("Test-time adaptation needs a batch: the model was called without a tensor (N, ...).")
    return tensors[0].shape[0]


def _no_layers(where: str, kinds: Sequence[str]) -> HomeostatError:
    cure = "`kinds` says which layers adapt; frozen ones, whose scale and shift are buffers, do not."
    condition = f"have normalization layers of kind {', '.join(kinds)} with a scale or shift"
    return invalid(where, "model", condition, "none of them", cure)


def _copied(state: Any) -> Any:
    return map_tensors(lambda tensor: tensor.detach().clone(), state)
