"""Models as users write them, for the tests of tracing and surgery; each builder gives the same weights every time."""

import torch
from torch import nn
from torch.nn import functional as F


def seeded(build):
    """A builder of (model, sample) whose weights do not depend on, or change, global random state."""

    def wrapped():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build()

    return wrapped


@seeded
def mlp():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(8, 6)


class Block(nn.Module):
    """A residual block with batch normalization, functional ReLU and a shortcut."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(8, 16), Block(16, 32)])
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


@seeded
def resnet():
    model = ResNet()
    for module in model.modules():  # trained models have statistics of their own
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias)
    return model, torch.randn(4, 3, 8, 8)


class Shared(nn.Module):
    """One Linear under two names, used twice."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 16)
        self.first = nn.Linear(16, 16)
        self.second = self.first
        self.leave = nn.Linear(16, 2)

    def forward(self, x):
        x = torch.tanh(self.enter(x))
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.leave(x)


@seeded
def shared():
    return Shared(), torch.randn(8, 6)


class Tied(nn.Module):
    """A language model whose output weight is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.hidden = nn.Linear(16, 16)
        self.decoder = nn.Linear(16, 11, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(F.gelu(self.hidden(self.embedding(tokens))))


@seeded
def tied():
    return Tied(), torch.randint(0, 11, (5, 7))


class Named(nn.Module):
    """Layers in a ModuleDict that are also held in a plain dict and read through their attributes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"in": nn.Linear(6, 16), "mid": nn.Linear(16, 16), "out": nn.Linear(16, 2)})
        self.order = {name: self.layers[name] for name in ("in", "mid")}

    def forward(self, x):
        for layer in self.order.values():
            x = F.relu(layer(x)) / layer.in_features**0.5
        return self.layers["out"](x) + self.layers["out"].bias


@seeded
def named():
    return Named(), torch.randn(8, 6)


@seeded
def encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2), torch.randn(3, 5, 16)


class PreActivation(nn.Module):
    """Normalization, then an in-place ReLU, on a branch whose input the shortcut needs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.conv(self.relu(self.norm(x)))).mean((2, 3)))


@seeded
def preactivation():
    return PreActivation(), torch.randn(4, 3, 6, 6)


class TwoHeads(nn.Module):
    """Two branches on the input, two outputs, two arguments by keyword."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(6, 16)
        self.right = nn.Linear(6, 16)
        self.trunk = nn.Linear(32, 16)
        self.policy = nn.Linear(16, 4)
        self.value = nn.Linear(16, 1)

    def forward(self, observation, scale=1.0):
        both = torch.cat([self.left(observation), self.right(observation)], 1)
        hidden = F.relu(self.trunk(F.relu(both))) * scale
        return {"policy": self.policy(hidden), "value": self.value(hidden).squeeze(1)}


@seeded
def two_heads():
    return TwoHeads(), {"observation": torch.randn(8, 6), "scale": 0.5}


@seeded
def upsampler():
    model = nn.Sequential(
        nn.ConvTranspose1d(4, 16, 4, 2), nn.LeakyReLU(), nn.Conv1d(16, 16, 3), nn.LeakyReLU(), nn.Conv1d(16, 2, 3)
    )
    return model, torch.randn(4, 4, 9)


ALL = {
    "mlp": mlp,
    "resnet": resnet,
    "shared": shared,
    "tied": tied,
    "named": named,
    "encoder": encoder,
    "preactivation": preactivation,
    "two_heads": two_heads,
    "upsampler": upsampler,
}
