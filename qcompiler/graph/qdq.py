"""Quantizers as nodes: the one place that writes and reads them.

Forms that it writes
    activation   value -> QuantizeLinear -> [Clip] -> DequantizeLinear; Clip on the codes when the format has fewer
                 codes than its storage (QCDQ)
    constant     initializer of codes -> DequantizeLinear (axis for per-channel)
    bias         int32 initializer -> DequantizeLinear, scale float32 [M] = s_x * s_w, zero point 0
    logarithm    `qcompiler::LogQuantize` of an activation
    minifloat    see graph/minifloats.py
Forms that it reads besides: initializers of ONNX's own 2- and 4-bit types, Clip left out because the storage type is
the format, and `qcompiler::FakeQuantize(x, scale, zero_point)` on activations and on float constants.

The DequantizeLinear (or FakeQuantize, LogQuantize) carries the format's token as metadata `qcompiler.format`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import ModelError, UnsupportedError
from qcompiler.formats import Blocks, Int, Log, Minifloat, NumberFormat, QuantParams, parse_format
from qcompiler.graph import minifloats
from qcompiler.graph.function_quantizers import FORMAT_KEY as FORMAT_KEY
from qcompiler.graph.function_quantizers import describe, write_logarithm, write_minifloat
from qcompiler.graph.function_quantizers import write_fake_quantize as write_fake_quantize
from qcompiler.graph.functions import QUANTIZERS
from qcompiler.graph.model import DOMAIN, Graph, attribute
from qcompiler.minifloat import OCP
from qcompiler.quantizer import dequantize, quantize

LOGARITHM_KEY = "qcompiler.logarithm"
"""Metadata key of levels in an INTEGER graph: the token of the logarithmic format that they belong to."""
MINIFLOAT_KEY = "qcompiler.minifloat"
"""Metadata key of integers in an INTEGER graph that are levels of a minifloat: its token."""
INDICES_KEY = "qcompiler.indices"
"""Metadata key of an integer input of an INTEGER graph: how many rows its indices choose from."""
BIAS_TOKEN = "int32"
"""Value of that key on a bias: 32 bits are storage for accumulators, not a NumberFormat."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What a quantizer node says.

    source: the float value before it (activations, FakeQuantize), or the initializer of codes.
    codes: the codes of a constant in the storage dtype of the format, None for an activation.
    """

    params: QuantParams
    source: ir.Value
    codes: NDArray | None = None


def write_quantizer(graph: Graph, value: ir.Value, params: QuantParams, *, name: str) -> ir.Value:
    """Put a per-tensor quantizer behind `value` and return the dequantized value; readers are not rewired.

    value: float32 [...]; name: prefix of the new nodes and values. Raises UnsupportedError for 9 to 15 bits, for
    which neither ONNX has a type nor onnxruntime a Clip.
    """
    fmt = params.format
    if isinstance(fmt, Log):
        return write_logarithm(graph, value, params, fmt, name)
    if isinstance(fmt, Minifloat):
        return write_minifloat(graph, value, params, fmt, name)
    if isinstance(fmt, Blocks):
        hint = "Block scales are for weights; choose a minifloat or integers."
        raise UnsupportedError(f"activations cannot have the format {fmt.token}.", where=name, hint=hint)
    whole = _fills_storage(fmt)
    if fmt.bits > 8 and not whole:
        raise UnsupportedError(
            f"activations cannot have the format {fmt.token}.",
            where=name,
            hint="Use 2 to 8 bits, or int16 or uint16.",
        )
    scale, zero_point = _parameters(graph, params, name)
    code_type = ir.DataType.from_numpy(fmt.storage)
    producer = value.producer()
    nodes = list(graph.ir) if producer is None else []
    node = graph.add_node(
        "QuantizeLinear",
        [value, scale, zero_point],
        _axis(params),
        before=nodes[0] if nodes else None,
        after=producer,
        name=f"{name}/quantize",
        outputs=[f"{name}_codes"],
    )
    describe(node.outputs[0], value.shape, code_type)
    if not whole:
        low = graph.add_const(f"{name}_min", np.asarray(fmt.min, fmt.storage))
        high = graph.add_const(f"{name}_max", np.asarray(fmt.max, fmt.storage))
        node = graph.add_node(
            "Clip", [node.outputs[0], low, high], after=node, name=f"{name}/saturate", outputs=[f"{name}_saturated"]
        )
        describe(node.outputs[0], value.shape, code_type)
    node = graph.add_node(
        "DequantizeLinear",
        [node.outputs[0], scale, zero_point],
        _axis(params),
        after=node,
        name=f"{name}/dequantize",
        outputs=[f"{name}_dequantized"],
    )
    node.metadata_props[FORMAT_KEY] = fmt.token
    describe(node.outputs[0], value.shape, ir.DataType.FLOAT)
    return node.outputs[0]


def write_constant(
    graph: Graph,
    value: ir.Value,
    params: QuantParams,
    *,
    name: str | None = None,
    codes: NDArray | None = None,
    before: ir.Node | None = None,
) -> ir.Value:
    """Codes of the initializer `value` and a DequantizeLinear; returns its output, readers are not rewired.

    value: float32 initializer [...]; codes: given by passes that learn rounding, else quantize(value);
    before: where the node goes, by default before the first reader of `value`.
    """
    array = graph.const(value)
    if array is None:
        raise ModelError(f"`{value.name}` is not a constant.", where=graph.path)
    name = name or value.name or "constant"
    codes = quantize(array, params) if codes is None else np.asarray(codes, params.format.storage)
    held, scales = _held(params, codes, name)
    stored = graph.add_const(f"{name}_codes", held)
    scale = graph.add_const(f"{name}_scale", scales)
    zero_point = graph.add_const(f"{name}_zero_point", params.zero_point.astype(held.dtype))
    node = graph.add_node(
        "DequantizeLinear",
        [stored, scale, zero_point],
        _axis(params),
        before=before or _first_user(graph, value),
        name=_node_name(graph, f"{name}/dequantize"),
        outputs=[f"{name}_dequantized"],
    )
    node.metadata_props[FORMAT_KEY] = params.format.token
    describe(node.outputs[0], ir.Shape(codes.shape), ir.DataType.FLOAT)
    return node.outputs[0]


def set_constant(graph: Graph, node: ir.Node, params: QuantParams, codes: NDArray | None = None) -> None:
    """New codes and scale (without `codes`, scale alone) of the constant that a DequantizeLinear reads."""
    if codes is None:
        stored = graph.const(node.inputs[0])
        assert stored is not None
        graph.set_input_const(node, 1, minifloats.stored_scale(params, stored.dtype))
        return
    held, scales = _held(params, codes, node.name or "")
    graph.set_input_const(node, 0, held)
    graph.set_input_const(node, 1, scales)


def scale_beside(params: QuantParams, dtype: ir.DataType | None) -> NDArray[np.float32]:
    """The scale as a quantizer has it whose codes are of this type: of ONNX's floats it is that of their numbers."""
    return minifloats.stored_scale(params, dtype.numpy() if dtype in FLOATS else None)  # type: ignore[union-attr]


def _held(params: QuantParams, codes: NDArray, name: str) -> tuple[NDArray, NDArray[np.float32]]:
    """Codes as an initializer holds them, and the scale beside it."""
    fmt = params.format
    held = minifloats.stored_codes(codes, fmt, name) if isinstance(fmt, Minifloat) else codes
    return held, minifloats.stored_scale(params, held.dtype)


def write_bias(
    graph: Graph, bias: NDArray, scale: NDArray[np.float32], *, before: ir.Node, name: str
) -> ir.Value | None:
    """int32 codes rint(bias / scale) of a bias and a DequantizeLinear; returns its output.

    bias: float [M]; scale: float32 [M], the float32 product s_x * s_w. Returns None and writes nothing if a code
    leaves int32 (then the bias stays float in the QDQ graph).
    """
    codes = np.rint(np.asarray(bias, np.float64) / scale.astype(np.float64))
    if not np.isfinite(codes).all() or np.abs(codes).max(initial=0) >= 2**31:
        return None
    stored = graph.add_const(f"{name}_codes", codes.astype(np.int32))
    inputs = [
        stored,
        graph.add_const(f"{name}_scale", np.asarray(scale, np.float32)),
        graph.add_const(f"{name}_zero_point", np.zeros(scale.shape, np.int32)),
    ]
    node = graph.add_node(
        "DequantizeLinear",
        inputs,
        {"axis": 0},
        before=before,
        name=_node_name(graph, f"{name}/dequantize"),
        outputs=[f"{name}_dequantized"],
    )
    node.metadata_props[FORMAT_KEY] = BIAS_TOKEN
    describe(node.outputs[0], ir.Shape(bias.shape), ir.DataType.FLOAT)
    return node.outputs[0]


def _node_name(graph: Graph, base: str) -> str:
    """`base`, or numbered: layers may share a weight or a bias, and onnxruntime refuses two nodes of one name."""
    taken, name, i = {node.name for node in graph.ir}, base, 0
    while name in taken:
        i += 1
        name = f"{base}_{i}"
    return name


def is_quantizer(node: ir.Node | None) -> bool:
    """Whether `node` ends a quantizer: DequantizeLinear, or one of `QUANTIZERS`."""
    if node is None:
        return False
    return node.op_type == "DequantizeLinear" or (node.domain == DOMAIN and node.op_type in QUANTIZERS)


def read_quantizer(graph: Graph, node: ir.Node) -> Quantized:
    """What the quantizer that ends in `node` says. Raises ModelError when its parameters are not constants."""
    source = node.inputs[0]
    assert source is not None
    params = _read_params(graph, node)
    if node.domain == DOMAIN and node.op_type in QUANTIZERS:
        array = graph.const(source)
        return Quantized(params, source, None if array is None else quantize(array, params))
    codes = graph.const(source)
    if codes is not None and isinstance(params.format, Minifloat):
        return Quantized(params, source, minifloats.read_codes(codes, params.format, str(source.name)))
    if codes is not None:
        return Quantized(params, source, codes.astype(np.int32 if codes.dtype == np.int32 else params.format.storage))
    low = high = None
    producer: Any = source.producer()
    if producer is not None and producer.op_type == "Clip":
        low, high = (graph.const(value) for value in (*producer.inputs[1:3], None, None)[:2])
        producer = producer.inputs[0].producer()
    if producer is None or producer.op_type != "QuantizeLinear":
        raise ModelError(
            f"DequantizeLinear `{node.name}` reads `{source.name}`, which no QuantizeLinear or constant makes.",
            where=graph.path,
        )
    if FORMAT_KEY not in node.metadata_props and low is not None and high is not None:
        params = QuantParams(_format_of_range(int(low), int(high)), params.scale, params.zero_point, params.axis)
    return Quantized(params, producer.inputs[0], None)


def read_bias(graph: Graph, node: ir.Node) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
    """Codes int32 [M] and scale float32 [M] of a bias written by `write_bias`, or None if `node` is something else."""
    if node.op_type != "DequantizeLinear":
        return None
    codes, scale = graph.const(node.inputs[0]), graph.const(node.inputs[1])
    if codes is None or scale is None or codes.dtype != np.int32:
        return None
    return codes, np.broadcast_to(scale, codes.shape)


def quantizer_of(graph: Graph, value: ir.Value | None) -> Quantized | None:
    """The quantizer that makes `value`, or None if `value` is not the output of one (or is a bias)."""
    node = None if value is None else value.producer()
    if node is None or not is_quantizer(node) or read_bias(graph, node) is not None:
        return None
    return read_quantizer(graph, node)


def dequantized_values(graph: Graph) -> dict[str, str]:
    """Name of each quantized activation -> name of the value that holds it quantized and dequantized.

    A graph output goes by its own name, which the dequantized value has taken over.
    """
    found = {}
    for node in graph.nodes():
        if not is_quantizer(node):
            continue
        output = node.outputs[0]
        read = quantizer_of(graph, output)
        if read is not None and read.codes is None:
            name = output.name if output.is_graph_output() else read.source.name
            found[str(name)] = str(output.name)
    return found


def _fills_storage(fmt: Int) -> bool:
    return fmt.bits in (8, 16) and not fmt.narrow


def _axis(params: QuantParams) -> dict[str, int]:
    return {} if params.axis is None else {"axis": params.axis}


def _parameters(graph: Graph, params: QuantParams, name: str) -> tuple[ir.Value, ir.Value]:
    scale = graph.add_const(f"{name}_scale", params.scale)
    zero_point = graph.add_const(f"{name}_zero_point", params.zero_point.astype(params.format.storage))
    return scale, zero_point


def _first_user(graph: Graph, value: ir.Value) -> ir.Node | None:
    users = {use.node for use in value.uses()}
    return next((node for node in graph.ir if node in users), None)


def _format_of_range(low: int, high: int) -> Int:
    signed = low < 0
    bits = (high + 1).bit_length() - 1 + signed
    return Int(bits, signed=signed, narrow=signed and low == -high)


_TYPES = {
    getattr(ir.DataType, fmt.token.upper()): fmt
    for fmt in (Int(bits, signed) for bits in (2, 4, 8, 16) for signed in (True, False))
    if hasattr(ir.DataType, fmt.token.upper())  # onnx-ir has 2 bits since 0.1.13
}
FLOATS = {
    ir.DataType.FLOAT8E4M3FN: OCP["float8e4m3fn"],
    ir.DataType.FLOAT8E5M2: OCP["float8e5m2"],
    ir.DataType.FLOAT4E2M1: Minifloat(2, 1),
}
"""ONNX's types of few-bit floats."""


def _read_params(graph: Graph, node: ir.Node) -> QuantParams:
    scale = graph.const(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = np.zeros((), np.int64) if given is None else graph.const(given)
    if scale is None or zero_point is None:
        raise ModelError(f"scale and zero point of `{node.name}` must be constants.", where=graph.path)
    token = node.metadata_props.get(FORMAT_KEY) or attribute(node, "format")
    stored = given if given is not None else node.inputs[0]
    dtype = stored.dtype if stored is not None else None
    known: dict[ir.DataType, NumberFormat] = {**_TYPES, **FLOATS}
    fmt = parse_format(token) if token else known.get(dtype)  # type: ignore[arg-type]
    if fmt is None:
        raise ModelError(f"`{node.name}` quantizes to {dtype}, which is no format that we know.", where=graph.path)
    if given is None and node.op_type == "DequantizeLinear" and graph.const(node.inputs[0]) is None and not token:
        fmt = Int(8, signed=False)  # QuantizeLinear's default without a zero point
    axis = attribute(node, "axis")
    if scale.ndim == 0 or (scale.size == 1 and axis is None):
        axis = None
    elif axis is None:
        axis = 1  # the default of ONNX
    scale = scale.reshape(()) if axis is None else scale
    if isinstance(fmt, Minifloat):
        if np.asarray(zero_point).astype(np.float32).any():
            raise ModelError(f"`{node.name}` has a zero point, which {fmt.token} has not.", where=graph.path)
        return QuantParams(fmt, scale * np.float32(fmt.unit) if dtype in FLOATS else scale, axis=axis)
    zero_point = zero_point.astype(np.int64)
    return QuantParams(fmt, scale, zero_point.reshape(()) if zero_point.size == 1 else zero_point, axis)


def strip_quantizers(graph: Graph) -> Graph:
    """Take all quantizers out, in place: a float graph of the same structure, with the dequantized weights."""
    for node in graph.nodes():
        if not is_quantizer(node):
            continue
        bias = read_bias(graph, node)
        if bias is not None:
            constant = graph.add_const(f"{node.outputs[0].name}_float", (bias[0] * bias[1]).astype(np.float32))
            graph.bypass(node, constant)
            continue
        quantized = read_quantizer(graph, node)
        if quantized.codes is None:
            graph.bypass(node, quantized.source)
        else:
            array = dequantize(quantized.codes, quantized.params)
            graph.bypass(node, graph.add_const(f"{node.outputs[0].name}_float", array))
    graph.sweep()
    return graph
