"""unroll_recurrent: LSTM, GRU and RNN against onnxruntime over directions, layouts, states, clips and functions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.graph.io import load_graph
from qcompiler.passes import canonicalize, unroll_recurrent

T, B, F, H = 4, 2, 5, 3
OWN = ["Sigmoid", "Tanh", "Tanh"]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(kind, *, direction="forward", layout=0, states="", bias=True, lengths=None, outputs=3, peepholes=False,
              steps=T, batch=B, **attributes):  # fmt: skip
    """A graph of one node; `states` is '', 'zeros', 'inputs' or 'constants'."""
    rng = np.random.default_rng(7)
    d, g = (2 if direction == "bidirectional" else 1), GATES[kind]
    arrays = {"w": rng.standard_normal((d, g * H, F)), "r": rng.standard_normal((d, g * H, H))}
    names = ["x", "w", "r", "", "", "", "", ""]
    if bias:
        arrays["b"], names[3] = rng.standard_normal((d, 2 * g * H)), "b"
    if peepholes:
        arrays["p"], names[7] = rng.standard_normal((d, 3 * H)), "p"
    shape = (batch, steps, F) if layout else (steps, batch, F)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    for name, index in (("h0", 5), ("c0", 6))[: 2 if kind == "LSTM" else 1] if states else ():
        names[index] = name
        state = (batch, d, H) if layout else (d, batch, H)
        if states == "inputs":
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, state))
        else:
            arrays[name] = rng.standard_normal(state) * (states == "constants")
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    if lengths is not None:
        names[4] = "n"
        tensors.append(numpy_helper.from_array(np.asarray(lengths, np.int32), "n"))
    while not names[-1]:
        names.pop()
    last = ["y", "yh", "yc"][: min(outputs, 3 if kind == "LSTM" else 2)]
    node = helper.make_node(kind, names, last, "cell", hidden_size=H, direction=direction, layout=layout, **attributes)
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in last]
    graph = helper.make_graph([node], "g", inputs, declared, tensors)
    return load_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize(
    ("kind", "direction", "states"),
    itertools.product(GATES, ("forward", "reverse", "bidirectional"), ("", "zeros", "inputs", "constants")),
)
def test_directions_and_states(unchanged, kind, direction, states):
    after, _ = unchanged(recurrent(kind, direction=direction, states=states), unroll_recurrent, canonicalize)
    assert not after.nodes(kind)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"peepholes": True}),
        ("LSTM", {"peepholes": True, "states": "inputs", "direction": "bidirectional", "clip": 0.7}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"clip": 0.5, "states": "inputs"}),
        ("LSTM", {"bias": False}),
        ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"]}),
        ("LSTM", {"activations": [*OWN, "HardSigmoid", "Relu", "Tanh"], "direction": "bidirectional"}),
        ("LSTM", {"lengths": [T, T]}),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"linear_before_reset": 1, "direction": "bidirectional", "states": "inputs"}),
        ("GRU", {"linear_before_reset": 1, "bias": False}),
        ("GRU", {"clip": 0.4}),
        ("RNN", {"activations": ["Relu"]}),
        ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.3]}),
        ("RNN", {"activations": ["HardSigmoid"], "activation_alpha": [0.3], "activation_beta": [0.4]}),
        ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [1.5], "activation_beta": [0.5]}),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.25]}),
    ],
)  # fmt: skip
def test_attributes(unchanged, kind, options):
    after, _ = unchanged(recurrent(kind, **options), unroll_recurrent)
    assert not after.nodes(kind)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(("steps", "outputs"), [(1, 1), (1, 3), (3, 1)])
def test_one_step_and_few_outputs(unchanged, kind, steps, outputs):
    after, _ = unchanged(recurrent(kind, steps=steps, outputs=outputs, states="inputs"), unroll_recurrent, canonicalize)
    assert len(after.nodes("Gemm")) == 1 + steps * (2 if kind == "GRU" else 1)


@pytest.mark.parametrize("kind", GATES)
def test_batch_first(kind):
    """onnxruntime has no layout 1, so the judge is layout 0 of the same weights."""
    plain = recurrent(kind, states="constants", direction="bidirectional", batch=1)
    turned = recurrent(kind, states="constants", direction="bidirectional", layout=1, batch=1)
    turned = unroll_recurrent.run(turned, unroll_recurrent.Options(), _context())
    x = np.random.default_rng(0).standard_normal((T, 1, F)).astype(np.float32)
    # The random states have the same numbers in both layouts only for one direction a sample.
    for i, (a, b) in enumerate(zip(plain.run(x=x), turned.run(x=x.transpose(1, 0, 2)), strict=True)):
        moved = b.transpose(1, 2, 0, 3) if i == 0 else b.transpose(1, 0, 2)
        np.testing.assert_allclose(moved, a, atol=1e-5)


def _context():
    from qcompiler.context import Context

    return Context()


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"lengths": [T, T - 1]}, "lengths of its own"), ({"steps": 6}, "max_steps"), ({"fed": True}, "not constant")],
)
def test_refusals_are_noted(options, reason):
    fed = options.pop("fed", False)
    graph = recurrent("LSTM", **options)
    if fed:  # a recurrent weight that the model computes
        weight = graph.nodes("LSTM")[0].inputs[2]
        made = graph.add_node("Relu", [weight], before=graph.nodes("LSTM")[0], like=weight)
        graph.nodes("LSTM")[0].replace_input_with(2, made.outputs[0])
    context = _context()
    after = unroll_recurrent.run(graph, unroll_recurrent.Options(max_steps=5), context)
    assert after.nodes("LSTM") and reason in context.notes[0].text


def test_the_values_of_a_cell_and_its_state_get_16_bits():
    from qcompiler.widths import wide_values

    graph = unroll_recurrent.run(recurrent("LSTM", states="inputs"), unroll_recurrent.Options(), _context())
    wide = wide_values(graph)
    for node in graph.nodes("Sigmoid", "Tanh", "Mul", "Add"):
        assert wide[node.outputs[0].name].endswith("int16")
