"""TensorBoard: one run per attempt under DIRECTORY/tensorboard, by the event writer of the tensorboard package.

    tensorboard --logdir studies/NAME/tensorboard

Nothing here is random.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text import metadata as text
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from homeostat.study.trackers.tracker import Ending, Run

FOLDER = "tensorboard"


class TensorBoard:
    """Writes event files.

    Args:
        directory: of the study.
        study: its name.
    """

    def __init__(self, directory: Path, study: str) -> None:
        self._folder = directory / FOLDER
        self._writers: dict[tuple[int, int], EventFileWriter] = {}

    def trial_started(self, run: Run) -> None:
        """Open the run's event file, with its levels as hyperparameters."""
        writer = EventFileWriter(str(self._folder / run.name))
        self._writers[run.trial, run.attempt] = writer
        levels = {
            name: level if isinstance(level, int | float | str) else str(level) for name, level in run.config.items()
        }
        _add(writer, hparams.hparams_pb({**levels, "seed": run.seed}, trial_id=run.name))

    def epoch_reported(self, run: Run, epoch: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        _add(self._writers[run.trial, run.attempt], _scalars(values), epoch)

    def trial_ended(self, run: Run, ending: Ending, metrics: Mapping[str, float]) -> None:
        """The metrics under result/, and the file's end."""
        writer = self._writers.pop((run.trial, run.attempt))
        if metrics:
            _add(writer, _scalars({f"result/{name}": value for name, value in metrics.items()}))
        writer.close()

    def study_concluded(self, summary: str, report: Path) -> None:
        """The study's summary as a text."""
        writer = EventFileWriter(str(self._folder))
        told = TensorProto(dtype=DT_STRING, string_val=[f"{summary}\n\nReport: {report}".encode()])
        told.tensor_shape.dim.add(size=1)
        kind = text.create_summary_metadata("summary", "")
        _add(writer, Summary(value=[Summary.Value(tag="summary", metadata=kind, tensor=told)]))
        writer.close()


def _scalars(values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _add(writer: EventFileWriter, summary: Summary, step: int = 0) -> None:
    writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.flush()
