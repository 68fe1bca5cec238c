"""A change of the user's own code is noticed, wherever it stands; that of anybody else's is not looked at."""

import functools
import importlib
import sys

import pytest
import torch
from torch import nn

from homeostat.training.imagenet import vgg
from homeostat.usercode import digest

CODE = """
from functools import lru_cache, partial
import torch
from torch import nn
import {other}

WIDTH = 8

class Base(nn.Module):
    scale = 1.0

    def forward(self, input):
        return shifted(self.layer(input))

class Net(Base):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(2, width)

def shifted(output):
    return [output + {other}.SHIFT for _ in range(1)][0]

def build():
    return Net(WIDTH)

def around(depth=2):
    return lambda: Net(depth)

def unused():
    return 1

@torch.no_grad()
def decorated(outputs, targets):
    return helped(outputs, targets)

def helped(outputs, targets):
    return (outputs - targets).mean()

given = partial(helped, targets=3)

class Loss:
    def __init__(self, gamma):
        self.gamma = gamma

    def __call__(self, outputs, targets):
        return self.gamma * helped(outputs, targets)

focal = Loss(2.0)
wired = around()
"""
OTHER = "SHIFT = 0.5\n"


@pytest.fixture
def digests(tmp_path, monkeypatch):
    """The digest of a name of the user's module, after text in it was replaced."""
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"{tmp_path.name}_{which}" for which in "ab"]

    def of(thing, old="", new=""):
        for name, text in zip(names, (CODE.format(other=names[1]), OTHER), strict=True):
            sys.modules.pop(name, None)
            (tmp_path / f"{name}.py").write_text(text.replace(old, new) if old else text)
        importlib.invalidate_caches()
        return digest(getattr(importlib.import_module(names[0]), thing))

    yield of
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("thing", "old", "new"),
    [
        ("build", "Linear(2, width)", "Linear(2, width, bias=False)"),
        ("build", "scale = 1.0", "scale = 20.0"),
        ("build", "WIDTH = 8", "WIDTH = 16"),
        ("build", "output +", "output -   "),
        ("build", "SHIFT = 0.5", "SHIFT = 0.25"),
        ("wired", "depth=2", "depth=30"),
        ("wired", "Linear(2, width)", "Linear(2, width, bias=False)"),
        ("decorated", "targets).mean()", "targets).abs().mean()"),
        ("given", "targets=3", "targets=40"),
        ("given", "targets).mean()", "targets).abs().mean()"),
        ("focal", "Loss(2.0)", "Loss(30.0)"),
        ("focal", "targets).mean()", "targets).abs().mean()"),
        ("Loss", "self.gamma *", "self.gamma +  "),
    ],
)
def test_what_a_thing_is_made_of_is_noticed_and_nothing_else(digests, thing, old, new):
    known = digests(thing)
    assert digests(thing) == known
    assert digests(thing, "return 1", "return 1 + 2 + 30") == known
    assert digests(thing, old, new) not in (known, None)


@pytest.mark.parametrize("thing", [nn.Linear, vgg, functools.partial(vgg), torch.relu, len, "cross_entropy", None])
def test_what_is_not_the_users_has_no_digest(thing):
    assert digest(thing) is None


def test_what_the_user_gives_to_others_code_is_noticed():
    assert digest(nn.CrossEntropyLoss()) != digest(nn.CrossEntropyLoss(label_smoothing=0.1))
    assert digest(functools.partial(vgg, classes=3)) != digest(functools.partial(vgg, classes=4))


def test_code_without_a_source_is_left_out():
    scope = {"__name__": "__main__"}
    exec("class Net:\n    def __call__(self):\n        return 1\n\ndef build():\n    return Net()", scope)
    assert digest(scope["build"]) is None
    assert digest(scope["Net"]) is None
