"""One step of the ImageNet networks on synthetic pictures of 224 pixels, with every switch of their files on.

    python dry_run.py
    python dry_run.py imagenet-vgg19.toml

It builds each network as it was published and takes one step of training on two pictures: augmented, forward, loss,
backward, penalty, optimizer. That needs no data, a few GiB of memory, and on two cores less than a minute a network.
"""

import argparse
import multiprocessing
import resource
import sys
import time
import tomllib
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import tasks
import torch

import homeostat as hs

HERE = Path(__file__).parent


def everything_on(file: Path) -> hs.Recipe:
    """The recipe of a study file with the last level of every factor."""
    study = tomllib.loads(file.read_text(encoding="utf-8"))
    return hs.Recipe(**study["recipe"]).varied({name: levels[-1] for name, levels in study["factors"].items()})


def step(file: Path, side: int = 224) -> dict[str, float]:
    """Take one step as a study file says; what it cost, and the loss before it."""
    name = tomllib.loads(file.read_text(encoding="utf-8"))["task"].partition(":")[2]
    task = tasks.synthetic(name, side=side)
    recipe = everything_on(file).varied({"batch_size": len(task.train), "epochs": 1})
    seen: dict[str, float] = {}
    took = time.perf_counter()

    def note(number: int, values: dict) -> None:
        seen.update({key: float(value) for key, value in values.items()}, seconds=time.perf_counter() - took)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hs.errors.NoEffectWarning)  # one step need not reach a bound
        found = hs.fit(task, recipe, seed=0, on_step=note)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        **seen,
        "parameters": sum(parameter.numel() for parameter in found.model.parameters()),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "memory of the GPU": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=sorted(HERE.glob("imagenet-*.toml")))
    context = multiprocessing.get_context("spawn")  # a process for each, so that its memory is its own
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:
        files = parser.parse_args().files
        for file, found in zip(files, processes.map(step, files), strict=True):
            gpu = f", {found['memory of the GPU'] / 2**30:.1f} GiB of the GPU" if found["memory of the GPU"] else ""
            print(
                f"{file.stem}: {found['parameters']:,.0f} parameters; one step from loss {found['loss']:.2f}, gradient "
                f"{found['gradient_norm']:.3g}; {found['seconds']:.1f} s, {found['memory'] / 2**30:.1f} GiB{gpu}",
                flush=True,
            )


if __name__ == "__main__":
    main()
