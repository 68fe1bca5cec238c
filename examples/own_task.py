"""A study of a model and data of your own.

    cd examples
    homeostat study own_task:build --factor norm=none,batch --factor dropout=0,0.3 --seeds 5

Write a function that returns a `homeostat.Task`. Your module is used as it is; homeostat adds or replaces normalization
and dropout, and initializes it anew, only where a factor or a setting asks for it.
"""

import torch
from torch import Tensor, nn

import homeostat as hs


class Net(nn.Module):
    """Predicts the sign of a product from two noisy vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(20, 64)
        self.mix = nn.Linear(64, 64)
        self.head = nn.Linear(64, 2)

    def forward(self, input: Tensor) -> Tensor:
        hidden = torch.relu(self.embed(input))
        return self.head(torch.relu(self.mix(hidden)))


def build() -> hs.Task:
    """400 / 400 / 1,000 examples, drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)

    def sample(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 20, generator=generator)
        return x, (x[:, 0] * x[:, 1] + 0.3 * torch.randn(count, generator=generator) > 0).long()

    return hs.Task(
        model=Net,
        data=(sample(400), sample(400), sample(1000)),
        loss="cross_entropy",
        metric="accuracy",
        name="sign of a product",
    )
