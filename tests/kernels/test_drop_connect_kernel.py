"""DropConnect per example: every backend against the product with the masked weights written out."""

from __future__ import annotations

import pytest
import torch

from homeostat.errors import InvalidType, InvalidValue
from homeostat.kernels.drop_connect import drop_connect, drop_connect_input, drop_connect_weight
from homeostat.kernels.philox_reference import words

SEED = torch.tensor([2**62 + 3, 17])
SIZES = [  # N, T, I, O, example, position
    (1, 1, 1, 1, 0, 0), (5, 1, 7, 3, 2, 5), (6, 3, 600, 5, 1, 2**32 - 100), (4, 1, 520, 17, 2**33, 0),
    (9, 2, 33, 40, 3, 2**40),    (0, 1, 3, 3, 0, 0), (3, 1, 0, 3, 0, 0), (3, 1, 3, 0, 0, 0), (2, 0, 3, 2, 0, 0),
]  # fmt: skip
BACKENDS = ["numba", "reference"]


def tensors(n: int, t: int, i: int, o: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(shape, dtype=dtype) for shape in [(n, t, i), (o, i), (n, t, o)])


def factors(n: int, i: int, o: int, p: float, example: int, position: int) -> torch.Tensor:
    """m(n, o, i) / (1 - p)."""
    keep = words(SEED, n, o * i, example, position).reshape(n, o, i) >= round(p * 2**32)
    return keep.double() / (1 - p)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_with_masked_weights(backend, sizes, dtype):
    n, t, i, o, *place = sizes
    x, w, g = tensors(n, t, i, o, dtype)
    masks = factors(n, i, o, 0.4, *place).to(dtype)
    expected = [
        (drop_connect, (x, w), torch.einsum("nti,oi,noi->nto", x, w, masks)),
        (drop_connect_input, (g, w), torch.einsum("nto,oi,noi->nti", g, w, masks)),
        (drop_connect_weight, (g, x), torch.einsum("nto,nti,noi->oi", g, x, masks)),
    ]
    for operator, given, value in expected:
        rounding = 1e-6 * float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(operator(*given, SEED, 0.4, *place, backend), value, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_both_orders(backend):
    x, w, g = (tensor.requires_grad_() for tensor in tensors(5, 2, 3, 2))
    for operator, given in ((drop_connect, (x, w)), (drop_connect_input, (g, w)), (drop_connect_weight, (g, x))):

        def product(a, b, operator=operator):
            return operator(a, b, SEED, 0.4, 1, 0, backend)

        assert torch.autograd.gradcheck(product, given)
        assert torch.autograd.gradgradcheck(product, given)


def test_nothing_of_the_size_of_all_masks_is_kept():
    (x, w, _), kept = tensors(8, 1, 30, 20), []
    x.requires_grad_()
    w.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        drop_connect(x, w, SEED, 0.5, 0, 0, None)
    assert [tuple(t.shape) for t in kept] == [(8, 1, 30), (20, 30), (2,)]


def test_threads_change_nothing_and_parts_of_a_batch_get_its_masks():
    x, w, g = tensors(10, 1, 700, 50, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([
                drop_connect(x, w, SEED, 0.5, 2, 0, None),
                drop_connect_input(g, w, SEED, 0.5, 2, 0, None),
                drop_connect_weight(g, x, SEED, 0.5, 2, 0, None),
            ])  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    parts = [drop_connect(x[:3], w, SEED, 0.5, 2, 0, None), drop_connect(x[3:], w, SEED, 0.5, 5, 0, None)]
    assert torch.equal(torch.cat(parts), results[0][0])
    rows = [drop_connect(x, w[:20], SEED, 0.5, 2, 0, None), drop_connect(x, w[20:], SEED, 0.5, 2, 20 * 700, None)]
    assert torch.equal(torch.cat(rows, -1), results[0][0])


def test_extreme_probabilities_and_other_strides():
    x, w, _ = tensors(5, 2, 6, 4)
    for backend in BACKENDS:
        torch.testing.assert_close(drop_connect(x, w, SEED, 0.0, 0, 0, backend), x @ w.T)
        assert not drop_connect(x, w, SEED, 1.0, 0, 0, backend).any()
        strided = drop_connect(
            x.transpose(0, 1).contiguous().transpose(0, 1), w.T.contiguous().T, SEED, 0.5, 0, 0, backend
        )
        torch.testing.assert_close(strided, drop_connect(x, w, SEED, 0.5, 0, 0, backend))


def test_half_precision_computes_in_single():
    x, w, _ = tensors(5, 2, 60, 4, torch.bfloat16)
    exact = drop_connect(x.float(), w.float(), SEED, 0.5, 0, 0, "reference").bfloat16()
    torch.testing.assert_close(drop_connect(x, w, SEED, 0.5, 0, 0, None), exact, rtol=0, atol=0)


def test_opcheck_and_vmap():
    x, w, g = (tensor.requires_grad_() for tensor in tensors(5, 2, 4, 3))
    for operator, given in ((drop_connect, (x, w)), (drop_connect_input, (g, w)), (drop_connect_weight, (g, x))):
        torch.library.opcheck(operator.dispatched, (*given, SEED, 0.5, 1, 2, None))
    many = torch.randn(3, 3, 4, dtype=torch.float64)
    batched = torch.func.vmap(lambda w: drop_connect(x, w, SEED, 0.5, 0, 0, None))(many)
    assert torch.equal(batched[1], drop_connect(x, many[1], SEED, 0.5, 0, 0, None))


BAD = [
    ({"input": torch.ones(2, 1, 3, dtype=torch.int64)}, InvalidType, "input must be floating"),
    ({"weight": torch.ones(4, 3, dtype=torch.float64)}, InvalidType, "weight must be torch.float32"),
    ({"weight": torch.ones(4, 2)}, InvalidValue, "weight must agree with the input, which has 3 features"),
    ({"p": 1.1}, InvalidValue, r"p must lie in \[0, 1\]"),
    ({"seed": torch.tensor(1)}, InvalidValue, "seed must be int64"),
    ({"example": -1}, InvalidValue, "example must be at least 0"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_bad_arguments_are_refused(change, kind, message):
    good = {
        "input": torch.ones(2, 1, 3),
        "weight": torch.ones(4, 3),
        "seed": SEED,
        "p": 0.5,
        "example": 0,
        "position": 0,
    }
    with pytest.raises(kind, match=message):
        drop_connect(*{**good, **change}.values(), None)
