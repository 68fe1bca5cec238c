"""Settings that have no effect are said, and refused as factors; those that act are not."""

import warnings

import pytest
import torch
from quick_fits import quick, weights

from homeostat.errors import InvalidValue, NoEffectWarning
from homeostat.training.loop import fit
from homeostat.training.objective import Objective


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dropout_kind": "gaussian"}, "dropout_kind"),
        ({"dropout_where": "all"}, "dropout_where"),
        ({"dropout_schedule": "ramp"}, "dropout_schedule"),
        ({"mix_alpha": 0.2}, "mix_alpha"),
        ({"strip": 3}, "strip"),
        ({"schedule": "cosine", "gamma": 0.5}, "gamma"),
        ({"min_delta": 0.1}, "min_delta"),
        ({"init": "he", "residual": "zero"}, "residual"),
        ({"clip_value": 1e6}, "clip_value"),
        ({"clip_adaptive": 1e6}, "clip_adaptive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_that_nothing_comes_of_warns_and_changes_nothing(color_task, settings, named):
    with pytest.warns(NoEffectWarning, match=f"^{named}.*(has no effect|never acted)"):
        fitted = fit(color_task, quick(**settings), 0)
    plain = {key: value for key, value in settings.items() if key != named}
    assert torch.equal(weights(fitted), weights(fit(color_task, quick(**plain), 0)))


def test_a_factor_that_never_has_an_effect_is_refused_before_a_study_starts(color_task):
    objective = Objective(color_task, quick())
    with pytest.raises(InvalidValue, match="adapt has no effect in any treatment: the model has no batch norm"):
        objective.check([{"adapt": "none"}, {"adapt": "tent"}])
    with pytest.raises(InvalidValue, match="mc_samples has no effect in any treatment: there is no dropout"):
        objective.check([{"mc_samples": samples, "lr": lr} for samples in (0, 4) for lr in (0.1, 0.2)])
    objective.check([{"adapt": adapt, "norm": norm} for adapt in ("none", "tent") for norm in ("none", "batch")])
    objective.check([{"dropout_kind": kind, "dropout": p} for kind in ("element", "gaussian") for p in (0, 0.2)])


def test_clipping_that_acted_before_a_resume_is_not_said_to_have_had_no_effect(color_task, tmp_path):
    recipe = quick(clip_value=1e-3, clip_adaptive=1e-3)
    fit(color_task, recipe, 0, directory=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(color_task, recipe, 0, directory=tmp_path)


@pytest.mark.parametrize(
    "settings", [{"adapt": "tent"}, {"adapt": "bn"}, {"bn_statistics": "pooled"}, {"mc_samples": 4}]
)
def test_what_finds_nothing_to_act_on_warns(color_task, settings):
    with pytest.warns(NoEffectWarning):
        fitted = fit(color_task, quick(**settings), 0)
    assert fitted.metrics == pytest.approx(
        fit(color_task, quick(), 0).metrics | {"seconds_per_epoch": fitted.metrics["seconds_per_epoch"]}
    )
