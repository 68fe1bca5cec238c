"""The doctor's page: one HTML file that needs nothing but itself, and computes nothing.

`exhibits` puts numbers into words, `figures` draws; the words and the look are in `report.html` and `report.css`, and
what every report has in `homeostat.page`. The same examination gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.doctor.finding import Finding
from homeostat.doctor.rule import Rule
from homeostat.doctor.show import figures, heatmap
from homeostat.doctor.show.exhibits import (
    MARKS,
    NAMES,
    by_severity,
    counts,
    evidence,
    number,
    score_text,
    sentence,
    standing,
)
from homeostat.doctor.show.rulebook import RulePage, page_of
from homeostat.page import template
from homeostat.page.svg import Picture
from homeostat.page.text import duration
from homeostat.training.export import write_file

if TYPE_CHECKING:
    from homeostat.doctor.course import Course
    from homeostat.doctor.examine import Examination
    from homeostat.doctor.proof import PairedProof
    from homeostat.doctor.repair import Repair
    from homeostat.doctor.watching.vitals import Vitals

FILE_NAME = "report.html"
VITALS = {"std": "Activation deviation", "dead": "Dead units", "gradient": "Gradient norm", "update": "Update / weight"}
"""The statistics that have a heat map, with its title."""

_ALL_REMARKS, _FIRST_REMARKS = 4, 2


def write_report(
    path: Path,
    examination: Examination,
    rules: Iterable[type[Rule]],
    info: Mapping[str, Any],
    repair: Repair | None = None,
) -> None:
    """Write the page; a reader never sees half a file.

    Args:
        path: of the file; its folder is made if it is missing.
        examination: what is reported; with a repair, that of the training as it was.
        rules: those whose pages are embedded where a finding names them.
        info: for display, every key optional: title, command, version (texts), environment (mapping), accepted
            (fingerprints of findings that are not counted).
        repair: shown first, if there was one.
    Raises: HomeostatError if the file cannot be written.
    """
    write_file(path, render(examination, rules, info, repair).encode())


def render(
    examination: Examination, rules: Iterable[type[Rule]], info: Mapping[str, Any], repair: Repair | None = None
) -> str:
    """The page of `write_report` as text."""
    accepted = frozenset(info.get("accepted") or ())
    shown = [finding for finding in examination.findings if finding.fingerprint not in accepted]
    pages = _pages(examination.findings, rules)
    known = {page.code for page in pages}
    course = None if examination.chart is None else examination.chart.course
    vitals = None if course is None else course.vitals
    layers = [] if vitals is None else layer_rows(vitals)
    page = {
        "kind": "examination" if repair is None else "repair",
        "title": info.get("title"),
        "version": info.get("version"),
        "headline": sentence(examination.verdict if repair is None else repair.verdict),
        "lede": "" if repair is None else f"Before: {examination.verdict}",
        "counts": _counts(examination, shown, len(examination.findings) - len(shown), repair),
        "key": _key_figures(examination, repair),
        "notes": list(examination.notes),
        "ill": "" if examination.chart is None else sentence(examination.chart.ill),
        "repair": None if repair is None else _repair(repair, known),
        "groups": [_group(severity, group, known) for severity, group in by_severity(shown)],
        "accepted": [_shown(finding, known) for finding in examination.findings if finding not in shown],
        "learning": None if course is None else _learning(examination, course),
        "heat": None if vitals is None else heat_figure(vitals),
        "layers": layers,
        "vitals": list(VITALS.values()),
        "left_out": len(layers) - len(heatmap.chosen_rows(len(layers))),
        "training": _training(examination),
        "pages": pages,
        "command": info.get("command"),
        "environment": [(str(k), str(v)) for k, v in (info.get("environment") or {}).items()],
    }
    return template.render("homeostat.doctor.show", "report", page)


def heat_figure(vitals: Vitals) -> Picture | None:
    """Layers × steps of every vital that was measured; None where none was."""
    kept = _measured_layers(vitals)
    if not kept or not len(vitals.steps):
        return None
    panels = []
    for statistic, title in VITALS.items():
        values = _matrix(vitals, statistic)[kept]
        if not np.isnan(values).all():
            panels.append(heatmap.Panel(title, values, share=statistic == "dead"))
    names = [vitals.layers[row] for row in kept]
    first, last = int(vitals.steps[0]), int(vitals.steps[-1])
    titles = ", ".join(panel.title.lower() for panel in panels)
    alt = f"Heat maps of {len(names)} layers over steps {first:,} to {last:,}: {titles}. The numbers are in the table."
    return heatmap.heat(names, [int(step) for step in vitals.steps], panels, alt)


def layer_rows(vitals: Vitals) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each layer with the first and the last value of each vital, for those who cannot see the heat map."""
    rows = []
    matrices = [_matrix(vitals, statistic) for statistic in VITALS]
    for row in _measured_layers(vitals):
        cells = []
        for matrix in matrices:
            there = matrix[row][~np.isnan(matrix[row])]
            cells.append((number(float(there[0])), number(float(there[-1]))) if there.size else ("–", "–"))
        rows.append((vitals.layers[row], cells))
    return rows


def _measured_layers(vitals: Vitals) -> list[int]:
    """The rows of layers of which anything that is shown was measured."""
    there = [~np.isnan(_matrix(vitals, statistic)).all(axis=1) for statistic in VITALS]
    return np.flatnonzero(np.any(there, axis=0)).tolist() if len(vitals.steps) else []


def _matrix(vitals: Vitals, statistic: str) -> np.ndarray[Any, Any]:
    """Layers × steps; a deviation is infinite where an output was not finite."""
    values = np.array(vitals.matrix(statistic), dtype=float)
    if statistic == "std":
        values[np.nan_to_num(np.asarray(vitals.matrix("nonfinite"), dtype=float)) > 0] = np.inf
    return values


def _counts(examination: Examination, shown: Sequence[Finding], accepted: int, repair: Repair | None) -> list[str]:
    texts = [counts(shown)] + ([f"{accepted} accepted"] if accepted else [])
    texts.append(f"examined in {duration(examination.seconds)}")
    if repair is not None and repair.seconds:
        texts.append(f"repaired in {duration(repair.seconds)}")
    return texts


def _key_figures(examination: Examination, repair: Repair | None) -> list[tuple[str, str, str]]:
    """The few numbers that stand large at the top, as (name, number, what goes with it)."""
    reached = standing(examination)
    proof = None if repair is None else repair.proof
    found = []
    if proof is not None:
        before, after = (sum(values) / len(values) for values in (proof.before, proof.after))
        seeds = f"mean of {len(proof.seeds)} seeds" if len(proof.seeds) > 1 else "one seed"
        found += [
            ("Before", score_text(before), f"{proof.metric}, {seeds}"),
            ("After", score_text(after), f"{proof.metric}, the same"),
            ("Gain", _signed(proof.gain.estimate), _interval(proof)),
        ]
    elif examination.chart is not None:
        diverged = examination.chart.course.diverged is not None
        name = reached.metric[:1].upper() + reached.metric[1:]
        found.append((name, "diverged" if diverged else score_text(reached.score), reached.progress))
    if math.isfinite(reached.baseline):
        found.append(("Best baseline", score_text(reached.baseline), reached.baseline_name))
    if examination.chart is not None and proof is None:
        of = f"of the training’s {reached.total:,}" if reached.total else ""
        found.append(("Steps trained", f"{reached.steps:,}", of))
    found.append(("Time", duration((repair.seconds if repair else 0.0) or examination.seconds), "on copies"))
    return found


def _interval(proof: PairedProof) -> str:
    gain = proof.gain
    if not math.isfinite(gain.low) or not math.isfinite(gain.high):
        return "one pair has no interval" if len(proof.seeds) == 1 else "no interval"
    return f"95 % interval {_signed(gain.low)} to {_signed(gain.high)}"


def _signed(value: float) -> str:
    return f"+{score_text(value)}" if value > 0 else score_text(value)


def _group(severity: Any, findings: Sequence[Finding], known: set[str]) -> dict[str, Any]:
    rows = [_shown(finding, known) for finding in findings]
    first = len(rows) if severity != "info" or len(rows) <= _ALL_REMARKS else _FIRST_REMARKS
    return {
        "name": NAMES[severity][1].capitalize(),
        "severity": severity,
        "first": rows[:first],
        "rest": rows[first:],
    }


def _shown(finding: Finding, known: set[str]) -> dict[str, Any]:
    proof = finding.proof
    return {
        "finding": finding,
        "mark": MARKS[finding.severity],
        "kind": NAMES[finding.severity][0],
        "evidence": evidence(finding),
        "proof": "" if proof is None else proof.text,
        "page": finding.code if finding.code in known else "",
        "message": sentence(finding.message),
        "causes": [cause.replace("_", " ") for cause in finding.causes if cause.replace("_", "-") != finding.slug],
    }


def _pages(findings: Iterable[Finding], rules: Iterable[type[Rule]]) -> list[RulePage]:
    """The pages of the rules that the findings name, each once."""
    named = {finding.code for finding in findings} | {f.consequence_of for f in findings if f.consequence_of}
    return [page_of(rule) for rule in rules if rule.code in named]


def _learning(examination: Examination, course: Course) -> Picture | None:
    """Score and loss by step, with the baselines."""
    scores = _score_lines(course, "validation", "training")
    losses = [figures.Line("", list(range(1, len(course.losses) + 1)), course.losses, "first")] if course.losses else []
    if not scores and not losses:
        return None
    end = f"ends at {course.metric} {number(course.score)}" if math.isfinite(course.score) else "ends without a score"
    alt = f"Learning curves over {course.steps:,} steps: the validation {course.metric} {end}."
    return figures.curves("learning", scores, _levels(examination), losses, course.metric, alt)


def _score_lines(course: Course, valid: str, train: str) -> list[figures.Line]:
    steps = [mark.step for mark in course.marks]
    lines = [(valid, [mark.valid_score for mark in course.marks], "first")]
    if train:
        lines.append((train, [mark.train_score for mark in course.marks], "second"))
    kept = [line for line in lines if any(math.isfinite(value) for value in line[1])]
    return [figures.Line(name, steps, values, look) for name, values, look in kept]


def _levels(examination: Examination) -> list[tuple[str, float]]:
    """The baselines as level lines; of two alike the later, which knows more, stands for both."""
    baselines = None if examination.chart is None else examination.chart.baselines
    if baselines is None:
        return []
    named = [("constant", baselines.prior), ("linear model", baselines.linear), ("neighbors", baselines.neighbors)]
    return [(name, value) for name, value in named if math.isfinite(value)]


def _repair(repair: Repair, known: set[str]) -> dict[str, Any]:
    """What the page says of a repair."""
    proof, before = repair.proof, None if repair.before.chart is None else repair.before.chart.course
    changes = [
        {
            "what": change.what,
            "where": change.where,
            "why": change.why,
            "safety": change.safety,
            "code": change.code,
            "page": change.code if change.code in known else "",
            "lines": [(line[:1] if line[:1] in "+-" else "", line) for line in change.diff.splitlines()],
        }
        for change in repair.changes
    ]
    return {
        "changes": changes,
        "advice": list(repair.advice),
        "curves": None if before is None else _before_after(repair, before),
        "pairs": None if proof is None else _pairs(proof),
        "rows": [] if proof is None else _pair_rows(proof),
        "metric": "" if proof is None else proof.metric,
        "floored": proof is not None and proof.floored,
        "interval": "" if proof is None else f"{_signed(proof.gain.estimate)}; {_interval(proof)}",
    }


def _before_after(repair: Repair, before: Course) -> Picture | None:
    """Both learning curves; by the share of the training, where a change makes it longer."""
    after = None if repair.arm is None else repair.arm.course
    lines = [_renamed(line, "before", "second") for line in _score_lines(before, "before", "")]
    if after is not None:
        lines += [_renamed(line, "after", "after") for line in _score_lines(after, "after", "")]
    if not lines:
        return None
    alt = f"Validation {before.metric} by step before the repair, ending at {number(before.score)}" + (
        f", and after it, ending at {number(after.score)}." if after is not None else "."
    )
    return figures.curves("compared", lines, _levels(repair.before), [], before.metric, alt)


def _renamed(line: figures.Line, name: str, look: str) -> figures.Line:
    return figures.Line(name, line.at, line.values, look)


def _pairs(proof: PairedProof) -> Picture:
    ends = ", ".join(f"{number(low)} to {number(high)}" for low, high in zip(proof.before, proof.after, strict=True))
    return figures.pairs(
        proof.before, proof.after, proof.metric, f"{proof.metric} of each seed before and after: {ends}."
    )


def _pair_rows(proof: PairedProof) -> list[tuple[str, str, str, str]]:
    return [
        (str(seed), score_text(low), score_text(high), _signed(gain))
        for seed, low, high, gain in zip(proof.seeds, proof.before, proof.after, proof.gains, strict=True)
    ]


def _training(examination: Examination) -> list[tuple[str, str]]:
    """The training in a few facts."""
    chart = examination.chart
    if chart is None:
        return []
    training = chart.training
    optimizer = training.optimizer
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups if "lr" in group})
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    loss = training.loss_fn
    rows = [
        ("model", f"{type(training.model).__name__}, {parameters:,} parameters"),
        ("loss", getattr(loss, "__name__", type(loss).__name__)),
        ("optimizer", f"{type(optimizer).__name__}, learning rate {', '.join(map(number, rates))}"),
        ("batches", f"{training.batch_size:,} examples, {training.epochs:,} epochs"),
        ("training examples", _held(chart.train)),
        ("validation examples", _held(chart.valid)),
    ]
    return rows + ([("task", chart.score.kind)] if chart.score.kind != "other" else [])


def _held(split: Any) -> str:
    if split.total == len(split):
        return f"{len(split):,}"
    return f"{len(split):,} read of {'an unknown number' if split.total is None else format(split.total, ',')}"
