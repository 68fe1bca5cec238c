"""homeostat keeps neural networks healthy while they train: a doctor, parts, fits and studies for PyTorch.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homeostat import claims as claims
    from homeostat import doctor as doctor
    from homeostat import kernels as kernels
    from homeostat import nn as nn
    from homeostat.doctor.examine import Examination as Examination
    from homeostat.doctor.examine import examine as examine
    from homeostat.doctor.finding import Finding as Finding
    from homeostat.doctor.repair import Repair as Repair
    from homeostat.doctor.repair import repair as repair
    from homeostat.doctor.training import Training as Training
    from homeostat.doctor.watching.watch import watch as watch
    from homeostat.errors import HomeostatError as HomeostatError
    from homeostat.errors import NoEffectWarning as NoEffectWarning
    from homeostat.kernels.moments import moments as moments
    from homeostat.parts import activation as activation
    from homeostat.parts import adapt as adapt
    from homeostat.parts import augment as augment
    from homeostat.parts import clip as clip
    from homeostat.parts import dropout as dropout
    from homeostat.parts import ensemble as ensemble
    from homeostat.parts import init as init
    from homeostat.parts import mixing as mixing
    from homeostat.parts import norm as norm
    from homeostat.parts import penalty as penalty
    from homeostat.parts import population as population
    from homeostat.parts import stopping as stopping
    from homeostat.parts import surgery as surgery
    from homeostat.parts.adapt import Tent as Tent
    from homeostat.parts.clip import adaptive_clip_grad_ as adaptive_clip_grad_
    from homeostat.parts.clip import clip_grad_norm_ as clip_grad_norm_
    from homeostat.parts.clip import clip_grad_value_ as clip_grad_value_
    from homeostat.parts.corrupt import CORRUPTIONS as CORRUPTIONS
    from homeostat.parts.corrupt import corrupt as corrupt
    from homeostat.parts.dropout import absorb_dropout_scale_ as absorb_dropout_scale_
    from homeostat.parts.ensemble import mc_dropout as mc_dropout
    from homeostat.parts.export_onnx import export_onnx as export_onnx
    from homeostat.parts.fold import fold as fold
    from homeostat.parts.fold import plan_folding as plan_folding
    from homeostat.parts.penalty import param_groups_weight_decay as param_groups_weight_decay
    from homeostat.parts.population import update_statistics_ as update_statistics_
    from homeostat.parts.stopping import EarlyStopping as EarlyStopping
    from homeostat.parts.use import plan_use as plan_use
    from homeostat.parts.use import use as use
    from homeostat.study.design import Design as Design
    from homeostat.study.factors import Factor as Factor
    from homeostat.study.study import Study as Study
    from homeostat.study.study import StudyInterrupted as StudyInterrupted
    from homeostat.study.study import StudyResult as StudyResult
    from homeostat.training.bagging import bag as bag
    from homeostat.training.datasets import load_task as load_task
    from homeostat.training.loop import Fit as Fit
    from homeostat.training.loop import fit as fit
    from homeostat.training.objective import Objective as Objective
    from homeostat.training.recipe import Recipe as Recipe
    from homeostat.training.task import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "CORRUPTIONS": "homeostat.parts.corrupt",
    "Design": "homeostat.study.design",
    "EarlyStopping": "homeostat.parts.stopping",
    "Examination": "homeostat.doctor.examine",
    "Factor": "homeostat.study.factors",
    "Finding": "homeostat.doctor.finding",
    "Fit": "homeostat.training.loop",
    "HomeostatError": "homeostat.errors",
    "NoEffectWarning": "homeostat.errors",
    "Objective": "homeostat.training.objective",
    "Recipe": "homeostat.training.recipe",
    "Repair": "homeostat.doctor.repair",
    "Study": "homeostat.study.study",
    "StudyInterrupted": "homeostat.study.study",
    "StudyResult": "homeostat.study.study",
    "Task": "homeostat.training.task",
    "Tent": "homeostat.parts.adapt",
    "Training": "homeostat.doctor.training",
    "absorb_dropout_scale_": "homeostat.parts.dropout",
    "adaptive_clip_grad_": "homeostat.parts.clip",
    "bag": "homeostat.training.bagging",
    "clip_grad_norm_": "homeostat.parts.clip",
    "clip_grad_value_": "homeostat.parts.clip",
    "corrupt": "homeostat.parts.corrupt",
    "examine": "homeostat.doctor.examine",
    "export_onnx": "homeostat.parts.export_onnx",
    "fit": "homeostat.training.loop",
    "fold": "homeostat.parts.fold",
    "load_task": "homeostat.training.datasets",
    "mc_dropout": "homeostat.parts.ensemble",
    "moments": "homeostat.kernels.moments",
    "param_groups_weight_decay": "homeostat.parts.penalty",
    "plan_folding": "homeostat.parts.fold",
    "plan_use": "homeostat.parts.use",
    "repair": "homeostat.doctor.repair",
    "update_statistics_": "homeostat.parts.population",
    "use": "homeostat.parts.use",
    "watch": "homeostat.doctor.watching.watch",
}
_ROOMS = {
    "activation": "homeostat.parts.activation",
    "adapt": "homeostat.parts.adapt",
    "augment": "homeostat.parts.augment",
    "claims": "homeostat.claims",
    "clip": "homeostat.parts.clip",
    "doctor": "homeostat.doctor",
    "dropout": "homeostat.parts.dropout",
    "ensemble": "homeostat.parts.ensemble",
    "init": "homeostat.parts.init",
    "kernels": "homeostat.kernels",
    "mixing": "homeostat.parts.mixing",
    "nn": "homeostat.nn",
    "norm": "homeostat.parts.norm",
    "penalty": "homeostat.parts.penalty",
    "population": "homeostat.parts.population",
    "stopping": "homeostat.parts.stopping",
    "surgery": "homeostat.parts.surgery",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'homeostat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_ROOMS, "__version__"])
