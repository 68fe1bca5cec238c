"""Weights & Biases: a project per study, a run per attempt; offline unless WANDB_MODE says otherwise.

A process can have one run at a time in most versions, and a study runs several trials: so a run is written when its
attempt has ended, all at once. `wandb sync DIRECTORY/wandb/offline-run-*` uploads what was written offline.
Nothing here is random.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homeostat.study.configuration import file_name
from homeostat.study.trackers.tracker import Ending, Run


class WandB:
    """Calls wandb.

    Args:
        directory: of the study; offline runs are written to its folder wandb.
        study: its name, which the project gets.
    """

    def __init__(self, directory: Path, study: str) -> None:
        self._directory, self._study = directory, study
        self._curves: dict[tuple[int, int], list[tuple[int, dict[str, float]]]] = {}

    def trial_started(self, run: Run) -> None:
        """Remember the attempt."""
        self._curves[run.trial, run.attempt] = []

    def epoch_reported(self, run: Run, epoch: int, values: Mapping[str, float]) -> None:
        """Remember the row."""
        self._curves[run.trial, run.attempt].append((epoch, dict(values)))

    def trial_ended(self, run: Run, ending: Ending, metrics: Mapping[str, float]) -> None:
        """Write the whole run."""
        config = {**run.config, "seed": run.seed, "trial": run.trial, "attempt": run.attempt}
        made = self._init(name=run.name, config=config, tags=[ending])
        for epoch, values in self._curves.pop((run.trial, run.attempt)):
            made.log(values, step=epoch)
        made.summary.update(dict(metrics))
        made.finish(exit_code=0 if ending == "done" else 1)

    def study_concluded(self, summary: str, report: Path) -> None:
        """A run of its own with the summary."""
        made = self._init(name="report", notes=summary)
        made.summary.update({"summary": summary, "report": str(report)})
        made.finish(exit_code=0)

    def _init(self, **settings: Any) -> Any:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        project = file_name(self._study)
        return wandb.init(project=project, group=self._study, dir=str(self._directory), mode=mode, **settings)
