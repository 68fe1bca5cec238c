"""The trials of `plain_tasks` by Optuna's grid sampler around a Lightning Trainer; see `throughput.py`."""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning as L
import optuna
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from plain_tasks import BATCH_SIZE, FACTORS, LR, TASKS, standardized


class Classifier(L.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self._measure(batch, "valid")

    def test_step(self, batch: list[Tensor], index: int) -> None:
        self._measure(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=LR)

    def _measure(self, batch: list[Tensor], split: str) -> None:
        x, y = batch
        output = self.network(x)
        self.log(f"{split}_accuracy", (output.argmax(1) == y).float().mean(), on_epoch=True)
        self.log(f"{split}_loss", nn.functional.cross_entropy(output, y), on_epoch=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="cnn")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plain, data = TASKS[asked.task], standardized(asked.task)
    if asked.jobs > 1:
        torch.set_num_threads(1)

    def objective(trial: optuna.Trial) -> float:
        levels = {name: trial.suggest_categorical(name, known) for name, known in grid.items()}
        torch.manual_seed(levels["seed"])
        model = Classifier(plain.network(levels["norm"] == "batch", levels["dropout"]))
        trainer = L.Trainer(
            max_epochs=plain.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        train, valid, test = data
        trainer.fit(model, DataLoader(train, batch_size=BATCH_SIZE, shuffle=True), DataLoader(valid, batch_size=512))
        found = float(trainer.callback_metrics["valid_accuracy"])
        for split in (train, test):
            trainer.test(model, DataLoader(split, batch_size=512), verbose=False)
        return found

    grid = {**FACTORS, "seed": list(range(asked.seeds))}
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(grid), direction="maximize")
    study.optimize(objective, n_jobs=asked.jobs)
    print(len(study.trials), study.best_value)


if __name__ == "__main__":
    main()
