"""What is claimed of descent: clipping of gradients, batches of all sizes, depth with and without skip connections.

Trained with homeostat's own recipes, steps and clipping; the cliff, a function of two numbers, is in float64.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from homeostat import seeds
from homeostat.claims import draw, experiments
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, Word, decided, more, points, settled, tiny, within
from homeostat.inference import Interval, mean_interval
from homeostat.page.svg import Picture
from homeostat.parts.clip import clip_grad_norm_, clip_grad_value_
from homeostat.study.factors import Level
from homeostat.study.running.runner import Trial
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.update import Update

_TOLERANCE = 1e-9
_BOUND = 1.0  # of clipping
_KINDS = ("batch", "mini-batch", "stochastic")
_MINI = 32
_COMMON_RATE = 0.1  # at which the paths of the three kinds are compared


def clipping(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, starts: int, steps: int, lr: float
) -> dict[str, float]:
    """How far a random gradient is turned by clipping; and the cost that descent reaches on a cliff, from many starts.

    The cliff is the one of Pascanu et al. 2013: a recurrent unit x <- w·sigmoid(x) + b is to give 0.7 after 50 steps.
    """
    generator = seeds.torch_generator(seed, "claim", "clip-direction")
    leaves = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in (600, 30, 7)]
    for leaf in leaves:
        leaf.grad = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
    before = _gradient(leaves)
    _clip(config["clip"], leaves)
    after = _gradient(leaves)
    low, high = torch.tensor([[4.5, -3.5], [6.5, -2.0]], dtype=torch.float64)
    drawn = low + (high - low) * torch.rand(starts, 2, generator=generator, dtype=torch.float64)
    places = [place.clone().requires_grad_() for place in drawn]
    costs, longest = [], 0.0
    for step in range(steps):
        cost = _cliff(torch.stack(places))
        cost.sum().backward()
        costs.append(float(cost.mean()))
        for place in places:
            _clip(config["clip"], [place])
            assert place.grad is not None
            longest = max(longest, lr * float(place.grad.norm()))
            with torch.no_grad():
                place -= lr * place.grad
            place.grad = None
        if trial is not None and step % 5 == 0:
            trial.report(step, cost=costs[-1])
    return {
        "cosine": float(before @ after / before.norm() / after.norm()),
        "norm": float(after.norm()),
        "cost": float(np.mean(costs[-(steps // 4) :])),
        "longest_step": longest,
    }


def _cliff(places: Tensor) -> Tensor:
    w, b = places.T
    x = torch.full_like(w, 0.5)
    for _ in range(50):
        x = w * torch.sigmoid(x) + b
    return (torch.sigmoid(x) - 0.7).square()


def _gradient(leaves: Sequence[Tensor]) -> Tensor:
    return torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]).clone()


def _clip(kind: str, leaves: list[Tensor]) -> None:
    if kind == "norm":
        clip_grad_norm_(leaves, _BOUND)
    elif kind == "value":
        clip_grad_value_(leaves, _BOUND)


def _judge_clipping(runs: Runs) -> Verdict:
    by_norm, by_value = (runs.where(clip=kind)["cosine"] for kind in ("norm", "value"))
    saved = runs.difference("cost", {"clip": "none"}, {"clip": "norm"})
    either = runs.difference("cost", {"clip": "value"}, {"clip": "norm"})
    turn = math.degrees(math.acos(min(1.0, float(by_value.mean()))))
    none, norm = (runs.where(clip=kind)[["cost", "longest_step"]].mean() for kind in ("none", "norm"))
    word, number = settled(
        (decided(saved), f"cost lower by {saved.estimate:.3f} [{saved.low:.3f}, {saved.high:.3f}]"),
        (within(1 - by_norm, _TOLERANCE), f"a cosine of 1 − {tiny((1 - by_norm).max())} by norm"),
        ("holds" if bool((by_value < 0.99).all()) else "fails", f"a cosine of {by_value.max():.3f} by value"),
    )
    return Verdict(
        word,
        number,
        f"Clipping by value turned gradients by {turn:.0f} degrees. On the cliff descent ended at a mean cost of "
        f"{norm['cost']:.3f} with clipping by norm and {none['cost']:.3f} without, where the longest step was "
        f"{none['longest_step']:.0f}. Clipping by value ended at a cost higher by {either.estimate:.3f} "
        f"[{either.low:.3f}, {either.high:.3f}] than clipping by norm." + more(word, saved),
    )


def kinds(
    config: Mapping[str, Any],
    seed: int,
    *,
    task: str,
    widths: Sequence[int],
    goal: float,
    seconds: float,
    checks: int,
    watched: int,
) -> dict[str, float]:
    """The time to a given cost of descent with batches of a kind, and how often the cost rises in its first steps.

    Only the steps are timed, in the processor's time; what a check of the whole cost takes is not counted.
    """
    found = experiments.task_named(task)
    count = len(found.train)
    size = {"batch": count, "mini-batch": _MINI, "stochastic": 1}[config["kind"]]
    recipe = Recipe(model="mlp", widths=tuple(widths), optimizer="sgd", momentum=0.0, lr=config["lr"])
    model, criterion = build_model(found, recipe, seed), found.loss_function()
    raw, y = found.train.batch(torch.arange(count))
    x = found.prepare(raw)
    update = Update(model, recipe, max(1, count // size), torch.device("cpu"))

    def cost() -> float:
        with torch.no_grad():
            return float(criterion(model(x), y))

    spent, reached, step = 0.0, math.nan, 0
    path = [cost()]
    every = max(1, count // size // checks)
    orders = (
        torch.randperm(count, generator=seeds.torch_generator(seed, "claim", "order", epoch))
        for epoch in itertools.count()
    )
    for rows in itertools.chain.from_iterable(order.split(size) for order in orders):
        start = time.process_time()
        update(criterion(model(x[rows]), y[rows]), step)
        spent += time.process_time() - start
        step += 1
        if step > watched and step % every:
            continue
        now = cost()
        if step <= watched:
            path.append(now)
        if math.isnan(reached) and now <= goal:
            reached = spent
        if not math.isfinite(now) or ((spent > seconds or not math.isnan(reached)) and step >= watched):
            break
    return {
        "seconds_to_goal": reached,
        "rises": float((np.diff(path) > 0).mean()),
        "milliseconds_per_step": 1000 * spent / step,
        "seconds_per_epoch": spent / step * count / size,
    }


def _times(runs: Runs) -> pd.DataFrame:
    """Logarithms of the seconds to the goal at each kind's best rate, by seed; what never arrived took all the time."""
    frame = runs.trials.assign(log=np.log(runs.trials["seconds_to_goal"].fillna(runs.setup.settings["seconds"])))
    at_best = pd.concat(
        [own[own["lr"] == own.groupby("lr")["log"].mean().idxmin()] for _, own in frame.groupby("kind")]
    )
    return at_best.pivot_table(index="seed", columns="kind", values="log").reindex(columns=list(_KINDS)).dropna()


def _judge_kinds(runs: Runs) -> Verdict:
    times = _times(runs)
    slower = {kind: mean_interval((times[kind] - times["mini-batch"]).to_numpy()) for kind in ("batch", "stochastic")}
    rougher = [
        runs.difference("rises", {"kind": first, "lr": _COMMON_RATE}, {"kind": second, "lr": _COMMON_RATE})
        for first, second in (("stochastic", "mini-batch"), ("mini-batch", "batch"))
    ]
    ratios = {
        kind: f"{math.exp(each.estimate):.1f} times [{math.exp(each.low):.1f}, {math.exp(each.high):.1f}]"
        for kind, each in slower.items()
    }
    least = min(runs.trials["lr"].astype(float))

    def listed(name: str, form: str, lr: float = _COMMON_RATE) -> str:
        mean = runs.where(lr=lr).groupby("kind")[name].mean()
        return ", ".join(f"{float(mean.get(kind, math.nan)):{form}}" for kind in _KINDS)

    late = runs.trials.groupby(["kind", "lr"])["seconds_to_goal"].count().groupby("kind").max()
    never = [kind for kind in _KINDS if late.get(kind, 0) == 0]
    parts = (*slower.values(), *rougher)
    word, number = settled(
        *((decided(each), f"{kind} {ratios[kind]} the time of mini-batches") for kind, each in slower.items()),
        *(
            (decided(each), f"{points(each)} more rising steps, {pair}")
            for pair, each in zip(("stochastic than mini-batch", "mini-batch than batch"), rougher, strict=True)
        ),
    )
    told = ", ".join(f"{kind} {ratio}" for kind, ratio in ratios.items())
    return Verdict(
        word,
        number,
        f"Time to the goal over that of mini-batches: {told}. For {', '.join(_KINDS)}: the whole cost rose in a share "
        f"of {listed('rises', '.2f')} of the steps (rate {_COMMON_RATE:g}; {listed('rises', '.2f', least)} at rate "
        f"{least:g}); a step took {listed('milliseconds_per_step', '.2g')} ms, an epoch "
        f"{listed('seconds_per_epoch', '.2g')} s."
        + (f" Not arrived in time at any rate: {', '.join(never)}." if never else "")
        + more(word, *parts),
    )


def depth(
    config: Mapping[str, Any],
    seed: int,
    trial: Trial | None = None,
    *,
    task: str,
    examples: int,
    recipe: dict[str, Any],
) -> dict[str, float]:
    """The final training loss of a residual net or its plain twin."""
    known = experiments.part_of(task, examples, seed=seed)
    found = experiments.fitted(config, seed, trial, task=known, recipe=recipe).metrics
    guessing = math.log(known.outputs)
    loss = found["train_loss"] if math.isfinite(found["train_loss"]) else math.inf
    return {**found, "log_train_loss": math.log(min(loss, guessing) + 1e-9)}


def _judge_depth(runs: Runs) -> Verdict:
    shallow, deep = runs.setup.factors["depth"]

    def ratio(first: dict[str, Level], second: dict[str, Level]) -> Interval:
        return runs.difference("log_train_loss", first, second)

    plain = ratio({"model": "plain", "depth": deep}, {"model": "plain", "depth": shallow})
    residual = ratio({"model": "resnet", "depth": deep}, {"model": "resnet", "depth": shallow})
    cured = ratio({"model": "plain", "depth": deep}, {"model": "resnet", "depth": deep})
    told = {
        name: f"{math.exp(each.estimate):.3g} times [{math.exp(each.low):.3g}, {math.exp(each.high):.3g}]"
        for name, each in {"plain": plain, "residual": residual, "cured": cured}.items()
    }
    # of the residual nets' own rise it is only asked that it does not lie above zero
    risen: Word = "fails" if residual.low > 0 else "undecided" if math.isnan(residual.low) else "holds"
    word, number = settled(
        (decided(plain), f"{told['plain']} the training loss with more layers, plain"),
        (decided(cured), f"{told['cured']} the training loss without skip connections"),
        (risen, f"{told['residual']} the training loss with more layers, residual"),
    )
    accuracy = {model: runs.where(model=model, depth=deep)["train_accuracy"].mean() for model in ("plain", "resnet")}
    return Verdict(
        word,
        number,
        f"At depth {deep} the plain net's training loss is {told['plain']} that at depth {shallow}, and "
        f"{told['cured']} that of the residual net, whose own at that depth is {told['residual']} that at depth "
        f"{shallow}. Training accuracy at depth {deep}: {accuracy['plain']:.1%} plain, {accuracy['resnet']:.1%} "
        "residual." + more(word, plain, cured, residual),
    )


def _draw_depth(runs: Runs) -> Picture:
    nets = runs.curves["model"].replace("resnet", "residual") + ", " + runs.curves["depth"].astype(str)
    return draw.courses(
        runs.curves.assign(net=nets),
        "epoch", "train_loss", "net", across="epoch", up="training loss, nats", log="y",
        alt="Training loss by epoch of plain and residual nets of two depths.",
    )  # fmt: skip


_RATES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
_DEEP = {"widths": [8, 16, 32], "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": "cosine"}

CLAIMS = (
    Claim(
        id="clip-direction",
        sentence="Clipping by value will change the direction of the gradient, clipping by norm will preserve it and "
        "just control its size; on the cliffs landscape it is clipping that keeps descent near.",
        source="003, Gradient Clipping",
        hypothesis="The cosine between a gradient before and after clipping is 1 by norm and less by value; descent on "
        "a cliff reaches a lower cost with clipping by norm than without.",
        criterion=f"Holds if the cosine is 1 to {_TOLERANCE:g} by norm and below 0.99 by value in every run, and the "
        "interval of the cost without clipping minus that with clipping by norm lies above 0 (mean over random starts "
        "and the last quarter of the steps); fails if a cosine is not so, or that interval lies below 0.",
        experiment=clipping, judge=_judge_clipping,
        draw=lambda runs: draw.courses(
            runs.curves, "epoch", "cost", "clip", across="step", up="cost, mean over the starts",
            alt="Cost by step on the cliff without clipping, with clipping by norm and by value.",
            names={"none": "no clipping", "norm": "by norm", "value": "by value"},
        ),
        quick=Setup("random gradients; a recurrent unit's cliff, 20 starts, 200 steps", {"clip": ["none", "norm",
                    "value"]}, 8, {"starts": 20, "steps": 200, "lr": 0.1}),
        full=Setup("random gradients; a recurrent unit's cliff, 50 starts, 1,000 steps", {"clip": ["none", "norm",
                   "value"]}, 30, {"starts": 50, "steps": 1000, "lr": 0.1}),
        literature="Pascanu et al. 2013 (arXiv:1211.5063) draw this cliff and clip by norm. Zhang et al. 2020 "
        "(arXiv:1905.11881) prove that clipped descent is faster where smoothness grows with the gradient.",
    ),
    Claim(
        id="gradient-descent-kinds",
        sentence="Batch: movement is very smooth. Stochastic: the cost function will bounce up and down and decrease "
        "only on average. Mini-batch: much smoother than SGD; the most recommended one, because it is efficient.",
        source="003, Various GD types",
        hypothesis="The whole cost rises in more of the first 200 steps with single examples than with mini-batches of "
        "32, and in more with those than with the whole set; mini-batches take the least time to a given cost.",
        criterion="Each kind at its best learning rate of six (by mean log time over the seeds; what does not arrive "
        "counts with the time allowed). Holds if all four intervals lie above 0: log time of batch and of stochastic "
        "minus mini-batch, and the differences of the shares of rising steps at rate 0.1; fails if one lies below 0.",
        experiment=kinds, judge=_judge_kinds,
        draw=lambda runs: draw.courses(
            runs.trials, "lr", "seconds_to_goal", "kind", across="learning rate", up="processor seconds to the goal",
            log="xy", alt="Seconds to a given training cost by learning rate, for three sizes of batches.",
        ),
        quick=Setup("digits, 1,078 examples; one hidden layer of 32; training cost 0.1; 1 s", {"kind": list(_KINDS),
                    "lr": _RATES}, 5, {"task": "digits", "widths": [32], "goal": 0.1, "seconds": 1.0, "checks": 5,
                    "watched": 200}),
        full=Setup("mnist, 50,000 examples; one hidden layer of 128; training cost 0.1; 60 s", {"kind": list(_KINDS),
                   "lr": _RATES}, 5, {"task": "mnist", "widths": [128], "goal": 0.1, "seconds": 60.0, "checks": 5,
                   "watched": 200}),
        literature="The best size depends on the machine: what a processor does in parallel costs no time.",
    ),
    Claim(
        id="plain-vs-residual",
        sentence="We expect lower train loss with more layers; the ResNet paper observed this is not always the case: "
        "deeper plain networks are harder to train. Skip connections fix the observed issue.",
        source="004, Skip Connections and Residuals",
        hypothesis="A deeper plain net ends with a higher training loss; with skip connections it does not.",
        criterion="On the log of the training loss after equal epochs, at most that of guessing, which a run that "
        "diverged counts with: holds if deep minus shallow lies above 0 for "
        "plain nets, and plain minus residual at the greater depth lies above 0; fails if either lies below 0, or if "
        "deep minus shallow lies wholly above 0 for residual nets too.",
        experiment=depth, judge=_judge_depth, draw=_draw_depth,
        quick=Setup("digits, 500 examples; batch normalization; 15 epochs", {"model": ["plain", "resnet"], "depth":
                    [8, 32]}, 5, {"task": "digits", "examples": 500, "recipe": {**_DEEP, "epochs": 15}}),
        full=Setup("cifar10, 4,000 examples; batch normalization; widths 8, 16, 32; 12 epochs", {"model": ["plain",
                   "resnet"], "depth": [20, 56]}, 4,
                   {"task": "cifar10", "examples": 4000, "recipe": {**_DEEP, "epochs": 12}}),
        literature="He et al. 2016 (arXiv:1512.03385), whole CIFAR-10, 64,000 steps, widths 16, 32, 64: plain nets get "
        "worse from 20 to 56 layers; residual nets better, 8.75 % test error with 20 and 6.97 % with 56. In full, "
        "here are some 750 steps.",
    ),
)  # fmt: skip
