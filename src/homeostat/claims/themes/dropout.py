"""What dropout is: one scaling in three forms, and a sampled sum. Also here: what the themes on dropout share.

All masks of few units are run, in float64, so that means over masks are exact. Dropout as an average of nets is in
`dropout_average`, what it does to training in `dropout_training`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from homeostat import nn as hsnn
from homeostat import seeds
from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, inside, more, seed_mean, settled, tiny, within
from homeostat.page.svg import Picture
from homeostat.parts.dropout import absorb_dropout_scale_, set_p_
from homeostat.parts.ensemble import enumerate_masks

_TOLERANCE = 1e-9


def scaling(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Distances between the forms of dropout's scaling, from the mean over all masks, and after steps of SGD.

    All are relative to the largest output.
    """
    p = config["p"]
    with seeds.isolated(seed, "claim", "dropout-scaling"):
        scaled = _net(config["net"], p)
        given = torch.randn(16, 6, dtype=torch.float64)
        wanted = torch.randn(16, 3, dtype=torch.float64)
    inverted = _inverted(scaled, p)
    training = (_with_masks(scaled, given, seed), _with_masks(inverted, given, seed))
    with torch.no_grad():
        plain, largest = scaled.eval()(given), float(scaled(given).abs().max())
        absorbed, other = copy.deepcopy(scaled), copy.deepcopy(scaled)
        absorb_dropout_scale_(absorbed, given)
        set_p_(other, 1 - p)  # the factor in evaluation is then the probability of dropping
        forms = [absorbed(given) - plain, inverted.eval()(given) - plain, training[0] - training[1]]
        mean = enumerate_masks(scaled, given, kind="regression").mean
        errors = {
            "forms": max(float(difference.abs().max()) for difference in forms),
            "mean": float((plain - mean).abs().max()),
            "drop_probability": float((other(given) - mean).abs().max()),
        }
    course = _stepped(scaled, given, wanted, seed, 1.0)
    for name, factor in (("same_rate", 1.0), ("matched_rate", (1 - p) ** 2)):
        errors[name] = float((_stepped(inverted, given, wanted, seed, factor) - course).abs().max())
    return {name: error / largest for name, error in errors.items()}


def _net(kind: str, p: float) -> nn.Sequential:
    """One linear layer, or three with rectifiers; dropout in front of those that it can scale."""
    if kind == "linear":
        return nn.Sequential(hsnn.Dropout(p, mode="scaled"), nn.Linear(6, 3)).double()
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(6, 6), nn.ReLU(), hsnn.Dropout(p, mode="scaled")]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def _inverted(model: nn.Sequential, p: float) -> nn.Sequential:
    """The same net with the factor in training: weights behind dropout times 1 - p, kept units over it."""
    other = copy.deepcopy(model)
    for module in other:
        if isinstance(module, hsnn.Dropout):
            module.mode = "inverted"
    with torch.no_grad():
        for weight in _behind(other):
            weight.mul_(1 - p)
    return other


def _behind(model: nn.Sequential) -> list[Tensor]:
    pairs = [(first, second) for first, second in itertools.pairwise(model) if isinstance(first, hsnn.Dropout)]
    return [layer.weight for _, layer in pairs if isinstance(layer, nn.Linear)]


@torch.no_grad()
def _with_masks(model: nn.Module, given: Tensor, seed: int) -> Tensor:
    """The outputs in training, under the seed's masks."""
    with seeds.isolated(seed, "claim", "dropout-scaling", "masks"):
        output: Tensor = model.train()(given)
    return output


def _stepped(model: nn.Sequential, given: Tensor, wanted: Tensor, seed: int, factor: float) -> Tensor:
    """Predictions after ten steps of SGD under the seed's masks, with that factor on the rate behind dropout."""
    trained = copy.deepcopy(model).train()
    behind = _behind(trained)
    others = [each for each in trained.parameters() if all(each is not weight for weight in behind)]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": behind, "lr": 0.05 * factor}]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    with seeds.isolated(seed, "claim", "dropout-scaling", "steps"):
        for _ in range(10):
            optimizer.zero_grad()
            (trained(given) - wanted).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        output: Tensor = trained.eval()(given)
    return output


def _judge_scaling(runs: Runs) -> Verdict:
    linear, deep = runs.where(net="linear"), runs.where(net="deep")
    exact = pd.concat([runs.trials["forms"], linear["mean"]])
    literal = linear.groupby("p")["drop_probability"].max()
    worded = ", ".join(f"{error:.0%} for p = {p:g}" for p, error in literal.items())
    return Verdict(
        within(exact, _TOLERANCE),
        f"largest difference {tiny(exact.max())}",
        f"With rectifiers behind dropout, the pass is up to {deep['mean'].max():.0%} of the largest output from the "
        f"mean over all masks. Ten steps of SGD at one learning rate lead the forms apart by up to "
        f"{runs.trials['same_rate'].max():.0%}; with (1 - p)² times the rate behind inverted dropout, by "
        f"{tiny(runs.trials['matched_rate'].max())}. Multiplying by p itself, as 000 words it, is off by {worded}.",
    )


def _draw_scaling(runs: Runs) -> Picture:
    rows = {
        ("forms", "linear"): "forms, one linear layer",
        ("forms", "deep"): "forms, three layers",
        ("mean", "linear"): "mean over masks, one linear layer",
        ("mean", "deep"): "mean over masks, three layers",
        ("matched_rate", "deep"): "after SGD, rate matched",
        ("same_rate", "deep"): "after SGD, same rate",
    }
    frame = runs.trials.melt(["p", "net", "seed"], var_name="what", value_name="difference")
    frame["difference"] = frame["difference"].clip(lower=1e-17)
    frame = pd.concat([frame[(frame["what"] == what) & (frame["net"] == net)] for what, net in rows])
    return draw.levels(
        frame, ["what", "net"], "difference", log=True, names=rows,
        across="difference over the largest output (none: 1e-17)",
        alt="Differences between the forms of dropout's scaling, and from the mean over all masks, for one linear "
        "layer and for three.",
    )  # fmt: skip


_UNITS = 10


def sampled_sum(config: Mapping[str, Any], seed: int, *, draws: int) -> dict[str, float]:
    """Mean and variance of a sum of ten terms with dropout and with batches of a fixed size, and of its gradients.

    Variances are relative to p / (1 - p) times the sum of squares (dropout), or the sum of squared deviations with
    n / (n - 1) (batches).
    """
    p = config["p"]
    generator = seeds.torch_generator(seed, "claim", "dropout-sgd-noise")
    values = torch.randn(1, _UNITS, generator=generator, dtype=torch.float64) + 1
    linear = nn.Linear(_UNITS, 3, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(torch.randn(3, _UNITS, generator=generator, dtype=torch.float64))
        terms = linear.weight * values
        model = nn.Sequential(hsnn.Dropout(p), linear)
        exact = enumerate_masks(model, values, kind="regression")
        with seeds.isolated(seed, "claim", "dropout-sgd-noise", "masks"):
            drawn = model.train()(values.expand(draws, -1))
    kept = round(_UNITS * (1 - p))
    chosen = torch.tensor(list(itertools.combinations(range(_UNITS), kept)))
    batches = _UNITS * terms[:, chosen].mean(2)
    factor, squares, spread = p / (1 - p), terms.square().sum(1), _UNITS * terms.var(1)
    scale = float(terms.abs().sum(1).max())
    return {
        "dropout_mean": float((exact.mean[0] - terms.sum(1)).abs().max()) / scale,
        "batch_mean": float((batches.mean(1) - terms.sum(1)).abs().max()) / scale,
        "dropout_variance": float((exact.variance[0] / squares / factor - 1).abs().max()),
        "batch_variance": float((batches.var(1, correction=0) / spread / factor - 1).abs().max()),
        "drawn": float((drawn.var(0) / squares).mean()) / factor,
        "gradient_bias": _gradient_bias(p, generator),
    }


def _gradient_bias(p: float, generator: torch.Generator) -> float:
    """How far the mean gradient over all masks is from the gradient without dropout, over the latter's length."""
    shapes = ((8, 4), (_UNITS, 4), (1, _UNITS), (8, 1))
    given, first, second, wanted = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    weights = [first.requires_grad_(), second.requires_grad_()]
    keep = (torch.arange(1 << _UNITS)[:, None] >> torch.arange(_UNITS)) % 2 == 0
    shares = torch.where(keep, 1 - p, p).double().prod(1)
    hidden = (given @ first.T).tanh()
    masked = torch.where(keep[:, None], hidden / (1 - p), 0.0)
    losses = (masked @ second.T - wanted).square().mean((1, 2))
    plain = (hidden @ second.T - wanted).square().mean()
    own, all_masks = (
        torch.cat([each.flatten() for each in torch.autograd.grad(loss, weights, retain_graph=True)])
        for loss in (plain, (shares * losses).sum())
    )
    return float((all_masks - own).norm() / own.norm())


def _judge_sum(runs: Runs) -> Verdict:
    exact = runs.trials[["dropout_mean", "batch_mean", "dropout_variance", "batch_variance"]].max(axis=1)
    drawn = seed_mean(runs.trials.groupby("seed")["drawn"].mean())
    layer = inside(drawn, 0.95, 1.05)
    bias = runs.trials.groupby("p")["gradient_bias"].median()
    grows = ", ".join(f"{value:.0%} for p = {p:g}" for p, value in bias.items())
    return Verdict(
        *settled(
            (layer, f"drawn variance {drawn.estimate:.3f} of the formula's [{drawn.low:.3f}, {drawn.high:.3f}]"),
            (within(exact, _TOLERANCE), f"means and variances off by {tiny(exact.max())}"),
        ),
        f"Over all masks and all batches, means and variances are off by {tiny(exact.max())} at most. Dropout's "
        "variance counts squares, a batch's squared deviations from the mean. Behind a nonlinearity and a loss the "
        f"likeness ends: the mean gradient over all masks differs from the one without dropout by {grows} (medians)."
        + more(layer, drawn, threshold=0.95),
    )


def _draw_sum(runs: Runs) -> Picture:
    frame = runs.trials.assign(odds=runs.trials["p"] / (1 - runs.trials["p"]))
    frame["variance"] = frame["drawn"] * frame["odds"]
    return draw.courses(
        frame, "odds", "variance", log="xy", across="p / (1 − p)", up="drawn variance / sum of squares",
        alt="The variance of a sum under dropout over the sum of its squared terms, against p / (1 - p): a straight "
        "line through equal values.",
    )  # fmt: skip


_RANDOM = "random tensors in float64"

CLAIMS = (
    Claim(
        id="dropout-scaling",
        sentence="At test time use the expected output of a neuron, E[y] = α h(a). Alternatives: push α into the next "
        "layer's weights after training, or during training multiply every output by 1/α, and do testing as before.",
        source="001, Dropout as Bagging; 000, Dropout; 003, Dropout: Test Time; 004, Dropout: testing phase",
        hypothesis="The three are one function, and for one linear layer it is the mean over all masks.",
        criterion=f"Holds if the forms' outputs, in training under the same masks and at test time, and for one linear "
        f"layer the mean over all masks, differ by at most {_TOLERANCE:g} of the largest output; fails otherwise.",
        experiment=scaling,
        judge=_judge_scaling,
        draw=_draw_scaling,
        quick=Setup(_RANDOM, {"p": [0.2, 0.5, 0.8], "net": ["linear", "deep"]}, 5),
        full=Setup(_RANDOM, {"p": [0.1, 0.2, 0.5, 0.8, 0.9], "net": ["linear", "deep"]}, 50),
        literature="Srivastava et al. 2014 (figure 2) multiply weights by the probability of keeping. 000 sets units "
        "to zero with probability p and multiplies by p, which is the same for p = 0.5 only. 003 derives E_train = "
        "½ E_test and writes E_test = 0.5 E_train below: the factor belongs on the other side. 004 scales weights by "
        "1/p after each update, which done literally would add up.",
    ),
    Claim(
        id="dropout-sgd-noise",
        sentence="Instructive to consider dropout as bringing a similar stochastic approximation as SGD to the setting "
        "of individual activations: a sum over a random part P of the n, times n / |P|.",
        source="002, Dropout as stochastic approximation",
        hypothesis="The sum with dropped terms is unbiased and its variance proportional to p / (1 - p), as for "
        "batches drawn without replacement.",
        criterion=f"Holds if over all masks, and over all batches of (1 - p) n terms, the means are the sum and the "
        f"variances p / (1 - p) times the sum of squares (for batches: of squared deviations, times n / (n - 1)), both "
        f"to {_TOLERANCE:g}, and the layer's own draws have 0.95 to 1.05 times that variance (the whole interval); "
        f"fails if one does not.",
        experiment=sampled_sum,
        judge=_judge_sum,
        draw=_draw_sum,
        quick=Setup(_RANDOM, {"p": [0.1, 0.2, 0.5, 0.8, 0.9]}, 8, {"draws": 20_000}),
        full=Setup(_RANDOM, {"p": [0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9]}, 50, {"draws": 200_000}),
        literature="Wager et al. 2013 (arXiv:1307.1493) show for generalized linear models that dropout is, to "
        "second order, an adaptive L2 penalty: unlike the noise of batches, it changes the loss that is minimized in "
        "the mean.",
    ),
)  # fmt: skip
