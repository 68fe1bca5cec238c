"""A model's weights, kept aside and put back whole: what early stopping does when training ends.

Weights are all parameters and buffers by name, each shared tensor once. Not random.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from homeostat.errors import invalid

Weights = dict[str, Tensor]
Result = TypeVar("Result")

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name))


def copy_weights(model: nn.Module, device: torch.device | str | None = None) -> Weights:
    """Copies of the model's parameters and buffers, on `device` or, with None, each where it is."""
    return copies({**dict(model.named_parameters()), **dict(model.named_buffers())}, device)


def copies(weights: Mapping[str, Tensor], device: torch.device | str | None = None) -> Weights:
    """Tensors of their own with the same values, on `device` or, with None, each where it is."""
    return {
        name: tensor.detach().to(tensor.device if device is None else device, copy=True)
        for name, tensor in weights.items()
    }


def restore_weights_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write `weights` into the model's own tensors, or change nothing.

    Parameters stay the objects that an optimizer knows. A buffer that has another shape by now, or that shares memory
    with itself, is replaced; a buffer that is new since then stays.

    Raises: InvalidValue if a parameter is missing on either side or has another shape, or a buffer is gone.
    """
    check_weights(model, weights)
    tensors, buffers = _by_any_name(model), dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, saved in weights.items():
            tensor = tensors[name]
            if name not in buffers or (tensor.shape == saved.shape and _writable(tensor)):
                tensor.copy_(saved)
            else:
                owner, _, leaf = name.rpartition(".")
                model.get_submodule(owner)._buffers[leaf] = saved.to(tensor.device, copy=True)


def check_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise an error unless `weights` has every parameter of the model, in its shape, and only names of the model."""
    cure = "Keep the model's structure, and give weights the names of the very model that is trained."
    for name, parameter in model.named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            condition = f"hold {name} in the shape {tuple(parameter.shape)}"
            raise invalid("EarlyStopping", "weights", condition, weights.get(name), cure)
    unknown = weights.keys() - _by_any_name(model).keys()
    if unknown:
        raise invalid("EarlyStopping", "weights", "have names of the model alone", sorted(unknown), cure)


def uninterrupted(action: Callable[[], Result]) -> Result:
    """Run `action` to its end; what a signal's handler would do meanwhile, it does afterwards.

    Without this, a second Ctrl-C could leave a model with half of its weights. A signal without a handler in Python
    acts at once, as ever. Handlers run in the main thread alone, so other threads need no care.
    """
    if threading.current_thread() is not threading.main_thread():
        return action()
    for number in _SIGNALS:
        action = _holding(number, action)
    return action()


def _holding(number: int, action: Callable[[], Result]) -> Callable[[], Result]:
    def held() -> Result:
        handler = signal.getsignal(number)
        if not callable(handler):
            return action()
        frames: list[Any] = []
        try:
            signal.signal(number, lambda _, frame: frames.append(frame))
            return action()
        finally:
            signal.signal(number, handler)
            if frames:
                handler(number, frames[-1])

    return held


def _by_any_name(model: nn.Module) -> Weights:
    """Parameters and buffers, a shared one under each of its names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _writable(tensor: Tensor) -> bool:
    """Whether each element has its own memory; an expanded tensor's elements have not."""
    return all(stride or size < 2 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
