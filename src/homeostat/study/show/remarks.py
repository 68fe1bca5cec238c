"""The warnings of a study as people read them: those of trials that differ in their numbers alone are told once.

Between `concerns`, which says all there is, and `report` and `summary`, which show it. Nothing is random.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from homeostat.study.results.analysis import Analysis
from homeostat.study.results.wording import counted, listed, setting

_TEXT = re.compile(r"\d+ of [\d,]+ trials?(?:, all with .*?)?: ")  # what stands before a text that trials warned of
_CLASS = re.compile(r"(?:NoEffectWarning|UserWarning): ")  # the text says it all
_NUMBER = re.compile(r"(?<![\w.=])[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w=]|\.\d)")


def remarks(analysis: Analysis) -> list[str]:
    """The warnings of an analysis; those of trials that differ in their numbers alone are told once, with their count.

    Python's name of a warning is left out where the text explains itself.
    """
    held = [set(texts) if isinstance(texts, list | tuple) else set() for texts in analysis.frame.get("warnings", ())]
    counts = analysis.frame["outcome"].isin(["ok", "diverged"]).to_numpy()
    raw = {text for texts, counted_in in zip(held, counts, strict=False) if counted_in for text in texts}
    found: dict[str, list[tuple[str, str]]] = {}
    for place, warning in enumerate(analysis.warnings):
        head = _TEXT.match(warning)
        text = next((text for text in raw if head and warning.endswith(f": {text}")), "")
        found.setdefault(_NUMBER.sub("#", text) if text else f"{place} {warning}", []).append((warning, text))
    shown = []
    for kind, told in found.items():
        warning, text = told[0]
        prefix = warning.removesuffix(text) if text else ""
        if len(told) > 1:
            own = [
                any(_NUMBER.sub("#", text) == kind for text in texts) and bool(counted_in)
                for texts, counted_in in zip(held, counts, strict=True)
            ]
            prefix, text = (
                f"{sum(own)} of {counted(int(counts.sum()), 'trial')}{_where(analysis, own)}: ",
                _ranges([text for _, text in told]),
            )
        elif prefix.startswith("1 of "):
            prefix = re.sub(", all with ", ", with ", prefix, count=1)
        shown.append(prefix + _CLASS.sub("", text, count=1) if text else warning)
    return shown


def _where(analysis: Analysis, own: Sequence[bool]) -> str:
    """The levels that all of some trials share."""
    rows = analysis.frame[list(own)]
    names = [factor.name for factor in analysis.design.factors if len(set(rows[factor.name])) == 1]
    return (
        f", {'all ' * (sum(own) > 1)}with {listed([setting(name, rows[name].iloc[0]) for name in names])}"
        if names
        else ""
    )


def _ranges(texts: Sequence[str]) -> str:
    """Texts that differ in their numbers alone as one, with "0.82 to 0.91" where a number varies."""
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    spans = [sorted(set(column), key=lambda number: float(number.replace("−", "-"))) for column in columns]
    ends = iter([span[0] if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans])
    return _NUMBER.sub(lambda _: next(ends), texts[0])
