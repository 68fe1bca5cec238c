"""A study from its question to its report: design, ledger, workers, analysis, files.

`Study` only hands things on: `design` says what is run, `local` runs it, `analysis` says what it means. Running again
with the same settings resumes. Random is only the order of the trials, a pure function of the design.
"""

from __future__ import annotations

import contextlib
import html
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console

from homeostat import environment
from homeostat.errors import HomeostatError, invalid, invalid_type, unknown
from homeostat.study import configuration, export, launch, local
from homeostat.study.analysis import Analysis, analyze
from homeostat.study.design import Design, make_design
from homeostat.study.factors import Factor, Level, level_text
from homeostat.study.ledger import FILE, Ledger
from homeostat.study.local import StudyInterrupted as StudyInterrupted
from homeostat.study.progress import shown
from homeostat.study.runner import Objective, Rules, trial_directory
from homeostat.study.storage import StorageError


@dataclass(frozen=True, eq=False, repr=False)
class StudyResult:
    """What a study found.

    Attributes:
        analysis: effects, intervals, recommendation; see `Analysis`.
        trials: one row per trial; see `Ledger.trials`.
        curves: the learning curves; see `Ledger.curves`.
        directory: where everything is.
        design: what was run.
        report: the path of report.html.
    """

    analysis: Analysis
    trials: pd.DataFrame
    curves: pd.DataFrame
    directory: Path
    design: Design
    report: Path

    @property
    def recommendation(self) -> Any:
        """Which levels to use, and why."""
        return self.analysis.recommendation

    def __repr__(self) -> str:
        return f"StudyResult({self.analysis.summary!r}, report={str(self.report)!r})"

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        effects = self.analysis.effects[["label", "estimate", "low", "high", "p_holm", "verdict"]]
        where = html.escape(str(self.report))
        return f"<p>{html.escape(self.analysis.summary)}</p>{effects.to_html(index=False)}<p>Report: {where}</p>"


class Study:
    """A factorial experiment on a callable: every treatment under the same seeds, in worker processes.

    Args:
        objective: `objective(config, seed) -> {metric: number}`, where config holds a level for every factor. With a
            parameter named `trial` it is also given a `Trial`: a directory for checkpoints, and `trial.report(epoch,
            **values)` for the learning curve. NaN and infinities are results. The objective must use its seed itself.
        factors: {"norm": ["none", "batch"], ...} or texts "norm=none,batch" or a `Design`, which then says everything
            about seeds and treatments. The first level of a factor is its base level.
        seeds: how many seeds, or which; default 5. Each treatment is run under each of them.
        directory: of the study; default: studies/NAME-HASH, where HASH is that of the configuration.
        name: for that default; default: the objective's name.
        design: "full" or "fractional" (two-level factors).
        resolution: of the fraction.
        response: the metric to be judged; default: the objective's attribute `response` if it has one, otherwise the
            first metric that it returns.
        goal: "maximize" or "minimize"; default: the objective's attribute `goal`, otherwise "maximize".
        margin: the smallest change of the response that matters, in its own unit, at least 0.
        workers: processes, one thread each; default: the number of cores. 0: run in this process, unsupervised.
        retries: how many failed attempts of a trial are forgiven before it is quarantined.
        base: settings that results depend on, such as a base recipe or the fingerprint of the data; a study is only
            resumed when they are the same. Default: the objective's attribute `base`, otherwise none.
        describe: what `recipe.toml` should say for a configuration; default: the objective's method `describe`,
            otherwise there is no such file.
        preload: modules that are imported once for all workers; default: that of an objective of homeostat's own.
        info: what the report should show besides, by name.
    Raises: InvalidValue, InvalidType for what cannot be used, before anything is written.
    Example:
        >>> def objective(config, seed):
        ...     return {"score": 0.9 + 0.05 * (config["norm"] == "batch") + 0.001 * seed}
        >>> study = Study(objective, {"norm": ["none", "batch"]}, seeds=3)
        >>> study.design.trials
        6
    """

    def __init__(
        self,
        objective: Objective,
        factors: Design | Mapping[str, Sequence[Level]] | Iterable[Factor | str],
        seeds: int | Sequence[int] | None = None,
        *,
        directory: Path | str | None = None,
        name: str | None = None,
        design: Literal["full", "fractional"] = "full",
        resolution: int | None = None,
        response: str | None = None,
        goal: Literal["maximize", "minimize"] | None = None,
        margin: float = 0.0,
        workers: int | None = None,
        retries: int = 2,
        base: Mapping[str, Any] | None = None,
        describe: Callable[[dict[str, Level]], str] | None = None,
        preload: Sequence[str] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(objective):
            raise invalid_type("Study", "objective", "be callable as objective(config, seed)", objective)
        self.objective = objective
        self.design = _design(factors, seeds, design, resolution)
        self.response = response if response is not None else getattr(objective, "response", None)
        self.goal = goal if goal is not None else getattr(objective, "goal", None) or "maximize"
        if self.goal not in ("maximize", "minimize"):
            raise unknown("Study", "goal", self.goal, ("maximize", "minimize"))
        self.margin = _number("margin", margin)
        self.workers = environment.available_cores() if workers is None else _count("workers", workers)
        self.retries = _count("retries", retries)
        self.preload = _homes(objective) if preload is None else tuple(preload)
        self.describe = describe if describe is not None else getattr(objective, "describe", None)
        self.info = dict(info or {})
        base = base if base is not None else getattr(objective, "base", {})
        self.configuration = {
            "objective": configuration.identity(objective),
            "response": self.response,
            "goal": self.goal,
            "margin": self.margin,
            "base": configuration.plain("Study", "base", base),
            "design": configuration.plain("Study", "design", self.design.to_dict()),
        }
        self.name = name if name is not None else configuration.short_name(objective)
        default = Path("studies") / f"{configuration.file_name(self.name)}-{configuration.digest(self.configuration)}"
        self.directory = default if directory is None else Path(directory)

    def run(self, progress: bool = True) -> StudyResult:
        """Run what has not been run yet, analyze everything, and write the report and tables.

        Resumes when the directory holds the same configuration. Files: study.sqlite (the ledger), trials.csv,
        treatments.csv, effects.csv, report.html, recipe.toml (with `describe`), trials/ (checkpoints of unfinished and
        quarantined trials).

        Args:
            progress: whether the plan and the progress are shown, on standard error.
        Raises: InvalidValue if the directory holds another configuration; StorageError if it cannot be written;
            StudyInterrupted (a KeyboardInterrupt) on Ctrl-C or SIGTERM; InvalidType if the objective cannot be sent to
            workers; HomeostatError if workers cannot start, if the objective's results cannot be used, or if no trial
            ended well.
        """
        console = Console(stderr=True, quiet=not progress)
        if self.workers and not (self.directory / FILE).exists():
            launch.packed(self.objective)  # one that cannot be sent to workers leaves no directory behind
        rows = [(treatment, seed, self.design.config(treatment)) for treatment, seed in self.design.run_order()]
        ledger = Ledger.create_or_open(self.directory, self.configuration, rows)
        try:
            if not ledger.counts().ended:
                self._announce(console, ledger)
                start = time.monotonic()
                try:
                    self._run_trials(console, ledger, [_named(row) for row in rows])
                finally:
                    with contextlib.suppress(StorageError):  # of a full disk, say; what ended the trials is told
                        ledger.spend(time.monotonic() - start)
            return self._conclude(ledger)
        except StudyInterrupted:
            raise
        except KeyboardInterrupt:  # before or after the trials
            raise StudyInterrupted(self.directory, ledger.counts()) from None
        finally:
            ledger.close()

    def _announce(self, console: Console, ledger: Ledger) -> None:
        console.print(self.design.describe(), markup=False, highlight=False, soft_wrap=True)
        counts = ledger.counts()
        if counts.done + counts.quarantined:
            done = f"Resuming: {counts.done} of {counts.planned} trials are done already."
            console.print(done, markup=False, highlight=False, soft_wrap=True)

    def _run_trials(self, console: Console, ledger: Ledger, names: list[str]) -> None:
        rules = Rules(retries=self.retries, response=self.response)
        with shown(console, names.__getitem__) as watch:
            if self.workers:
                local.run_workers(ledger, self.objective, rules, watch, workers=self.workers, preload=self.preload)
            else:
                local.run_here(ledger, self.objective, rules, watch)

    def _conclude(self, ledger: Ledger) -> StudyResult:
        from homeostat.study.report import write_report  # matplotlib takes its time

        trials, curves = ledger.trials(), ledger.curves()
        done = trials[trials["status"] == "done"]
        for trial in done["trial"]:  # what a process that was killed between storing and cleaning left
            shutil.rmtree(trial_directory(self.directory, trial), ignore_errors=True)
        if done.empty:
            failure = next((text for text in trials["failure"] if text), "")
            raise HomeostatError(f"{self.directory}: no trial ended well, so there is nothing to compare. {failure}")
        analysis = analyze(trials, self.design, response=self._judged(ledger), goal=self.goal, margin=self.margin)
        export.write_csv(trials, self.directory / "trials.csv")
        export.write_csv(analysis.treatments, self.directory / "treatments.csv", index=True)
        export.write_csv(analysis.effects, self.directory / "effects.csv")
        info = self._facts(ledger)
        if self.describe is not None:
            info["recommended_recipe"] = self.describe(dict(analysis.recommendation.config))
            export.write_text(self.directory / "recipe.toml", info["recommended_recipe"])
        report = write_report(analysis, curves, self.directory, info)
        return StudyResult(analysis, trials, curves, self.directory, self.design, report)

    def _facts(self, ledger: Ledger) -> dict[str, Any]:
        """What the report says besides the results; the caller's own words come first."""
        started = time.strftime("%Y-%m-%d %H:%M %z", time.localtime(ledger.created))
        facts = {"title": self.name, "started": started, "seconds": ledger.spent, "version": version("homeostat")}
        return facts | {"environment": environment.describe()} | self.info

    def _judged(self, ledger: Ledger) -> str:
        return self.response if self.response is not None else ledger.first_metric()


def _design(
    factors: Design | Mapping[str, Sequence[Level]] | Iterable[Factor | str],
    seeds: int | Sequence[int] | None,
    kind: Literal["full", "fractional"],
    resolution: int | None,
) -> Design:
    if not isinstance(factors, Design):
        found = make_design(factors, 5 if seeds is None else seeds, kind, resolution)
    elif seeds is not None or resolution is not None or kind != "full":
        cure = "A Design says which seeds and treatments are run."
        raise invalid("Study", "seeds, design and resolution", "not be given besides a Design", (seeds, kind), cure)
    else:
        found = factors
    for seed in found.seeds:
        if not -(2**63) <= seed < 2**63:
            raise invalid("Study", "each seed", "fit into 64 bits", seed)
    return found


def _homes(objective: Objective) -> tuple[str, ...]:
    home = type(objective).__module__
    return (home, *getattr(objective, "preload", ())) if home.startswith("homeostat.") else ()


def _named(row: tuple[int, int, Mapping[str, Level]]) -> str:
    _, seed, config = row
    return ", ".join([*(f"{name}={level_text(level)}" for name, level in config.items()), f"seed {seed}"])


def _count(argument: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid_type("Study", argument, "be an integer", value)
    if value < 0:
        raise invalid("Study", argument, "be at least 0", value)
    return value


def _number(argument: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid_type("Study", argument, "be a number", value)
    if not (math.isfinite(value) and value >= 0):
        raise invalid("Study", argument, "be finite and at least 0", value)
    return float(value)
