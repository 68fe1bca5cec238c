"""Small programs that train well on scikit-learn's data sets, and the faults that can be put into each.

What `benchmarks/doctor_faults.py` measures with. Random by the seed of the training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import homeostat as hs

SEEDS = (0, 1, 2)
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "none": nn.Identity}


@dataclass(frozen=True)
class Program:
    """What a program's source would say."""

    name: str
    data: str
    network: str
    activation: str = "relu"
    depth: int = 2
    norm: bool = False
    dropout: float = 0.0
    end: str = ""  # what stands behind the last layer
    loss: str = ""  # by default that of the data's kind
    optimizer: str = "adam"
    lr: float = 1e-3
    decay: float = 0.0
    batch: int = 32
    epochs: int = 20
    weights: float = 1.0  # the factor of every initial weight; 0 makes them all the same
    scale: float = 1.0  # of the inputs
    offset: float = 0.0
    valid_scale: float = 1.0  # of the validation inputs alone
    target_scale: float = 1.0
    shuffled_labels: bool = False
    sorted_rows: bool = False
    frozen: bool = False
    maximize: bool = False
    loss_factor: float = 1.0
    momentum: float = 0.1  # of the running statistics

    @property
    def kind(self) -> str:
        return {"friedman": "numbers", "cancer": "binary", "moons": "binary"}.get(self.data, "classes")


PROGRAMS = (
    Program("digits dense", "digits", "dense"),
    Program("digits deep tanh sgd", "digits", "dense", activation="tanh", depth=4, optimizer="sgd", lr=0.05),
    Program("digits convolutional", "digits", "convolutional", norm=True, optimizer="sgd", lr=0.05, epochs=10),
    Program("digits recurrent", "digits", "recurrent", lr=3e-3),
    Program("digits attention", "digits", "attention", activation="gelu", optimizer="adamw", decay=0.01),
    Program("digits residual", "digits", "residual", depth=6, norm=True, optimizer="adamw", decay=0.01),
    Program("wine dense", "wine", "dense", optimizer="sgd", lr=0.05, batch=16, epochs=40),
    Program("cancer dense", "cancer", "dense", dropout=0.2, epochs=20),
    Program("moons dense", "moons", "dense", lr=3e-3, end="sigmoid", loss="binary", epochs=30),
    Program("friedman dense", "friedman", "dense", activation="tanh", lr=3e-3, epochs=40),
)


@dataclass(frozen=True)
class Fault:
    """A change of the source, the causes that name it, and which programs it can be put into."""

    name: str
    causes: tuple[str, ...]
    change: Callable[[Program], Program]
    fits: Callable[[Program], bool] = lambda program: True


def classes(program: Program) -> bool:
    return program.kind == "classes"


def numbers(program: Program) -> bool:
    return program.kind == "numbers"


FAULTS = (
    Fault("rate times 300", ("lr_too_high",), lambda p: replace(p, lr=p.lr * 300)),
    Fault("rate over 1000", ("lr_too_low",), lambda p: replace(p, lr=p.lr / 1000)),
    Fault("maximizing", ("gradient_sign_flipped", "lr_negative"), lambda p: replace(p, maximize=True)),
    Fault("loss negated", ("gradient_sign_flipped", "loss_impl_bug"), lambda p: replace(p, loss_factor=-1.0)),
    Fault("loss times 10000", ("loss_scale", "lr_too_high"), lambda p: replace(p, loss_factor=1e4)),
    Fault("constant weights", ("constant_init",), lambda p: replace(p, weights=0.0)),
    Fault("weights times 30", ("bad_init_scale",), lambda p: replace(p, weights=30.0)),
    Fault("weights over 100", ("bad_init_scale", "vanishing_gradient"), lambda p: replace(p, weights=0.01)),
    Fault("inputs as bytes", ("inputs_unnormalized",), lambda p: replace(p, scale=255.0, offset=1000.0)),
    Fault("inputs over 1000", ("inputs_underscaled",), lambda p: replace(p, scale=1e-3)),
    Fault("deep sigmoid", ("wrong_hidden_activation", "vanishing_gradient"),
          lambda p: replace(p, activation="sigmoid", depth=p.depth + 4), lambda p: p.network == "dense"),
    Fault("no activation", ("missing_hidden_activation",), lambda p: replace(p, activation="none"),
          lambda p: p.network == "dense"),
    Fault("relu at the end", ("wrong_output_activation",), lambda p: replace(p, end="relu")),
    Fault("softmax twice", ("redundant_softmax", "wrong_output_activation"), lambda p: replace(p, end="softmax"),
          classes),
    Fault("softmax over the batch", ("softmax_wrong_axis",), lambda p: replace(p, end="softmax0"), classes),
    Fault("sigmoid on numbers", ("wrong_output_activation",), lambda p: replace(p, end="sigmoid"), numbers),
    Fault("likelihood of logits", ("missing_output_activation", "loss_impl_bug"), lambda p: replace(p, loss="nll"),
          classes),
    Fault("squares for classes", ("wrong_loss",), lambda p: replace(p, loss="squares of index", end="one"), classes),
    Fault("targets times 1000", ("targets_unnormalized",), lambda p: replace(p, target_scale=1000.0), numbers),
    Fault("broadcast", ("shape_broadcast",), lambda p: replace(p, loss="broadcast"), numbers),
    Fault("dropout 0.95", ("dropout_too_high", "over_regularized"), lambda p: replace(p, dropout=0.95),
          lambda p: p.network != "recurrent"),
    Fault("decay 1", ("over_regularized",), lambda p: replace(p, decay=1.0)),
    Fault("epochs over 20", ("too_few_epochs",), lambda p: replace(p, epochs=max(1, p.epochs // 20))),
    Fault("frozen", ("frozen_parameters", "parameters_not_optimized"), lambda p: replace(p, frozen=True)),
    Fault("labels shuffled", ("label_corruption",), lambda p: replace(p, shuffled_labels=True)),
    Fault("sorted rows", ("not_shuffled",), lambda p: replace(p, sorted_rows=True)),
    Fault("validation times 20", ("train_test_preprocessing_mismatch",), lambda p: replace(p, valid_scale=20.0)),
    Fault("whole batch", ("batch_size", "too_few_epochs", "lr_too_low"), lambda p: replace(p, batch=4096)),
    Fault("statistics never updated", ("batchnorm_running_stats_not_updated",), lambda p: replace(p, momentum=0.0),
          lambda p: p.network == "convolutional"),
)  # fmt: skip


class Residual(nn.Module):
    """x + block(x)."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.dense, self.activation = nn.LayerNorm(width), nn.Linear(width, width), activation
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.activation(self.dense(self.norm(x))))


class Recurrent(nn.Module):
    """A GRU over the rows of an image, its last state to the classes."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(8, 64, batch_first=True), nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.reshape(-1, 8, 8))[0][:, -1])


class Attention(nn.Module):
    """A transformer over the rows of an image, averaged."""

    def __init__(self, outputs: int, depth: int, dropout: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, activation, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.reshape(-1, 8, 8)) + self.place).mean(1))


class One(nn.Module):
    """The first output alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def network(program: Program, inputs: int, outputs: int) -> nn.Module:
    """The program's model, with what stands behind its last layer."""
    act = ACTIVATIONS[program.activation]
    drop = [nn.Dropout(program.dropout)] if program.dropout else []
    body: list[nn.Module] = []
    if program.network == "dense":
        width = inputs
        for _ in range(program.depth):
            body += [nn.Linear(width, 64), act(), *drop]
            width = 64
        body.append(nn.Linear(width, outputs))
    elif program.network == "convolutional":
        body.append(nn.Unflatten(1, (1, 8, 8)))
        for before, after in ((1, 16), (16, 32)):
            norm = nn.BatchNorm2d(after, momentum=program.momentum)
            body += [nn.Conv2d(before, after, 3, padding=1), norm, act(), nn.MaxPool2d(2), *drop]
        body += [nn.Flatten(), nn.Linear(128, outputs)]
    elif program.network == "residual":
        body += [nn.Linear(inputs, 64), *(Residual(64, act()) for _ in range(program.depth)), *drop]
        body += [nn.LayerNorm(64), nn.Linear(64, outputs)]
    elif program.network == "recurrent":
        body.append(Recurrent(outputs))
    else:
        body.append(Attention(outputs, program.depth, program.dropout, act()))
    ends = {
        "relu": nn.ReLU(),
        "sigmoid": nn.Sigmoid(),
        "softmax": nn.Softmax(1),
        "softmax0": nn.Softmax(0),
        "one": One(),
    }
    model = nn.Sequential(*body, *([ends[program.end]] if program.end else []))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.fill_(0.05) if program.weights == 0 else parameter.mul_(program.weights)
    if program.frozen:  # all but the last layer's
        for parameter in list(model.parameters())[:-2]:
            parameter.requires_grad_(False)
    return model


def loss_of(program: Program) -> Callable[[Tensor, Tensor], Tensor]:
    """The program's loss, as a function."""
    names: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "classes": F.cross_entropy,
        "numbers": lambda output, target: F.mse_loss(output[:, 0], target),
        "binary": lambda output, target: F.binary_cross_entropy(output[:, 0], target),
        "nll": F.nll_loss,
        "squares of index": lambda output, target: F.mse_loss(output, target.float()),
        "broadcast": lambda output, target: (output - target).square().mean(),
    }

    def logits(output, target):
        return F.binary_cross_entropy_with_logits(output[:, 0], target)

    chosen = names[program.loss] if program.loss else logits if program.kind == "binary" else names[program.kind]
    if program.loss_factor == 1.0:
        return chosen
    return lambda output, target: program.loss_factor * chosen(output, target)


def examples(program: Program) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation: standardized inputs, and numbers as targets standardized."""
    if program.data == "moons":
        x, y = datasets.make_moons(800, noise=0.15, random_state=0)
    elif program.data == "friedman":
        x, y = datasets.make_friedman1(800, noise=0.5, random_state=0)
    else:
        load = {"digits": datasets.load_digits, "wine": datasets.load_wine, "cancer": datasets.load_breast_cancer}
        x, y = load[program.data](return_X_y=True)
    x, x_valid, y, y_valid = train_test_split(x, y, test_size=0.3, random_state=0)
    mean, deviation = (x.mean(), x.std()) if program.data == "digits" else (x.mean(0), x.std(0))
    x, x_valid = (x - mean) / deviation, (x_valid - mean) / deviation
    if program.kind == "numbers":
        mean, deviation = y.mean(), y.std()
        y, y_valid = (y - mean) / deviation * program.target_scale, (y_valid - mean) / deviation * program.target_scale
    draw = np.random.default_rng(0)
    if program.shuffled_labels:
        y = draw.permutation(y)
    if program.sorted_rows:
        order = np.argsort(y, kind="stable")
        x, y = x[order], y[order]
    kind = torch.int64 if program.kind == "classes" else torch.float32

    def split(x: Any, y: Any, factor: float) -> tuple[Tensor, Tensor]:
        inputs = torch.tensor(x * program.scale * factor + program.offset, dtype=torch.float32)
        return inputs, torch.tensor(y, dtype=kind)

    return split(x, y, 1.0), split(x_valid, y_valid, program.valid_scale)


def training_of(program: Program, seed: int) -> hs.Training:
    """The program as its user would hold it."""
    torch.manual_seed(seed)
    train, valid = examples(program)
    outputs = int(train[1].max()) + 1 if program.kind == "classes" else 1
    model = network(program, train[0].shape[1], outputs)
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"lr": program.lr, "weight_decay": program.decay, "maximize": program.maximize}
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    if program.optimizer == "sgd":
        options["momentum"] = 0.9
    optimizer = kinds[program.optimizer](held, **options)
    loader: Any = train
    if program.sorted_rows:
        loader = DataLoader(TensorDataset(*train), batch_size=program.batch)
    batch = None if program.sorted_rows else program.batch
    return hs.Training(
        model, loss_of(program), optimizer, loader, valid, batch_size=batch, epochs=program.epochs, task=_task(program)
    )


def _task(program: Program) -> str:
    return {"classes": "multiclass", "binary": "binary", "numbers": "regression"}[program.kind]


def plain(program: Program, seed: int) -> float:
    """The validation metric of a plain loop: accuracy, or the share of the variance that is explained."""
    training = training_of(program, seed)
    train, valid = examples(program)
    model, optimizer, loss_fn = training.model, training.optimizer, training.loss_fn
    draw = torch.Generator().manual_seed(seed)
    for _ in range(program.epochs):
        count = len(train[0])
        order = torch.arange(count) if program.sorted_rows else torch.randperm(count, generator=draw)
        for rows in order.split(program.batch):
            loss = loss_fn(model(train[0][rows]), train[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        output = model(valid[0])
    target = valid[1]
    if program.kind == "numbers":
        return float(1 - (output[:, 0] - target).square().mean() / target.var(correction=0))
    if program.kind == "binary":
        return float(((output[:, 0] > (0.5 if program.end == "sigmoid" else 0)) == (target > 0.5)).double().mean())
    answer = output.round() if output.dim() == 1 else output.argmax(1)
    return float((answer == target).double().mean())


def metric(program: Program) -> float:
    """The median over seeds; what is not finite is the worst."""
    values = []
    for seed in SEEDS:
        try:
            value = plain(program, seed)
        except (RuntimeError, ValueError, IndexError):
            value = math.nan
        values.append(-1.0 if math.isnan(value) else max(value, -1.0))
    return statistics.median(values)
