import json
import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import nn

from homeostat.errors import InvalidValue
from homeostat.training import objective as objective_module
from homeostat.training.loop import fit
from homeostat.training.objective import Objective
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


class Trial:
    """What a study hands to an objective."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.rows = {}

    def report(self, epoch, **values):
        self.rows[epoch] = values


def test_a_treatment_is_the_base_recipe_with_its_levels(image_task):
    objective = Objective(image_task, Recipe(epochs=2))
    expected = fit(image_task, Recipe(epochs=2, norm="batch"), 4).metrics
    found = objective({"norm": "batch"}, 4)
    assert found["valid_loss"] == expected["valid_loss"]
    assert json.dumps(found)


@pytest.mark.parametrize("spacing", [0.0, 3600.0])
def test_a_trial_gets_the_curve_and_keeps_checkpoints_now_and_then(image_task, tmp_path, monkeypatch, spacing):
    monkeypatch.setattr(objective_module, "_CHECKPOINT_SECONDS", spacing)
    trial = Trial(tmp_path)
    metrics = Objective(image_task, Recipe(epochs=3))({}, 0, trial=trial)
    assert sorted(trial.rows) == [0, 1, 2]
    assert trial.rows[2]["valid_loss"] == metrics["valid_loss"]
    assert any(tmp_path.iterdir()) == (spacing == 0.0)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_an_objective_travels_to_another_process(image_task, pickler):
    objective = Objective(image_task, Recipe(epochs=1))
    copy = pickle.loads(pickler.dumps(objective))
    assert copy({}, 0)["valid_loss"] == objective({}, 0)["valid_loss"]


def test_what_travels_of_a_large_task_is_small():
    x = torch.randint(0, 256, (3000, 1, 28, 28), dtype=torch.uint8)
    task = Task(data=((x, torch.arange(3000) % 10), None, None), name="large")
    assert len(cloudpickle.dumps(Objective(task))) < 100_000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dropout": 2}, "dropout=2: Recipe: dropout must"),
        ({"norm": "bach"}, "norm=bach: Recipe: unknown norm"),
        (
            {"norm": "batch", "batch_size": 1},
            "norm=batch, batch_size=1: .*more than 1 value.*Raise the batch size",
        ),
        ({"model": "cnn", "norm": "instance", "widths": "4x4x4x4"}, "instance"),
    ],
)
def test_check_names_the_treatment_that_cannot_be_trained(image_task, config, message):
    with pytest.raises(InvalidValue, match=message):
        Objective(image_task).check([{}, config])


def test_check_names_what_a_users_model_does_wrong(regression_task):
    task = Task(data=regression_task.data, model=lambda: nn.Linear(4, 1), loss="mse")
    with pytest.raises(InvalidValue, match="the base recipe: the model does not run on a batch of this task"):
        Objective(task).check([{}])


def test_check_refuses_a_loss_that_is_not_one_number(regression_task):
    task = Task(
        data=regression_task.data,
        model=lambda: nn.Linear(3, 1),
        loss=lambda output, target: (output.squeeze(1) - target) ** 2,
        metric="rmse",
    )
    with pytest.raises(InvalidValue, match="the loss must be one number"):
        Objective(task).check([{}])


def test_label_smoothing_of_a_regression_is_refused(regression_task):
    with pytest.raises(InvalidValue, match="label_smoothing"):
        Objective(regression_task).check([{"label_smoothing": 0.1}])


class Misbehaving(nn.Module):
    """A linear layer whose output `how` changes."""

    def __init__(self, how):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.how = how

    def forward(self, input):
        return self.how(self.layer(input))


def fail(output):
    raise KeyError("a key of the user's")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda output: (output, output), "output must be one tensor, but got 'tuple'"),
        (lambda output: {"logits": output}, "output must be one tensor, but got 'dict'"),
        (lambda output: output.detach(), "does not depend on any trainable parameter"),
        (fail, r"(?s)your code only.*in fail.*KeyError"),
    ],
)
def test_check_says_what_a_model_does_wrong_before_any_trial(regression_task, how, message, monkeypatch):
    task = Task(data=regression_task.data, model=lambda: Misbehaving(how), loss="mse")
    with pytest.raises(InvalidValue, match=message):
        Objective(task).check([{}])


def test_check_refuses_a_model_without_trainable_parameters(regression_task):
    task = Task(data=regression_task.data, model=lambda: nn.Linear(3, 1).requires_grad_(False), loss="mse")
    with pytest.raises(InvalidValue, match="no trainable parameters"):
        Objective(task).check([{}])


def test_check_counts_the_logits_even_where_the_first_examples_are_of_one_class():
    x, y = torch.randn(60, 3), torch.arange(60) // 20
    task = Task(data=((x, y), (x, y), (x, y)), model=lambda: nn.Linear(3, 2))
    with pytest.raises(InvalidValue, match="have 3 columns for 3 classes"):
        Objective(task).check([{}])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda output, target: output, "metric must return one number, but got Tensor"),
        (lambda output, target: "good", "metric must return one number, but got 'good'"),
        (lambda output, target: 1 / 0, "(?s)the metric '<lambda>' fails:.*ZeroDivisionError"),
    ],
)
def test_check_tries_a_metric_of_the_users_own(regression_task, metric, message):
    data = regression_task.data
    task = Task(data=data, model=lambda: nn.Linear(3, 1), loss="mse", metric=metric, goal="minimize")
    with pytest.raises(InvalidValue, match=message):
        Objective(task).check([{}])


def test_check_lets_a_metric_pass_that_needs_a_whole_split(regression_task):
    def metric(output, target):
        if len(target) < len(regression_task.valid):
            raise ValueError("too few")
        return 0.5

    task = Task(data=regression_task.data, model=lambda: nn.Linear(3, 1), loss="mse", metric=metric, goal="minimize")
    Objective(task).check([{}])


def test_check_refuses_to_compile_where_there_is_no_compiler(tmp_path):
    code = (
        "from homeostat import Objective, load_task\n"
        "try:\n    Objective(load_task('curve')).check([{'compile': True}])\n"
        "except ValueError as error:\n    print(error)"
    )
    nowhere = {"PATH": "", "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=nowhere)
    assert done.stdout.startswith("compile=True: Recipe: compile must be false"), done.stderr
    assert "Install a C++ compiler" in done.stdout


def squared(output, target):
    return ((output.squeeze(1) - target) ** 2).mean()


def test_results_depend_on_the_users_model_loss_and_metric(regression_task):
    def base(**changes):
        settings = {"model": lambda: nn.Linear(3, 1), "loss": squared, "metric": "rmse"}
        return Objective(Task(data=regression_task.data, **settings | changes)).base

    def doubled(output, target):
        return 2 * squared(output, target)

    assert sorted(base()["code"]) == ["loss", "model"]
    assert base(loss=doubled, metric=squared, goal="minimize")["code"].keys() == {"loss", "metric", "model"}
    bases = [base(), base(loss=doubled), base(model=lambda: nn.Linear(3, 1, bias=False))]
    assert len({json.dumps(each["code"]) for each in bases}) == 3
    assert "code" not in Objective(regression_task).base  # whose digests would change with homeostat's versions
