"""MLflow: an experiment per study, a run per attempt, where MLFLOW_TRACKING_URI says.

Nothing here is random.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from homeostat.study.factors import level_text
from homeostat.study.trackers.tracker import Ending, Run

_STATUS = {"done": "FINISHED", "quarantined": "FAILED", "unfinished": "KILLED"}


class MLflow:
    """Calls MLflow's client.

    Args:
        directory: of the study.
        study: its name, which the experiment gets.
    """

    def __init__(self, directory: Path, study: str) -> None:
        from mlflow import MlflowClient, entities

        self._entities, self._client = entities, MlflowClient()
        found = self._client.get_experiment_by_name(study)
        self._experiment = found.experiment_id if found else self._client.create_experiment(study)
        self._directory = directory
        self._runs: dict[tuple[int, int], str] = {}

    def trial_started(self, run: Run) -> None:
        """A run with the levels and the seed as parameters."""
        tags = {"homeostat.directory": str(self._directory), "homeostat.trial": str(run.trial)}
        made = self._client.create_run(self._experiment, tags=tags, run_name=run.name)
        self._runs[run.trial, run.attempt] = made.info.run_id
        Param = self._entities.Param
        levels = [Param(_key(name), level_text(level)) for name, level in run.config.items()]
        self._client.log_batch(made.info.run_id, params=[*levels, Param("seed", str(run.seed))])

    def epoch_reported(self, run: Run, epoch: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self._log(self._runs[run.trial, run.attempt], values, epoch)

    def trial_ended(self, run: Run, ending: Ending, metrics: Mapping[str, float]) -> None:
        """The metrics, and the run's end."""
        identifier = self._runs.pop((run.trial, run.attempt))
        if metrics:
            self._log(identifier, metrics, 0)
        self._client.set_terminated(identifier, _STATUS[ending])

    def study_concluded(self, summary: str, report: Path) -> None:
        """A run of its own with the summary and the report."""
        made = self._client.create_run(self._experiment, run_name="report")
        self._client.set_tag(made.info.run_id, "mlflow.note.content", summary)
        self._client.log_artifact(made.info.run_id, str(report))
        self._client.set_terminated(made.info.run_id)

    def _log(self, identifier: str, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        Metric = self._entities.Metric
        points = [Metric(_key(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(identifier, metrics=points)


def _key(name: str) -> str:
    """A name with MLflow's letters only."""
    return re.sub(r"[^\w\-./ ]", "_", name)
