"""Designs of experiments: which treatments a study runs, under which seeds, and what they can and cannot tell apart.

`design` has the class; `factorial`, `screening`, `arrays`, `optimal` and `followup` make designs; `choose` makes them
by name; `planning` says what one costs and what it will see. Random starts and orders are pure functions of seeds.
"""

from homeostat.study.design.arrays import orthogonal_array as orthogonal_array
from homeostat.study.design.choose import KINDS as KINDS
from homeostat.study.design.choose import MOST_FULL as MOST_FULL
from homeostat.study.design.choose import Kind as Kind
from homeostat.study.design.choose import make_design as make_design
from homeostat.study.design.design import Design as Design
from homeostat.study.design.factorial import fractional_factorial as fractional_factorial
from homeostat.study.design.factorial import full_factorial as full_factorial
from homeostat.study.design.followup import fold_over as fold_over
from homeostat.study.design.followup import follow_up as follow_up
from homeostat.study.design.model import Effect as Effect
from homeostat.study.design.model import Interactions as Interactions
from homeostat.study.design.model import effect_name as effect_name
from homeostat.study.design.optimal import optimal_design as optimal_design
from homeostat.study.design.planning import Plan as Plan
from homeostat.study.design.planning import plan as plan
from homeostat.study.design.screening import definitive_screening as definitive_screening
from homeostat.study.design.screening import plackett_burman as plackett_burman
