"""Small models of well-known shapes, built by other people's code, with their usual optimizers and well-scaled data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from homeostat.doctor.training import Training

CLASSES = 4


class DenseNet(nn.Module):
    """Every layer reads all that came before it, as in Huang et al. 2017."""

    def __init__(self, growth: int = 8, layers: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        widths = [16 + growth * i for i in range(layers)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, growth, 3, padding=1, bias=False)) for w in widths
        )
        self.norm = nn.BatchNorm2d(widths[-1] + growth)
        self.head = nn.Linear(widths[-1] + growth, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


def _resnet() -> nn.Module:
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic")
    config.num_labels = CLASSES
    return ResNetForImageClassification(config)


def _mobilenet_v1() -> nn.Module:
    return MobileNetV1ForImageClassification(MobileNetV1Config(num_labels=CLASSES, depth_multiplier=0.25))


def _mobilenet_v2() -> nn.Module:
    return MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=CLASSES, depth_multiplier=0.35))


def _efficientnet() -> nn.Module:
    config = EfficientNetConfig(
        num_labels=CLASSES, width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640, image_size=32
    )
    return EfficientNetForImageClassification(config)


def _convnext() -> nn.Module:
    config = ConvNextConfig(num_labels=CLASSES, hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, patch_size=2)
    return ConvNextForImageClassification(config)


def _vit() -> nn.Module:
    config = ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)
    config.image_size, config.patch_size, config.num_labels = 32, 8, CLASSES
    return ViTForImageClassification(config)


def _bert() -> nn.Module:
    config = BertConfig(vocab_size=100, hidden_size=48, num_hidden_layers=4, num_attention_heads=4)
    config.intermediate_size, config.num_labels = 96, CLASSES
    return BertForSequenceClassification(config)


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=48, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0))


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.05)


def _rmsprop(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-5)


ZOO = {
    "resnet": (_resnet, _sgd, "images"),
    "densenet": (DenseNet, _sgd, "images"),
    "mobilenet v1": (_mobilenet_v1, _rmsprop, "images"),
    "mobilenet v2": (_mobilenet_v2, _sgd, "images"),
    "efficientnet": (_efficientnet, _rmsprop, "images"),
    "convnext": (_convnext, _adamw, "images"),
    "vit": (_vit, _adamw, "images"),
    "bert": (_bert, _adamw, "words"),
    "gpt2": (_gpt2, _adamw, "text"),
}


def next_word_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of every word; output (N, T, V), target (N, T)."""
    return F.cross_entropy(output.transpose(1, 2), target)


def healthy_training(name: str, labels: str = "learnable", count: int = 96) -> Training:
    """A training of the zoo with seeded weights and data; labels "learnable" from the inputs, or "random"."""
    build, optimizer, kind = ZOO[name]
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    told = y if labels == "learnable" else torch.randint(0, CLASSES, (count,), generator=generator)
    if kind == "images":
        means = torch.randn(CLASSES, 3, 1, 1, generator=generator)
        x = torch.randn(count, 3, 32, 32, generator=generator) + means[y]
    else:
        x = torch.randint(0, 100, (count, 16), generator=generator)
        x[:, 1::2] = torch.where(torch.rand(count, 8, generator=generator) < 0.5, y[:, None] * 20, x[:, 1::2])
    loss_fn, target = (next_word_loss, x.roll(-1, 1)) if kind == "text" else (F.cross_entropy, told)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().train()
    split = count * 2 // 3
    train, valid = (x[:split], target[:split]), (x[split:], target[split:])
    return Training(model, loss_fn, optimizer(model), train, valid, batch_size=16, epochs=4)
