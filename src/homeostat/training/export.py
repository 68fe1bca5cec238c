"""A finished fit as files that other programs read: weights, recipe, metrics, history. Nothing here is random."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import safetensors.torch
import torch

from homeostat.errors import HomeostatError
from homeostat.training.loop import Fit


def save_fit(fit: Fit, directory: Path) -> None:
    """Write model.safetensors (the state_dict), recipe.toml, metrics.json and history.csv into `directory`.

    Raises: HomeostatError if the directory cannot be written.
    """
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in fit.model.state_dict().items()
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(weights, directory / "model.safetensors")
        (directory / "recipe.toml").write_text(fit.recipe.to_toml(), encoding="utf-8")
        measured = {"seed": fit.seed, "stopped": fit.stopped, **fit.metrics}
        (directory / "metrics.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        with open(directory / "history.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(fit.history[0]))
            writer.writeheader()
            writer.writerows(fit.history)
    except OSError as error:
        raise HomeostatError(
            f"save_fit: cannot write to {str(directory)!r}: {error.strerror}. Choose another directory."
        ) from error
