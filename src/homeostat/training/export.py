"""A finished fit as files that other programs read: weights, recipe, metrics, history. Nothing here is random."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import safetensors.torch
import torch

from homeostat.errors import HomeostatError
from homeostat.training.checkpoint import write_whole
from homeostat.training.loop import Fit


def save_fit(fit: Fit, directory: Path) -> None:
    """Write model.safetensors (the state_dict), recipe.toml, metrics.json and history.csv into `directory`, each whole.

    Raises: HomeostatError if the directory cannot be written.
    """
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in fit.model.state_dict().items()
    }
    measured = {"seed": fit.seed, "stopped": fit.stopped, **fit.metrics}
    history = io.StringIO(newline="")
    writer = csv.DictWriter(history, fieldnames=list(fit.history[0]))
    writer.writeheader()
    writer.writerows(fit.history)
    files = {
        "model.safetensors": safetensors.torch.save(weights),
        "recipe.toml": fit.recipe.to_toml().encode(),
        "metrics.json": f"{json.dumps(measured, indent=2)}\n".encode(),
        "history.csv": history.getvalue().encode(),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(directory / name, content, durable=True)
    except OSError as error:
        raise HomeostatError(
            f"save_fit: cannot write to {str(directory)!r}: {error.strerror}. Choose another directory."
        ) from error
