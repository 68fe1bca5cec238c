"""The doctor on faults that are put into programs that train well: which it finds, which it names, false alarms.

    python benchmarks/doctor_faults.py [--programs WORD ...] [--faults WORD ...] [--budget 30s] [--jobs 2]

Ten small programs on the data sets that scikit-learn ships, each healthy, and each with every fault that fits it
(`faulty_programs`). As in mutation testing, a fault counts where it shows: the median metric of plain training over
three seeds falls by 0.1 or more. Found is a finding of warning or above, right a warning or error that names one of the
fault's causes.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

import homeostat as hs
from faulty_programs import FAULTS, PROGRAMS, metric, training_of
from homeostat import environment

SHOWS = 0.1  # loss of the metric from which a fault counts


def judged(work: tuple[str, str, float, str, int]) -> dict[str, Any]:
    """One program, with a fault or without: its metric, and what the doctor says."""
    name, fault_name, healthy, budget, threads = work
    program = next(program for program in PROGRAMS if program.name == name)
    fault = next((fault for fault in FAULTS if fault.name == fault_name), None)
    torch.set_num_threads(threads)
    changed = fault.change(program) if fault else program
    row: dict[str, Any] = {"program": program.name, "fault": fault.name if fault else "", "healthy": healthy}
    row["metric"] = metric(changed)
    row["shows"] = fault is not None and row["metric"] <= healthy - SHOWS
    if fault is None or row["shows"]:
        start = time.monotonic()
        examination = hs.examine(training_of(changed, 0), budget=budget)
        row["seconds"] = time.monotonic() - start
        loud = [finding for finding in examination.findings if finding.severity != "info"]
        row["codes"] = " ".join(f"{finding.code}{'!' if finding.severity == 'error' else ''}" for finding in loud)
        row["found"] = bool(loud)
        row["right"] = bool(fault) and any(set(finding.causes) & set(fault.causes) for finding in loud)
        row["first"] = bool(fault and loud) and bool(set(loud[0].causes) & set(fault.causes))
    return row


def main() -> None:
    """Measure the healthy programs, then each with each fault."""
    options = _options()
    print(" · ".join(f"{name} {value}" for name, value in environment.describe().items()))
    programs = [p for p in PROGRAMS if not options.programs or any(word in p.name for word in options.programs)]
    faults = [f for f in FAULTS if not options.faults or any(word in f.name for word in options.faults)]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        print("\nhealthy programs")
        well = {}
        for row in pool.map(judged, [(p.name, "", math.nan, options.budget, threads) for p in programs]):
            well[row["program"]] = row["metric"]
            print(f"  {row['program']:22} {row['metric']:.3f}  {row['seconds']:4.0f} s  {row['codes']}", flush=True)
        print("\nfaults")
        work = [
            (p.name, f.name, well[p.name], options.budget, threads)
            for p in programs
            for f in faults
            if f.fits(p) and f.change(p) != p
        ]
        rows = []
        for row in pool.map(judged, work):
            rows.append(row)
            if row["shows"]:
                print(line(row), flush=True)
    print()
    for text in summary(rows):
        print(text)


def line(row: dict[str, Any]) -> str:
    """One fault in one program."""
    marks = f"{'found' if row['found'] else '-':6}{'right' if row['right'] else '-':6}"
    numbers = f"{row['healthy']:.2f} → {row['metric']:5.2f}"
    return f"  {row['program']:22} {row['fault']:26}{numbers}  {marks}{row['seconds']:4.0f} s  {row['codes']}"


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """By fault, and all together."""
    shown = [row for row in rows if row["shows"]]
    yield f"{'fault':28}{'shows':>6}{'found':>7}{'right':>7}{'first':>7}"
    for name in dict.fromkeys(row["fault"] for row in shown):
        of = [row for row in shown if row["fault"] == name]
        counts = [sum(row[key] for row in of) for key in ("found", "right", "first")]
        yield f"{name:28}{len(of):6}" + "".join(f"{count:7}" for count in counts)
    if shown:
        count = len(shown)
        parts = [f"{key} {sum(row[key] for row in shown)} ({sum(row[key] for row in shown) / count:.0%})" for key in
                 ("found", "right", "first")]  # fmt: skip
        seconds = statistics.median(row["seconds"] for row in shown)
        yield f"{count} faults that show, of {len(rows)}: {', '.join(parts)}; median examination {seconds:.1f} s"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", default=[], help="words in the names of the programs to run")
    parser.add_argument("--faults", nargs="+", default=[], help="words in the names of the faults to put in")
    parser.add_argument("--budget", default="30s", help="of an examination")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
