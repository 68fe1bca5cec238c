"""What the doctor's commands do: a training from the user's code, the library's own calls, and what they found in the
form that was asked for. What goes to a file or a pipe stays clean: progress and remarks go to standard error."""

from __future__ import annotations

import inspect
import io
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from homeostat import __version__, environment
from homeostat.doctor.budget import Budget
from homeostat.doctor.examine import Examination, verdict_of
from homeostat.doctor.examine import examine as examine_training
from homeostat.doctor.finding import Severity, at_least
from homeostat.doctor.repair import Repair
from homeostat.doctor.repair import repair as repair_training
from homeostat.doctor.rules import RULES
from homeostat.doctor.show.accepted import read_accepted, write_accepted
from homeostat.doctor.show.formats import Place, as_json, as_sarif
from homeostat.doctor.show.rulebook import families, pages_for
from homeostat.doctor.show.selection import Selection, selection
from homeostat.doctor.show.table import print_examination, print_families, print_page, print_repair
from homeostat.doctor.training import Training
from homeostat.errors import invalid, invalid_type, unknown
from homeostat.page.terminal import Printer
from homeostat.training.export import weights_of, write_file
from homeostat.training.user import returned

Format = Literal["table", "json", "sarif", "html"]
FORMATS: tuple[str, ...] = get_args(Format)
LEAST = ("warning", "error", "never")

WARNED, FAULTY, NOT_REPAIRED = 4, 5, 6
"""Exit codes: the worst that counts is a warning; it is an error; a training stays ill."""

_STEPS = re.compile(r"\s*(\d+)\s*steps?\s*", re.IGNORECASE)
_PLAIN_SECONDS = 2.0  # between two plain lines of progress


def examine(
    spec: str,
    *,
    budget: str,
    seed: int,
    select: list[str] | None,
    ignore: list[str] | None,
    style: str | None,
    out: str | None,
    baseline: str | None,
    write_baseline: str | None,
    fail_on: str,
) -> int:
    """Examine the training that `spec` names, show what was found, and return the exit code."""
    wanted = selection(select, ignore, [rule.code for rule in RULES])
    limit = _budget(budget, "examine")
    form = _format(style, out)
    if fail_on not in LEAST:
        raise unknown("--fail-on", "severity", fail_on, LEAST)
    for option, path in (("--out", out), ("--write-baseline", write_baseline)):
        _check_file(option, path)
    accepted = None if baseline is None else read_accepted(Path(baseline))
    training = _training(spec, "examine", seed)
    with _progress() as say:
        found = _chosen(examine_training(training, limit, seed=seed, progress=say), wanted)
    if write_baseline is not None:
        count = write_accepted(Path(write_baseline), found.findings)
        accepted = frozenset(finding.fingerprint for finding in found.findings)
        _remark(f"{count} accepted from now on: {write_baseline}")
    _deliver(found, form, out, spec, accepted)
    return _exit_code(found, accepted or frozenset(), fail_on)


def repair(spec: str, *, unsafe: bool, budget: str, seed: int, out: str | None) -> int:
    """Repair the training that `spec` names, print changes and proof, write files if asked, return the exit code."""
    limit = _budget(budget, "repair")
    if out is not None and not out.strip():
        raise invalid("--out", "the directory", "have a name", out, "Is a variable of the shell empty?")
    training = _training(spec, "repair", seed)
    with _progress() as say:
        done = repair_training(training, limit, unsafe=unsafe, seed=seed, progress=say)
    console = Console()
    print_examination(done.before, console)
    console.print()
    print_repair(done, console)
    cured = not done.before or (bool(done.changes) and not done.ill)
    if not cured and not unsafe:
        Printer(console).say("With --unsafe, changes are tried too that alter the function the model computes now.")
    if out is not None:
        _write_repair(done, Path(out), spec)
        Printer(console).say(f"\nReport, changes and the repaired model's initial weights: {out}")
    return 0 if cured else NOT_REPAIRED


def explain(asked: str | None) -> int:
    """Print the page of a rule, or the list of all rules or of those whose code begins so; returns the exit code."""
    console = Console()
    if asked is None:
        print_families(families(RULES), console)
        return 0
    pages = pages_for(asked, RULES)
    if len(pages) == 1:
        print_page(pages[0], console)
    else:
        codes = {page.code for page in pages}
        print_families(families(rule for rule in RULES if rule.code in codes), console)
    return 0


def _training(spec: str, where: str, seed: int) -> Training:
    """The training that the user's function returns."""
    if ":" not in spec:
        cure = "Example: homeostat examine my_project.train:training, a function that returns a homeostat.Training."
        raise invalid(where, "the training", "be named as module:function", spec, cure)
    training = returned(spec, seed=seed)
    if not isinstance(training, Training):
        raise invalid_type(where, spec, "return a homeostat.Training", training, "End it with return hs.Training(...).")
    return training


def _budget(text: str, where: str) -> Budget:
    """A budget as the shell has it: "30s", "2m", or "500 steps"."""
    steps = _STEPS.fullmatch(text)
    return Budget.parse(int(steps[1]) if steps else text, where)


def _format(style: str | None, out: str | None) -> str:
    """What was asked for, else what the file's suffix says."""
    if style is None:
        suffix = Path(out or "").suffix.lower().lstrip(".")
        return {"htm": "html"}.get(suffix, suffix) if suffix in (*FORMATS, "htm") else "table"
    if style not in FORMATS:
        raise unknown("--format", "format", style, FORMATS)
    return style


def _check_file(option: str, path: str | None) -> None:
    if path is not None and (not path.strip() or Path(path).is_dir()):
        raise invalid(option, "the file", "have a name and be no directory", path)


def _chosen(found: Examination, wanted: Selection) -> Examination:
    """The examination with the findings that are wanted, and its sentence about those."""
    kept = [finding for finding in found.findings if wanted.keeps(finding.code)]
    if found.chart is None or len(kept) == len(found.findings):
        return replace(found, findings=tuple(kept))
    return replace(found, findings=tuple(kept), verdict=verdict_of(found.chart, kept))


def _exit_code(found: Examination, accepted: frozenset[str], fail_on: str) -> int:
    counted: set[Severity] = {f.severity for f in found.findings if f.fingerprint not in accepted}
    if fail_on == "never":
        return 0
    if "error" in counted:
        return FAULTY
    return WARNED if fail_on == "warning" and any(at_least(severity, "warning") for severity in counted) else 0


def _deliver(found: Examination, form: str, out: str | None, spec: str, accepted: frozenset[str] | None) -> None:
    """The result to the file, with the table on the terminal; or, without a file, to standard output alone."""
    if form == "table":
        print_examination(found, Console(), accepted or ())
    if out is None and form == "table":
        return
    text = _text(found, form, spec, accepted)
    if out is None:
        sys.stdout.write(text)
        return
    write_file(Path(out), text.encode())
    if form != "table":
        print_examination(found, Console(), accepted or ())
    Printer(Console()).say(f"\nWritten: {out}")


def _text(found: Examination, form: str, spec: str, accepted: frozenset[str] | None) -> str:
    if form == "json":
        return as_json(found, target=spec, accepted=accepted or ())
    if form == "sarif":
        return as_sarif(found, RULES, place=_place(spec), accepted=accepted)
    if form == "html":
        from homeostat.doctor.show.report import render  # brings matplotlib, which the others need not wait for

        return render(found, RULES, {**_info(spec), "accepted": accepted})
    stream = io.StringIO()
    print_examination(found, Console(file=stream, width=100), accepted or ())
    return stream.getvalue()


def _info(spec: str) -> dict[str, Any]:
    """What a page says of how it came to be."""
    command = shlex.join(["homeostat", *sys.argv[1:]])
    return {"title": spec, "command": command, "version": __version__, "environment": environment.describe()}


def _write_repair(done: Repair, directory: Path, spec: str) -> None:
    """The report, the changes as lines of code, and the weights with which the repaired training begins."""
    from homeostat.doctor.show.report import FILE_NAME, write_report

    write_report(directory / FILE_NAME, done.before, RULES, _info(spec), done)
    if done.changes:
        write_file(directory / "changes.diff", f"{done.diff}\n".encode())
        write_file(directory / "model.safetensors", weights_of(done.training.model))


def _place(spec: str) -> Place | None:
    """Where the function is, if it lies below the current folder."""
    module, _, name = spec.partition(":")
    function = inspect.unwrap(getattr(sys.modules.get(module), name, None) or (lambda: None))
    try:
        path = Path(inspect.getsourcefile(function) or "").resolve().relative_to(Path.cwd().resolve())
        return Place(path.as_posix(), inspect.getsourcelines(function)[1])
    except (TypeError, OSError, ValueError):  # a callable without source, or source elsewhere
        return None


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Stages and shares on standard error: a live bar on a terminal, a plain line now and then elsewhere.

    Warnings of other libraries are told once each, when all is done.
    """
    console = Console(stderr=True)
    with warnings.catch_warnings(record=True) as told:
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            with Progress(*columns, console=console, transient=True) as bars:
                bar = bars.add_task("reading", total=1.0)
                yield lambda stage, share: bars.update(bar, description=stage, completed=share)
        else:
            yield _plain(console)
    for text in dict.fromkeys(f"{warning.category.__name__}: {warning.message}" for warning in told):
        _remark(f"! {text}")


def _plain(console: Console) -> Callable[[str, float], None]:
    """A line for a new stage, and at most one in some seconds."""
    last = time.monotonic()

    def say(stage: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_SECONDS:
            last = time.monotonic()
            Printer(console).say(f"{stage}: {share:.0%}")

    return say


def _remark(text: str) -> None:
    Printer(Console(stderr=True)).say(text)
