"""The doctor on training programs that other people published: what it finds, whether it is right, what it repairs.

Needs a folder with `cases.json` and `build_case.py` (facts of published programs, and a builder that makes each a real
training): --cases FOLDER. Printed per set: how many are found (a finding of warning or above), for how many a cause is
right (a warning whose causes hold one of the author's labels, or symptoms where there is no label), false alarms on
healthy programs, how many are repaired (the metric of plain training within 0.05 of the reference, and not below what
it was, medians over seeds), and the same for a random search over the same remedies with the same time. The reference
is the metric of the healthy program of the pair, or the best simple baseline. Programs run in processes of their own,
each with the cores divided by --jobs as its threads.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

CASES = Path(__file__).resolve().parents[2] / "shared" / "bench" / "doctor"
NEAR = 0.05  # of the reference: repaired
SETS = ("main", "latent", "control", "control_weak")
SEEDS = (0, 1, 2)  # of the plain training by which a repair is judged


def main() -> None:
    """Run the cases and print the tables."""
    options = _options()
    sys.path.insert(0, str(options.cases))
    import build_case

    from homeostat import environment

    cases = [case for case in build_case.load_cases() if case["use"] in options.sets]
    cases = [case for case in cases if not options.only or any(word in case["id"] for word in options.only)]
    print(" · ".join(f"{name} {value}" for name, value in environment.describe().items()))
    print(f"{len(cases)} programs, budget {options.budget} + {options.repair_budget}, {options.jobs} at a time\n")
    by_id = {case["id"]: case for case in build_case.load_cases()}
    work = [(case, reference_of(case, by_id), vars(options)) for case in cases]
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for row in pool.map(examined, work):
            rows.append(row)
            print(line(row), flush=True)
    print()
    for text in summary(rows):
        print(text)
    if options.out:
        Path(options.out).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def reference_of(case: dict[str, Any], cases: dict[str, dict[str, Any]]) -> float:
    """The metric of the healthy program of the pair, else the best baseline; nan where none was measured."""
    pair = cases.get(case.get("pair") or "", {})
    if pair.get("use") == "control" and (pair.get("measured_here") or {}).get("metric") is not None:
        return float(pair["measured_here"]["metric"])
    baselines = (case.get("measured_here") or {}).get("baselines") or {}
    return max((value for value in baselines.values() if value is not None), default=math.nan)


def examined(work: tuple[dict[str, Any], float, dict[str, Any]]) -> dict[str, Any]:
    """One case: examined, repaired, and repaired by random search."""
    case, reference, options = work
    import torch

    sys.path.insert(0, str(options["cases"]))
    import build_case

    import homeostat as hs

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options["jobs"]))
    built = build_case.build(case, seed=0)
    start = time.monotonic()
    examination = hs.examine(training_of(built), budget=options["budget"])
    seconds = time.monotonic() - start
    row = {
        "id": case["id"],
        "use": case["use"],
        "wanted": case["labels"] or case["symptoms"],
        "labels": case["labels"],
        "symptoms": case["symptoms"],
        "seconds": seconds,
        "ill": examination.chart.ill if examination.chart else "",
        "findings": [(f.code, f.severity, f.causes, f.layer, f.message) for f in examination.findings],
        "notes": examination.notes,
        "reference": reference,
        "curable": curable(case, built),
    }
    if options["repair"] and case["use"] in ("main", "latent"):
        row |= repaired(case, built, examination, build_case, options)
    return row


def training_of(built: Any) -> Any:
    """A published program as its user would hold it."""
    import homeostat as hs

    return hs.Training(
        built.model,
        built.loss_fn,
        built.optimizer,
        built.train,
        built.valid,
        batch_size=built.batch_size,
        epochs=built.epochs,
        task=built.task,
        augment=built.augment,
    )


def curable(case: dict[str, Any], built: Any) -> bool:
    """Whether a repair without other data can exist: not where the training labels do not tell anything."""
    return "label_corruption" not in case["labels"] and bool((built.train[1] != built.train[1][:1]).any())


def repaired(case: Any, built: Any, examination: Any, build_case: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The metrics of plain training before, after the repair, and after a random search of the same time."""
    import homeostat as hs

    start = time.monotonic()
    repair = hs.repair(training_of(built), budget=options["repair_budget"], examination=examination)
    seconds = time.monotonic() - start
    found = {
        "before": [plain(build_case, build_case.build(case, 0), None, seed) for seed in SEEDS],
        "after": [plain(build_case, built, repair.training, seed) for seed in SEEDS],
        "changes": [change.what for change in repair.changes],
        "proof": str(repair.proof),
        "repair_seconds": seconds,
    }
    if options["random"]:
        random_training = random_repair(examination, seconds + examination.seconds)
        found["random"] = [plain(build_case, built, random_training, seed) for seed in SEEDS]
    return found


def plain(build_case: Any, built: Any, training: Any, seed: int) -> float:
    """The metric of plain training, as a stranger would train what came out of the repair."""
    import copy

    import torch

    if training is not None:
        fresh = training.copy()
        fields = ("model", "loss_fn", "optimizer", "train", "batch_size", "epochs", "augment")
        built = copy.copy(built)
        for name in fields:
            setattr(built, name, getattr(fresh, name))
    torch.manual_seed(seed)
    try:
        return build_case.reference_metric(built)
    except Exception as error:
        print(f"  {built.id}: plain training failed: {type(error).__name__}: {error}", file=sys.stderr)
        return math.nan


def random_repair(examination: Any, seconds: float) -> Any:
    """The best of random sets of one to four customary remedies, each trained to its end, until time is up."""
    import numpy as np

    from homeostat.doctor.arms import Arms
    from homeostat.doctor.budget import Deadline
    from homeostat.doctor.prescriptions import prescriptions

    known = examination.arms
    arms = Arms(known.training, known.examples, known.score, examination.seed, known.marks)
    remedies = list(dict.fromkeys(prescriptions(examination.chart)))
    generator, deadline, steps = np.random.default_rng(0), Deadline(seconds), max(known.marks)
    best, best_outcome = (), -math.inf
    while not deadline.passed:
        chosen: dict[str, Any] = {}
        for index in generator.permutation(len(remedies))[: int(generator.integers(1, 5))]:
            chosen.setdefault(remedies[index].family, remedies[index])
        arm = arms.arm(tuple(chosen.values()))
        arms.run(arm, steps, deadline)
        if not arm.failed and arms.reached(arm, steps) and arms.outcome(arm, steps) > best_outcome:
            best, best_outcome = arm.changes, arms.outcome(arm, steps)
    training = known.training.copy()
    for change in best:
        change.apply(training)
    return training


def found(row: dict[str, Any]) -> bool:
    """Whether there is a finding of warning or above."""
    return any(severity != "info" for _, severity, *_ in row["findings"])


def right(row: dict[str, Any]) -> bool:
    """Whether a warning or error has a cause that the author names."""
    return any(severity != "info" and set(causes) & set(row["wanted"]) for _, severity, causes, *_ in row["findings"])


def median(values: list[float]) -> float:
    """Over seeds; a training that diverged is the worst."""
    return statistics.median(-math.inf if math.isnan(value) else value for value in values)


def cured(row: dict[str, Any], key: str) -> bool:
    """Whether the median over seeds is near the reference, and not below what it was."""
    after, before = median(row[key]), median(row["before"])
    return after >= row["reference"] - NEAR and after >= before - 1e-9


def line(row: dict[str, Any]) -> str:
    """One case on one line."""
    marks = f"{'found' if found(row) else '-':6}{'right' if right(row) else '-':6}"
    codes = " ".join(
        f"{code}{'!' if severity == 'error' else ''}" for code, severity, *_ in row["findings"] if severity != "info"
    )
    text = f"{row['id']:34}{row['use']:9}{marks}{row['seconds']:5.0f} s  {codes}"
    if "after" in row:
        numbers = f"{median(row['before']):.3f} → {median(row['after']):.3f}, reference {row['reference']:.3f}"
        numbers += f", random {median(row['random']):.3f}" if "random" in row else ""
        cure = "cured" if cured(row, "after") else "-" if row["curable"] else "incurable"
        text += (
            f"\n{'':34}{cure:9} {numbers} ({row['repair_seconds']:.0f} s): {'; '.join(row['changes']) or 'no change'}"
        )
    return text


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table per set."""
    for use in SETS:
        chosen = [row for row in rows if row["use"] == use]
        if not chosen:
            continue
        count = len(chosen)
        hits = sum(found(row) for row in chosen)
        seconds = statistics.median(row["seconds"] for row in chosen)
        if use in ("control", "control_weak"):
            yield f"{use:12} {count:3} programs: {hits} with a warning ({hits / count:.0%}); median {seconds:.1f} s"
            continue
        labeled = [row for row in chosen if row["labels"]]
        text = f"{use:12} {count:3} programs: found {hits} ({hits / count:.0%}), "
        text += f"right cause {sum(map(right, chosen))} ({sum(map(right, chosen)) / count:.0%}), "
        text += f"of the labeled {sum(map(right, labeled))} of {len(labeled)}; median {seconds:.1f} s"
        treated = [row for row in chosen if row["curable"] and "after" in row]
        if treated:
            healed = sum(cured(row, "after") for row in treated)
            text += f"; repaired {healed} of {len(treated)} ({healed / len(treated):.0%})"
            worse = sum(median(row["after"]) < median(row["before"]) - 1e-9 for row in chosen if "after" in row)
            text += f", worse than before {worse}"
            if all("random" in row for row in treated):
                text += f"; random search {sum(cured(row, 'random') for row in treated)} of {len(treated)}"
        yield text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=CASES, help="folder with cases.json and build_case.py")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--only", nargs="+", default=[], help="words in the ids of the programs to run")
    parser.add_argument("--budget", default="30s", help="of an examination")
    parser.add_argument("--repair-budget", default="60s", help="of a repair, after the examination")
    parser.add_argument("--no-repair", dest="repair", action="store_false")
    parser.add_argument("--no-random", dest="random", action="store_false")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", help="write the rows as JSON")
    options = parser.parse_args()
    if not (options.cases / "cases.json").exists():
        parser.exit(0, f"No cases in {options.cases}: nothing measured. Give --cases FOLDER.\n")
    return options


if __name__ == "__main__":
    main()
