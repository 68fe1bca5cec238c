"""What a report shows of how far its numbers can be trusted: residuals, other methods, which treatments tie,
divergence.

Between `analysis` and `report`, like `exhibits`. Nothing is estimated here and nothing is random.
"""

from __future__ import annotations

from homeostat.page.svg import Picture
from homeostat.page.text import shorten
from homeostat.study.factors import level_text
from homeostat.study.results.analysis import Analysis
from homeostat.study.results.residuals import outliers
from homeostat.study.results.wording import Unit, capital, counted
from homeostat.study.show import exhibits
from homeostat.study.show.scatters import residuals


def residual_figure(analysis: Analysis) -> Picture | None:
    """What the model leaves of each run against what it makes of it, or None where it leaves nothing."""
    table = analysis.residuals
    if analysis.df_resid < 1 or not table["residual"].any():
        return None
    far = table.index.isin(outliers(analysis.model).index)
    names = (f"{capital(analysis.unit.label)} as the model has it", "What it leaves over, run by run")
    alt = f"Residuals of {counted(len(table), 'run')} against fitted values; {counted(int(far.sum()), 'run')} far off."
    fitted, left = (table[name].to_numpy(dtype=float) for name in ("fitted", "residual"))
    return residuals(fitted, left, far, axes_names=names, tick=analysis.unit.tick, alt=alt)


def crosscheck_rows(analysis: Analysis) -> list[tuple[str, tuple[exhibits.Cell, ...]]]:
    """Per effect: what is judged, and the same by every other method, in the order of `crosscheck_heads`."""
    checks, unit = analysis.crosschecks, exhibits.effects_unit(analysis)
    held = {(row.label, row.method): row for row in exhibits.records(checks)}
    rows = []
    for row in exhibits.records(analysis.effects[analysis.effects["estimable"]]):
        cells = [exhibits.Cell(*exhibits.change_parts(unit, row.estimate, row.low, row.high))]
        for method in crosscheck_heads(analysis)[1:]:
            own = held.get((row.label, method))
            scale = Unit("log odds") if method == "log odds" else unit
            cells.append(
                exhibits.Cell(*exhibits.change_parts(scale, own.estimate, own.low, own.high))
                if own is not None
                else exhibits.Cell("–")
            )
        rows.append((shorten(row.label, 90), tuple(cells)))
    return rows if not checks.empty else []


def crosscheck_heads(analysis: Analysis) -> list[str]:
    """The methods of `crosscheck_rows`, the one that is judged by first."""
    return ["by seeds", *dict.fromkeys(analysis.crosschecks["method"])]


def best_names(analysis: Analysis) -> list[str]:
    """The treatments that cannot be told from the best one, best first, by number and what is on."""
    inside = set(analysis.best.index[analysis.best["in_set"]])
    return [
        f"#{number} {shorten(exhibits.what_is_on(analysis, analysis.design.config(number)), 60)}"
        for number in exhibits.ranked(analysis)
        if number in inside
    ]


def divergence_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """Per level: factor, level, diverged, of, failed, the share, and its difference from the base level's."""
    rows: list[tuple[str, ...]] = []
    for row in exhibits.records(analysis.divergence):
        share = f"{100 * row.share:.0f} % [{100 * row.share_low:.0f}, {100 * row.share_high:.0f}]" if row.of else "–"
        risk = Unit("share", points=True, decimals=0).gain(row.difference, row.difference_low, row.difference_high)
        base = next(factor.base for factor in analysis.design.factors if factor.name == row.factor)
        risk = "base" if row.level == base else risk
        names = (shorten(row.factor, 90), shorten(level_text(row.level), 90))
        rows.append((*names, str(row.diverged), str(row.of), str(row.failed), share, risk))
    return rows
