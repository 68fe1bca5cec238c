"""What limits the conclusions of a study, in words: the warnings of an analysis.

Pure functions of the trials and the fitted model.
"""

from __future__ import annotations

from collections import Counter

import pandas as pd

from homeostat.inference import FTest, holm
from homeostat.study.design import Design
from homeostat.study.results.effect_table import by_lenth
from homeostat.study.results.effects import EffectModel, same_under_every_seed
from homeostat.study.results.outcomes import divergence_table
from homeostat.study.results.residuals import outliers
from homeostat.study.results.wording import Unit, counted, listed, setting

MOST_LISTED = 5
_MORE = "Use --seeds 3 or more before relying on them."


def concerns(frame: pd.DataFrame, model: EffectModel, effects: pd.DataFrame, unit: Unit) -> list[str]:
    """The warnings, most important first.

    Args:
        frame: from `outcomes.tidy`.
        model: of the response.
        effects: from `effects.effect_table`.
        unit: of the response.
    """
    found = [*_incomplete(frame, model.design), *_failed(frame), *_diverged(frame, model)]
    if len(model.y):
        found += [*_test_data(unit), *_not_estimable(frame, effects, model)]
        found += _constant(frame, model, unit) or _spread(model, effects)
        found += [*_lack_of_fit(model), *_slopes(model), *_outliers(model)]
        found += [*_pooled(effects), *_aliased(model.design), *_partly(effects)]
    return found + _from_trials(frame, model.design)


def _incomplete(frame: pd.DataFrame, design: Design) -> list[str]:
    finished = int(frame["outcome"].isin(["ok", "diverged"]).sum())
    if finished + int(frame["outcome"].isin(["failed", "spared"]).sum()) == design.trials:
        return []
    return [f"The study is not complete: {finished} of {counted(design.trials, 'trial')} have finished."]


def _failed(frame: pd.DataFrame) -> list[str]:
    failed = frame[frame["outcome"] == "failed"]
    if failed.empty:
        return []
    texts = [f"treatment {row['treatment']} under seed {row['seed']}{_error(row)}" for _, row in failed.iterrows()]
    more = f"; and {len(texts) - MOST_LISTED} more" if len(texts) > MOST_LISTED else ""
    was = "was" if len(texts) == 1 else "were"
    count = counted(len(texts), "trial")
    return [f"{count} failed and {was} set aside: {'; '.join(texts[:MOST_LISTED])}{more}."]


def _error(row: pd.Series) -> str:
    text = row.get("failure")
    last = text.strip().splitlines()[-1] if isinstance(text, str) and text.strip() else ""
    return f" ({last[:200]})" if last else ""


def _diverged(frame: pd.DataFrame, model: EffectModel) -> list[str]:
    finished, gone = frame["outcome"].isin(["ok", "diverged"]).sum(), (frame["outcome"] == "diverged").sum()
    if not gone:
        return []
    table = divergence_table(frame, model.design)
    often = table[table["diverged"] * finished > table["of"] * gone]
    where = [f"{setting(row['factor'], row['level'])} {row['diverged']} of {row['of']}" for _, row in often.iterrows()]
    share = f"{gone} of {counted(int(finished), 'finished trial')} diverged and {'is' if gone == 1 else 'are'} left out"
    told = f"{share} of the estimates: {', '.join(where)}." if where else f"{share} of the estimates."
    others = any(place not in model.live[name] for name, place in _gone(frame, model)) and len(model.design.factors) > 1
    return [told + (" The effects of other factors are averaged over the other levels." if others else "")]


def _gone(frame: pd.DataFrame, model: EffectModel) -> set[tuple[str, int]]:
    """The levels at which every finished trial diverged, as (factor, position)."""
    table, factors = divergence_table(frame, model.design), model.design.factors
    places = [(factor.name, place) for factor in factors for place in range(len(factor.levels))]
    rows = zip(places, table["diverged"], table["of"], strict=True)
    return {place for place, diverged, of in rows if diverged == of > 0}


def _test_data(unit: Unit) -> list[str]:
    if not unit.metric.startswith("test_"):
        return []
    return ["Judged on test data: there is no independent confirmation; use the validation metric to choose."]


def _constant(frame: pd.DataFrame, model: EffectModel, unit: Unit) -> list[str]:
    """Whether the response says nothing at all, and which metric may."""
    if not model.constant:
        return []
    who = "Every trial gives" if len(model.y) == model.design.trials else "Every trial with a result gives"
    losses = [str(name) for name in frame.columns if str(name).endswith("_loss") and name != unit.metric]
    ok = frame[frame["outcome"] == "ok"]
    varied = [name for name in losses if pd.api.types.is_numeric_dtype(ok[name]) and ok[name].nunique() > 1]
    own = unit.metric.split("_")[0] + "_loss"
    varied = [name for name in varied if name == own] or [name for name in varied if not name.startswith("test_")]
    cure = f"; another one, such as {varied[0]}, may" if varied else ""
    return [f"{who} {unit.value(float(model.y[0]))}: this response cannot tell the techniques apart{cure}."]


def _not_estimable(frame: pd.DataFrame, effects: pd.DataFrame, model: EffectModel) -> list[str]:
    """What lacks results; where every trial at a level diverged, that has been said, and is a finding."""
    if effects["estimable"].all():
        return []
    factors = {factor.name: factor for factor in model.design.factors}
    dead = [(name, place) for name in factors for place in range(len(factors[name].levels))]
    dead = [(name, place) for name, place in dead if place not in model.live[name]]
    gone = {(name, factors[name].levels[place]) for name, place in dead}
    labels = [
        str(row["label"])
        for _, row in effects[~effects["estimable"]].iterrows()
        if not any(
            (name, end) in gone for name, ends in zip(row["factors"], row["levels"], strict=True) for end in ends
        )
    ]
    found = []
    if labels:
        more = [f"{len(labels) - MOST_LISTED} more"] if len(labels) > MOST_LISTED else []
        found.append(f"Too few trials gave a result to estimate {listed([*labels[:MOST_LISTED], *more])}.")
    diverged = _gone(frame, model)
    silent = [setting(name, factors[name].levels[place]) for name, place in dead if (name, place) not in diverged]
    if silent:
        found.append(
            f"{listed(silent)} gave no result: the effects of other factors are averaged over the other levels."
        )
    return found


def _spread(model: EffectModel, effects: pd.DataFrame) -> list[str]:
    """Whether the seeds say how much results vary from run to run."""
    seeds = len(set(model.seed.tolist()))
    if by_lenth(model, len(effects)) and effects["low"].notna().any():
        return ["Only one seed: intervals take most effects to be nearly zero (Lenth's method). " + _MORE]
    if model.linear.df_resid < 1:
        return ["No run repeats another, so there are no intervals: use --seeds 3 or more."]
    if seeds == 1:
        return ["Only one seed: intervals rest on the assumption that three and more factors do not interact. " + _MORE]
    if same_under_every_seed(model.treatment, model.y):
        return ["Every treatment gives the same response under every seed. Does the objective use its seed?"]
    return ["Only two seeds show how results vary from run to run. " + _MORE] if seeds == 2 else []


def _lack_of_fit(model: EffectModel) -> list[str]:
    """Whether combinations are more than the effects that are estimated."""
    if not model.direct:
        return []
    design = model.design
    aliased = {effect for group in design.alias_sets for effect, _ in group[1:]}
    left_out = set(design.effects) - set(model.effects) - aliased
    who, what = "Three or more factors interact", "main effects and interactions"
    if left_out:
        who, what = "Factors interact in ways that the model leaves out", "effects"
    return [
        f"{who} ({_test(model.lack_of_fit)}): {what} are averages over the other factors, and particular combinations "
        "differ from their sum. Combinations are therefore compared by their own runs alone."
    ]


def _slopes(model: EffectModel) -> list[str]:
    """Whether seeds are more than blocks: what a seed does to a factor, more treatments do not average out."""
    names = [factor.name for factor in model.design.factors]
    tests = [model.slopes(name) for name in names]
    clear = holm([test.p for test in tests]) < 1 - model.confidence
    told = [f"{name} ({_test(test)})" for name, test, sure in zip(names, tests, clear, strict=True) if sure]
    if not told or same_under_every_seed(model.treatment, model.y):
        return []
    what = "acts" if len(told) == 1 else "act"
    return [
        f"{listed(told)} {what} differently from seed to seed. Intervals count seeds, so they hold all the same; more "
        "seeds make them narrower, more treatments do not."
    ]


def _outliers(model: EffectModel) -> list[str]:
    """Single runs that lie too far from what their treatment and their seed lead to expect."""
    far = outliers(model)
    if far.empty or same_under_every_seed(model.treatment, model.y):
        return []
    columns = (far[name].head(MOST_LISTED).tolist() for name in ("treatment", "seed", "studentized"))
    texts = [
        f"treatment {number} under seed {seed} ({abs(off):.3g} standard errors {'above' if off > 0 else 'below'})"
        for number, seed, off in zip(*columns, strict=True)
    ]
    more = [f"{len(far) - MOST_LISTED} more"] if len(far) > MOST_LISTED else []
    lies = "lies" if len(far) == 1 else "lie"
    return [
        f"{listed([*texts, *more])} {lies} far from what the other runs of the treatment and of the seed lead to "
        "expect: look at it before you rely on means; interquartile means beside the effects are not moved by it."
    ]


def _test(test: FTest) -> str:
    p = "p < 0.001" if test.p < 0.001 else f"p = {test.p:.3f}"
    f = "∞" if test.f == float("inf") else f"{test.f:.3g}"
    return f"F({test.df:.0f}, {test.df_error:.0f}) = {f}, {p}"


def _pooled(effects: pd.DataFrame) -> list[str]:
    labels = effects.loc[effects["pooled"] & effects["low"].notna(), "label"].tolist()
    if not labels:
        return []
    listing = listed(labels[:MOST_LISTED]) + (" and others" if len(labels) > MOST_LISTED else "")
    return [f"{listing}: single runs decide, so the interval assumes that all treatments vary alike."]


def _aliased(design: Design) -> list[str]:
    if design.resolution is None and design.alias_sets:
        return ["This design cannot tell some main effects and interactions of two factors apart: see the aliases."]
    if design.resolution is None or design.resolution > 4:
        return []
    what = "main effects cannot be told apart from" if design.resolution == 3 else "two-factor interactions share"
    rest = "two-factor interactions" if design.resolution == 3 else "their estimates with others"
    return [f"In this fraction {what} {rest}: see the aliases."]


def _partly(effects: pd.DataFrame) -> list[str]:
    """What a design that is no regular one mixes up in part."""
    held = effects[effects["partly"] != ""]
    if held.empty:
        return []
    row = held.iloc[0]
    return [
        "The model of this design leaves interactions out that, should there be any, are in part of "
        f"{counted(len(held), 'estimate')}; that of {row['label']} holds {row['partly']}."
    ]


def _from_trials(frame: pd.DataFrame, design: Design) -> list[str]:
    """What the trials themselves warned of, each text once, with where it came from."""
    if "warnings" not in frame:
        return []
    finished = frame[frame["outcome"].isin(["ok", "diverged"])]
    held = [set(texts) if isinstance(texts, list | tuple) else set() for texts in finished["warnings"]]
    times = Counter(text for texts in held for text in sorted(texts))
    found = []
    for text, count in sorted(times.items(), key=lambda pair: (-pair[1], pair[0])):
        own = finished[[text in texts for texts in held]]
        where = [
            setting(factor.name, own[factor.name].iloc[0])
            for factor in design.factors
            if len(set(own[factor.name])) == 1
        ]
        place = f", all with {listed(where)}" if where else ""
        found.append(f"{count} of {counted(len(finished), 'trial')}{place}: {text}")
    return found
