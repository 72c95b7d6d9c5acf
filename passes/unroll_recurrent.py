"""Unroll LSTM, GRU and RNN over their fixed number of steps into Gemm, Add, Mul and activation functions.

X [T,B,I] times the input weights is one product for all steps. Then for each step t, in the order of the direction,

LSTM  [i,o,f] = f(x W + h R + b), c~ = g(x W + h R + b), c = f c + i c~, h = o h(c)   (peepholes, input_forget)
GRU   [z,r] = f(...), h~ = g(x W + (r h) R + b), or g(x W + b + r (h R + b')) with linear_before_reset,
      h = h~ + z (h - h~)
RNN   h = f(x W + h R + b)

Products with an initial state of zeros are left out. Both directions, `clip`, both layouts, and the activation
functions of the operators' definition. Refused, with a note: weights or lengths that are not constant, lengths
shorter than the sequence, more than `max_steps` steps. Outputs are equal up to the order of float32 sums. Source: ONNX
operator definitions LSTM-14, GRU-14, RNN-14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.context import Context
from qcompiler.graph.model import Graph, attribute, operand
from qcompiler.graph.stages import Stage
from qcompiler.widths import WIDE_KEY

STAGE = (Stage.FLOAT, Stage.FLOAT)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
ACTIVATIONS: dict[str, dict[str, float]] = {
    "relu": {}, "tanh": {}, "sigmoid": {}, "softsign": {}, "softplus": {}, "leakyrelu": {"alpha": 0.01},
    "elu": {"alpha": 1.0}, "hardsigmoid": {"alpha": 0.2, "beta": 0.5}, "thresholdedrelu": {"alpha": 1.0},
    "affine": {"alpha": 1.0, "beta": 0.0}, "scaledtanh": {"alpha": 1.0, "beta": 1.0},
}  # fmt: skip
"""Lower-case name -> its numbers in the order of activation_alpha, activation_beta."""
SPELLED = {
    "relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "softsign": "Softsign", "softplus": "Softplus",
    "leakyrelu": "LeakyRelu", "elu": "Elu", "hardsigmoid": "HardSigmoid", "thresholdedrelu": "ThresholdedRelu",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    max_steps: int = 512
    """Longer sequences stay as they are."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """The same function without recurrent operators, where that is possible."""
    for node in graph.nodes(*GATES):
        reason = refuses(graph, node, options)
        if reason:
            context.note(node, f"{node.op_type} kept: {reason}")
        else:
            _Unrolled(graph, node).write()
    graph.sweep()
    return graph


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def refuses(graph: Graph, node: ir.Node, options: Options) -> str:
    """Why a node cannot be unrolled, or ''."""
    steps = graph.shape(operand(node))[1 if attribute(node, "layout", 0) else 0]
    constants = (1, 2, 3, 7) if node.op_type == "LSTM" else (1, 2, 3)
    if any(_at(node, i) is not None and graph.const(_at(node, i)) is None for i in constants):
        return "its weights are not constant"
    if _at(node, 4) is not None:
        lengths = graph.const(_at(node, 4))
        if lengths is None or (lengths != steps).any():
            return "it has sequence lengths of its own"
    if steps > options.max_steps:
        return f"{steps} steps are more than max_steps = {options.max_steps}"
    for name in attribute(node, "activations", []):
        if name.lower() not in ACTIVATIONS:
            return f"the activation {name} is not known"
    return ""


class _Unrolled:
    """One recurrent node being replaced."""

    def __init__(self, graph: Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.kind = node.op_type
        self.batch_first = bool(attribute(node, "layout", 0))
        self.name = node.name or str(next(v.name for v in node.outputs if v.name))
        shape = graph.shape(operand(node))
        self.steps, self.batch = (shape[1], shape[0]) if self.batch_first else shape[:2]
        self.size = graph.shape(node.inputs[2])[-1]
        self.directions = graph.shape(node.inputs[1])[0]
        self.clip = float(attribute(node, "clip", 0.0))
        self.functions = self._functions()

    def _functions(self) -> list[tuple[str, dict[str, float]]]:
        """Activation functions of all directions with their numbers."""
        names = attribute(self.node, "activations") or DEFAULTS[self.kind] * self.directions
        numbers = {key: list(attribute(self.node, f"activation_{key}", [])) for key in ("alpha", "beta")}
        found = []
        for name in names:
            values = dict(ACTIVATIONS[name.lower()])
            for key in values:
                if numbers[key]:
                    values[key] = float(numbers[key].pop(0))
            found.append((name.lower(), values))
        return found

    # -- nodes -------------------------------------------------------------------------------------------------

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], shape: Sequence[int], what: str, **values: Any
    ) -> ir.Value:
        """A node before the recurrent one, with one float output."""
        name = f"{self.name}/{what}"
        node = self.graph.add_node(op_type, inputs, values, before=self.node, name=name, outputs=[name])
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].metadata_props[WIDE_KEY] = "uint16"
        return node.outputs[0]

    def const(self, array: NDArray | np.generic, what: str) -> ir.Value:
        """A constant float32, or int64 as given."""
        kept = array if array.dtype == np.int64 else array.astype(np.float32)
        return self.graph.add_const(f"{self.name}/{what}", kept)

    def reshape(self, x: ir.Value, shape: Sequence[int], what: str) -> ir.Value:
        """Reshape to a constant shape."""
        return self.op("Reshape", [x, self.const(np.array(shape, np.int64), f"{what}_shape")], shape, what)

    def split(self, x: ir.Value, sizes: Sequence[int], axis: int, what: str) -> list[ir.Value]:
        """Parts of x along an axis."""
        if len(sizes) == 1:
            return [x]
        shape = list(self.graph.shape(x))
        parts = self.const(np.array(sizes, np.int64), f"{what}_sizes")
        names = [f"{self.name}/{what}_{i}" for i in range(len(sizes))]
        node = self.graph.add_node("Split", [x, parts], {"axis": axis}, before=self.node, name=f"{self.name}/{what}",
                                   outputs=names)  # fmt: skip
        for value, size in zip(node.outputs, sizes, strict=True):
            shape[axis] = size
            value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        return list(node.outputs)

    def apply(self, index: int, x: ir.Value, what: str) -> ir.Value:
        """Activation function `index`, with the clip of its input before it."""
        shape = self.graph.shape(x)
        if self.clip > 0:
            bounds = [self.const(np.float32(side * self.clip).reshape(()), "clip") for side in (-1, 1)]
            x = self.op("Clip", [x, *bounds], shape, f"{what}_clipped")
        name, values = self.functions[index]
        if name in SPELLED:
            return self.op(SPELLED[name], [x], shape, what, **values)
        inner, outer = (values["alpha"], None) if name == "affine" else (values["beta"], values["alpha"])
        x = self.op("Mul", [x, self.const(np.asarray(inner), f"{what}_slope")], shape, f"{what}_scaled")
        if name == "affine":
            return self.op("Add", [x, self.const(np.asarray(values["beta"]), f"{what}_shift")], shape, what)
        x = self.op("Tanh", [x], shape, f"{what}_tanh")
        return self.op("Mul", [x, self.const(np.asarray(outer), f"{what}_factor")], shape, what)

    # -- the whole ---------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Replace the node."""
        x = operand(self.node)
        features = self.graph.shape(x)[-1]
        if self.batch_first:
            x = self.op("Transpose", [x], (self.steps, self.batch, features), "x", perm=[1, 0, 2])
        flat = self.reshape(x, (self.steps * self.batch, features), "x_rows")
        direction = attribute(self.node, "direction", "forward")
        outputs = []
        for d in range(self.directions):
            backwards = direction == "reverse" or d == 1
            outputs.append(self._direction(flat, d, backwards))
        last = {i: value for i, value in enumerate(self.node.outputs) if value.name and (
            value.uses() or value.is_graph_output())}  # fmt: skip
        b, h, n = self.batch, self.size, self.directions
        if 0 in last:
            rows = [self._stack([hs[t] for hs, _ in outputs], f"y{t}") for t in range(self.steps)]
            y = self._joined(rows, 0, (self.steps, n, b, h), "y")
            if self.batch_first:
                y = self.op("Transpose", [y], (b, self.steps, n, h), "y_batch_first", perm=[2, 0, 1, 3])
            self.graph.replace_uses(last[0], y)
        for index in (1, 2):
            if index in last:
                ends = [states[index - 1] for _, states in outputs]
                y = self._joined([self.reshape(v, (1, b, h), f"end{index}_{d}") for d, v in enumerate(ends)], 0,
                                 (n, b, h), f"end{index}")  # fmt: skip
                if self.batch_first:
                    y = self.op("Transpose", [y], (b, n, h), f"end{index}_batch_first", perm=[1, 0, 2])
                self.graph.replace_uses(last[index], y)
        self.graph.remove(self.node)

    def _joined(self, parts: list[ir.Value], axis: int, shape: Sequence[int], what: str) -> ir.Value:
        return parts[0] if len(parts) == 1 else self.op("Concat", parts, shape, what, axis=axis)

    def _stack(self, parts: list[ir.Value], what: str) -> ir.Value:
        """[B,H] of every direction -> [1,D,B,H]."""
        shaped = [self.reshape(p, (1, 1, self.batch, self.size), f"{what}_{d}") for d, p in enumerate(parts)]
        return self._joined(shaped, 1, (1, self.directions, self.batch, self.size), what)

    def _direction(self, flat: ir.Value, d: int, backwards: bool) -> tuple[list[ir.Value], list[ir.Value]]:
        """Hidden state of every step in the order of time, and the states at the end."""
        width = GATES[self.kind] * self.size
        w, r = (np.asarray(self.graph.const(self.node.inputs[i])[d]) for i in (1, 2))  # type: ignore[index]
        given = self.graph.const(_at(self.node, 3))
        bias = np.zeros(2 * width, np.float32) if given is None else given[d]
        below, beside = bias[:width], bias[width:]
        linear = self.kind == "GRU" and bool(attribute(self.node, "linear_before_reset", 0))
        inner = beside.copy()
        if linear:  # the reset gate scales the recurrent bias of the candidate as well
            inner[: 2 * self.size] = 0
            beside = np.concatenate([beside[: 2 * self.size], np.zeros(self.size, beside.dtype)])
        weights = [flat, self.const(w.T, f"w{d}"), self.const(below + beside, f"b{d}")]
        rows = self.op("Gemm", weights, (self.steps * self.batch, width), f"x{d}")
        steps = self.split(rows, [self.batch] * self.steps, 0, f"x{d}_steps")
        recurrent: dict[str, ir.Value | None]
        if self.kind == "GRU":
            recurrent = {
                "gates": self.const(r[: 2 * self.size].T, f"r{d}_gates"),
                "candidate": self.const(r[2 * self.size :].T, f"r{d}_candidate"),
                "bias": self.const(inner[2 * self.size :], f"r{d}_bias") if linear else None,
            }
        else:
            recurrent = {"whole": self.const(r.T, f"r{d}")}
        states = [self._initial(5, d), self._initial(6, d) if self.kind == "LSTM" else None]
        hidden: list[ir.Value] = [steps[0]] * self.steps
        for t in reversed(range(self.steps)) if backwards else range(self.steps):
            step = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.kind]
            states = step(steps[t], states, recurrent, d, f"{d}_{t}")
            assert states[0] is not None
            hidden[t] = states[0]
        return hidden, [state for state in states if state is not None]

    def _initial(self, index: int, d: int) -> ir.Value | None:
        """The initial state [B,H] of a direction; None for zeros."""
        given = _at(self.node, index)
        constant = self.graph.const(given)
        if given is None or (constant is not None and not constant.any()):
            return None
        shape = (self.batch, self.size)
        if self.batch_first:
            given = self.op("Transpose", [given], (self.directions, *shape), f"state{index}_{d}_turned", perm=[1, 0, 2])
        parts = self.split(given, [1] * self.directions, 0, f"state{index}_{d}_parts")
        return self.reshape(parts[d], shape, f"state{index}_{d}")

    def _plus_recurrent(self, x: ir.Value, h: ir.Value | None, r: ir.Value | None, what: str) -> ir.Value:
        """x + h R."""
        if h is None:
            return x
        shape = self.graph.shape(x)
        product = self.op("Gemm", [h, r], shape, f"{what}_recurrent")
        return self.op("Add", [x, product], shape, f"{what}_sum")

    def _rnn(
        self, x: ir.Value, states: list[ir.Value | None], r: dict[str, ir.Value | None], d: int, what: str
    ) -> list[ir.Value | None]:
        return [self.apply(d, self._plus_recurrent(x, states[0], r["whole"], what), f"h{what}"), None]

    def _lstm(
        self, x: ir.Value, states: list[ir.Value | None], r: dict[str, ir.Value | None], d: int, what: str
    ) -> list[ir.Value | None]:
        h, c = states
        n, shape = self.size, (self.batch, self.size)
        sums = self._plus_recurrent(x, h, r["whole"], what)
        peepholes = self.graph.const(_at(self.node, 7))
        first = 3 * d
        if peepholes is None:
            three, candidate = self.split(sums, [3 * n, n], 1, f"sums{what}")
            i, o, f = self.split(self.apply(first, three, f"gates{what}"), [n] * 3, 1, f"gate{what}")
        else:
            i, o, f, candidate = self.split(sums, [n] * 4, 1, f"sums{what}")
            p = np.split(peepholes[d], 3)
            i = self.apply(first, self._peep(i, c, p[0], f"i{what}"), f"input{what}")
            f = self.apply(first, self._peep(f, c, p[2], f"f{what}"), f"forget{what}")
        if attribute(self.node, "input_forget", 0):
            turned = self.op("Mul", [i, self.const(np.float32(-1).reshape(()), "minus")], shape, f"coupled{what}_minus")
            f = self.op("Add", [turned, self.const(np.float32(1).reshape(()), "one")], shape, f"coupled{what}")
        candidate = self.apply(first + 1, candidate, f"candidate{what}")
        new = self.op("Mul", [i, candidate], shape, f"new{what}")
        if c is not None:
            kept = self.op("Mul", [f, c], shape, f"kept{what}")
            new = self.op("Add", [kept, new], shape, f"c{what}")
        if peepholes is not None:
            o = self.apply(first, self._peep(o, new, p[1], f"o{what}"), f"output{what}")
        # The clip belongs to what gates and candidates are made of, not to the cell state.
        clip, self.clip = self.clip, 0.0
        seen = self.apply(first + 2, new, f"seen{what}")
        self.clip = clip
        return [self.op("Mul", [o, seen], shape, f"h{what}"), new]

    def _peep(self, gate: ir.Value, c: ir.Value | None, weights: NDArray, what: str) -> ir.Value:
        if c is None:
            return gate
        shape = self.graph.shape(gate)
        product = self.op("Mul", [c, self.const(weights, f"peephole{what}")], shape, f"peep{what}")
        return self.op("Add", [gate, product], shape, f"peeped{what}")

    def _gru(
        self, x: ir.Value, states: list[ir.Value | None], r: dict[str, ir.Value | None], d: int, what: str
    ) -> list[ir.Value | None]:
        h = states[0]
        n, shape = self.size, (self.batch, self.size)
        two, below = self.split(x, [2 * n, n], 1, f"sums{what}")
        gates = self.apply(2 * d, self._plus_recurrent(two, h, r["gates"], f"gates{what}"), f"gate{what}")
        z, reset = self.split(gates, [n, n], 1, f"zr{what}")
        if r["bias"] is not None:
            inner = r["bias"]
            if h is not None:
                inner = self.op("Gemm", [h, r["candidate"], r["bias"]], shape, f"inner{what}")
            below = self.op("Add", [below, self.op("Mul", [reset, inner], shape, f"reset{what}")], shape, f"all{what}")
        elif h is not None:
            below = self._plus_recurrent(below, self.op("Mul", [reset, h], shape, f"reset{what}"), r["candidate"],
                                         f"all{what}")  # fmt: skip
        candidate = self.apply(2 * d + 1, below, f"candidate{what}")
        if h is None:  # h~ - z h~
            kept = self.op("Mul", [z, candidate], shape, f"kept{what}")
            return [self.op("Sub", [candidate, kept], shape, f"h{what}"), None]
        change = self.op("Sub", [h, candidate], shape, f"change{what}")
        return [self.op("Add", [candidate, self.op("Mul", [z, change], shape, f"kept{what}")], shape, f"h{what}"), None]
