"""Early stopping: when to end training, judged by a value that is measured once per epoch, and with which weights."""

from homeostat.parts.stopping.early import EarlyStopping as EarlyStopping
from homeostat.parts.stopping.rules import GL as GL
from homeostat.parts.stopping.rules import PQ as PQ
from homeostat.parts.stopping.rules import UP as UP
from homeostat.parts.stopping.rules import Patience as Patience
from homeostat.parts.stopping.rules import Rule as Rule
from homeostat.parts.stopping.rules import SinceBest as SinceBest
from homeostat.parts.stopping.rules import generalization_loss as generalization_loss
from homeostat.parts.stopping.rules import progress as progress
from homeostat.parts.stopping.rules import stopping_time as stopping_time
