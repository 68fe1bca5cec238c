"""Normalization of rows under torch.compile, export, torch.func, checkpointing and autocast."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from homeostat.errors import HomeostatError
from homeostat.kernels.norm_rows import norm_rows, norm_rows_gradient, normalize

SETTINGS = (8, 2, 1e-5, True, 0.0, None)

# torch.autograd.forward_ad scripts some decompositions when it is first used
LOADS_SCRIPTS = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def tensors(*batch: int, grad: bool = False) -> list[torch.Tensor]:
    """Input, weight, bias, residual for examples of 2 rows of 8."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(*batch, 5, 16), (16,), (16,), (*batch, 5, 16)]
    return [torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes]


def run(x, w, b, r):
    return normalize(x, w, b, r, *SETTINGS)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_operators_keep_torchs_rules(dtype, weighted):
    x, w, b, r = [t.to(dtype) for t in tensors()]
    w, b = (w, b) if weighted else (None, None)
    given = [t if t is None else t.requires_grad_() for t in (x, w, b, r)]
    torch.library.opcheck(norm_rows.dispatched, (*given, *SETTINGS))
    output, statistics = norm_rows(x.detach(), w, b, r.detach(), *SETTINGS)
    args = (output, x, w, b, output.clone(), statistics, *SETTINGS[:-1], weighted, None)
    torch.library.opcheck(
        norm_rows_gradient.dispatched, tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
    )


def test_compiled_code_gives_the_same_values_and_gradients():
    given = tensors(grad=True)
    expected = torch.autograd.grad(run(*given).square().sum(), given)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*given), run(*given))
    actual = torch.autograd.grad(compiled(*given).square().sum(), given)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_export_keeps_one_operator_and_any_batch_size():
    class Module(torch.nn.Module):
        def forward(self, x, w):
            return normalize(x, w, None, None, *SETTINGS)[0]

    x, w, *_ = tensors()
    program = torch.export.export(Module(), (x, w), dynamic_shapes=({0: torch.export.Dim("n", min=2)}, None))
    assert "homeostat.norm_rows" in program.graph_module.code
    more = torch.cat([x, x])
    assert torch.equal(program.module()(more, w), Module()(more, w))


def test_vmap_over_inputs_is_one_call_with_more_rows():
    x, w, b, r = tensors(3)
    expected = torch.stack([run(x[i], w, b, r[i]) for i in range(3)])
    assert torch.equal(torch.func.vmap(run, (0, None, None, 0))(x, w, b, r), expected)
    moved = torch.func.vmap(run, (2, None, None, None))(x.movedim(0, 2), w, b, r[0])
    assert torch.equal(moved, torch.stack([run(x[i], w, b, r[0]) for i in range(3)]))
    weights = torch.stack([w, 2 * w])
    each = torch.func.vmap(run, (None, 0, None, None))(x[0], weights, b, r[0])
    assert torch.equal(each, torch.stack([run(x[0], v, b, r[0]) for v in weights]))


def test_gradients_per_example_agree_with_a_loop():
    x, w, b, r = tensors(3)

    def loss(w, b, x, r):
        return run(x, w, b, r).square().sum()

    actual = torch.func.vmap(torch.func.grad(loss, (0, 1)), (None, None, 0, 0))(w, b, x, r)
    for i in range(3):
        w_, b_ = w.clone().requires_grad_(), b.clone().requires_grad_()
        expected = torch.autograd.grad(loss(w_, b_, x[i], r[i]), (w_, b_))
        torch.testing.assert_close([a[i] for a in actual], list(expected), rtol=1e-5, atol=1e-5)


def test_a_jacobian_by_torch_func_is_that_of_autograd():
    x, w, b, r = tensors()

    def function(x):
        return run(x, w, b, r)

    small = x[:1]
    r = r[:1]
    torch.testing.assert_close(
        torch.func.jacrev(function)(small), torch.autograd.functional.jacobian(function, small), rtol=1e-5, atol=1e-6
    )


@LOADS_SCRIPTS
@pytest.mark.parametrize("recording", [True, False])
def test_a_tangent_is_an_error_and_never_dropped(recording):
    given = tensors()
    with forward_ad.dual_level(), torch.set_grad_enabled(recording):
        expected = run(*given)
        for place in range(4):
            dual = forward_ad.make_dual(given[place], torch.ones_like(given[place]))
            args = [*given[:place], dual, *given[place + 1 :]]
            with pytest.raises(HomeostatError, match="norm_rows has no forward-mode derivative"):
                run(*args)
            with FlopCounterMode(display=False), pytest.raises(HomeostatError, match="no forward-mode derivative"):
                run(*args)
            with forward_ad._set_fwd_grad_enabled(False):
                assert torch.equal(run(*args), expected)


@LOADS_SCRIPTS
def test_a_tangent_of_torch_func_is_an_error_without_gradients_too():
    x, *others = tensors()

    def without_gradients(x):
        with torch.no_grad():
            return run(x, *others)

    for function in (without_gradients, lambda x: run(x, *others)):
        with pytest.raises(RuntimeError, match="jvp"):
            torch.func.jvp(function, (x,), (x,))


def test_checkpointing_changes_nothing():
    given = tensors(grad=True)
    expected = torch.autograd.grad(run(*given).square().sum(), given)
    actual = torch.autograd.grad(checkpoint(run, *given, use_reentrant=False).square().sum(), given)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_autocast_leaves_the_dtype_of_the_input():
    x, w, b, r = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        assert run(x, w, b, r).dtype == torch.float32
        assert run(x.bfloat16(), w, b, r.bfloat16()).dtype == torch.bfloat16


def test_nothing_but_the_inputs_and_the_statistics_is_kept_for_the_backward():
    x, w, b, _ = tensors(grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        normalize(x, w, b, None, *SETTINGS)
    assert sorted(t.numel() for t in kept) == [16, 16, 20, 80]
