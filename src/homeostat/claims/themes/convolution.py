"""What a convolution does by construction: weights that are shared, images that are shifted, borders.

All in float64 on random tensors that the seed draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat import seeds
from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, settled, tiny, within

_TOLERANCE = 1e-9


def sharing(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """How far the gradient of a shared weight is from the sum over its edges, each with a weight of its own."""
    generator = seeds.torch_generator(seed, "claim", "weight-sharing-gradient")

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if config["network"] == "convolution":
        given, weight, wanted = normal(2, 3, 6, 7), nn.Parameter(normal(4, 3, 3, 3)), normal(2, 4, 42)
        output = F.conv2d(given, weight, padding=1).flatten(2).tanh()
        edges = weight.detach().flatten(1).repeat(42, 1, 1).requires_grad_()  # (positions, outputs, inputs)
        alone = torch.einsum("poi,nip->nop", edges, F.unfold(given, 3, padding=1)).tanh()
    else:
        given, wanted = normal(6, 2, 3), normal(6, 2, 4)  # six steps
        layer = nn.RNN(3, 4, bias=False).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(normal(*parameter.shape))
        named = dict(layer.named_parameters())
        weight, output = named["weight_hh_l0"], layer(given)[0]
        edges = weight.detach().repeat(6, 1, 1).requires_grad_()
        states = [torch.zeros(2, 4, dtype=torch.float64)]
        for input, edge in zip(given @ named["weight_ih_l0"].detach().T, edges, strict=True):
            states.append(torch.tanh(input + states[-1] @ edge.T))
        alone = torch.stack(states[1:])
    shared = torch.autograd.grad((output * wanted).sum(), weight)[0].flatten()
    own = torch.autograd.grad((alone * wanted).sum(), edges)[0].flatten(1)
    return {
        "error": float((own.sum(0) - shared).abs().max() / shared.abs().max()),
        "mean_error": float((own.mean(0) - shared).abs().max() / shared.abs().max()),
    }


def _judge_sharing(runs: Runs) -> Verdict:
    errors = runs.trials["error"]
    return Verdict(
        within(errors, _TOLERANCE),
        f"largest error {tiny(errors.max())}",
        f"From the gradient of the shared weight the sum over its edges is {tiny(errors.max())} of the largest entry "
        f"away, their mean {100 * runs.trials['mean_error'].mean():.0f} % of the largest entry.",
    )


def shifts(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """How far the convolution of a shifted image is from the shifted convolution, inside and at the borders."""
    generator = seeds.torch_generator(seed, "claim", "convolution-shift")
    padding, size = config["padding"], config["size"]
    mode: Literal["circular", "zeros"] = "circular" if padding == "circular" else "zeros"
    layer, strided = (
        nn.Conv2d(3, 4, size, stride, 0 if padding == "valid" else size // 2, padding_mode=mode).double()
        for stride in (1, 2)
    )
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
        strided.load_state_dict(layer.state_dict())
        given = torch.randn(2, 3, 20, 22, generator=generator, dtype=torch.float64)
        base = layer(given)
        error = layer(given.roll((2, 3), (2, 3))).sub(base.roll((2, 3), (2, 3))).abs().amax((0, 1))
        far = 0 if padding == "circular" else 3 + size // 2
        inside = error[far : error.shape[0] - far, far : error.shape[1] - far]
        moved, still = strided(given.roll(1, 2)), strided(given)
        coarse = min(float((moved - still.roll(by, 2)).abs().mean() / still.abs().mean()) for by in (0, 1))
    return {
        "inside": float(inside.max() / base.abs().max()),
        "border": float(error.max() / base.abs().max()),
        "rows_lost": float(given.shape[2] - base.shape[2]),
        "columns_lost": float(given.shape[3] - base.shape[3]),
        "strided": coarse,
    }


def _judge_shifts(runs: Runs) -> Verdict:
    frame = runs.trials
    lost = (frame["size"].astype(float) - 1) * (frame["padding"] == "valid")
    sizes = (frame[["rows_lost", "columns_lost"]].sub(lost, axis=0)).abs().max(axis=1)
    zeros, circular = (runs.where(padding=kind)["border"].max() for kind in ("zeros", "circular"))
    return Verdict(
        *settled(
            (within(frame["inside"], _TOLERANCE), f"largest error {tiny(frame['inside'].max())}"),
            (within(sizes, 0.0), f"a size wrong by {sizes.max():.0f}"),
        ),
        f"At the borders zero padding errs by up to {zeros:.2f} of the largest output, circular padding by "
        f"{tiny(circular)}. With a stride of 2 and a shift by one pixel the nearest shifted output has a mean error of "
        f"{runs.where(padding='circular')['strided'].mean():.2f} of the mean output.",
    )


_RANDOM = "random tensors in float64"

CLAIMS = (
    Claim(
        id="weight-sharing-gradient",
        sentence="Run backpropagation ignoring that the weights are shared; once the gradient is computed, sum up the "
        "gradients of all edges that share the same weight.",
        source="004, Backpropagation with weight sharing",
        hypothesis="For a convolution and a recurrent layer, that sum is the gradient of the shared weight.",
        criterion=f"Holds if the largest error is at most {_TOLERANCE:g} of the largest entry; fails otherwise.",
        experiment=sharing, judge=_judge_sharing,
        draw=lambda runs: draw.levels(
            runs.trials.melt(["network", "seed"], var_name="what", value_name="size"), ["network", "what"], "size",
            across="largest error, of the largest entry", log=True,
            alt="Error of the sum and of the mean of the edges' gradients, for a convolution and a recurrent layer.",
            names={(n, w): f"{n}, {label}" for n in ("convolution", "recurrent")
                   for w, label in (("error", "sum"), ("mean_error", "mean"))},
        ),
        quick=Setup(_RANDOM, {"network": ["convolution", "recurrent"]}, 10),
        full=Setup(_RANDOM, {"network": ["convolution", "recurrent"]}, 100),
    ),
    Claim(
        id="convolution-shift",
        sentence="Shift invariance: shifted input results in shifted output. With zero padding the convolved feature "
        "is of the same dimensionality as the input, with valid padding it is smaller.",
        source="004, Convolution; Handling of borders",
        hypothesis="Away from the borders both outputs are equal up to rounding; zero padding keeps the size, valid "
        "padding takes a filter's side less one away.",
        criterion=f"Holds if the error inside is at most {_TOLERANCE:g} of the largest output and all sizes are as "
        "said; fails otherwise.",
        experiment=shifts, judge=_judge_shifts,
        draw=lambda runs: draw.levels(
            runs.trials.melt(["padding", "size", "seed"], ["inside", "border"], "where", "error"),
            ["padding", "where"], "error", across="largest error, of the largest output",
            alt="Error of shifted outputs inside and anywhere, by padding.",
            names={(p, w): f"{p}, {label}" for p in ("zeros", "valid", "circular")
                   for w, label in (("inside", "inside"), ("border", "anywhere"))},
        ),
        quick=Setup(_RANDOM, {"padding": ["zeros", "valid", "circular"], "size": [3, 5]}, 10),
        full=Setup(_RANDOM, {"padding": ["zeros", "valid", "circular"], "size": [3, 5]}, 100),
        literature="Whole networks are not shift invariant: strides break it (Azulay & Weiss 2019, arXiv:1805.12177; "
        "Zhang 2019, arXiv:1904.11486).",
    ),
)  # fmt: skip
