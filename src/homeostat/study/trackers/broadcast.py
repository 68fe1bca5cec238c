"""Telling trackers of a study while it runs: who they are, and the thread that reads the ledger for them.

The ledger is read at most once a second, on the driver's machine. Nothing here is random.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from homeostat.errors import HomeostatError, invalid_type, unknown
from homeostat.study.state.storage import StorageError
from homeostat.study.trackers.feed import Feed
from homeostat.study.trackers.lane import Lane
from homeostat.study.trackers.tracker import Tracker

NAMES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "WandB"}  # modules, and the classes in them

_SECONDS = 1.0  # between two looks at the ledger
_PARTING = 10.0  # seconds that trackers have at the end


def as_trackers(track: str | Iterable[str | Tracker] | None) -> tuple[str | Tracker, ...]:
    """Trackers from what a user says: "tensorboard,mlflow", or a list of names and of objects like `Tracker`.

    Raises: InvalidValue for an unknown name; InvalidType for what is no tracker; HomeostatError for one that is not
        installed.
    Example:
        >>> as_trackers("tensorboard")
        ('tensorboard',)
    """
    given = track.split(",") if isinstance(track, str) else list(track or ())
    found = tuple(each.strip() if isinstance(each, str) else each for each in given)
    for each in found:
        if not isinstance(each, str):
            if not callable(getattr(each, "trial_started", None)):
                raise invalid_type("Study", "track", "name trackers, or hold objects with their methods", each)
        elif each not in NAMES:
            raise unknown("Study", "tracker", each, NAMES)
        elif find_spec(each) is None:
            raise HomeostatError(f"track={each!r} needs {each}: pip install 'homeostat[{each}]'.")
    return found


class Tracking:
    """The trackers of one study at work; made by `tracking`."""

    def __init__(self, directory: Path, lanes: list[Lane], study: str, tell: Callable[[str], None]) -> None:
        self._directory, self._lanes, self._study, self._tell = directory, lanes, study, tell
        self._feed: Feed | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="trackers' feed", daemon=True)

    def conclude(self, summary: str, report: Path) -> None:
        """Tell all trackers that the study has ended."""
        self._stop()
        for lane in self._lanes:
            lane.put(("study_concluded", (summary, report)))

    def open(self) -> None:
        """Begin to read the ledger."""
        if self._lanes:
            self._feed = Feed(self._directory, self._study)
            self._thread.start()

    def close(self) -> None:
        """Tell trackers the rest, and wait for them a little."""
        self._stop()
        deadline = time.monotonic() + _PARTING
        for lane in self._lanes:
            lane.finish()
        for lane in self._lanes:
            lane.join(deadline)

    def _stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self._feed is not None
        try:
            while not self._ended.wait(_SECONDS):
                self._pass_on(self._feed)
            self._pass_on(self._feed)
            self._feed.close()
        except StorageError as error:
            self._tell(f"Trackers are told no more: {error}")

    def _pass_on(self, feed: Feed) -> None:
        for call in feed.changes():
            for lane in self._lanes:
                lane.put(call)


@contextmanager
def tracking(
    directory: Path, study: str, track: Iterable[str | Tracker], tell: Callable[[str], None]
) -> Iterator[Tracking]:
    """Tell trackers what happens in a study's ledger while the block runs; nothing that they do reaches the block.

    Args:
        directory: of the study; the ledger is there already.
        study: its name.
        track: what `as_trackers` returned.
        tell: how to tell the user that a tracker fails; called from several threads.
    """
    lanes = [_lane(each, directory, study, tell) for each in track]
    found = Tracking(directory, lanes, study, tell)
    found.open()
    try:
        yield found
    finally:
        found.close()


def _lane(each: str | Tracker, directory: Path, study: str, tell: Callable[[str], None]) -> Lane:
    if not isinstance(each, str):
        return Lane(type(each).__name__, lambda: each, tell)

    def make() -> Tracker:
        module = importlib.import_module(f"homeostat.study.trackers.{each}")
        return getattr(module, NAMES[each])(directory, study)

    return Lane(each, make, tell)
