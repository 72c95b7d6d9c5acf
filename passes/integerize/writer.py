"""The INTEGER graph under construction: values with their codes, and the nodes that rules write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedError
from qcompiler.formats import Blocks, Log, Minifloat, QuantParams, parse_format
from qcompiler.graph.model import DOMAIN, Graph, attribute
from qcompiler.graph.qdq import FORMAT_KEY, INDICES_KEY, LOGARITHM_KEY, MINIFLOAT_KEY, quantizer_of
from qcompiler.ops.requantize import fixed_multiplier
from qcompiler.quantizer import dequantize, quantize


@dataclass(frozen=True)
class Codes:
    """An integer value of the new graph and what its codes mean."""

    value: ir.Value
    params: QuantParams


def level_params(params: QuantParams) -> QuantParams:
    """Parameters of the integers that stand in an INTEGER graph: the levels of a minifloat (times block scales), else
    what is given."""
    if not isinstance(params.format, Minifloat | Blocks):
        return params
    return QuantParams(params.format.integers, params.scale, axis=params.axis)


class Writer:
    """Builds `target` beside the QDQ graph `source`."""

    def __init__(self, source: Graph, arithmetic: str) -> None:
        self.source = source
        self.arithmetic = arithmetic
        self._codes: dict[str, Codes] = {}
        self._emitted: dict[ir.Node, list[ir.Value]] = {}
        inputs = [
            ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(value.dtype or ir.DataType.FLOAT))
            for value in source.inputs
        ]
        graph = ir.Graph(
            inputs, [], nodes=[], name=source.ir.name or "model", opset_imports={"": max(source.opset, 21), DOMAIN: 1}
        )
        model = ir.Model(graph, ir_version=max(source.model.ir_version, 10), producer_name="qcompiler")
        model.metadata_props.update(source.model.metadata_props)
        self.target = Graph(model, source.path)
        self._inputs = {str(value.name): value for value in inputs}
        self._taken: set[str] = {str(value.name) for value in (*inputs, *source.outputs)}
        self._floats: dict[ir.Value, ir.Value] = {}

    # -- values ------------------------------------------------------------------------------------------------

    def define(self, dequantized: ir.Value, codes: ir.Value, params: QuantParams) -> None:
        """Readers of this dequantized value of the source find these codes."""
        self._codes[str(dequantized.name)] = Codes(codes, level_params(params))

    def same_as(self, quantizer: ir.Node, params: QuantParams) -> ir.Value | None:
        """The codes that another DequantizeLinear of the same codes has defined already."""
        if quantizer.op_type != "DequantizeLinear":
            return None
        for use in quantizer.inputs[0].uses():  # type: ignore[union-attr]
            known = self._codes.get(str(use.node.outputs[0].name)) if use.node is not quantizer else None
            if known is not None and use.node.op_type == "DequantizeLinear" and known.params == params:
                return known.value
        return None

    def knows(self, value: ir.Value) -> bool:
        """Whether codes were defined for this value of the source."""
        return str(value.name) in self._codes

    def codes(self, value: ir.Value) -> Codes:
        """Codes of a quantized value; constants become initializers on first use."""
        name = str(value.name)
        if name not in self._codes:
            quantized = quantizer_of(self.source, value)
            if quantized is None or quantized.codes is None:
                raise UnsupportedError(
                    f"`{name}` is a float value between integer operators.",
                    where=self.source.path,
                    hint="Every value needs a quantizer; was the QDQ graph edited by hand?",
                )
            params = level_params(quantized.params)
            codes = quantized.codes
            if params is not quantized.params:
                codes = quantized.params.format.decode(codes).astype(params.format.storage)
            constant = self.const(f"{name}_codes", codes)
            self.describe(constant, quantized.params)
            self._codes[name] = Codes(constant, params)
        return self._codes[name]

    def const(self, name: str, array: NDArray) -> ir.Value:
        """A new initializer."""
        return self._register(name, ir.tensor(np.asarray(array, order="C")))

    def _register(self, name: str, tensor: Any) -> ir.Value:
        value = ir.Value(
            name=self._fresh(name), shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.target.ir.register_initializer(value)
        return value

    def describe(self, value: ir.Value, params: QuantParams) -> None:
        """Metadata for boundary, report and debugging."""
        if isinstance(params.format, Minifloat | Blocks):
            value.metadata_props[MINIFLOAT_KEY] = params.format.token
            params = level_params(params)
        scale = params.scale.reshape(-1)
        value.metadata_props.update(
            {
                FORMAT_KEY: params.format.token,
                "qcompiler.scale": repr(float(scale[0]))
                if scale.size == 1
                else ",".join(repr(float(s)) for s in scale),
                "qcompiler.zero_point": str(int(params.zero_point.reshape(-1)[0])),
            }
        )

    # -- nodes -------------------------------------------------------------------------------------------------

    def emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        params: QuantParams,
        shape: Sequence[int],
        name: str,
        *,
        domain: str = DOMAIN,
    ) -> ir.Value:
        """A node with one integer output called `name`."""
        return self.emit_many(op_type, inputs, attributes, [(params, shape, name)], domain=domain)[0]

    def emit_many(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        outputs: Sequence[tuple[QuantParams | None, Sequence[int], str]],
        *,
        domain: str = DOMAIN,
    ) -> list[ir.Value]:
        """A node with several outputs: codes, or int64 numbers where there are no parameters."""
        node = ir.node(op_type, inputs, attributes=dict(attributes), domain=domain, num_outputs=len(outputs))
        for value, (params, shape, name) in zip(node.outputs, outputs, strict=True):
            value.name = self._fresh(name)
            value.shape = ir.Shape(shape)
            value.type = ir.TensorType(ir.DataType.INT64)
            if params is not None:
                value.type = ir.TensorType(ir.DataType.from_numpy(level_params(params).format.storage))
                self.describe(value, params)
        node.name = f"{op_type.lower()}/{node.outputs[0].name}"
        self.target.ir.append(node)
        return list(node.outputs)

    def emit_plain(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        shape: Sequence[int],
        name: str,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """A node of ONNX's own domain whose output is no code: int64 unless said otherwise."""
        value = self.emit_many(op_type, inputs, attributes, [(None, shape, name)], domain="")[0]
        value.type = ir.TensorType(dtype or ir.DataType.INT64)
        return value

    def reshape(self, codes: ir.Value, params: QuantParams, shape: Sequence[int], name: str) -> ir.Value:
        """The same codes in another shape."""
        to = self.const(f"{name}_shape", np.array(shape, np.int64))
        return self.emit("Reshape", [codes, to], {"allowzero": 1}, params, shape, name, domain="")

    def emit_float(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        dtype: ir.DataType,
        shape: Sequence[int],
    ) -> ir.Value:
        """A node of a float island, like `node` of the source; functions of our own come along."""
        function = self.source.model.functions.get((node.domain, node.op_type, node.overload))
        if function is not None and function.identifier() not in self.target.model.functions:
            self.target.model.functions[function.identifier()] = function.clone()
        new = ir.node(node.op_type, inputs, attributes=dict(attributes), domain=node.domain, num_outputs=1)
        new.name, value = str(node.name), new.outputs[0]
        value.name, value.shape = self._fresh(f"{node.outputs[0].name}_real"), ir.Shape(shape)
        value.type = ir.TensorType(dtype)
        self.target.ir.append(new)
        return value

    def dequantized(self, value: ir.Value) -> ir.Value:
        """The float32 value of a quantized value, for a float island."""
        have = self.codes(value)
        if have.value not in self._floats:
            name = f"{have.value.name}_dequantized"
            self._floats[have.value] = self._dequantize(have, name, ir.Shape(self.source.shape(value)), name)
        return self._floats[have.value]

    def _dequantize(self, have: Codes, name: str, shape: ir.Shape | None, stem: str) -> ir.Value:
        """A DequantizeLinear whose output is called `name`; `stem`: of the names of its constants."""
        inputs = [
            have.value,
            self.const(f"{stem}_scale", have.params.scale),
            self.const(f"{stem}_zero_point", have.params.zero_point.astype(have.params.format.storage)),
        ]
        node = ir.node("DequantizeLinear", inputs, num_outputs=1, name=f"dequantize/{name}")
        output = node.outputs[0]
        output.name, output.shape, output.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
        self.target.ir.append(node)
        return output

    def table(self, codes: ir.Value, have: QuantParams, entries: NDArray, want: QuantParams, name: str) -> ir.Value:
        """A Table node; entries are levels where `want` is a minifloat."""
        token = level_params(want).format.token
        attributes = {"x_format": have.format.token, "zero_point": int(want.zero_point), "format": token}
        shape = self.target.shape(codes)
        return self.emit("Table", [codes, self.const(f"{name}_table", entries)], attributes, want, shape, name)

    def requantize(self, codes: ir.Value, have: QuantParams, want: QuantParams, name: str) -> ir.Value:
        """Codes of the same value at other parameters: a Table up to 8 bits, else Requantize or LogEncode. Levels of a
        minifloat, in a Table exactly those of the QDQ graph."""
        if have == want:
            return codes
        fmt = have.format
        if isinstance(want.format, Log):
            return self._encode(codes, have, want, want.format, name)
        if isinstance(want.format, Minifloat) and fmt.bits <= 8:
            rounded = quantize(dequantize(np.arange(fmt.min, fmt.max + 1), have), want)
            levels = want.format.decode(rounded).astype(want.format.integers.storage)
            return self.table(codes, have, levels, want, name)
        if fmt.bits <= 8:
            every = np.arange(fmt.min, fmt.max + 1) - int(have.zero_point)
            ratio = every * np.float64(have.scale) / np.float64(want.scale)
            entries = np.clip(np.rint(ratio) + int(want.zero_point), want.format.min, want.format.max)
            return self.table(codes, have, entries.astype(want.format.storage), want, name)
        scale = np.float64(have.scale) / np.float64(want.scale)
        attributes = {"x_zero_point": int(have.zero_point), **self.output_attributes(want)}
        return self.emit(
            "Requantize", [codes, *self.scale_inputs(scale, name)], attributes, want, self.target.shape(codes), name
        )

    def _encode(self, codes: ir.Value, have: QuantParams, want: QuantParams, fmt: Log, name: str) -> ir.Value:
        """Logarithmic codes of the dequantized values: exactly those of the QDQ graph."""
        every = np.arange(have.format.min, have.format.max + 1)
        entries = quantize(dequantize(every, have), want)
        if have.format.bits <= 8:
            return self.table(codes, have, entries, want, name)
        if (composed := self._composed(codes, have, entries, want, name)) is not None:
            return composed
        below = have.format.min + np.array([np.count_nonzero(entries > k) for k in range(fmt.max)], np.int32)
        attributes = {"x_format": have.format.token, "zero_point": int(want.zero_point), "format": fmt.token}
        inputs = [codes, self.const(f"{name}_thresholds", below.astype(np.int32))]
        return self.emit("LogEncode", inputs, attributes, want, self.target.shape(codes), name)

    def levels(self, codes: ir.Value, have: QuantParams, name: str) -> Codes:
        """The integers that logarithmic codes stand for, as codes of the same scale: what products multiply."""
        fmt = have.format
        want = QuantParams(fmt.integers, have.scale, have.zero_point)
        entries = fmt.decode(np.arange(fmt.min, fmt.max + 1)).astype(want.format.storage)
        composed = self._composed(codes, have, entries, want, f"{name}_levels")
        value = composed or self.table(codes, have, entries, want, f"{name}_levels")
        value.metadata_props[LOGARITHM_KEY] = fmt.token
        return Codes(value, want)

    def _composed(
        self, codes: ir.Value, have: QuantParams, entries: NDArray, want: QuantParams, name: str
    ) -> ir.Value | None:
        """One Table instead of a Table and what `entries` say of its output, which is then perhaps not needed."""
        node = codes.producer()
        if node is None or node.op_type != "Table" or node.domain != DOMAIN:
            return None
        first, source = self.target.const(node.inputs[1]), node.inputs[0]
        fmt = parse_format(attribute(node, "x_format"))
        if first is None or source is None or fmt.bits > 8:
            return None
        both = entries[first.astype(np.int64) - have.format.min]
        return self.table(source, QuantParams(fmt, np.float32(1)), both, want, name)

    def output_attributes(self, params: QuantParams) -> dict[str, Any]:
        """zero_point, format, arithmetic of a requantizing node."""
        return {
            "zero_point": int(params.zero_point),
            "format": params.format.token,
            "arithmetic": self.arithmetic,
        }

    def scale_inputs(self, scale: NDArray | np.float64, name: str, acc_bits: int = 31) -> list[ir.Value]:
        """`*r`: float32 scale, or multiplier and shift. scale: float64 [...]; acc_bits: of the accumulator."""
        narrow = np.asarray(scale, np.float64).astype(np.float32)
        if self.arithmetic == "float":
            return [self.const(f"{name}_requantize", narrow)]
        pairs = np.array([fixed_multiplier(float(s), acc_bits) for s in narrow.ravel()], np.int32)
        multiplier, shift = (pairs[:, i].reshape(narrow.shape) for i in (0, 1))
        return [self.const(f"{name}_multiplier", multiplier), self.const(f"{name}_shift", shift)]

    def quantize_input(self, value: ir.Value, params: QuantParams) -> ir.Value:
        """QuantizeLinear behind a graph input."""
        inputs = [
            self._inputs[str(value.name)],
            self.const(f"{value.name}_scale", params.scale),
            self.const(f"{value.name}_zero_point", params.zero_point.astype(params.format.storage)),
        ]
        shape = self.source.shape(value)
        return self.emit("QuantizeLinear", inputs, {}, params, shape, f"{value.name}_quantized", domain="")

    def input(self, value: ir.Value) -> ir.Value:
        """The graph input of the same name: indices come as they are."""
        return self._inputs[str(value.name)]

    def position(self, value: ir.Value) -> ir.Value:
        """The graph input that counts steps. Raises UnsupportedError where it is computed."""
        if str(value.name) not in self._inputs:
            raise UnsupportedError(f"the position `{value.name}` is computed; it must be a graph input.")
        found = self._inputs[str(value.name)]
        found.metadata_props.setdefault(INDICES_KEY, str(1 << 16))
        return found

    def once(self, node: ir.Node, make: Any) -> list[ir.Value]:
        """Outputs of a source node that several quantizers read: written the first time."""
        if node not in self._emitted:
            self._emitted[node] = make()
        return self._emitted[node]

    def finish(self) -> None:
        """DequantizeLinear before every float output; drop what nothing reads."""
        from qcompiler.passes.integerize import integers

        for value in self.source.outputs:
            if value.dtype not in (None, ir.DataType.FLOAT):
                output = integers.write_output(self, value)
                output.name = value.name
                self.target.ir.outputs.append(output)
                continue
            output = self._dequantize(self.codes(value), str(value.name), value.shape, str(value.name))
            self.target.ir.outputs.append(output)
        self.target.sweep()

    def _fresh(self, base: str) -> str:
        name, i = base, 0
        while name in self._taken:
            i += 1
            name = f"{base}_{i}"
        self._taken.add(name)
        return name
