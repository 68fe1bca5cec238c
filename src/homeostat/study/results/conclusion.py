"""The first sentences of a report: what to use, by how much it helps, what shows nothing, what hurts.

Pure functions of the tables of an analysis.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from homeostat.inference import Interval
from homeostat.study.design import Design
from homeostat.study.factors import Factor, Level
from homeostat.study.results.advice import Recommendation
from homeostat.study.results.effects import EffectModel, Goal, oriented
from homeostat.study.results.outcomes import divergence_by_level
from homeostat.study.results.wording import Unit, counted, listed, setting, settings

_OFF = ("none", "keep", "off", "", None, False, 0)  # base levels that say "without this technique"
_SAYS = {  # per verdict of a main effect: what one technique does, what several do
    "no clear effect": ("shows no clear effect", "show no clear effect"),
    "within the margin": ("makes no difference that matters", "make no difference that matters"),
    "perhaps helps": ("perhaps helps", "perhaps help"),
    "helps": ("helps on average but adds no clear gain here", "help on average but add no clear gain here"),
    "perhaps hurts": ("perhaps hurts", "perhaps hurt"),
    "hurts": ("hurts", "hurt"),
    "hurts on average": ("hurts on average", "hurt on average"),
    "not estimable": ("could not be judged", "could not be judged"),
}
_AVERAGES = {"hurts": "hurts on average"}


def conclude(
    treatments: pd.DataFrame,
    effects: pd.DataFrame,
    advice: Recommendation,
    model: EffectModel,
    units: dict[str, Unit],
    *,
    response: str,
    goal: Goal,
) -> str:
    """One to a few sentences a person can act on.

    Args:
        treatments: from `outcomes.treatment_table`.
        effects: from `effects.effect_table`.
        advice: from `advice.recommend`.
        units: of every metric, by name.
        model: of the response; where it does not fit (`direct`), an effect is an average and no more.
        response, goal: see `analyze`.
    """
    design, unit = model.design, units[response]
    finished, diverged, failed = (int(treatments[name].sum()) for name in ("n", "diverged", "failed"))
    if not finished:
        return _nothing_finished(design.trials, failed)
    if diverged == finished:
        what = "The only finished trial" if finished == 1 else f"All {finished} finished trials"
        return f"{what} diverged, so nothing can be recommended: first find a base treatment that stays finite."
    if model.constant:
        same = "trial" if finished == design.trials and not diverged else "trial with a result"
        keep = _keep(design) if not advice.kept else f"Use {settings({n: advice.config[n] for n in advice.kept})}"
        first = (
            f"{keep} for now: every {same} gives {unit.value(float(model.y[0]))}, so {unit.name} tells nothing apart"
        )
    else:
        averages = effects.replace({"verdict": _AVERAGES if model.direct else {}})
        first = _advice(averages, advice, design, treatments, unit, goal)
    told = not model.constant and _told(treatments, advice, design) == diverged
    sentences = [
        first + ".",
        _confirmation(advice, units, goal),
        _aliases(effects, advice),
        _by_aliased_model(advice, design, goal),
        f"{diverged} of {counted(finished, 'finished trial')} diverged." if diverged and not told else "",
        f"{failed} of {counted(design.trials, 'trial')} failed." if failed else "",
        f"Only {finished} of {design.trials} trials have finished." if treatments["missing"].sum() else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _nothing_finished(planned: int, failed: int) -> str:
    if failed == planned:
        return f"All {planned} trials failed, so there is nothing to compare."
    rest = f": {failed} failed" if failed else ""
    return f"None of the {planned} trials has finished yet{rest}."


def _advice(
    effects: pd.DataFrame, advice: Recommendation, design: Design, treatments: pd.DataFrame, unit: Unit, goal: Goal
) -> str:
    if not advice.kept:
        keep = _keep(design)
        if effects["estimable"].any() and effects["low"].isna().all():
            return f"{keep} for now: with so few runs no difference can be told from chance"
        return f"{keep}: {'; '.join(_others(effects, advice, design, treatments, f' on {unit.name}'))}"
    use = listed([setting(name, advice.config[name]) for name in advice.kept])
    if advice.treatment is None:
        use += " (predicted: this combination was not run)"
    others = _others(effects, advice, design, treatments, "")
    return "; ".join([f"Use {use}: {_gain(advice, design, treatments, unit, goal)}", *others])


def _keep(design: Design) -> str:
    if len(design.factors) == 1:
        return f"Keep {settings(design.base)}"
    return f"Keep the base treatment ({settings(design.base)})"


def _gain(advice: Recommendation, design: Design, treatments: pd.DataFrame, unit: Unit, goal: Goal) -> str:
    """What the recommendation gains: what was measured, and where that is not clear by itself, what the model adds."""
    base = design.find(design.base)
    row: Any = None if base is None else treatments.loc[base]
    unstable = ""
    if row is not None and row["diverged"]:
        count = counted(int(row["n"]), "trial")
        unstable = f"the base treatment ({settings(design.base)}) diverged in {row['diverged']} of {count}"
    if math.isnan(advice.gain.estimate):
        return unstable or "the gain over the base treatment could not be estimated"
    by_model = " by the model of all trials"
    if _clear(advice.gain, goal):
        return _moves(advice, advice.gain, unit) + (by_model if advice.gain_method == "model" else "")
    measured = unit.gain(*advice.gain[:3]) + (" (lower is better)" if goal == "minimize" else "")
    if advice.predicted is not None and _clear(advice.predicted, goal):
        return (
            f"{_moves(advice, advice.predicted, unit)}{by_model}, and by {measured} in the runs of the two treatments"
        )
    change = f"{unit.name} changes by {measured}, which is not clear"
    return f"{unstable}; {change}" if unstable else change


def _clear(gain: Interval, goal: Goal) -> bool:
    return min(oriented(goal) * gain.low, oriented(goal) * gain.high) > 0


def _moves(advice: Recommendation, gain: Interval, unit: Unit) -> str:
    verb = "raise" if gain.estimate > 0 else "lower"
    subject = f"together they {verb}" if len(advice.kept) > 1 else f"it {verb}s"
    return f"{subject} {unit.name} by {_size(gain, unit)}"


def _size(gain: tuple[float, ...], unit: Unit) -> str:
    """The size of a change with its interval, whichever its direction, which the verb tells."""
    estimate, low, high = gain[:3]
    return unit.amount(estimate, low, high) if estimate >= 0 else unit.amount(-estimate, -high, -low)


def _others(
    effects: pd.DataFrame, advice: Recommendation, design: Design, treatments: pd.DataFrame, suffix: str
) -> list[str]:
    """A clause per verdict for the factors that are not in the recommendation."""
    subjects: dict[str, list[str]] = {verdict: [] for verdict in _SAYS}
    diverged = []
    for factor in design.factors:
        if factor.name in advice.kept:
            continue
        own = effects[[names == (factor.name,) for names in effects["factors"]]]
        verdicts = own["verdict"].tolist()
        gone = _gone(treatments, factor)
        diverged += [f"{setting(factor.name, level)} diverged in {count}" for level, count in gone.items()]
        if len(set(verdicts)) == 1 and not gone:
            subjects[verdicts[0]].append(_technique(factor))
        else:
            for level, verdict in zip(factor.levels[1:], verdicts, strict=True):
                if level not in gone:
                    subjects[verdict].append(setting(factor.name, level))
    clauses = []
    for verdict, names in subjects.items():
        if names:
            says = _SAYS[verdict][len(names) > 1] + (suffix if verdict == "no clear effect" else "")
            clauses.append(f"{listed(names)} {says}")
    return diverged + clauses


def _gone(treatments: pd.DataFrame, factor: Factor) -> dict[Level, str]:
    """The levels other than the base at which every finished trial diverged, with "6 of 6 trials"."""
    table = divergence_by_level(treatments, factor.name)
    counts = {level: table.get(level, (0, 0)) for level in factor.levels[1:]}
    return {level: f"{lost} of {counted(of, 'trial')}" for level, (lost, of) in counts.items() if lost == of > 0}


def _told(treatments: pd.DataFrame, advice: Recommendation, design: Design) -> int:
    """How many diverged trials the first sentence has told of."""
    told = np.zeros(len(treatments), dtype=bool)
    for factor in design.factors:
        if factor.name not in advice.kept:
            gone = _gone(treatments, factor)
            told |= np.array([level in gone for level in treatments[factor.name]])
    return int(treatments.loc[told, "diverged"].sum())


def _technique(factor: Factor) -> str:
    """What a factor is called in a sentence: "dropout" where its base means without, else "activation=gelu"."""
    if len(factor.levels) == 2 and not any(factor.base is off or factor.base == off for off in _OFF):
        return setting(factor.name, factor.levels[1])
    return factor.name.replace("_", " ")


def _confirmation(advice: Recommendation, units: dict[str, Unit], goal: Goal) -> str:
    if advice.confirm is None or advice.confirm_metric is None or math.isnan(advice.confirm.estimate):
        return ""
    unit, change = units[advice.confirm_metric], advice.confirm
    moves = f"{'rises' if change.estimate > 0 else 'falls'} by {_size(change, unit)}"
    moves = moves if change.estimate else "does not change"
    name = unit.name[0].upper() + unit.name[1:]
    doubt = ""
    claimed = any(gain is not None and _clear(gain, goal) for gain in (advice.gain, advice.predicted))
    if claimed and not math.isnan(change.low) and not _clear(change, goal):
        doubt = ", which does not confirm the gain"
    return f"{name}, which played no part in the choice, {moves}{doubt}."


def _by_model(advice: Recommendation, goal: Goal) -> bool:
    """Whether the gain that is claimed is the model's."""
    if _clear(advice.gain, goal):
        return advice.gain_method == "model"
    return advice.predicted is not None and _clear(advice.predicted, goal)


def _by_aliased_model(advice: Recommendation, design: Design, goal: Goal) -> str:
    """That the model which claims the gain has interactions in it that may be others."""
    mixed = {name for group in design.alias_sets for effect, _ in group for name in effect}
    if not (mixed & set(advice.kept) and _by_model(advice, goal)):
        return ""
    more = "" if advice.gain_method == "model" else " under more seeds"
    return (
        "The gain by the model rests on interactions that this fraction cannot tell apart from others: confirm it by "
        f"running the two treatments, base and recommended{more}."
    )


def _aliases(effects: pd.DataFrame, advice: Recommendation) -> str:
    """What the claims of the first sentence may be due to instead."""
    parts = []
    for names, aliases, verdict in zip(effects["factors"], effects["aliases"], effects["verdict"], strict=True):
        claimed = names[0] in advice.kept or verdict.removeprefix("perhaps ") in ("helps", "hurts")
        if len(names) == 1 and aliases and claimed:
            others = listed(aliases.replace("−", "").split(", "), "or")
            parts.append(f"{names[0]} cannot be told apart from {others}")
    return f"In this fraction, {'; '.join(parts)}." if parts else ""
