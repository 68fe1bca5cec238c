"""The report of a study: one HTML file that needs nothing but itself, and computes nothing.

`exhibits` decides what is shown, `figures` and `curves` draw it; the words and the look are in `report.html` and
`report.css`, and what every report has in `homeostat.page`: no script, no address outside itself, every text escaped.
The same analysis gives the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from homeostat.inference import Interval
from homeostat.page import template
from homeostat.page.text import duration, percent, shorten
from homeostat.study.factors import Factor, level_text
from homeostat.study.results.analysis import Analysis
from homeostat.study.results.wording import Unit, metric_words, settings
from homeostat.study.show import diagnostics, exhibits
from homeostat.study.show.export import write_text
from homeostat.study.show.remarks import remarks

FILE_NAME = "report.html"
_ALL_ROWS, _FIRST_ROWS = 40, 20  # so many treatments are shown without folding; of more, so many
_ALL_WARNINGS, _FIRST_WARNINGS = 8, 6
_LONG = 90  # characters of a label in a table


def write_report(analysis: Analysis, curves: pd.DataFrame, directory: Path | str, info: Mapping[str, Any]) -> Path:
    """Write the report of a study to `directory`/report.html; a reader never sees half a file.

    Args:
        analysis: what is reported.
        curves: one row per trial and epoch: trial, treatment, seed, epoch and the values; may be empty.
        directory: exists.
        info: for display, every key optional: title, command (texts), task, environment (mappings), base_recipe,
            recommended_recipe (TOML), started (text), seconds (number), version, taken_over (texts), sections (of
            `sections`).
    Returns: the path of the file.
    Raises: StorageError if the file cannot be written.
    """
    path = Path(directory) / FILE_NAME
    write_text(path, render(analysis, curves, info))
    return path


def render(analysis: Analysis, curves: pd.DataFrame, info: Mapping[str, Any]) -> str:
    """The page of `write_report` as text."""
    headline, stop, rest = analysis.summary.partition(". ")
    run, warnings = list(_run(info)), remarks(analysis)
    taken = [("taken over", text) for text in info.get("taken_over", ())]
    lines, factors = exhibits.curve_figures(analysis, curves)
    page = {
        "kind": "study",
        "title": info.get("title"),
        "version": info.get("version"),
        "headline": headline + stop.rstrip(),
        "lede": rest,
        "counts": [*exhibits.counts(analysis), *(f"{name} {text}" for name, text in run)],
        "key": _key_figures(analysis),
        "warnings": warnings,
        "warnings_shown": len(warnings) if len(warnings) <= _ALL_WARNINGS else _FIRST_WARNINGS,
        "analysis": analysis,
        "confidence": percent(analysis.confidence),
        "margin": analysis.unit.amount(analysis.margin, math.nan, math.nan) if analysis.margin > 0 else "",
        "treatments": _treatments(analysis),
        "effects": _effects(analysis),
        "conditional": exhibits.conditional_rows(analysis),
        "everything": _everything(analysis),
        "matrix": exhibits.matrix_figure(analysis),
        "curves": lines,
        "curves_by_factor": factors,
        "cost": exhibits.cost_figure(analysis),
        "sections": info.get("sections", ()),
        "best": diagnostics.best_names(analysis),
        "gain_of_any": _gain_of_any(analysis),
        "residuals": diagnostics.residual_figure(analysis),
        "checks": _checks(analysis),
        "kept": settings({name: analysis.recommendation.config[name] for name in analysis.recommendation.kept}),
        "recommended_recipe": info.get("recommended_recipe"),
        "base_recipe": info.get("base_recipe"),
        "design": _design(analysis),
        "command": info.get("command"),
        "environment": [*_facts(info.get("environment") or {}), *run, *taken],
        "task": list(_facts(info.get("task") or {})),
    }
    return template.render("homeostat.study.show", "report", page)


def _key_figures(analysis: Analysis) -> list[tuple[str, str, str]]:
    """The few numbers that stand large at the top, as (name, number, what goes with it)."""
    advice, unit = analysis.recommendation, analysis.unit
    treatments = [("Base", analysis.design.find(analysis.design.base))]
    if advice.kept:
        treatments.append(("Recommended", advice.treatment))
    found = []
    for name, treatment in treatments:
        if treatment is not None and analysis.response in analysis.treatments:
            mean, low, high = exhibits.measured(analysis, treatment, analysis.response)
            beside = f"no finite {unit.name}" if math.isnan(mean) else f"{unit.name} {unit.range(low, high)}"
            found.append((name, unit.value(mean), beside))
    if advice.kept and not math.isnan(advice.gain.estimate):
        found.append(("Change from base", *_gain(unit, advice.gain, exhibits.basis(analysis, advice.gain_method))))
    if advice.confirm is not None and not math.isnan(advice.confirm.estimate):
        test = analysis.units.get(advice.confirm_metric or "", unit)
        method = exhibits.basis(analysis, advice.confirm_method)
        found.append(("The same on the test split", *_gain(test, advice.confirm, method)))
    return found


def _gain(unit: Unit, gain: Interval, method: str) -> tuple[str, str]:
    """A gain in large, and in small its interval and where it comes from."""
    number, bracket, interval = unit.gain(gain.estimate, gain.low, gain.high).partition("[")
    return number.strip(), f"{bracket}{interval}, {method}" if interval else method


def _treatments(analysis: Analysis) -> dict[str, Any]:
    rows = exhibits.treatment_rows(analysis)
    first = len(rows) if len(rows) <= _ALL_ROWS else _FIRST_ROWS
    shown = [place < first or bool(row.roles) for place, row in enumerate(rows)]
    metrics = exhibits.shown_metrics(analysis)
    return {
        "factors": [_factor_head(factor) for factor in analysis.design.factors],
        "figures": [
            (
                *exhibits.column_head(metric, analysis.units[metric].points),
                metric == analysis.response,
                metric.startswith("train_") and metric != analysis.response,
            )
            for metric in metrics
        ],
        "first": [row for row, show in zip(rows, shown, strict=True) if show],
        "rest": [row for row, show in zip(rows, shown, strict=True) if not show],
    }


def _factor_head(factor: Factor) -> tuple[list[str], str]:
    """A factor's name in the pieces between which a line may break, and the level that "Yes" stands for."""
    name = re.findall(r"[^_]+_?|_", shorten(factor.name, 24))
    return name, shorten(level_text(factor.levels[1]), 24) if exhibits.is_switch(factor) else ""


def _effects(analysis: Analysis) -> dict[str, Any]:
    rows = []
    unit = exhibits.effects_unit(analysis)
    for row in exhibits.records(analysis.effects):
        estimate, interval = exhibits.change_parts(unit, row.estimate, row.low, row.high)
        cells = {"estimate": estimate, "interval": interval, "p": _probability(row.p), "holm": _probability(row.p_holm)}
        mixed = "; ".join(text for text in (row.aliases, row.partly and f"in part {row.partly}") if text)
        words = {"label": shorten(row.label, _LONG), "aliases": shorten(mixed, 2 * _LONG), "kind": row.kind}
        rows.append(
            cells | words | {"verdict": exhibits.verdict(row.verdict), "look": exhibits.LOOKS.get(row.verdict, "flat")}
        )
    return {
        "figure": exhibits.forest_figure(analysis),
        "rows": rows,
        "left_out": len(rows) - len(exhibits.forest_rows(analysis)),
        "aliased": any(row["aliases"] for row in rows),
    }


def _everything(analysis: Analysis) -> tuple[str, str] | None:
    """All factors away from their base at once: which levels, and the gain."""
    config, gain = analysis.everything
    if math.isnan(gain.estimate) or len(config) < 2:
        return None
    return settings(config), analysis.unit.gain(*gain[:3])


def _gain_of_any(analysis: Analysis) -> str:
    """The gain of the recommendation with the interval that holds whichever treatment was picked."""
    gain = analysis.recommendation.gain_of_any
    return "" if gain is None or math.isnan(gain.low) else analysis.unit.gain(*gain[:3])


def _checks(analysis: Analysis) -> dict[str, Any]:
    heads = {"by seeds": "judged by", "log odds": "another unit"}
    methods = [(name, heads.get(name, "")) for name in diagnostics.crosscheck_heads(analysis)]
    return {"methods": methods, "rows": diagnostics.crosscheck_rows(analysis)}


def _design(analysis: Analysis) -> dict[str, Any]:
    design = analysis.design
    facts = [("Treatments", design.describe().split("\n")[0])]
    if design.kind == "fractional":
        facts += [("Resolution", _resolution(design.resolution or 0)), ("Generators", _generators(design.generators))]
    test = analysis.lack_of_fit
    if not math.isnan(test.p):
        says = "does not fit" if analysis.direct else "fits"
        numbers = f"F({test.df:.0f}, {test.df_error:.0f}) = {test.f:.3g}, p = {_probability(test.p)}".replace(
            "= <", "<"
        )
        facts.append(("Model of effects", f"{says} (lack of fit: {numbers})"))
    facts += [("R²", f"{analysis.r2:.3f}")] if not math.isnan(analysis.r2) else []
    facts += [("Residual degrees of freedom", str(analysis.df_resid))] if analysis.df_resid > 0 else []
    aliases = design.aliases[["effect", "aliased_with"]].astype(str).itertuples(index=False)
    lost = diagnostics.divergence_rows(analysis) if analysis.diverged or analysis.failed else []
    return {"facts": [fact for fact in facts if fact[1]], "aliases": [tuple(row) for row in aliases], "lost": lost}


def _resolution(resolution: int) -> str:
    """What the resolution of a fraction means, in a sentence."""
    if resolution <= 3:
        return "III: a main effect is estimated together with interactions of two other factors, and is their sum."
    if resolution == 4:
        return "IV: main effects stand apart from interactions of two factors, which are estimated in groups, as sums."
    return "V or more: main effects and interactions of two factors all stand apart from each other."


def _generators(generators: Sequence[str]) -> str:
    """How the treatments of a fraction were chosen."""
    if not generators:
        return ""
    rules = "; ".join(generators)
    return f"{rules}. Only those treatments were run where, with every level coded −1 (base) or +1, this holds."


def _run(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """When the study ran and how long it took."""
    if info.get("started"):
        yield "started", str(info["started"])
    seconds = info.get("seconds")
    if isinstance(seconds, int | float):
        yield "took", duration(float(seconds))


def _facts(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A mapping as (name, text) pairs; what is nested gets names such as "examples: training"."""
    for key, value in mapping.items():
        name = prefix + metric_words(str(key))
        if isinstance(value, Mapping):
            yield from _facts(value, f"{name}: ")
        elif key == "target_unit" and isinstance(value, list | tuple) and len(value) == 2:
            yield name, f"mean {_fact(value[0])}, deviation {_fact(value[1])}"
        elif isinstance(value, list | tuple | set | frozenset):
            yield from [(name, ", ".join(map(_fact, value)))] if value else []
        elif value is not None and str(value).strip() and not (key == "seed" and _told(mapping, f"seed {value}")):
            yield name, _fact(value)


def _told(mapping: Mapping[str, Any], words: str) -> bool:
    """Whether another of the facts says so already."""
    return any(isinstance(value, str) and re.search(rf"\b{re.escape(words)}\b", value) for value in mapping.values())


def _fact(value: object) -> str:
    """One value: a float with at most four digits, or all those before the point."""
    if not isinstance(value, float):
        return level_text(value) if isinstance(value, bool) else str(value)
    return f"{value:.4g}" if not 1e4 <= abs(value) < 1e9 else f"{value:.0f}"


def _probability(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
