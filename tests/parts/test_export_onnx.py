"""ONNX files: every kind of input and output, homeostat's kernels, folded models, and files that must not appear."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fold_models import settle
from torch import Tensor, nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import InvalidType, InvalidValue
from homeostat.nn import functional as fast
from homeostat.parts import export_onnx as module
from homeostat.parts.export_onnx import export_onnx
from homeostat.parts.fold import fold
from homeostat.parts.norm import make_norm


def run(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def operators(path):
    return {node.op_type for node in onnx.load(str(path)).graph.node}


def convolutional():
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            hs.nn.BatchNorm2d(6, activation="leaky_relu"),
            hs.nn.Dropout2d(0.5),
            hs.nn.GroupNorm(2, 6, activation="gelu"),
            make_norm("instance", 6, 2),
            make_norm("rms", 6, 2),
            nn.Flatten(),
            nn.Linear(96, 8),
            hs.nn.LayerNorm(8, activation="relu"),
            hs.nn.RMSNorm(8),
            make_norm("group", 8, 0),
            make_norm("batch", 8, 0, "tanh"),
        )
    )


def test_every_layer_of_homeostat_and_another_batch_size(tmp_path):
    model, x = convolutional(), torch.randn(2, 3, 6, 6)
    path = export_onnx(model, x, tmp_path / "model.onnx")
    assert path == tmp_path / "model.onnx"
    assert list(tmp_path.iterdir()) == [path]
    model.eval()
    for size in (1, 2, 5):
        x = torch.randn(size, 3, 6, 6)
        (output,) = run(path, input=x)
        np.testing.assert_allclose(output, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert {"BatchNormalization", "GroupNormalization", "LayerNormalization"} & operators(path)


def test_a_folded_model_has_no_norm_left(tmp_path):
    model = settle(
        nn.Sequential(nn.Conv2d(3, 6, 3), hs.nn.BatchNorm2d(6, activation="relu"), nn.Dropout(), nn.Flatten())
    )
    x = torch.randn(2, 3, 6, 6)
    path = export_onnx(fold(model, x), x, tmp_path / "model.onnx")
    assert operators(path) <= {"Conv", "Relu", "Reshape", "Flatten", "Shape", "Concat"}
    np.testing.assert_allclose(run(path, input=x)[0], model.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@dataclass
class Result:
    logits: Tensor
    parts: tuple[Tensor, ...]


class Many(nn.Module):
    """Several inputs, constants among them, and a nest of outputs."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 5), hs.nn.BatchNorm1d(5)

    def forward(self, x, scale=None, *, mask, table=None):
        y = self.norm(self.linear(x), residual=mask)
        y = fast.layer_norm(y, (5,)) + (0 if table is None else table.sum())
        return {"result": Result(F.relu(y), (y * 2,)), "whole": (y > 0).long()}


def test_keywords_nests_and_functions(tmp_path):
    model = settle(Many())
    sample = {"x": torch.randn(3, 4), "mask": torch.rand(3, 5), "scale": None, "table": torch.randn(7)}
    path = export_onnx(model, sample, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path))
    assert [each.name for each in session.get_inputs()] == ["x", "mask", "table"]
    assert [each.name for each in session.get_outputs()] == ["result.logits", "result.parts.0", "whole"]
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert isinstance(shapes["x"][0], str)
    assert shapes["x"][0] == shapes["mask"][0]
    assert shapes["table"] == [7]


def test_a_batch_of_one_and_a_fixed_batch(tmp_path):
    model, x = nn.Linear(4, 2), torch.randn(1, 4)
    dynamic = export_onnx(model, x, tmp_path / "dynamic.onnx")
    assert run(dynamic, input=torch.randn(7, 4))[0].shape == (7, 2)
    fixed = export_onnx(model, (x,), str(tmp_path / "fixed.onnx"), dynamic_batch=False, opset_version=18)
    assert onnxruntime.InferenceSession(str(fixed)).get_inputs()[0].shape == [1, 4]
    assert onnx.load(str(fixed)).opset_import[0].version == 18


def test_half_and_double_precision(tmp_path):
    for dtype in (torch.float16, torch.float64):
        model = settle(nn.Sequential(nn.Linear(4, 8), hs.nn.BatchNorm1d(8), nn.ReLU())).to(dtype)
        export_onnx(model, torch.randn(3, 4, dtype=dtype), tmp_path / "model.onnx")


def test_the_model_stays_as_it_was(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), hs.nn.BatchNorm1d(8), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    export_onnx(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), tmp_path / "model.onnx")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert model[1].training


def test_a_wrong_result_is_not_written(tmp_path, monkeypatch):
    """An older file stays, and nothing else appears."""
    path = tmp_path / "model.onnx"
    path.write_text("older")
    monkeypatch.setattr(module, "_finished", lambda output, residual, slope: output * 1.1)
    model = nn.Sequential(nn.Linear(4, 8), hs.nn.BatchNorm1d(8))
    with pytest.raises(InvalidValue, match=r"output 'output' may differ by 1\.0e-03, but got 0\.(1|0999)"):
        export_onnx(model, torch.randn(3, 4), path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="files have no mode there")
def test_the_file_has_the_mode_of_any_new_file(tmp_path):
    """Also where an older file was private."""
    path = tmp_path / "model.onnx"
    for mask in (0o022, 0o027):
        old = os.umask(mask)
        try:
            export_onnx(nn.Linear(4, 2), torch.randn(3, 4), path)
        finally:
            os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]


class Odd(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class OneSize(nn.Module):
    def forward(self, x):
        return x.reshape(3, 4) * 2


@pytest.mark.parametrize("model", [Odd(), OneSize()])
def test_what_cannot_be_exported_is_not_written(tmp_path, model):
    with pytest.raises(InvalidValue, match="be one that can be exported") as raised:
        export_onnx(model, torch.randn(3, 4), tmp_path / "model.onnx")
    assert "dynamic_batch=False" in str(raised.value)
    assert not list(tmp_path.iterdir())
    if isinstance(model, OneSize):
        export_onnx(model, torch.randn(3, 4), tmp_path / "model.onnx", dynamic_batch=False)


def test_wrong_arguments(tmp_path, monkeypatch):
    model, x, path = nn.Linear(4, 2), torch.randn(3, 4), tmp_path / "model.onnx"
    with pytest.raises(InvalidType, match=r"torch\.nn\.Module"):
        export_onnx(print, x, path)
    with pytest.raises(InvalidValue, match="folder that exists"):
        export_onnx(model, x, tmp_path / "none" / "model.onnx")
    with pytest.raises(InvalidValue, match="folder that exists"):
        export_onnx(model, x, tmp_path)
    with pytest.raises(InvalidType, match="path"):
        export_onnx(model, x, 3)
    with pytest.raises(InvalidType, match="opset_version"):
        export_onnx(model, x, path, opset_version="18")
    with pytest.raises(InvalidValue, match="rtol"):
        export_onnx(model, x, path, rtol=0)
    with pytest.raises(InvalidValue, match="hold a tensor"):
        export_onnx(model, (), path)
    with pytest.raises(InvalidValue, match="float"):
        export_onnx(model.bfloat16(), x.bfloat16(), path)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(InvalidValue, match=r"no onnxruntime.*pip install 'homeostat\[onnx\]'"):
        export_onnx(model, x, path)
    assert not list(tmp_path.iterdir())
