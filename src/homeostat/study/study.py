"""A study from its question to its report: design, ledger, workers, analysis, files.

`Study` only hands things on: `design` says what is run, `local` runs it, `analysis` says what it means. Running again
with the same settings resumes. Random is only the order of the trials, a pure function of the design.
"""

from __future__ import annotations

import contextlib
import html
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from rich.console import Console

from homeostat import environment
from homeostat.errors import HomeostatError, invalid, invalid_type, unknown
from homeostat.page.terminal import Printer
from homeostat.study import configuration
from homeostat.study.arguments import as_count, as_number, design_of, homes
from homeostat.study.design import Design, Interactions, Kind
from homeostat.study.factors import TAKEN, Factor, Level
from homeostat.study.remote.cluster import Cluster, as_cluster
from homeostat.study.results.analysis import Analysis
from homeostat.study.results.wording import counted
from homeostat.study.running import launch, limits
from homeostat.study.running.carrier import carrier
from homeostat.study.running.interim import Aside, Interim
from homeostat.study.running.local import StudyInterrupted as StudyInterrupted
from homeostat.study.running.progress import shown
from homeostat.study.running.runner import Objective, Rules, trial_directory
from homeostat.study.running.status import trial_name
from homeostat.study.sequence import MOST, Schedule, Until, as_until, saved
from homeostat.study.show import export
from homeostat.study.state.ledger import FILE, Ledger, Row
from homeostat.study.state.storage import StorageError
from homeostat.study.takeover import Earlier
from homeostat.study.trackers import Tracker, as_trackers, tracking
from homeostat.study.tuning import Setting, Tuning, as_grid

if TYPE_CHECKING:
    from homeostat.study.judging import Judged

_AGAIN = "Once the cause is gone, --retry-failed (retry_failed=True) runs them again."


@dataclass(frozen=True, eq=False, repr=False)
class StudyResult:
    """What a study found.

    Attributes:
        analysis: effects, intervals, recommendation; see `Analysis`.
        trials: one row per trial; see `Ledger.trials`.
        curves: the learning curves; see `Ledger.curves`.
        directory: where everything is.
        design: what was planned.
        report: the path of report.html.
        tuning: of a study with nuisance factors: which level each treatment has, see `Tuning`.
        saved: how many planned trials a sequential study did without.
    """

    analysis: Analysis
    trials: pd.DataFrame
    curves: pd.DataFrame
    directory: Path
    design: Design
    report: Path
    tuning: Tuning | None = None
    saved: int = 0

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
            Its method `check(configs)`, if it has one, is called with all treatments before the first trial is run.
        factors: {"norm": ["none", "batch"], ...} or texts "norm=none,batch" or a `Design`, which then says everything
            about seeds and treatments. The first level of a factor is its base level.
        seeds: how many seeds, or which; default 5, with `until` 30. Each treatment is run under each of them.
        until: add seeds one by one, `seeds` being the most, until every effect is clearly beyond the margin, within it,
            or known to plus or minus this much, in the response's unit; or "best": until one treatment is left that may
            be the best, the others being given up on the way. What is said at the end holds however often one looked,
            at the price of wider intervals (`sequence`). A resumed study may have another aim, or none.
        tune: nuisance factors, as `factors`: every treatment is run at each of their levels, and judged at the one that
            suits it best by the response, on test data where there are any; see `tuning`.
        after: the directory of an earlier study of the same objective and base: what it has done is not run again.
            With more seeds than it had, or where it was a study with `until`, intervals hold although one has looked
            in between; such a study cannot be tuned.
        directory: of the study; default: studies/NAME-HASH, where HASH is that of the configuration.
        name: for that default; default: the objective's name.
        design: its kind: "full", "fractional", "plackett-burman", "screening", "orthogonal", "optimal" or "auto": full
            up to 32 treatments, then a fraction; see `make_design`.
        resolution: of a fraction.
        runs: treatments of an "optimal" design, or at most of a fraction.
        interactions: those that an "optimal" design estimates: "all", "none", or pairs such as "norm:dropout".
        response: the metric to be judged; default: the objective's attribute `response` if it has one, otherwise the
            first metric that it returns.
        goal: "maximize" or "minimize"; default: the objective's attribute `goal`, otherwise "maximize".
        margin: the smallest change of the response that matters, in its own unit, at least 0.
        workers: processes, one thread each; default: the number of cores. 0: run in this process, unsupervised, with
            as many threads as it has (torch: one per core), so that floats may differ in their last bits from those of
            workers; KeyboardInterrupt then interrupts the study, wherever it is raised.
        on: "ray" or "ray://host:port", or a `cluster.Cluster`, which also says what a trial takes: trials run on a Ray
            cluster, `workers` of them at once; default: as many as there is room for. The ledger stays here.
        track: who is told how it goes, such as "tensorboard,mlflow"; see `trackers`. Trackers cannot harm a study.
        retries: how many failed attempts of a trial are forgiven before it is quarantined.
        timeout: how long an attempt may take, in seconds or as "10m"; its worker is then ended with all that it
            started, and the attempt has failed. A retry goes on from the checkpoint, where the objective keeps one.
            Default: as long as it likes, also where it hangs.
        memory: how much a worker and all that it started may hold in RAM, in bytes or as "4G"; the same then happens.
        base: settings that results depend on, such as a base recipe or the fingerprint of the data; a study is only
            resumed when they are the same, and what `configuration.identity` knows of the objective. Default: the
            objective's attribute `base`, otherwise none.
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
        until: Until | None = None,
        tune: Mapping[str, Sequence[Level]] | Iterable[Factor | str] | None = None,
        after: Path | str | None = None,
        design: Kind = "auto",
        resolution: int | None = None,
        runs: int | None = None,
        interactions: Interactions | None = None,
        response: str | None = None,
        goal: Literal["maximize", "minimize"] | None = None,
        margin: float = 0.0,
        workers: int | None = None,
        on: str | Cluster | None = None,
        track: str | Iterable[str | Tracker] | None = None,
        retries: int = 2,
        timeout: float | str | None = None,
        memory: int | str | None = None,
        base: Mapping[str, Any] | None = None,
        describe: Callable[[dict[str, Level]], str] | None = None,
        preload: Sequence[str] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(objective):
            raise invalid_type("Study", "objective", "be callable as objective(config, seed)", objective)
        self.objective = objective
        blocks = seeds if seeds is not None or isinstance(factors, Design) else 5 if until is None else MOST
        self.design = design_of(factors, blocks, design, resolution, runs, interactions)
        self.until, self.grid = as_until(until, self.design), as_grid(tune, self.design)
        if self.until is not None and self.grid is not None:
            cure = "The level that suits a treatment best may change from seed to seed, and with it what was concluded."
            raise invalid("Study", "until", "not be given together with tune", until, cure)
        self.response = response if response is not None else getattr(objective, "response", None)
        if self.response in TAKEN:
            raise invalid("Study", "response", "be a metric", self.response, "Every trial has that besides.")
        self.goal = goal if goal is not None else getattr(objective, "goal", None) or "maximize"
        if self.goal not in ("maximize", "minimize"):
            raise unknown("Study", "goal", self.goal, ("maximize", "minimize"))
        self.margin = as_number("margin", margin)
        self.workers = environment.available_cores() if workers is None else as_count("workers", workers)
        self.on, self.track = as_cluster(on, workers), as_trackers(track)
        self.retries = as_count("retries", retries)
        self.timeout = limits.time_limit("Study", timeout)
        self.memory = limits.memory_limit("Study", memory)
        if not self.workers and (timeout, memory) != (None, None):
            cure = "Only a driver can end a worker; this process cannot end itself."
            raise invalid("Study", "timeout and memory", "not be given with workers=0", (timeout, memory), cure)
        self.preload = homes(objective) if preload is None else tuple(preload)
        self.describe = describe if describe is not None else getattr(objective, "describe", None)
        self.info = dict(info or {})
        base = base if base is not None else getattr(objective, "base", {})
        planned = configuration.plain("Study", "design", self.design.to_dict())
        if self.grid is not None:
            planned["tune"] = configuration.plain("Study", "tune", self.grid.to_dict())
        self.configuration = {
            "objective": configuration.identity(objective),
            "response": self.response,
            "goal": self.goal,
            "margin": self.margin,
            "base": configuration.plain("Study", "base", base),
            "design": planned,
        }
        self.name = name if name is not None else configuration.short_name(objective)
        default = Path("studies") / f"{configuration.file_name(self.name)}-{configuration.digest(self.configuration)}"
        self.directory = default if directory is None else Path(directory)
        self.earlier = None if after is None else Earlier.read(after)
        if self.earlier is not None:
            self.earlier.check(self.configuration, self.directory)
            if self.grid is not None and self.earlier.goes_on(self.design):
                cure = "The level that suits a treatment best may change with more seeds, and with it the conclusion."
                condition = "add no seeds, nor follow a study with until"
                raise invalid("Study", "after with tune", condition, str(after), cure)

    @property
    def done_before(self) -> int:
        """How many of the trials an earlier study has done (`after`)."""
        return 0 if self.earlier is None else self.earlier.overlap((config, seed) for _, seed, config in self._rows())

    @property
    def configs(self) -> list[dict[str, Level]]:
        """What the objective is called with: every treatment, at every level of the nuisance factors."""
        settings: list[Setting] = [{}] if self.grid is None else self.grid.settings
        return [self.design.config(number) | setting for number in self.design.treatments.index for setting in settings]

    def run(self, progress: bool = True, *, anyway: bool = False, retry_failed: bool = False) -> StudyResult:
        """Run what has not been run yet, analyze everything, and write the report and tables.

        Resumes when the directory holds the same configuration. Files: study.sqlite (the ledger), trials.csv,
        treatments.csv, effects.csv, report.html, recipe.toml (with `describe`), trials/ (checkpoints of unfinished and
        quarantined trials).

        Args:
            progress: whether the plan and the progress are shown, on standard error.
            anyway: resume although code, data or settings have changed since, as long as the design has not; for
                changes that cannot matter. The report says what they were.
            retry_failed: run those trials again that were given up, from their checkpoints, with `retries` anew; for
                trials that a larger `timeout` or `memory` may help.
        Raises: InvalidValue if the directory holds another configuration; StorageError if it cannot be written;
            StudyInterrupted (a KeyboardInterrupt) on Ctrl-C or SIGTERM; InvalidType if the objective cannot be sent to
            workers; HomeostatError if workers cannot start, if the objective's results cannot be used, or if no trial
            ended well.
        """
        console = Console(stderr=True, quiet=not progress)
        if not (self.directory / FILE).exists():  # what cannot be run leaves no directory behind
            self._check(console)
            if self.workers:
                launch.packed(self.objective)
        rows = self._rows()
        ledger = Ledger.create_or_open(self.directory, self.configuration, rows, anyway=anyway)
        try:
            if retry_failed:
                ledger.retry()
            elif given_up := ledger.counts().quarantined:
                said = f"Given up before: {counted(given_up, 'trial')}. {_AGAIN}"
                console.print(said, markup=False, highlight=False, soft_wrap=True)
            if self.earlier is not None:
                found, goes_on = self.earlier.finished(), self.earlier.goes_on(self.design)
                ledger.adopt(found, str(self.earlier.directory), sequential=goes_on)
            schedule = Schedule(self.design, self.until, self.goal, self.margin)
            schedule.hold(ledger)
            with tracking(self.directory, self.name, self.track, Printer(console).say) as tracked:
                if schedule.advance(ledger, self.response):
                    self._announce(console, ledger)
                    start, names = time.monotonic(), [trial_name(config, seed) for _, seed, config in rows]
                    try:
                        self._run_trials(console, ledger, schedule, names)
                    finally:
                        with contextlib.suppress(StorageError):  # of a full disk, say; what ended the trials is told
                            ledger.spend(time.monotonic() - start)
                result = self._conclude(ledger, schedule)
                tracked.conclude(result.analysis.summary, result.report)
            return result
        except StudyInterrupted:
            raise
        except KeyboardInterrupt:  # before or after the trials
            raise StudyInterrupted(self.directory, ledger.counts()) from None
        finally:
            ledger.close()

    def _announce(self, console: Console, ledger: Ledger) -> None:
        say = Printer(console).say
        say(self.design.describe())
        if self.grid is not None:
            say(self.grid.describe(self.design))
        if self.until is not None:
            say("At most: after every seed from the second on, a look decides whether another is needed.")
        counts, adopted = ledger.counts(), ledger.adopted
        for source, number in adopted.items():
            say(f"Taken over from {source}: {number} trials.")
        if self.earlier is not None and not adopted:
            say(f"Nothing is taken over from {self.earlier.directory}: none of its finished trials is one of these.")
        if counts.done + counts.quarantined > sum(adopted.values()):
            say(f"Resuming: {counts.done} of {counts.most} trials are done already.")

    def _run_trials(self, console: Console, ledger: Ledger, schedule: Schedule, names: list[str]) -> None:
        rules = Rules(retries=self.retries, response=self.response, timeout=self.timeout, memory=self.memory)
        judged = {"response": self.response, "goal": self.goal, "margin": self.margin}
        with (
            Aside(Interim(ledger, self.design, judged, self.grid)) as strongest,
            shown(console, names.__getitem__, strongest) as watch,
            ThreadPoolExecutor(1) as meanwhile,
            carrier(self.objective, rules, watch, self.on, self.workers, self.preload) as run_pending,
        ):
            meanwhile.submit(_load_report)  # while the workers start
            while schedule.advance(ledger, self.response):
                run_pending(ledger)

    def _conclude(self, ledger: Ledger, schedule: Schedule) -> StudyResult:
        judge, write_report = _load_report()
        trials, curves = ledger.trials(), ledger.curves()
        done = trials[trials["status"] == "done"]
        for trial in done["trial"]:  # what a process that was killed between storing and cleaning left
            shutil.rmtree(trial_directory(self.directory, trial), ignore_errors=True)
        if done.empty:
            failure = next((text for text in trials["failure"] if text), "")
            why = f"no trial ended well, so there is nothing to compare. {_AGAIN} {failure}"
            raise HomeostatError(f"{self.directory}: {why}")
        response = self.response if self.response is not None else ledger.first_metric()
        judged = judge(trials, schedule, self.grid, response=response, sequential=ledger.sequential)
        analysis, tuning = judged.analysis, judged.tuning
        if ledger.accepted:
            analysis = replace(analysis, warnings=[_mixed(ledger), *analysis.warnings])
        export.write_csv(trials, self.directory / "trials.csv")
        export.write_csv(analysis.treatments, self.directory / "treatments.csv", index=True)
        export.write_csv(analysis.effects, self.directory / "effects.csv")
        if tuning is not None:
            export.write_csv(tuning.chosen, self.directory / "tuning.csv", index=True)
        info = {"sections": judged.sections, **self._facts(ledger)}
        if self.describe is not None:
            advice = analysis.recommendation
            config = dict(advice.config) | (tuning.setting(advice.treatment) if tuning is not None else {})
            info["recommended_recipe"] = self.describe(config)
            export.write_text(self.directory / "recipe.toml", info["recommended_recipe"])
        told = curves[curves["trial"].isin(judged.trials["trial"])]
        report = write_report(analysis, told, self.directory, info)
        return StudyResult(analysis, trials, curves, self.directory, self.design, report, tuning, saved(trials))

    def _facts(self, ledger: Ledger) -> dict[str, Any]:
        """What the report says besides the results; the caller's own words come first."""
        started = time.strftime("%Y-%m-%d %H:%M %z", time.localtime(ledger.created))
        facts = {"title": self.name, "started": started, "seconds": ledger.spent, "version": version("homeostat")}
        if ledger.adopted:
            facts["taken_over"] = [f"{number} trials of {source}" for source, number in ledger.adopted.items()]
        return facts | {"environment": environment.describe()} | self.info

    def _rows(self) -> list[Row]:
        if self.grid is not None:
            return self.grid.rows(self.design)
        return [(treatment, seed, self.design.config(treatment)) for treatment, seed in self.design.run_order()]

    def _check(self, console: Console) -> None:
        """Let the objective try every treatment, if it can."""
        check = getattr(self.objective, "check", None)
        if callable(check):
            with console.status("Trying every treatment ..."):
                check(self.configs)


def _load_report() -> tuple[Callable[..., Judged], Callable[..., Path]]:
    """What judges and what writes the report: they bring matplotlib, which the trials need not wait for."""
    from homeostat.study.judging import judge
    from homeostat.study.show.report import write_report

    return judge, write_report


def _mixed(ledger: Ledger) -> str:
    """That trials were run under different settings, and which."""
    lines = [line for other in ledger.accepted for line in configuration.differences(ledger.configuration, other)]
    return f"Trials were run under different settings, because of anyway: {'; '.join(dict.fromkeys(lines))}."
