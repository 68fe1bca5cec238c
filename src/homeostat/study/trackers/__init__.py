"""Experiment trackers that are told how a study goes, and can fail without harm.

`tracker` says what a tracker is told, `feed` reads it off the ledger, `lane` keeps each tracker in a thread of its own,
and `tensorboard`, `mlflow` and `wandb` pass it on. Nothing here is random.
"""

from homeostat.study.trackers.broadcast import NAMES as NAMES
from homeostat.study.trackers.broadcast import Tracking as Tracking
from homeostat.study.trackers.broadcast import as_trackers as as_trackers
from homeostat.study.trackers.broadcast import tracking as tracking
from homeostat.study.trackers.tracker import Run as Run
from homeostat.study.trackers.tracker import Tracker as Tracker
