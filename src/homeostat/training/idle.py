"""Settings of a recipe that can change nothing, because what they act on is not there. Not random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from homeostat.errors import InvalidValue
from homeostat.parts.dropout import drops
from homeostat.parts.modes import drop_probability
from homeostat.training.evaluation import lacks_adaptable
from homeostat.training.recipe import Recipe

_FANLESS = ("normal", "trunc_normal", "constant", "zeros", "lsuv")
_NO_DROPOUT = "there is no dropout: set dropout, such as dropout=0.2"


def idle_settings(recipe: Recipe, model: nn.Module, built_in: bool) -> dict[str, str]:
    """Why settings that differ from their default have no effect, by name.

    Args:
        recipe: the settings.
        model: what `build_model` made of them.
        built_in: whether it is one of ours; a user's own module may drop or branch in ways that cannot be seen.
    """
    stops = recipe.pq_alpha is not None or recipe.up_strips is not None
    dropping = any(drops(module) and module.p > 0 for module in model.modules())  # type: ignore[operator]
    sampled = dropping or not built_in or any(drop_probability(module) > 0 for module in model.modules())
    measured = any(isinstance(module, _NormBase) and module.running_mean is not None for module in model.modules())
    branches = not built_in or recipe.model == "resnet" or recipe.residual in ("keep", "fixup")
    unmet = lacks_adaptable(model, recipe.adapt)
    reasons = {
        "dropout_kind": "" if recipe.dropout else _NO_DROPOUT,
        "dropout_where": "" if recipe.dropout else _NO_DROPOUT,
        "dropout_schedule": "" if dropping else _NO_DROPOUT,
        "mc_samples": "" if sampled else _NO_DROPOUT,
        "mix_alpha": "" if recipe.mix != "none" else "nothing is mixed: set mix, such as mix=mixup",
        "strip": "" if stops else "neither pq_alpha nor up_strips is set: set one",
        "min_delta": "" if recipe.stops_early else "nothing stops early: set patience, such as patience=5",
        "gamma": "" if recipe.schedule == "exponential" else "its course is not asked for: set schedule=exponential",
        "init_gain": f"{recipe.init} has no fan to scale by" if recipe.init in _FANLESS else "",
        "residual": "" if branches else "the model has no residual branches: set model=resnet",
        "bn_statistics": "" if measured else "the model has no batch normalization: set norm=batch",
        "adapt": f"the model has {unmet}: set norm=batch" if unmet else "",
    }
    changed = recipe.model_dump(exclude_defaults=True)
    return {name: reason for name, reason in reasons.items() if reason and name in changed}


class IdleFactors:
    """Collects, over all treatments of a study, which factors never have an effect."""

    def __init__(self) -> None:
        self.acting: set[str] = set()
        self.idle: dict[str, str] = {}

    def add(self, config: Mapping[str, Any], recipe: Recipe, idle: Mapping[str, str]) -> None:
        """Take in one treatment: what is varied, its recipe, and what of that has no effect."""
        self.idle |= {name: idle[name] for name in config if name in idle}
        changed = recipe.model_dump(exclude_defaults=True)
        self.acting |= {name for name in config if name in changed and name not in idle}

    def check(self) -> None:
        """Raise an error if a factor has no effect in any treatment: the study could only tell that it has none."""
        for name, reason in self.idle.items():
            if name not in self.acting:
                raise InvalidValue(f"{name} has no effect in any treatment: {reason}, or leave the factor out.")
