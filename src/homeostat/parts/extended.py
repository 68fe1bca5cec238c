"""Modules that surgery leaves in a model: a layer with something before or after it, and the identity with a memory.

Not random.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Extended(nn.Module):
    """A layer with a module before it, after it, or both; for everybody else it still looks like the layer.

    Attributes that it does not have itself (weight, bias, in_features, ...) are read from and written to the layer.
    """

    def __init__(self, layer: nn.Module, *, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.register_module("before", before)
        self.register_module("layer", layer)
        self.register_module("after", after)
        self.training = layer.training

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """after(layer(before(input))); further arguments are the layer's."""
        before, layer, after = self._modules["before"], self._modules["layer"], self._modules["after"]
        if before is not None:
            input = before(input)
        output = layer(input, *args, **kwargs)  # type: ignore[misc]
        return output if after is None else after(output)

    def __getattr__(self, name: str) -> Any:
        """An own submodule, or else the layer's attribute."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("layer")
            if layer is None or name.startswith("__"):
                raise
            return getattr(layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is the layer's on the layer."""
        modules = self.__dict__.get("_modules", {})
        own = name in self.__dict__ or name in modules or "layer" not in modules
        if own or not hasattr(modules["layer"], name):
            super().__setattr__(name, value)
        else:
            setattr(modules["layer"], name, value)


class Copy(nn.Identity):
    """The identity on memory of its own: stands where a module was whose output is written to in place."""

    def forward(self, input: Tensor) -> Tensor:
        """A copy of the input."""
        return input.clone()
