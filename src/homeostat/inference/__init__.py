"""Intervals and tests that keep their promise at the sizes studies have.

`intervals`: means, paired differences, Holm. `linear`: least squares, for runs that are independent or come in groups.
`proportions`: shares of trials. `lenth`: effects without repetition. `robust`: interquartile means, by bootstrap.
`sequential`: always-valid intervals for seeds that are added one by one. Nothing here knows what a factor, a treatment
or a network is; what is random takes its generator as an argument.
"""

from homeostat.inference.intervals import NO_INTERVAL as NO_INTERVAL
from homeostat.inference.intervals import Interval as Interval
from homeostat.inference.intervals import holm as holm
from homeostat.inference.intervals import least_step as least_step
from homeostat.inference.intervals import mean_interval as mean_interval
from homeostat.inference.intervals import p_beyond as p_beyond
from homeostat.inference.intervals import paired_interval as paired_interval
from homeostat.inference.linear import FTest as FTest
from homeostat.inference.linear import Judged as Judged
from homeostat.inference.linear import LinearModel as LinearModel
from homeostat.inference.linear import lack_of_fit as lack_of_fit
from homeostat.inference.proportions import share_difference as share_difference
from homeostat.inference.proportions import share_interval as share_interval
