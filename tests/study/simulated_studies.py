"""Studies as a ledger would return them, made by a formula instead of by training; seeded and fast."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd

from homeostat.study.design import Design, make_design
from homeostat.study.results.analysis import Analysis, analyze

HOSTILE = "</script><img src=x onerror=alert(1)>"
FIVE = {
    "norm": ["none", "batch"],
    "dropout": [0, 0.5],
    "weight_decay": [0.0, 0.05],
    "init": ["keep", "he_normal"],
    "augment": ["none", "crop+flip"],
}
TWO = {"norm": ["none", "batch"], "dropout": [0, 0.5]}
METRICS = ["train_accuracy", "valid_accuracy", "test_accuracy", "train_loss", "valid_loss"]
NO_CURVES = pd.DataFrame(columns=["trial", "treatment", "seed", "epoch"])
_MAIN = (0.021, 0.011, 0.0008, 0.0045, 0.0062)  # in accuracy; the first five factors of a design
_PAIRS = {(0, 1): -0.0125, (1, 4): -0.004, (0, 3): -0.0035}


def trials(design: Design, *, noise: float = 0.004, diverged: int = 0, seed: int = 0) -> pd.DataFrame:
    """One row per trial; the first `diverged` trials of treatment 0 end with NaN."""
    random = np.random.default_rng(seed)
    block = dict(zip(design.seeds, random.normal(0, 0.004, len(design.seeds)), strict=True))
    rows = []
    for number, (treatment, one_seed) in enumerate(design.run_order()):
        config = design.config(treatment)
        on = _coded(design, config)
        valid = 0.93 + block[one_seed] + _signal(on) + random.normal(0, noise)
        lost = diverged > 0 and treatment == 0
        diverged -= lost
        test = valid - 0.004 + random.normal(0, noise / 2)
        train = min(0.9995, valid + 0.045 - 0.03 * (on[1] if len(on) > 1 else 0) + random.normal(0, noise / 4))
        accuracies = [float("nan") if lost else value for value in (train, valid, test)]
        values = [*accuracies, 3 * (1 - accuracies[0]), 4 * (1 - accuracies[1])]
        rows.append(
            {"trial": number, "treatment": treatment, "seed": one_seed, **config, "status": "done", "attempt": 1}
            | {"seconds": 1.4 + 0.5 * on[0] + 0.12 * on[-1] + random.gamma(4, 0.03), "failure": None, "warnings": []}
            | dict(zip(METRICS, values, strict=True))
            | {"epochs": 20.0, "diverged": float(lost)}
        )
    return pd.DataFrame(rows)


def without_results(table: pd.DataFrame, status: str = "done") -> pd.DataFrame:
    """The same trials with no finite metric: diverged ("done"), failed ("quarantined") or not run ("pending")."""
    lost = table.assign(status=status, **dict.fromkeys(METRICS, np.nan))
    error = "RuntimeError: boom" if status == "quarantined" else None
    return lost.assign(diverged=1.0 if status == "done" else np.nan, error=error)


def curves(table: pd.DataFrame, *, epochs: int = 20) -> pd.DataFrame:
    """Learning curves that end where the trials end; every fourth trial stops a little early."""
    rows = []
    for row in table[["trial", "treatment", "seed", "train_accuracy", "valid_accuracy"]].itertuples():
        random = np.random.default_rng(row.trial)
        length = epochs - (row.trial % 4 == 0) * min(5, epochs - 1)
        at = np.arange(length)
        record = {"trial": row.trial, "treatment": row.treatment, "seed": row.seed, "epoch": at}
        for split, end, pace in (("train", row.train_accuracy, 3.0), ("valid", row.valid_accuracy, 3.6)):
            rise = end - (end - 0.35) * np.exp(-(at + 1) / pace) + random.normal(0, 0.003, length)
            record |= {f"{split}_loss": 3 * (1 - rise) + 0.02, f"{split}_accuracy": np.minimum(rise, 1.0)}
        rows.append(pd.DataFrame(record))
    return pd.concat(rows, ignore_index=True)


@functools.cache
def five() -> tuple[Analysis, pd.DataFrame]:
    """The study of the README: five techniques, all 32 treatments, five seeds, two trials of the base diverged."""
    design = make_design(FIVE, 5)
    table = trials(design, diverged=2)
    note = "NoEffectWarning: augment 'crop+flip' changed nothing on 3 of 12 batches."
    table["warnings"] = [[note] if level != "none" else [] for level in table["augment"]]
    return analyze(table, design, response="valid_accuracy", margin=0.002), curves(table)


@functools.cache
def unusual() -> dict[str, tuple[Analysis, pd.DataFrame]]:
    """Studies at the edges of what there can be, by name: analysis and curves."""
    two, one = make_design(TWO, 3), make_design(TWO, 1)
    levels = make_design({"norm": ["none", "batch", "layer", "group"], "lr": [0.1, 0.01]}, 3)
    fraction = make_design(FIVE, 3, kind="fractional", resolution=3)
    names = {HOSTILE: ["none", HOSTILE + "!"], "名前 " + "長い" * 20: ["なし", "バッチ🎉"]}
    names |= {"x" * 300: ["y" * 300, "z" * 300], "a$b_{c}$ \\frac": ["$\\alpha$", "--> [bold]"]}
    hostile = make_design(names, 2)
    said = trials(hostile).assign(warnings=[[HOSTILE + "\x00\ud800\u202e\x1b[31m"]] * 32)
    plain = trials(two)[["trial", "treatment", "seed", *TWO, "status"]].assign(score=[float(i % 5) for i in range(12)])
    pair, sixty_four = make_design({"norm": ["none", "batch"]}, 1), make_design({f"f{i}": [0, 1] for i in range(6)}, 2)
    cases = {
        "one seed": (trials(one), one, {}),
        "two trials": (trials(pair), pair, {}),
        "all diverged": (without_results(trials(two)), two, {}),
        "all failed": (without_results(trials(two), "quarantined"), two, {}),
        "nothing run": (without_results(trials(two), "pending"), two, {}),
        "base diverged": (trials(levels, diverged=3), levels, {}),
        "less is better": (trials(levels), levels, {"response": "valid_loss", "goal": "minimize", "margin": 0.01}),
        "fraction": (trials(fraction), fraction, {}),
        "sixty-four": (trials(sixty_four), sixty_four, {}),
        "hostile": (said, hostile, {}),
        "any objective": (plain, two, {"response": "score"}),
    }
    found = {}
    for name, (table, design, settings) in cases.items():
        analysis = analyze(table, design, **{"response": "valid_accuracy", **settings})
        ended = table[table["train_accuracy"].notna()] if "train_accuracy" in table else table.iloc[:0]
        found[name] = (analysis, curves(ended) if len(ended) else NO_CURVES)
    return found


@functools.cache
def three_way() -> tuple[Analysis, pd.DataFrame]:
    """A study in which three factors interact, so that the model of two-factor interactions does not fit."""
    design = make_design({"norm": ["none", "batch"], "dropout": [0, 0.5], "augment": ["none", "crop"]}, 5)
    table = trials(design)
    all_on = (table["norm"] == "batch") & (table["dropout"] == 0.5) & (table["augment"] == "crop")
    table[METRICS[:3]] += 0.04 * all_on.to_numpy()[:, None]
    return analyze(table, design, response="valid_accuracy"), NO_CURVES


def warned(texts: dict[int, list[str]]) -> Analysis:
    """A study of twelve trials; trial number i of the table, by treatment and seed, warned of `texts[i]`."""
    design = make_design(TWO, 3)
    table = trials(design).sort_values(["treatment", "seed"], ignore_index=True)
    table["warnings"] = [texts.get(place, []) for place in range(len(table))]
    return analyze(table, design, response="valid_accuracy")


def _coded(design: Design, config: dict) -> list[float]:
    return [f.levels.index(config[f.name]) / (len(f.levels) - 1) for f in design.factors]


def _signal(on: list[float]) -> float:
    main = sum(weight * level for weight, level in zip(_MAIN, on, strict=False))
    return main + sum(w * on[i] * on[j] for (i, j), w in _PAIRS.items() if j < len(on))
