"""Operator problems that every target has to solve with the oracle's bits.

One graph holds them all, each an independent branch with its own inputs and output, so a target compiles once. Codes
enter as floats through QuantizeLinear with scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.formats import Int, parse_format
from qcompiler.graph.model import DOMAIN, Graph
from qcompiler.ops.requantize import fixed_multiplier
from qcompiler.ops.softmax import exponentials


class Problems:
    """An INTEGER graph under construction. `arithmetic` is that of every requantization."""

    def __init__(self, arithmetic: str) -> None:
        self.arithmetic = arithmetic
        self.rng = np.random.default_rng(7)
        graph = ir.Graph([], [], nodes=[], name="problems", opset_imports={"": 21, DOMAIN: 1})
        self.graph = Graph(ir.Model(graph, ir_version=10))
        self.formats: dict[str, Int] = {}

    # -- pieces ------------------------------------------------------------------------------------------------

    def const(self, array: Any) -> ir.Value:
        return self.graph.add_const("c", np.asarray(array))

    def describe(self, value: ir.Value, token: str, zero_point: int, shape: Sequence[int]) -> ir.Value:
        value.metadata_props.update(
            {"qcompiler.format": token, "qcompiler.scale": "1.0", "qcompiler.zero_point": str(zero_point)}
        )
        value.shape = ir.Shape(shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(parse_format(token).storage))
        return value

    def input(self, name: str, shape: Sequence[int], token: str = "uint8") -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self.graph.ir.inputs.append(value)
        self.formats[name] = parse_format(token)
        storage = parse_format(token).storage
        inputs = [value, self.const(np.float32(1)), self.const(np.zeros((), storage))]
        node = self.graph.add_node("QuantizeLinear", inputs, name=f"{name}/q", outputs=[f"{name}_codes"])
        return self.describe(node.outputs[0], token, 0, shape)

    def output(self, name: str, value: ir.Value) -> None:
        storage = parse_format(value.metadata_props["qcompiler.format"]).storage
        inputs = [value, self.const(np.float32(1)), self.const(np.zeros((), storage))]
        node = self.graph.add_node("DequantizeLinear", inputs, name=f"{name}/dq", outputs=[name])
        node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        self.graph.ir.outputs.append(node.outputs[0])

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int],
        token: str = "uint8",
        *,
        domain: str = DOMAIN,
        **attributes: Any,
    ) -> ir.Value:
        node = self.graph.add_node(op, inputs, attributes, domain=domain, name=f"{op}_{len(self.graph.nodes())}")
        return self.describe(node.outputs[0], token, attributes.get("zero_point", 0), shape)

    def scales(self, scale: Any, acc_bits: int = 31) -> list[ir.Value]:
        narrow = np.asarray(scale, np.float32)
        if self.arithmetic == "float":
            return [self.const(narrow)]
        pairs = np.array([fixed_multiplier(float(s), acc_bits) for s in narrow.ravel()], np.int32)
        return [self.const(pairs[:, i].reshape(narrow.shape)) for i in (0, 1)]

    def requantizing(self, token: str, zero_point: int) -> dict[str, Any]:
        return {"arithmetic": self.arithmetic, "format": token, "zero_point": zero_point}

    # -- families ----------------------------------------------------------------------------------------------

    def conv(
        self,
        name: str,
        x: Sequence[int],
        m: int,
        kernel: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        group: int = 1,
        bits: int = 8,
        token: str = "uint8",
        out: str = "uint8",
        transposed: bool = False,
        padding: Sequence[int] | None = None,
        zero: int | None = None,
        mirrored: bool = False,
    ) -> None:
        spatial = len(kernel)
        strides, dilations = list(strides or [1] * spatial), list(dilations or [1] * spatial)
        pads, extra = list(pads or [0] * 2 * spatial), list(padding or [0] * spatial)
        fmt = parse_format(token)
        zx = (fmt.min + fmt.max) // 3 if zero is None else zero
        top = 2 ** (bits - 1)
        shape = (x[1], m // group, *kernel) if transposed else (m, x[1] // group, *kernel)
        w = self.rng.integers(-top, top, shape)
        w.flat[0], w.flat[-1] = -top, top - 1
        w = -w if mirrored else w
        total = pads[:spatial], pads[spatial:]
        if transposed:
            size = [
                (d - 1) * s + (k - 1) * step + 1 - a - b + e
                for d, s, k, step, a, b, e in zip(x[2:], strides, kernel, dilations, *total, extra, strict=True)
            ]
        else:
            size = [
                (d + a + b - (k - 1) * step - 1) // s + 1
                for d, s, k, step, a, b in zip(x[2:], strides, kernel, dilations, *total, strict=True)
            ]
        wide = fmt.bits > 8
        reach = max(1.0, float(np.sqrt(np.prod(shape[1:])) * (fmt.max - fmt.min) * top * 0.3))
        scale = self.rng.uniform(0.5, 2, m) * (parse_format(out).max - parse_format(out).min) / (2 * reach)
        bias = self.rng.integers(-int(reach), int(reach) + 1, m).astype(np.int64 if wide else np.int32)
        weights = self.const(w.astype(np.int8 if bits <= 8 and not mirrored else np.int16))
        weights.metadata_props["qcompiler.format"] = f"int{min(bits, 8)}"
        inputs = [self.input(f"{name}_x", x, token), weights, self.const(bias), *self.scales(scale, 45 if wide else 31)]
        extra_attributes = {"output_padding": extra} if transposed else {}
        y = self.node(
            "ConvTranspose" if transposed else "Conv",
            inputs,
            (x[0], m, *size),
            out,
            strides=strides,
            pads=pads,
            dilations=dilations,
            group=group,
            x_zero_point=zx,
            **extra_attributes,
            **self.requantizing(out, 7),
        )
        self.output(name, y)

    def matmul(
        self, name: str, x: Sequence[int], n: int, *, bits: int = 8, token: str = "uint8", out: str = "uint8"
    ) -> None:
        fmt, top = parse_format(token), 2 ** (bits - 1)
        wide = fmt.bits > 8
        w = self.rng.integers(-top, top, (x[-1], n)).astype(np.int8)
        reach = float(np.sqrt(x[-1]) * (fmt.max - fmt.min) * top * 0.3)
        scale = self.rng.uniform(0.5, 2, n) * 128 / reach
        bias = self.rng.integers(-int(reach), int(reach), n).astype(np.int64 if wide else np.int32)
        inputs = [
            self.input(f"{name}_x", x, token),
            self.const(w),
            self.const(bias),
            *self.scales(scale, 45 if wide else 31),
        ]
        y = self.node(
            "MatMul", inputs, (*x[:-1], n), out, x_zero_point=(fmt.min + fmt.max) // 2, **self.requantizing(out, 3)
        )
        self.output(name, y)

    def add(
        self,
        name: str,
        a: Sequence[int],
        b: Sequence[int],
        tokens: tuple[str, str, str] = ("uint8", "uint8", "uint8"),
        sign: int = 1,
        constant: bool = False,
    ) -> None:
        wide = any(parse_format(t).bits > 8 for t in tokens[:2])
        ma, mb, shift = (1_000_003_000, 700_001_111, 30) if wide else (1_234_567, 2_345_671, 21)
        first = self.input(f"{name}_a", a, tokens[0])
        second = self._constant(b, tokens[1]) if constant else self.input(f"{name}_b", b, tokens[1])
        y = self.node(
            "Add",
            [first, second],
            np.broadcast_shapes(tuple(a), tuple(b)),
            tokens[2],
            a_zero_point=5,
            b_zero_point=9,
            a_multiplier=ma,
            b_multiplier=sign * mb,
            shift=shift,
            format=tokens[2],
            zero_point=11,
        )
        self.output(name, y)

    def _constant(self, shape: Sequence[int], token: str) -> ir.Value:
        fmt = parse_format(token)
        value = self.const(self.rng.integers(fmt.min, fmt.max + 1, shape).astype(fmt.storage))
        return self.describe(value, token, 0, shape)

    def mul(self, name: str, a: Sequence[int], b: Sequence[int], token: str = "uint8", constant: bool = False) -> None:
        first = self.input(f"{name}_a", a, token)
        second = self._constant(b, token) if constant else self.input(f"{name}_b", b, token)
        scale = self.scales(np.float32(0.0051), 45) if "16" in token else self.scales(np.float32(0.0051))
        y = self.node(
            "Mul",
            [first, second, *scale],
            np.broadcast_shapes(tuple(a), tuple(b)),
            token,
            a_zero_point=3,
            b_zero_point=100,
            **self.requantizing(token, 4),
        )
        self.output(name, y)

    def table(self, name: str, x: Sequence[int], token: str, out: str) -> None:
        fmt, to = parse_format(token), parse_format(out)
        entries = self.rng.integers(to.min, to.max + 1, 1 << fmt.bits).astype(to.storage)
        inputs = [self.input(f"{name}_x", x, token), self.const(entries)]
        self.output(name, self.node("Table", inputs, x, out, x_format=token, format=out, zero_point=0))

    def rescale(self, name: str, x: Sequence[int], token: str, out: str) -> None:
        inputs = [self.input(f"{name}_x", x, token), *self.scales(np.float32(0.00371))]
        self.output(name, self.node("Requantize", inputs, x, out, x_zero_point=30000, **self.requantizing(out, 9)))

    def pool(
        self,
        name: str,
        x: Sequence[int],
        kernel: Sequence[int],
        *,
        average: bool,
        strides: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        token: str = "uint8",
        per_position: bool = False,
    ) -> None:
        spatial = len(kernel)
        strides, pads = list(strides or kernel), list(pads or [0] * 2 * spatial)
        size = [
            (d + a + b - k) // s + 1
            for d, k, s, a, b in zip(x[2:], kernel, strides, pads[:spatial], pads[spatial:], strict=True)
        ]
        inputs = [self.input(f"{name}_x", x, token)]
        attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": strides, "pads": pads}
        if average:
            scale = self.rng.uniform(0.5, 1, size if per_position else ()) / np.prod(kernel)
            inputs += self.scales(scale)
            attributes |= {"x_zero_point": 17, **self.requantizing(token, 20)}
        y = self.node("AveragePool" if average else "MaxPool", inputs, (*x[:2], *size), token, **attributes)
        self.output(name, y)

    def mean(self, name: str, x: Sequence[int], axes: Sequence[int], keepdims: int = 1, token: str = "uint8") -> None:
        count = int(np.prod([x[a] for a in axes]))
        shape = [1 if d in axes else e for d, e in enumerate(x) if keepdims or d not in axes]
        inputs = [self.input(f"{name}_x", x, token), *self.scales(np.float32(0.9 / count))]
        attributes = {"axes": list(axes), "keepdims": keepdims, "x_zero_point": 40, **self.requantizing(token, 12)}
        self.output(name, self.node("ReduceMean", inputs, shape, token, **attributes))

    def softmax(self, name: str, x: Sequence[int], axis: int, token: str = "uint8") -> None:
        table = self.const(exponentials(parse_format(token), 0.05))
        inputs = [self.input(f"{name}_x", x, token), table]
        attributes = {"axis": axis, "x_format": token, "numerator": 256, "format": "uint8", "zero_point": 0}
        self.output(name, self.node("Softmax", inputs, x, "uint8", **attributes))

    def movement(
        self,
        name: str,
        op: str,
        x: Sequence[int],
        shape: Sequence[int],
        arguments: Sequence[Any] = (),
        **attributes: Any,
    ) -> None:
        inputs = [self.input(f"{name}_x", x), *(None if a is None else self.const(a) for a in arguments)]
        self.output(name, self.node(op, inputs, shape, domain="", **attributes))
