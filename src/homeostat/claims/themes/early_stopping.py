"""When to stop: rules of early stopping compared on nets that overfit.

Training by recipes; nothing else here is random but data that a seed draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, decided, said, seed_mean, settled
from homeostat.claims.experiments import fitted, task_named
from homeostat.inference import Interval
from homeostat.training.datasets import load_task


def stopped(
    config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any], rules: Mapping[str, Any], anew: bool
) -> dict[str, float]:
    """Test loss and epochs with one of the rules; `anew`: on data that the seed draws."""
    found = load_task(task, seed=seed) if anew else task_named(task)
    metrics = fitted(rules.get(config["rule"], {}), seed, task=found, recipe=recipe).metrics
    return {name: metrics[name] for name in ("test_loss", "epochs_run", "train_loss")}


def _judge_stopped(runs: Runs) -> Verdict:
    rules = [str(rule) for rule in runs.setup.factors["rule"] if rule != "none"]
    logs = {rule: runs.by_seed("test_loss", rule=rule).map(np.log) for rule in ("none", *rules)}
    gains = {rule: seed_mean(logs["none"] - logs[rule]) for rule in rules}
    epochs = {rule: runs.by_seed("epochs_run", rule=rule).mean() for rule in ("none", *rules)}
    each = "; ".join(
        f"{rule} {_less(gains[rule])}, {100 * (1 - epochs[rule] / epochs['none']):.0f} % of the epochs saved"
        for rule in rules
    )
    return said(
        *settled(*((decided(gain), f"{_less(gain)} test loss with {rule}") for rule, gain in gains.items())),
        f"Against the last of {epochs['none']:.0f} epochs, test loss and time: {each}.",
    )


def _less(logs: Interval) -> str:
    """A drop of logarithms as a change in percent: "−30 % [−40, −18]"."""
    change, low, high = (100 * math.expm1(-end) for end in (logs.estimate, logs.high, logs.low))
    return f"{change:+.0f} % [{low:+.0f}, {high:+.0f}]".replace("-", "−")


_RULES: dict[str, Sequence[Any]] = {"rule": ["none", "patience", "GL", "PQ", "UP"]}

CLAIMS = (
    Claim(
        id="early-stopping",
        sentence="Stop the training procedure when the validation error is minimum, before it grows.",
        source="003, Solution 2: Early Stopping; 000, The problem of overfitting",
        hypothesis="Each of the rules patience, GL, PQ and UP ends with a lower test loss than training to the last "
        "epoch.",
        criterion="Holds if for each rule the whole interval of the mean log ratio of test losses (no rule over rule, "
        "paired by seed) lies above zero; fails if for one of them it lies below. The epochs saved are reported.",
        experiment=stopped,
        judge=_judge_stopped,
        draw=lambda runs: draw.scatter(
            runs.trials, "epochs_run", "test_loss", "rule", log="x",
            across="epochs of training", up="test loss",
            alt="Test loss against the epochs that training took, by the rule that stopped it.",
        ),
        quick=Setup(
            "curve: 20 noisy points, drawn by the seed; an MLP of 2×128, 600 epochs of one step", _RULES, 10,
            {
                "task": "curve", "anew": True,
                "recipe": {"model": "mlp", "optimizer": "adam", "lr": 0.003, "epochs": 600},
                "rules": {
                    "patience": {"patience": 20}, "GL": {"gl_alpha": 5.0}, "PQ": {"pq_alpha": 0.75},
                    "UP": {"up_strips": 3},
                },
            },
        ),
        full=Setup(
            "CIFAR-10; an MLP of 1×512, 40 epochs", _RULES, 5,
            {
                "task": "cifar10", "anew": False,
                "recipe": {
                    "model": "mlp", "widths": [512], "optimizer": "sgd", "lr": 0.02, "batch_size": 128, "epochs": 40,
                },
                "rules": {
                    "patience": {"patience": 5}, "GL": {"gl_alpha": 5.0}, "PQ": {"pq_alpha": 0.75, "strip": 5},
                    "UP": {"up_strips": 3, "strip": 2},
                },
            },
        ),
        literature="Prechelt 1998 (doi:10.1016/S0893-6080(98)00010-0), 1296 runs on 12 problems: slow rules "
        "generalized about 4 % better than fast ones and took about 4 times as long. There validation was measured "
        "once per strip of 5 epochs; here after every epoch, which in the quick form is a single step.",
    ),
)  # fmt: skip
