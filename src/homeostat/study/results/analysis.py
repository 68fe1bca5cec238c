"""The analysis: from the table of trials to effects with intervals, a recommendation and a sentence to act on.

A pure function: no files, no randomness, the same trials give the same analysis. The parts are in `outcomes` (what
became of each trial), `effects` (the linear model), `effect_table`, `best` (treatments that may be the best), `advice`
(the recommendation), `residuals`, `crosschecks` (other methods), `concerns` (warnings) and `conclusion` (the sentence);
how numbers are written is in `wording`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from homeostat.errors import invalid, unknown
from homeostat.inference import FTest, Interval
from homeostat.study.design import Design
from homeostat.study.factors import Level
from homeostat.study.results.advice import Recommendation, recommend
from homeostat.study.results.best import best_set
from homeostat.study.results.concerns import concerns
from homeostat.study.results.conclusion import conclude
from homeostat.study.results.crosschecks import crosschecks
from homeostat.study.results.effect_table import conditional_effects, effect_contrast, effect_table, everything_on
from homeostat.study.results.effects import EffectModel, Goal, fit
from homeostat.study.results.outcomes import divergence_table, metric_names, tidy, treatment_table
from homeostat.study.results.residuals import residual_table
from homeostat.study.results.wording import Unit, unit_of


@dataclass(frozen=True, eq=False)
class Analysis:
    """What the trials of a study say about its factors.

    Estimates, intervals and margins are in the response's own unit and sign; `unit` writes them for people. Where
    something cannot be estimated there is NaN, never a guess.

    Attributes:
        design: the design that was run.
        response: the metric that is judged.
        goal: "maximize" or "minimize".
        margin: the smallest change of the response that matters, >= 0.
        confidence: of every interval.
        unit: how the response is written; `units` has the same for every metric.
        metrics: the names of the metrics, in the order of the trials table.
        frame: the trials, sorted by treatment and seed, with a column `outcome`: "ok" (counts in every estimate),
            "diverged" (finished, but the response is not finite or the metric `diverged` is not 0), "failed"
            (quarantined), "spared" (a sequential study did without it) or "missing" (pending or running).
        treatments: index treatment; the factors; n (finished), diverged, failed, missing (counts), seconds (mean of
            the finished); for every metric m: m (mean), m_low, m_high (t-interval over seeds; cut to [0, 1] for
            accuracies, as `units` has them), over the "ok" trials.
        effects: one row per effect, main effects first, in the order of the factors. Columns: label ("norm: none →
            batch", "norm × dropout"), kind ("main" or "interaction"), factors (tuple of names), levels (tuple of
            (base, level), one per factor), estimate, low, high, se, df, p, p_holm (over all rows), pure_low, pure_high,
            pure_se, pooled (bool: single runs decide), aliases (what the design cannot tell it apart from, "" if
            nothing), partly (what else is in part of the estimate, in a design that is no regular one: "0.33 b × c"),
            estimable (bool), verdict.
            The interval counts seeds: it is the t-interval of what each seed says by itself, which holds whatever seeds
            do to techniques (`effects.EffectModel`). `pure_low` and `pure_high` are the ends of the interval that
            counts runs, narrower, and right only where seeds do the same to all treatments; `pure_se` its plain HC3
            error. One seed has only that one, or Lenth's where nothing is left over.
            A main effect is the difference of means between the level and the base level, averaged over the levels of
            the other factors that gave results. An interaction is half the difference between the effect of the first
            factor at the second's level and at the second's base level. Verdicts of main effects: "helps", "hurts"; of
            interactions: "strengthens" (better together than the sum of both alone), "weakens" (worse together). These
            are beyond the margin by Holm's adjustment over all rows. The same with "perhaps": the interval leaves out
            zero, but with so many rows, or so near to the margin, that is not enough. Of both: "no clear effect" (the
            interval holds zero), "within the margin" (all of it), "not estimable" (nor is an interaction of techniques
            whose own effects are not).
        alone: one row per level that is not a base level: what it changes when every other factor is at its base.
            Columns label, factor, base, level, estimate, low, high, se, df, p, estimable.
        together: the same rows: what the level changes against its base when every other factor is as recommended.
        everything: the gain over the base treatment when every factor is at its best level other than the base, as
            (config, interval).
        lack_of_fit: the F-test of the model of main effects and two-factor interactions against the treatments' own
            means; NaN where there is nothing to test.
        direct: whether that model does not fit (p < 1 - confidence). `alone`, `together` and `everything` then compare
            the treatments themselves, with the spread of their own runs; otherwise they come from the model, in which
            every trial counts. `effects` and `recommendation.gain` never rest on the model, where trials are repeated.
        best: which treatments cannot be told from the best one, see `best.best_set`.
        residuals: what the model leaves of each run, see `residuals.residual_table`.
        divergence: columns factor, level, diverged, of (finished trials at that level), failed, and the share with its
            difference from the base level's, see `outcomes.divergence_table`.
        recommendation: see `Recommendation`.
        summary: one to three sentences a person can act on.
        warnings: what limits the conclusions, most important first.
        planned, finished, diverged, failed, missing: numbers of trials; finished includes diverged.
        df_resid, r2: of the fitted two-factor model; r2 is NaN where the response does not vary.
        coefficients: of the fitted model by statsmodels (HC3): index name; coefficient, se, t, p.
        model: the fitted model, for whoever wants to judge contrasts of his own.
    """

    design: Design
    response: str
    goal: Goal
    margin: float
    confidence: float
    unit: Unit
    units: dict[str, Unit]
    metrics: tuple[str, ...]
    frame: pd.DataFrame
    treatments: pd.DataFrame
    effects: pd.DataFrame
    alone: pd.DataFrame
    together: pd.DataFrame
    everything: tuple[dict[str, Level], Interval]
    lack_of_fit: FTest
    direct: bool
    best: pd.DataFrame
    residuals: pd.DataFrame
    divergence: pd.DataFrame
    recommendation: Recommendation
    summary: str
    warnings: list[str]
    planned: int
    finished: int
    diverged: int
    failed: int
    missing: int
    df_resid: int
    r2: float
    coefficients: pd.DataFrame
    model: EffectModel

    @cached_property
    def crosschecks(self) -> pd.DataFrame:
        """The effects by other methods, see `crosschecks.crosschecks`; worked out when first asked for."""
        return crosschecks(self.model, self.effects, rate=self.unit.points)

    @cached_property
    def by_seed(self) -> pd.DataFrame:
        """What each seed alone says of every effect: index seed, one column per label; NaN where it cannot say."""
        steps = [
            dict(zip(*pair, strict=True)) for pair in zip(self.effects["factors"], self.effects["levels"], strict=True)
        ]
        contrasts = np.array([effect_contrast(self.model, step) for step in steps])
        index = pd.Index(self.design.seeds, name="seed")
        return pd.DataFrame(self.model.by_seed(contrasts), index, self.effects["label"].to_numpy())

    def to_frames(self) -> dict[str, pd.DataFrame]:
        """Every table by name, for whoever wants to go on."""
        names = (
            "frame",
            "treatments",
            "effects",
            "alone",
            "together",
            "best",
            "residuals",
            "divergence",
            "coefficients",
        )
        return {"trials" if name == "frame" else name: getattr(self, name) for name in names}


def analyze(
    trials: pd.DataFrame,
    design: Design,
    *,
    response: str,
    goal: Literal["maximize", "minimize"] = "maximize",
    margin: float = 0.0,
    confidence: float = 0.95,
) -> Analysis:
    """What the trials say, finished or not.

    The model is response = seed + main effects + two-factor interactions, by least squares, where the seeds are blocks:
    every treatment meets the same seeds, so what a seed gives to all of them cancels; intervals count seeds, so that
    they hold too where a technique acts differently from seed to seed. Where that model does not fit, because three
    factors interact, statements about particular combinations compare the treatments' own means.
    Diverged and failed trials are counted and left out of the least squares, with a warning that says where they were.

    Args:
        trials: one row per trial: treatment, seed, status ("done", "quarantined"; anything else is missing), and a
            column per metric; `seconds`, `failure` and `warnings` are used where present. Levels are those of `design`.
        design: what was run; every (treatment, seed) of `trials` must belong to it.
        response: the metric to judge.
        goal: whether more or less of it is better.
        margin: the smallest change that matters, in the response's unit; the simpler level is preferred within it.
        confidence: of the intervals, in (0, 1).
    Raises: InvalidValue for an unknown response, goal, treatment or seed, a trial that stands there twice, or a
        negative margin.
    """
    _check(trials, design, response, goal, margin)
    metrics = metric_names(trials, design)
    frame = tidy(trials, design, response, metrics)
    counts = frame["outcome"].value_counts()
    diverged, failed = int(counts.get("diverged", 0)), int(counts.get("failed", 0))
    finished = int(counts.get("ok", 0)) + diverged
    units = {response: Unit(response)} | {metric: unit_of(metric, frame[metric]) for metric in metrics}
    unit = units[response]
    shares = [metric for metric in metrics if units[metric].points]
    treatments = treatment_table(frame, design, metrics, confidence, shares)
    model = fit(frame, design, response, confidence)
    effects = effect_table(model, goal, margin)
    advice = recommend(model, frame, treatments, unit, goal=goal, margin=margin)
    coefficients, r2 = model.coefficients()
    planned = design.trials
    return Analysis(
        design=design,
        response=response,
        goal=goal,
        margin=margin,
        confidence=confidence,
        unit=unit,
        units=units,
        metrics=metrics,
        frame=frame,
        treatments=treatments,
        effects=effects,
        alone=conditional_effects(model, design.base),
        together=conditional_effects(model, advice.config),
        everything=everything_on(model, effects, goal),
        lack_of_fit=model.lack_of_fit,
        direct=model.direct,
        best=best_set(model, goal),
        residuals=residual_table(model),
        divergence=divergence_table(frame, design, confidence),
        recommendation=advice,
        summary=conclude(treatments, effects, advice, model, units, response=response, goal=goal),
        warnings=concerns(frame, model, effects, unit),
        planned=planned,
        finished=finished,
        diverged=diverged,
        failed=failed,
        missing=int(treatments["missing"].sum()),
        df_resid=model.linear.df_resid,
        r2=r2,
        coefficients=coefficients,
        model=model,
    )


def _check(trials: pd.DataFrame, design: Design, response: str, goal: str, margin: float) -> None:
    if goal not in ("maximize", "minimize"):
        raise invalid("analyze", "goal", "be 'maximize' or 'minimize'", goal)
    if not 0 <= margin < np.inf:
        raise invalid("analyze", "margin", "be finite and not negative", margin, "It is in the response's unit.")
    known = metric_names(trials, design)
    some_done = "status" in trials and (trials["status"] == "done").any()
    if response not in known and some_done:
        raise unknown("analyze", "response", response, known)
