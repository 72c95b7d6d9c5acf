"""Small INTEGER graphs that do a given work at given widths: what cost models price, and what calibration times.

Codes are random and weights reach the ends of their formats, so kernels are chosen as for a trained layer at worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.cost import Cost, Widths, Work
from qcompiler.errors import UnsupportedError
from qcompiler.formats import Minifloat, parse_format, parse_integers
from qcompiler.graph.model import DOMAIN, Graph
from qcompiler.graph.qdq import FORMAT_KEY, MINIFLOAT_KEY
from qcompiler.ops.requantize import fixed_multiplier
from qcompiler.ops.softmax import exponentials

SAMPLED = ("conv", "dense", "matmul", "add", "mul", "activation", "softmax", "norm", "pool", "mean", "move")
"""Kinds of work (qcompiler/cost.py) that have a sample."""
PIECES = 1024
"""Segments of a function of 16-bit codes."""


class Sample:
    """An INTEGER graph under construction; `add` puts in one more independent piece of work.

    centred: zero points of codes above 8 bits are in the middle, so that products of 16 bits are the fast ones where
    sums allow; else 0, as behind a Relu.
    """

    def __init__(self, arithmetic: str = "float", centred: bool = True) -> None:
        self.arithmetic, self.centred = arithmetic, centred
        self.rng = np.random.default_rng(1)
        made = ir.Graph([], [], nodes=[], name="sample", opset_imports={"": 21, DOMAIN: 1})
        self.graph = Graph(ir.Model(made, ir_version=10))

    def add(self, work: Work, widths: Widths) -> str:
        """Name of the node that does it; nodes `NAME/x0/q`, ... make its inputs from floats, `NAME/dq` floats of its
        output. Raises UnsupportedError for kinds without a sample."""
        if work.kind not in SAMPLED:
            raise UnsupportedError(
                f"work of kind `{work.kind}` ({work.op_type}) has no sample.", hint=f"Kinds: {', '.join(SAMPLED)}."
            )
        name = f"work{len(self.graph.outputs)}"
        signed = work.kind == "matmul"  # its right operand is centred
        tokens = [f"{'' if signed and i else 'u'}int{bits}" for i, bits in enumerate(widths.inputs)]
        given = [
            self._input(f"{name}/x{i}", shape, token)
            for i, (shape, token) in enumerate(zip(work.inputs, tokens, strict=True))
        ]
        inputs, op_type, attributes = getattr(self, f"_{work.kind}")(work, widths, given, tokens)
        if work.op_type == "Resize":
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            sizes = self._const(np.asarray(work.output, np.int64))
            y = self._node(name, "Resize", [given[0], None, None, sizes], work.output, tokens[0], how, domain="")
        elif work.kind == "move":
            if work.op_type == "Transpose":  # a view by itself; a Concat behind it has to move elements,
                self._output(f"{name}/x", given[0])  # unless they could be written so in the first place
                how = {"perm": work.get("perm")}
                given = [self._node(f"{name}/t", "Transpose", given, work.output, tokens[0], how, domain="")]
            y = self._node(name, "Concat", [*given, *given], _doubled(work), tokens[0], {"axis": 0}, domain="")
        else:
            y = self._node(name, op_type, inputs, work.output, f"uint{widths.output}", attributes)
        self._output(name, y)
        return name

    # -- pieces --------------------------------------------------------------------------------------------------

    def _const(self, array: Any) -> ir.Value:
        return self.graph.add_const("c", np.asarray(array))

    def _input(self, name: str, shape: Sequence[int], token: str) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self.graph.ir.inputs.append(value)
        inputs = [value, self._const(np.float32(1)), self._const(np.zeros((), parse_format(token).storage))]
        node = self.graph.add_node("QuantizeLinear", inputs, name=f"{name}/q", outputs=[f"{name}_codes"])
        return _describe(node.outputs[0], token, 0, shape)

    def _output(self, name: str, value: ir.Value) -> None:
        storage = parse_format(value.metadata_props[FORMAT_KEY]).storage
        inputs = [value, self._const(np.float32(1)), self._const(np.zeros((), storage))]
        node = self.graph.add_node("DequantizeLinear", inputs, name=f"{name}/dq", outputs=[f"{name}_y"])
        node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        self.graph.ir.outputs.append(node.outputs[0])

    def _node(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int],
        token: str,
        attributes: dict[str, Any],
        domain: str = DOMAIN,
    ) -> ir.Value:
        made = self.graph.add_node(op_type, inputs, attributes, domain=domain, name=name, outputs=[f"{name}_codes"])
        return _describe(made.outputs[0], token, attributes.get("zero_point", 0), shape)

    def _scales(self, scale: NDArray | np.floating | float, acc_bits: int = 31) -> list[ir.Value]:
        narrow = np.asarray(scale, np.float32)
        if self.arithmetic == "float":
            return [self._const(narrow)]
        pairs = np.array([fixed_multiplier(float(s), acc_bits) for s in narrow.ravel()], np.int32)
        return [self._const(pairs[:, i].reshape(narrow.shape)) for i in (0, 1)]

    def _zero(self, bits: int) -> int:
        return 2 ** (bits - 1) if self.centred and bits > 8 else 0

    def _requantizing(self, widths: Widths) -> dict[str, Any]:
        return {"arithmetic": self.arithmetic, "format": f"uint{widths.output}", "zero_point": 0}

    # -- kinds: (inputs, operator, attributes) -------------------------------------------------------------------

    def _product(self, work: Work, widths: Widths, depth: int, m: int) -> tuple[list[ir.Value], bool]:
        """Weight, bias and requantization of a product with so many terms and output channels."""
        bits, wide = widths.weight or 8, widths.inputs[0] > 8
        top = 2 ** (bits - 1)
        w = self.rng.integers(-(top - 1 if bits == 8 else top), top, work.weight)
        if w.size > 1:
            w.flat[0], w.flat[-1] = 1 - top if bits == 8 else -top, top - 1
        fmt = parse_format(widths.weight_format or f"int{bits}")
        if isinstance(fmt, Minifloat):
            w = self.rng.choice(fmt.decode(fmt.codes()), work.weight)
            w.flat[0], w.flat[-1] = -fmt.largest, fmt.largest
            top, levels = fmt.largest, fmt.integers
            weight = self._const(w.astype(levels.storage))
            weight.metadata_props.update({FORMAT_KEY: levels.token, MINIFLOAT_KEY: fmt.token})
        else:
            weight = self._const(w.astype(np.int8 if bits <= 8 else np.int16))
            weight.metadata_props[FORMAT_KEY] = f"int{bits}"
        reach = max(1.0, np.sqrt(depth) * (2 ** widths.inputs[0] - 1) * top * 0.3)
        scale = self.rng.uniform(0.5, 1, m) * (2**widths.output - 1) / (2 * reach)
        bias = self.rng.integers(-100, 100, m).astype(np.int64 if wide else np.int32)
        return [weight, self._const(bias), *self._scales(scale, 45 if wide else 31)], wide

    def _conv(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        spatial = len(work.output) - 2
        rest, _ = self._product(work, widths, prod(work.weight[1:]), work.channels)
        attributes = {
            "strides": work.get("strides") or [1] * spatial,
            "pads": work.get("pads") or [0] * 2 * spatial,
            "dilations": work.get("dilations") or [1] * spatial,
            "group": work.get("group", 1),
            "x_zero_point": self._zero(widths.inputs[0]),
        }
        if work.op_type == "ConvTranspose":
            attributes["output_padding"] = work.get("output_padding") or [0] * spatial
        return [given[0], *rest], work.op_type, {**attributes, **self._requantizing(widths)}

    def _dense(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        rest, _ = self._product(work, widths, work.weight[0], work.weight[1])
        return [given[0], *rest], "MatMul", {"x_zero_point": self._zero(widths.inputs[0]), **self._requantizing(widths)}

    def _matmul(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        wide = max(widths.inputs) > 8
        scale = np.float32(2.0 ** (widths.output - sum(widths.inputs)) / np.sqrt(work.inputs[0][-1]))
        attributes = {"a_zero_point": self._zero(widths.inputs[0]), "b_zero_point": 0, **self._requantizing(widths)}
        return [*given, *self._scales(scale, 48 if wide else 31)], "BatchMatMul", attributes

    def _add(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        a, b, shift = (1_000_003_000, 700_001_111, 30) if max(widths.inputs) > 8 else (1_234_567, 2_345_671, 21)
        attributes = {"a_zero_point": 1, "b_zero_point": 2, "a_multiplier": a, "b_multiplier": b, "shift": shift}
        return given, "Add", {**attributes, "format": f"uint{widths.output}", "zero_point": 0}

    def _mul(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        scale = np.float32(2.0 ** (widths.output - sum(widths.inputs) - 1))
        attributes = {"a_zero_point": 1, "b_zero_point": 2, **self._requantizing(widths)}
        return [*given, *self._scales(scale, 45 if max(widths.inputs) > 8 else 31)], "Mul", attributes

    def _activation(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        bits, out = widths.inputs[0], parse_format(f"uint{widths.output}")
        attributes = {"x_format": tokens[0], "format": out.token, "zero_point": 0}
        if bits <= 8:
            table = self.rng.integers(0, out.max + 1, 1 << bits).astype(out.storage)
            return [given[0], self._const(table)], "Table", attributes
        table = np.linspace(0, out.max << 7, PIECES + 1).astype(np.int32)
        return [given[0], self._const(table)], "Piecewise", {**attributes, "shift": bits - PIECES.bit_length() + 1}

    def _softmax(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        fmt = parse_integers(tokens[0])
        table = self._const(exponentials(fmt, 12.0 / (fmt.max - fmt.min)))
        attributes = {"axis": work.get("axis", -1) % len(work.output), "x_format": tokens[0], "zero_point": 0}
        more = {"numerator": 2**widths.output - (widths.output > 8), "format": f"uint{widths.output}"}
        return [given[0], table], "Softmax", {**attributes, **more}

    def _norm(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        shape, groups = work.inputs[0], work.get("num_groups", 0)
        groups = shape[1] if work.op_type == "InstanceNormalization" else groups
        axis = 1 if groups else work.get("axis", -1) % len(shape)
        parameters = shape[1:2] if groups else shape[axis:]
        shift = 34 if widths.output <= 8 else 28
        arrays = [np.full(parameters, 40 << 14, np.int32), np.full(parameters, 1 << (shift + 6), np.int64)]
        attributes = {
            "axis": axis, "groups": groups, "centre": int(work.op_type != "RMSNormalization"), "half_shift": 4,
            "epsilon": 12345, "shift": shift, "x_zero_point": 1, "zero_point": 0, "format": f"uint{widths.output}",
        }  # fmt: skip
        return [given[0], *map(self._const, arrays)], "Normalize", attributes

    def _pool(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        kernel, spatial = work.get("kernel_shape"), len(work.output) - 2
        attributes = {
            "kernel_shape": kernel,
            "strides": work.get("strides") or [1] * spatial,
            "pads": work.get("pads") or [0] * 2 * spatial,
        }
        if work.op_type == "MaxPool":
            return given, "MaxPool", attributes
        scales = self._scales(np.float32(0.9 / prod(kernel)))
        return [given[0], *scales], "AveragePool", {**attributes, "x_zero_point": 1, **self._requantizing(widths)}

    def _mean(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        shape = work.inputs[0]
        kept = len(work.output) == len(shape)
        axes = [d for d, e in enumerate(shape) if kept and work.output[d] == 1 and e > 1] or list(range(2, len(shape)))
        scales = self._scales(np.float32(0.9 / prod(shape[a] for a in axes)))
        attributes = {"axes": axes, "keepdims": int(kept), "x_zero_point": 1, **self._requantizing(widths)}
        return [given[0], *scales], "ReduceMean", attributes

    def _move(self, work: Work, widths: Widths, given: list[ir.Value], tokens: list[str]) -> tuple:
        return given, "Concat", {}


class SampleCost:
    """What cost models share that price a node by its sample: each work at each width is priced once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Work, Widths], Cost] = {}

    def cost(self, work: Work, widths: Widths) -> Cost:
        """Of one node alone. Raises what pricing raises, UnsupportedError for kernels that a table lacks."""
        if work.kind == "free":
            return Cost()
        if work.kind not in SAMPLED:
            return Cost(resources={"unpriced": 1})
        key = work, widths
        if key not in self._known:
            self._known[key] = self._priced(work, widths)
        return self._known[key]

    def _priced(self, work: Work, widths: Widths) -> Cost:
        raise NotImplementedError


def _doubled(work: Work) -> tuple[int, ...]:
    shape = work.output if work.op_type == "Transpose" else work.inputs[0]
    return (2 * shape[0], *shape[1:])


def _describe(value: ir.Value, token: str, zero_point: int, shape: Sequence[int]) -> ir.Value:
    value.metadata_props.update({FORMAT_KEY: token, "qcompiler.scale": "1.0", "qcompiler.zero_point": str(zero_point)})
    value.shape = ir.Shape(shape)
    value.type = ir.TensorType(ir.DataType.from_numpy(parse_format(token).storage))
    return value
