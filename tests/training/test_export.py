import csv
import json

import pytest
import safetensors.torch
import torch

from homeostat.errors import HomeostatError
from homeostat.training.export import save_fit
from homeostat.training.loop import fit
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe


def test_a_fit_can_be_read_back_by_other_programs(image_task, tmp_path):
    fitted = fit(image_task, Recipe(epochs=2, norm="batch"), 3)
    save_fit(fitted, tmp_path / "out")
    recipe = Recipe.load(tmp_path / "out" / "recipe.toml")
    model = build_model(image_task, recipe, 0)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "out" / "model.safetensors"))
    x = image_task.sample(5)[0]
    assert torch.equal(model.eval()(x), fitted.model(x))
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert measured["seed"] == 3
    assert measured["test_accuracy"] == fitted.metrics["test_accuracy"]
    with open(tmp_path / "out" / "history.csv") as file:
        assert [float(row["valid_loss"]) for row in csv.DictReader(file)] == [
            row["valid_loss"] for row in fitted.history
        ]


def test_a_directory_that_cannot_be_written_is_named(image_task, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeostatError, match="cannot write to"):
        save_fit(fit(image_task, Recipe(epochs=1)), tmp_path / "file" / "below")


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.toml", "metrics.json", "history.csv"])
def test_a_file_that_cannot_be_written_is_an_error_with_a_cure(image_task, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(HomeostatError, match=r"cannot write to .*another directory"):
        save_fit(fit(image_task, Recipe(epochs=1)), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
