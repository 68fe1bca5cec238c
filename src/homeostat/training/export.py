"""A finished fit as files that other programs read: weights, recipe, metrics, history; and back to a model.

Nothing here is random, and nothing read is ever executed.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from homeostat.errors import HomeostatError, invalid
from homeostat.training.checkpoint import write_whole
from homeostat.training.loop import Fit
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


def save_fit(fit: Fit, directory: Path) -> None:
    """Write model.safetensors (the state_dict), recipe.toml, metrics.json and history.csv into `directory`, each whole.

    Raises: HomeostatError if the directory cannot be written.
    """
    measured = {"seed": fit.seed, "stopped": fit.stopped, **fit.metrics}
    history = io.StringIO(newline="")
    writer = csv.DictWriter(history, fieldnames=list(fit.history[0]))
    writer.writeheader()
    writer.writerows(fit.history)
    files = {
        "model.safetensors": weights_of(fit.model),
        "recipe.toml": fit.recipe.to_toml().encode(),
        "metrics.json": f"{json.dumps(measured, indent=2)}\n".encode(),
        "history.csv": history.getvalue().encode(),
    }
    for name, content in files.items():
        write_file(directory / name, content)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole, in a folder that is made if it is missing.

    Raises: HomeostatError if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content, durable=True)
    except OSError as error:
        raise HomeostatError(
            f"cannot write to {str(path.parent)!r}: {error.strerror}. Choose another directory."
        ) from error


def weights_of(model: nn.Module) -> bytes:
    """The model's state_dict as the content of a safetensors file; tensors that share memory are written each."""
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return safetensors.torch.save(weights)


def load_model(directory: Path, task: Task) -> tuple[nn.Module, Tensor]:
    """The model that `save_fit` wrote, in evaluation mode, and a prepared batch of the task's that it can run on.

    Raises: HomeostatError if the files cannot be read; InvalidValue if they belong to another task.
    """
    recipe = Recipe.load(directory / "recipe.toml")
    path = directory / "model.safetensors"
    try:
        weights = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise HomeostatError(f"load_model: cannot read {str(path)!r}: {error}.") from None
    model = build_model(task, recipe, 0)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        cure = "Name the task that the fit was made on."
        raise invalid("load_model", "task", f"be that of {str(directory)!r}", task.name, cure) from error
    return model.eval(), task.sample(32)[0]
