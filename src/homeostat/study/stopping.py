"""Whether a study needs another seed: what is settled however often one looks, and which treatments may be given up.

Between `analysis` and `inference.sequential`. Nothing here is random.

Two aims, two rules. *Effects*: every treatment is run under every new seed until each effect is beyond the margin,
within it, or known as precisely as asked for. *The best treatment*: those that are clearly worse than another are given
up, and the others go on. Giving treatments up leaves seeds with holes, in which effects rest on the model
(`EffectModel.by_seed`): choose one aim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from homeostat.inference.sequential import PLANNED, decide, survivors
from homeostat.study.results.analysis import Analysis
from homeostat.study.results.effects import oriented


@dataclass(frozen=True, eq=False)
class Look:
    """What is known after the seeds so far; everything in it holds at every look together.

    Attributes:
        effects: one row per effect that can be estimated: label, n (seeds), estimate, low, high, p, p_holm, state
            ("beyond", "within", "narrow" or "open"), see `inference.sequential.Decisions`.
        settled: whether no effect is open, so that no further seed is needed for them.
        alive: the numbers of the treatments that may still be the best.
    """

    effects: pd.DataFrame
    settled: bool
    alive: tuple[int, ...]


def look(analysis: Analysis, *, target: float = 0.0, planned: int = PLANNED) -> Look:
    """Look at a study between two seeds.

    With probability `analysis.confidence` no statement about any effect is false at any look, and with the same the
    best treatment is never given up. The seeds must come in an order that does not depend on results.

    Args:
        analysis: of all trials so far; a seed that is not complete counts as far as it goes, so look between seeds.
        target: effects whose interval is no wider than twice this need no further seed, in the response's unit.
        planned: the number of seeds at which intervals are narrowest; the same at every look.
    """
    told = analysis.effects["estimable"].to_numpy()
    effects = analysis.effects.loc[told, ["label"]].reset_index(drop=True)
    values = analysis.by_seed.to_numpy()[:, told]
    found = decide(values, margin=analysis.margin, target=target, confidence=analysis.confidence, planned=planned)
    columns = {name: getattr(found, name) for name in found._fields}
    runs = np.full((len(analysis.design.seeds), len(analysis.design.treatments)), np.nan)
    seeds = {seed: place for place, seed in enumerate(analysis.design.seeds)}
    model = analysis.model
    runs[[seeds[seed] for seed in model.seed.tolist()], model.treatment] = oriented(analysis.goal) * model.y
    kept = survivors(runs, confidence=analysis.confidence, planned=planned)
    alive = tuple(int(number) for number in np.flatnonzero(kept))
    return Look(effects.assign(**columns), len(effects) > 0 and found.settled, alive)
