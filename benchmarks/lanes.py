"""Would small models train faster several at a time? Seeds as lanes of one batched computation, by torch.func.vmap.

One process, one thread, as a worker has. For each model: the time of a step of homeostat's own training loop for one
seed, against the time per seed of a step in which so many seeds are computed together (vmap over stacked parameters and
batches, Adam on the stack, no dropout, nothing reported). The second leaves out whatever a trial needs besides, so it
is the most that lanes could gain.

    python benchmarks/lanes.py [--lanes 2 4 8 16] [--seconds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from homeostat import environment, seeds
from homeostat.training.models import cnn, mlp
from homeostat.training.recipe import Recipe
from homeostat.training.update import Update

BATCH_SIZE, CLASSES = 64, 10
MODELS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "mlp 2-64-64-10": ((2,), lambda: mlp(2, CLASSES, widths=(64, 64))),
    "mlp 64-128-128-10": ((64,), lambda: mlp(64, CLASSES, widths=(128, 128))),
    "mlp 784-512-512-10": ((784,), lambda: mlp(784, CLASSES, widths=(512, 512))),
    "cnn 28x28": ((1, 28, 28), lambda: cnn((1, 28, 28), CLASSES)),
}


def lone(shape: tuple[int, ...], make: Callable[[], nn.Module]) -> Callable[[], None]:
    """A step as homeostat's training loop takes it."""
    with seeds.isolated(0, "lanes"):
        model = make()
        x, y = torch.randn(BATCH_SIZE, *shape), torch.randint(0, CLASSES, (BATCH_SIZE,))
    update = Update(model, Recipe(optimizer="adam", weight_decay=0.0), 100, torch.device("cpu"))

    def step() -> None:
        update(nn.functional.cross_entropy(model(x), y), 0)

    return step


def together(shape: tuple[int, ...], make: Callable[[], nn.Module], lanes: int) -> Callable[[], None]:
    """A step of so many seeds at once."""
    with seeds.isolated(0, "lanes"):
        models = [make() for _ in range(lanes)]
        x, y = torch.randn(lanes, BATCH_SIZE, *shape), torch.randint(0, CLASSES, (lanes, BATCH_SIZE))
    parameters, buffers = stack_module_state(models)
    frame = make().to("meta")
    names = list(parameters)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3, fused=True)

    def loss(own: dict[str, Tensor], held: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(frame, (own, held), (inputs,)), targets)

    gradients = vmap(grad(loss))

    def step() -> None:
        found = gradients({name: parameters[name].detach() for name in names}, buffers, x, y)
        for name in names:
            parameters[name].grad = found[name]
        optimizer.step()

    return step


def per_call(step: Callable[[], None], seconds: float) -> float:
    """The median time of a call, in microseconds."""
    for _ in range(5):
        step()
    spent, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        step()
        spent.append(time.perf_counter() - start)
    return 1e6 * statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=3.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(" · ".join(f"{name} {value}" for name, value in environment.describe().items()))
    for name, (shape, make) in MODELS.items():
        alone = per_call(lone(shape, make), asked.seconds)
        print(f"{name}: a step alone {alone:.0f} µs")
        for lanes in asked.lanes:
            try:
                spent = per_call(together(shape, make, lanes), asked.seconds) / lanes
            except Exception as error:  # an operator that vmap cannot batch
                print(f"  {lanes} lanes: not possible ({str(error).splitlines()[0][:100]})")
                break
            print(f"  {lanes} lanes: {spent:.0f} µs per seed, {alone / spent:.2f} times as fast")


if __name__ == "__main__":
    main()
