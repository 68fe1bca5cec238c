"""Kernels as torch operators: one definition, reached by a short way in eager code and by the dispatcher elsewhere.

An `Operator` registers its function under `torch.ops.homeostat`, with a shape function, an autograd formula and a
batching rule, so that torch.compile, torch.export, fake tensors and torch.func see one opaque operator. The dispatcher
and torch.library cost about 15 µs a call; plain eager code on plain tensors goes straight to an autograd function made
of the same pieces. Not random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch, _get_tracing_state, _is_fwd_grad_enabled, _len_torch_dispatch_stack
from torch.autograd import forward_ad

from homeostat.errors import HomeostatError

_LIBRARY = torch.library.Library("homeostat", "DEF")

_TAGS = (torch.Tag.pt2_compliant_tag,)
_UNSAFE = getattr(torch.Tag, "cudagraph_unsafe", None)  # older versions of torch lack it
_SEEDED = _TAGS if _UNSAFE is None else (*_TAGS, _UNSAFE)
"""The tags of operators that read a seed when they are called: a captured graph would repeat its numbers."""

_PLAIN = frozenset({Tensor, torch.nn.Parameter})


class Operator:
    """A function of tensors and numbers that torch can differentiate, compile, export and batch.

    Args:
        schema: name and signature in torch's schema language; the first argument is a tensor.
        compute: the function; never sees autograd. It must not return an input or a view of one.
        shape: the same signature, on tensors without data: returns empty tensors like the outputs.
        setup: `setup(ctx, inputs, output)` saves what the gradient needs; None if there is no gradient.
        gradient: `gradient(ctx, *grads)`, one gradient or None per argument; not called where no output has one. Runs
            in grad mode when a second derivative may be asked for: then it must use differentiable operations.
        batch: the batching rule `batch(info, in_dims, *args)` of torch.library.register_vmap; None loops.
    """

    def __init__(
        self,
        schema: str,
        compute: Callable[..., Any],
        shape: Callable[..., Any],
        *,
        setup: Callable[..., None] | None = None,
        gradient: Callable[..., Any] | None = None,
        batch: Callable[..., Any] | None = None,
    ) -> None:
        name = schema.split("(", 1)[0]
        qualified = f"homeostat::{name}"
        _LIBRARY.define(schema, tags=_SEEDED if "Tensor seed" in schema else _TAGS)
        _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, shape, lib=_LIBRARY)
        self.compute = compute
        self.dispatched = getattr(torch.ops.homeostat, name).default
        if gradient is not None:
            gradient = _unless_undefined(gradient, len(self.dispatched._schema.arguments))
            torch.library.register_autograd(qualified, gradient, setup_context=setup, lib=_LIBRARY)
        arguments = enumerate(self.dispatched._schema.arguments)
        self.tensors = tuple(place for place, argument in arguments if "Tensor" in str(argument.type))
        rule = batch or self._loop
        torch.library.register_vmap(qualified, rule, lib=_LIBRARY)
        self.eager = None if gradient is None else _eager_function(name, compute, setup, gradient)
        self.transformed = _transformed_function(name, self, setup, gradient, rule)

    def __call__(self, *args: Any) -> Any:
        """The operator's value; differentiable where it has a gradient. Raises HomeostatError for a tangent."""
        if forward_ad._current_level >= 0 and _functorch.maybe_current_level() is None:
            self._refuse_tangents(args)
        if not _is_eager(args[0]):
            return self.dispatched(*args)
        for place in self.tensors:
            tensor = args[place]
            if tensor is not None and tensor.is_neg():  # its memory holds the negative of its values
                return self(*[a.resolve_neg() if isinstance(a, Tensor) else a for a in args])
        if _functorch.maybe_current_level() is not None:
            return self.transformed.apply(*args)
        if self.eager is None or not torch.is_grad_enabled():
            return self.compute(*args)
        return self.eager(*args)

    def _refuse_tangents(self, args: tuple[Any, ...]) -> None:
        """Without gradients they would just vanish. Under torch.func's transforms, those raise the error."""
        tensors = [args[place] for place in self.tensors if args[place] is not None]
        floating = [tensor for tensor in tensors if tensor.is_floating_point()]
        if _is_fwd_grad_enabled() and any(forward_ad.unpack_dual(t).tangent is not None for t in floating):
            cure = "Take gradients backward, or torch's layers: homeostat.use(model, 'torch')."
            raise HomeostatError(f"{self.dispatched.name()} has no forward-mode derivative. {cure}")

    def _loop(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """The batching rule of an operator without its own: one example after the other."""
        results = []
        for index in range(info.batch_size):
            chosen = [a if d is None else a.select(d, index) for a, d in zip(args, in_dims, strict=True)]
            results.append(self(*chosen))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0,) * len(results[0])


def is_eager(tensor: Tensor) -> bool:
    """Whether this is eager code on an ordinary tensor, outside torch.func's transforms: it may be read by address."""
    return _is_eager(tensor) and _functorch.maybe_current_level() is None


def _is_eager(tensor: Tensor) -> bool:
    """Whether this is eager code on an ordinary tensor: nothing compiles, traces or intercepts it."""
    return (
        type(tensor) in _PLAIN
        and not torch.compiler.is_compiling()
        and not _len_torch_dispatch_stack()
        and _get_tracing_state() is None
    )


def _unless_undefined(gradient: Callable[..., Any], arguments: int) -> Callable[..., Any]:
    """The gradient formula, for outputs at least one of which has a gradient."""

    def formula(ctx: Any, *grads: Tensor | None) -> Any:
        if grads[0] is None and all(grad is None for grad in grads):
            return (None,) * arguments
        return gradient(ctx, *grads)

    return formula


def _eager_function(name: str, compute: Any, setup: Any, gradient: Any) -> Any:
    """The autograd function of an operator for eager code; this form of it costs the least.

    `apply` is the base class's: torch.autograd.Function's own only adds tests for torch.func, which `Operator` makes.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = compute(*args)
        setup(ctx, args, output)
        return output

    function = _autograd_function(f"homeostat_{name}", forward=forward, backward=gradient)
    return vars(torch._C._FunctionBase)["apply"].__get__(None, function)


def _transformed_function(name: str, operator: Operator, setup: Any, gradient: Any, rule: Any) -> Any:
    """The autograd function of an operator under torch.func's transforms; its forward runs one level further down."""

    def forward(*args: Any) -> Any:
        return operator(*args)

    def no_setup(ctx: Any, inputs: Any, output: Any) -> None:
        """An operator without gradient saves nothing."""

    def no_gradient(ctx: Any, *grads: Any) -> Any:
        raise HomeostatError(f"homeostat::{name} has no gradient.")

    members = {"setup_context": setup or no_setup, "vmap": rule}
    return _autograd_function(f"homeostat_{name}", forward=forward, backward=gradient or no_gradient, **members)


def _autograd_function(name: str, **members: Any) -> Any:
    return type(name, (torch.autograd.Function,), {key: staticmethod(value) for key, value in members.items()})
