"""The trials of `plain_tasks` by Ray Tune's grid search, one core and thread per trial; see `throughput.py`."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import ray
import torch
from ray import tune

from plain_tasks import FACTORS, TASKS, standardized, train


def trainable(config: dict[str, Any], data: list[Any]) -> None:
    torch.set_num_threads(1)
    for accuracy in train(config["task"], data, config["norm"], config["dropout"], config["seed"]):
        tune.report({"valid_accuracy": accuracy})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="cnn")
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    space: dict[str, Any] = {"task": asked.task}
    space |= {name: tune.grid_search(levels) for name, levels in FACTORS.items()}
    space["seed"] = tune.grid_search(list(range(asked.seeds)))
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_parameters(tune.with_resources(trainable, {"cpu": 1}), data=standardized(asked.task)),
            param_space=space,
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        found = tuner.fit()
        print(len(found), found.get_best_result("valid_accuracy", "max").metrics["valid_accuracy"])
    ray.shutdown()


if __name__ == "__main__":
    main()
