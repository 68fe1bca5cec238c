"""Every claim of the lectures as an experiment that runs, with data, a figure and an honest verdict.

`run` runs one and returns its `Evidence`; `CLAIMS` has them all by id. `claim` says what a claim is. `write_gallery`
puts evidence, of claims of one's own too, on a page.
"""

from homeostat.claims import draw as draw
from homeostat.claims.claim import Claim as Claim
from homeostat.claims.claim import Runs as Runs
from homeostat.claims.claim import Setup as Setup
from homeostat.claims.claim import Verdict as Verdict
from homeostat.claims.evidence import Evidence as Evidence
from homeostat.claims.gallery import write_gallery as write_gallery
from homeostat.claims.registry import CLAIMS as CLAIMS
from homeostat.claims.run import run as run
