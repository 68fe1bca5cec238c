"""Batches of a split added up: the same numbers, however much is held at once."""

import pytest
import torch

import homeostat as hs
from homeostat.training import tally
from homeostat.training.tally import Tally


def spread(task: hs.Task, outputs: torch.Tensor, targets: torch.Tensor, size: int = 7) -> Tally:
    """A tally of outputs in batches."""
    found = Tally(task)
    for output, target in zip(outputs.split(size), targets.split(size), strict=True):
        found.add(torch.tensor(1.0), output, target)
    return found


def numbers(loss: str, targets: torch.Tensor) -> hs.Task:
    return hs.Task(data=((torch.arange(3.0 * len(targets)).reshape(-1, 3), targets),) * 3, loss=loss, name="numbers")


@pytest.mark.parametrize(
    ("loss", "columns", "targets"),
    [
        ("cross_entropy", (5,), torch.arange(50) % 5),
        ("cross_entropy", (5, 4), torch.arange(200).reshape(50, 4) % 5),
        ("bce_with_logits", (), (torch.arange(50) % 2).float()),
        ("bce_with_logits", (1,), (torch.arange(50) % 2).float()),
        ("bce_with_logits", (4,), (torch.arange(200).reshape(50, 4) % 3 == 0).float()),
    ],
)
def test_right_answers_counted_in_between_are_those_of_the_whole(monkeypatch, loss, columns, targets):
    task = numbers(loss, targets)
    outputs = torch.randn(50, *columns)
    whole = spread(task, outputs, targets).metrics("valid")
    for held in (0, 60):
        monkeypatch.setattr(tally, "_HELD", held)
        counted = spread(task, outputs, targets)
        assert sum(output.numel() for output in counted._outputs) <= held
        assert counted.metrics("valid") == whole


def test_a_metric_of_the_whole_split_gets_the_whole_split(monkeypatch):
    targets = torch.arange(50.0)
    task = numbers("mse", targets)
    outputs = torch.randn(50)
    monkeypatch.setattr(tally, "_HELD", 0)
    assert spread(task, outputs, targets).metrics("test")["test_rmse"] == task.measure(outputs, targets)


def test_a_fit_measures_the_same(monkeypatch):
    task, recipe = hs.load_task("digits"), hs.Recipe(epochs=2)
    whole = hs.fit(task, recipe, seed=0)
    monkeypatch.setattr(tally, "_HELD", 100)
    counted = hs.fit(task, recipe, seed=0)
    timeless = [{name: value for name, value in row.items() if name != "seconds"} for row in counted.history]
    assert timeless == [{name: row[name] for name in timeless[0]} for row in whole.history]
    assert counted.metrics["test_accuracy"] == whole.metrics["test_accuracy"]
