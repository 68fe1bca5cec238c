import pytest
import surgery_models as models
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.layers import call, tensors_in, trace_layers


def names(layers):
    return [layer.where for layer in layers]


def test_layers_come_in_the_order_of_execution_not_of_definition():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.unused = nn.Linear(3, 3)
            self.first = nn.Linear(3, 4)

        def forward(self, x):
            return self.last(self.first(x))

    trace = trace_layers(Backwards(), torch.zeros(2, 3))
    assert names(trace.layers) == ["first", "last"]
    assert names(trace.idle) == ["unused"]
    assert names(trace.inputs()) == ["first"]
    assert names(trace.hidden()) == ["first"]


def test_a_shared_layer_is_one_layer_with_two_names_and_two_calls():
    trace = trace_layers(*models.shared())
    assert names(trace.layers) == ["enter", "first, second", "leave"]
    assert [layer.calls for layer in trace.layers] == [1, 2, 1]
    assert trace.layers[1].output_shapes == {(8, 16)}


def test_roles_shapes_and_attention_as_one_layer():
    trace = trace_layers(*models.encoder())
    first = [(layer.name.removeprefix("layers.0."), layer.role) for layer in trace.layers[:7]]
    assert first == [
        ("self_attn", "other"),
        ("dropout1", "dropout"),
        ("norm1", "norm"),
        ("linear1", "weight"),
        ("dropout", "dropout"),
        ("linear2", "weight"),
        ("dropout2", "dropout"),
    ]
    assert trace.layers[3].input_shape == (3, 5, 16)
    assert names(trace.idle) == ["layers.0.self_attn.out_proj", "layers.1.self_attn.out_proj"]
    assert names(trace.inputs()) == []


def test_branches_on_the_input_and_several_outputs_are_seen():
    trace = trace_layers(*models.two_heads())
    assert names(trace.inputs()) == ["left", "right"]
    assert names(trace.hidden()) == ["left", "right", "trunk"]


def test_layers_beside_the_first_count_as_inputs_too():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, tokens):
            x = self.embedding(tokens)
            return self.out(F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)))

    trace = trace_layers(Attention(), torch.zeros(2, 5, dtype=torch.long))
    assert names(trace.inputs()) == ["query", "key", "value"]
    assert names(trace.hidden()) == ["query", "key", "value"]


def test_a_returned_tensor_that_goes_on_inside_is_hidden():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            features = self.body(x)
            return self.left(features), [self.right(features), {"features": features}]

    trace = trace_layers(Features(), torch.zeros(2, 3))
    assert names(trace.hidden()) == ["body"]


def test_an_encoder_with_padding_is_traced_through_its_modules():
    model, tokens = models.encoder()
    padding = torch.tensor([[False] * 3 + [True] * 2] * 3)
    trace = trace_layers(model, {"src": tokens, "src_key_padding_mask": padding})
    assert [layer.kind for layer in trace.of("weight")] == ["Linear"] * 4


def test_writing_in_place_is_seen():
    trace = trace_layers(*models.preactivation())
    assert [layer.name for layer in trace.layers if layer.changed_in_place] == ["norm"]
    assert not any(layer.changed_in_place for layer in trace_layers(*models.resnet()).layers)


def test_functions_that_do_a_layers_work_are_named():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.LayerNorm(3), nn.Dropout(0.5))

        def forward(self, x):
            return F.dropout(F.layer_norm(self.inner(x), (3,)), 0.1, self.training)

    assert trace_layers(Functional(), torch.zeros(2, 3)).functional == ("dropout", "norm")
    assert trace_layers(Functional().inner, torch.zeros(2, 3)).functional == ()


class Stateful(nn.Module):
    """Changes its buffers, draws random numbers and replaces a buffer when it runs; partly in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.norm = nn.BatchNorm1d(3).eval()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        self.count += 1
        self.last = x[0] + torch.randn(3)
        return self.layer(self.norm(x))


def test_the_run_leaves_mode_buffers_gradients_and_random_state():
    model = Stateful().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffer = model.last
    state = torch.manual_seed(3).get_state()
    trace_layers(model, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.last is buffer
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, False, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_fails_raises_its_own_error_with_a_note_and_is_left_as_it_was():
    model = Stateful().train()
    with pytest.raises(RuntimeError, match="must match the size of tensor") as caught:
        trace_layers(model, torch.randn(4, 5)[:, :4])
    assert "while homeostat ran the model" in caught.value.__notes__[0]
    assert model.training
    assert model.count == 0


def test_samples_may_be_tensors_arguments_or_keywords():
    model, sample = models.two_heads()
    assert call(model, sample)["value"].shape == (8,)
    assert call(nn.Bilinear(2, 3, 4), (torch.zeros(5, 2), torch.zeros(5, 3))).shape == (5, 4)
    assert [tensor.item() for tensor in tensors_in({"a": [torch.tensor(1)], "b": (torch.tensor(2), "text")})] == [1, 2]


def test_models_that_cannot_be_traced_are_refused_with_a_cure():
    plain = nn.Sequential(nn.Linear(2, 2))
    compiled_in_place = nn.Sequential(nn.Linear(2, 2))
    compiled_in_place[0].compile(backend="eager")
    refused = {
        "OptimizedModule.*compile it afterwards": torch.compile(plain, backend="eager"),
        "not be compiled, but got '0'": compiled_in_place,
        "DataParallel.*pass the module inside": nn.DataParallel(plain),
        "no lazy layer, but got '0'. Its shapes": nn.Sequential(nn.LazyLinear(3)),
    }
    for message, model in refused.items():
        with pytest.raises(InvalidValue, match=message):
            trace_layers(model, torch.zeros(1, 2))
    with pytest.raises(InvalidType, match=r"be a torch\.nn\.Module"):
        trace_layers(lambda x: x, torch.zeros(1, 2))
