"""Running claims: every trial of an experiment in worker processes, stored in a ledger; a run may be resumed."""

from __future__ import annotations

import functools
import itertools
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from homeostat import environment
from homeostat.claims.claim import Claim, Runs, Setup, Verdict
from homeostat.claims.evidence import Evidence
from homeostat.claims.registry import claim_of
from homeostat.errors import HomeostatError, invalid, invalid_type
from homeostat.study import configuration
from homeostat.study.running.carrier import carrier
from homeostat.study.running.progress import Silent, shown
from homeostat.study.running.runner import Rules
from homeostat.study.running.status import trial_name
from homeostat.study.state.ledger import Ledger, Row
from homeostat.study.state.storage import StorageError

FOLDER = Path("claims")
_PRELOAD = ("homeostat.claims.experiments", "torch._dynamo")


def run(
    claim: str | Claim,
    *,
    quick: bool = True,
    seeds: int | None = None,
    workers: int | None = None,
    out: Path | str = FOLDER,
    progress: bool = True,
) -> Evidence:
    """Run a claim's experiment, or what is left of it, and judge it.

    More seeds than at an earlier time in the same folder are added to those; with fewer, the first ones are judged.

    Args:
        claim: its id, or a claim of one's own.
        quick: on embedded data, in less than a minute on two cores; False: in full, on the data sets of the lectures.
        seeds: how many; default: the claim's own number.
        workers: processes, one thread each; default: the number of cores. 0: this process.
        out: a folder; the trials are kept in out/quick/ID or out/full/ID, and a finished claim is not run again.
        progress: whether it is shown, on standard error.
    Raises: InvalidValue for an unknown claim; HomeostatError where trials failed so that nothing can be said;
        StorageError if the folder cannot be used; StudyInterrupted on Ctrl-C.
    Example:
        >>> evidence = run("bn-parameters", workers=0, out=getfixture("tmp_path"), progress=False)
        >>> evidence.verdict.word
        'holds'
    """
    if not isinstance(claim, str | Claim):
        raise invalid_type("claims.run", "claim", "be the id of a claim, or a Claim", claim)
    known = claim_of(claim) if isinstance(claim, str) else claim
    for name, number, least in (("seeds", seeds, 1), ("workers", workers, 0)):
        check_count(name, number, least)
    setup = _setup(known, quick, seeds)
    directory = folder(known, quick, out)
    console = Console(stderr=True, quiet=not progress)
    with _ledger(known, setup, directory) as ledger:
        _work(known, setup, ledger, console, environment.available_cores() if workers is None else workers)
        evidence = _judged(known, setup, quick, ledger)
    evidence.save(directory)
    return evidence


def stored(claim: Claim, *, quick: bool, out: Path | str) -> Evidence | None:
    """The evidence that a folder holds of a claim whose experiment has come to its end there, judged anew."""
    directory = folder(claim, quick, out)
    if not (directory / "evidence.json").exists():
        return None
    with closing(Ledger.open(directory, read_only=True)) as ledger:
        setup = _setup(claim, quick, int(ledger.trials()["seed"].max()) + 1)
        if not ledger.counts().ended or ledger.configuration != json.loads(json.dumps(_settings(claim, setup))):
            return None
        try:
            return _judged(claim, setup, quick, ledger)
        except HomeostatError:  # all trials failed
            return None


def folder(claim: Claim, quick: bool, out: Path | str) -> Path:
    """Where a claim's trials and evidence are."""
    return Path(out) / ("quick" if quick else "full") / claim.id


def check_count(name: str, number: int | None, least: int) -> None:
    """Raise InvalidValue for a number of seeds or workers that cannot be."""
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
        raise invalid("claims.run", name, f"be an integer of at least {least}", number)


def _setup(claim: Claim, quick: bool, seeds: int | None) -> Setup:
    setup = claim.quick if quick else claim.full
    return setup if seeds is None else replace(setup, seeds=seeds)


@contextmanager
def _ledger(claim: Claim, setup: Setup, directory: Path) -> Iterator[Ledger]:
    """The ledger of an experiment, seed by seed, so that one cut short has whole seeds."""
    levels = [dict(zip(setup.factors, each, strict=True)) for each in itertools.product(*setup.factors.values())]
    rows: list[Row] = [(place, seed, config) for seed in range(setup.seeds) for place, config in enumerate(levels)]
    ledger = Ledger.create_or_open(directory, _settings(claim, setup), (), anyway=None)
    try:
        ledger.extend(rows)
        yield ledger
    finally:
        ledger.close()


def _settings(claim: Claim, setup: Setup) -> dict[str, object]:
    """What must be the same for trials to belong together."""
    return {
        "claim": claim.id,
        "experiment": configuration.identity(claim.experiment),
        "factors": {name: list(known) for name, known in setup.factors.items()},
        "settings": configuration.plain("Claim", "settings", setup.settings),
        "torch": environment.describe().get("torch", ""),
    }


def _work(claim: Claim, setup: Setup, ledger: Ledger, console: Console, workers: int) -> None:
    if ledger.counts().ended:
        return
    columns = ["trial", "seed", *setup.factors]
    names = {
        int(trial): trial_name(dict(zip(setup.factors, levels, strict=True)), int(seed))
        for trial, seed, *levels in ledger.trials()[columns].to_numpy(dtype=object).tolist()
    }
    experiment = functools.partial(claim.experiment, **setup.settings)
    start = time.monotonic()
    try:
        with (
            shown(console, names.__getitem__) if not console.quiet else _silent() as watch,
            carrier(experiment, Rules(), watch, None, workers, _PRELOAD) as run_pending,
        ):
            run_pending(ledger)
    finally:
        with suppress(StorageError):
            ledger.spend(time.monotonic() - start)


@contextmanager
def _silent() -> Iterator[Silent]:
    yield Silent()


def _judged(claim: Claim, setup: Setup, quick: bool, ledger: Ledger) -> Evidence:
    trials, curves = ledger.trials(), ledger.curves()
    trials = trials[trials["seed"] < setup.seeds]
    done = trials[trials["status"] == "done"].reset_index(drop=True)
    failures = tuple(dict.fromkeys(text for text in trials["failure"] if text))
    if done.empty:
        raise HomeostatError(f"{claim.id}: no trial ended well. {failures[0].splitlines()[0] if failures else ''}")
    factors = list(setup.factors)
    metrics = [name for name in done.columns if done[name].dtype == float and name != "seconds"]
    frame = done[[*factors, "seed", *metrics]]
    if len(curves):
        curves = curves.merge(trials[["trial", *factors]], on="trial")  # of the seeds that are judged
    runs = Runs(frame, curves, setup)
    verdict = _typeset(_whole(claim.judge(runs), frame, len(trials)))
    date = time.strftime("%Y-%m-%d", time.localtime(ledger.created))
    told = (setup, "quick" if quick else "full", date, ledger.spent, environment.describe(), failures)
    return Evidence(claim, verdict, frame, claim.draw(runs), *told)


def _whole(verdict: Verdict, frame: pd.DataFrame, planned: int) -> Verdict:
    """The verdict, which is open where trials failed, and which says how many runs diverged."""
    failed = planned - len(frame)
    if failed:
        says = f"{verdict.says} {failed} of {planned} trials failed; what the others say decides nothing."
        return replace(verdict, word="undecided", says=says)
    lost = int(frame["diverged"].sum()) if "diverged" in frame else 0
    if not lost or "diverged" in verdict.says:
        return verdict
    return replace(verdict, says=f"{verdict.says} {lost} of {planned} runs diverged.")


def _typeset(verdict: Verdict) -> Verdict:
    """With minus signs in front of negative numbers."""
    number, says = (re.sub(r"(?<![\w.])-(?=\d)", "−", text) for text in (verdict.number, verdict.says))
    return replace(verdict, number=number, says=says)
