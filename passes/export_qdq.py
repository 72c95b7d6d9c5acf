"""Respell the quantizers of a QDQ graph for other tools; every form means the same, bit for bit.

qcdq       QuantizeLinear, Clip on the codes, DequantizeLinear, in 8- and 16-bit storage: what insert_qdq writes
standard   constants of 4 bits (and 2 bits, from operator set 25) in ONNX's own types, the others as qcdq;
           activations too with `packed_activations` (onnxruntime 1.32 optimizes such files only without a Clip before)
functions  one node `qcompiler::FakeQuantize(x, scale, zero_point)` a quantizer, with a function body of standard
           operators in the model, so that it runs in any runtime; constants stay float, on the grid of their format

Minifloats have constants of levels or 8-bit floats and functions for activations (qcompiler/graph/minifloats.py) in the
forms qcdq and standard; standard spells e2m1 as float4e2m1 where `float4` asks for it.

Biases are int32 DequantizeLinear in every form, and logarithmic quantizers are `qcompiler::LogQuantize`, whose function
body any runtime runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcompiler.context import Context
from qcompiler.errors import RecipeError
from qcompiler.formats import Blocks, Log, Minifloat, NumberFormat, QuantParams
from qcompiler.graph import minifloats, qdq
from qcompiler.graph.model import DOMAIN, Graph
from qcompiler.graph.stages import Stage
from qcompiler.quantizer import dequantize

STAGE = (Stage.QDQ, Stage.QDQ)
FORMS = ("qcdq", "standard", "functions")
TWO_BIT_OPSET = 25
FLOAT4_OPSET, FLOAT4_IR = 23, 11


@dataclass(frozen=True, kw_only=True)
class Options:
    form: str = "standard"
    """qcdq, standard or functions."""
    two_bit: bool = False
    """Raise the operator set to 25 to spell 2 bits as ONNX's own type (few runtimes have it)."""
    float4: bool = False
    """Raise the operator set to 23 to spell e2m1 as ONNX's own float4e2m1 (onnxruntime 1.32 does not run it)."""
    packed_activations: bool = False
    """Own types for activations as well, in the form `standard`."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Respell in place. Raises RecipeError for an unknown form."""
    if options.form not in FORMS:
        raise RecipeError(f"`{options.form}` is no form.", where="export_qdq", hint=f"Forms are {', '.join(FORMS)}.")
    for node in graph.nodes():
        if not qdq.is_quantizer(node) or qdq.read_bias(graph, node) is not None:
            continue
        read = qdq.read_quantizer(graph, node)
        if isinstance(read.params.format, Log | Blocks):
            continue  # it has one spelling
        if isinstance(read.params.format, Minifloat):
            _minifloat(graph, node, read, options)
        elif options.form == "functions":
            _as_function(graph, node, read)
        elif _has_own_type(read, options):
            _as_type(graph, node, read, options)
        else:
            _as_qcdq(graph, node, read)
    graph.sweep()
    return graph


def _has_own_type(read: qdq.Quantized, options: Options) -> bool:
    if options.form != "standard" or read.codes is None and not options.packed_activations:
        return False
    return _own_type(read.params.format, options) is not None


def _own_type(fmt: NumberFormat, options: Options) -> np.dtype | None:
    """ONNX's packed type that is the format, None if it has none."""
    if fmt.narrow or fmt.bits not in ((2, 4) if options.two_bit else (4,)):
        return None
    return np.dtype(getattr(ml_dtypes, fmt.token))


def _replace(node: ir.Node, new: ir.Value) -> None:
    old = node.outputs[0]
    name, is_output = old.name, old.is_graph_output()
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)
    if is_output and old.graph is not None:
        outputs = old.graph.outputs
        outputs[outputs.index(old)] = new
    old.name, new.name = f"{name}_before", name


def _prefix(read: qdq.Quantized, node: ir.Node) -> str:
    return (node.name or read.source.name or "value").removesuffix("/dequantize")


def _as_qcdq(graph: Graph, node: ir.Node, read: qdq.Quantized) -> None:
    if node.op_type == "DequantizeLinear" and not _packed(node):
        return
    name = _prefix(read, node)
    if read.codes is None:
        new = qdq.write_quantizer(graph, read.source, read.params, name=name)
    else:
        value = graph.add_const(f"{name}_values", dequantize(read.codes, read.params))
        new = qdq.write_constant(graph, value, read.params, name=name, codes=read.codes, before=node)
    _replace(node, new)


def _packed(node: ir.Node) -> bool:
    stored = node.inputs[0].dtype if node.inputs[0] is not None else None
    return stored is not None and stored.bitwidth < 8


def _as_type(graph: Graph, node: ir.Node, read: qdq.Quantized, options: Options) -> None:
    dtype = _own_type(read.params.format, options)
    assert dtype is not None
    if read.params.format.bits == 2:
        graph.model.graph.opset_imports[""] = max(graph.opset, TWO_BIT_OPSET)
    name = _prefix(read, node)
    params = read.params
    scale = graph.add_const(f"{name}_scale", params.scale)
    zero_point = graph.add_tensor(f"{name}_zero_point", ir.tensor(params.zero_point.astype(np.int8).astype(dtype)))
    if read.codes is None:
        codes = _quantize(graph, node, read, scale, zero_point, _axis(params))
    else:
        codes = graph.add_tensor(f"{name}_codes", ir.tensor(read.codes.astype(dtype)))
    _dequantize(graph, node, read, codes, scale, zero_point)


def _axis(params: QuantParams) -> dict[str, int]:
    return {} if params.axis is None else {"axis": params.axis}


def _quantize(
    graph: Graph, node: ir.Node, read: qdq.Quantized, scale: ir.Value, zero_point: ir.Value, axis: dict[str, int]
) -> ir.Value:
    """A QuantizeLinear of what `node` quantizes, to the type of the zero point; returns the codes."""
    name = _prefix(read, node)
    new = graph.add_node("QuantizeLinear", [read.source, scale, zero_point], axis, before=node,
                         name=f"{name}/quantize", outputs=[f"{name}_codes"])  # fmt: skip
    codes = new.outputs[0]
    codes.shape, codes.type = read.source.shape, ir.TensorType(zero_point.dtype)  # type: ignore[arg-type]
    return codes


def _dequantize(
    graph: Graph, node: ir.Node, read: qdq.Quantized, codes: ir.Value, scale: ir.Value, zero_point: ir.Value
) -> None:
    """A DequantizeLinear in the place of `node`."""
    new = graph.add_node("DequantizeLinear", [codes, scale, zero_point], _axis(read.params), before=node,
                         name=f"{_prefix(read, node)}/dequantize", like=node.outputs[0])  # fmt: skip
    new.metadata_props[qdq.FORMAT_KEY] = read.params.format.token
    _replace(node, new.outputs[0])


def _minifloat(graph: Graph, node: ir.Node, read: qdq.Quantized, options: Options) -> None:
    if options.form == "functions":
        _as_function(graph, node, read)
        return
    fmt, name = read.params.format, _prefix(read, node)
    assert isinstance(fmt, Minifloat)
    if options.form != "standard" or not options.float4 or fmt.token != "e2m1":
        return
    if read.codes is None and not options.packed_activations:
        return
    graph.model.graph.opset_imports[""] = max(graph.opset, FLOAT4_OPSET)
    graph.model.ir_version = max(graph.model.ir_version, FLOAT4_IR)
    dtype = minifloats.own_type(fmt)
    assert dtype is not None
    scale = graph.add_const(f"{name}_scale", minifloats.stored_scale(read.params, dtype))
    zero_point = graph.add_tensor(f"{name}_zero_point", ir.tensor(np.zeros(read.params.scale.shape, dtype)))
    if read.codes is None:
        codes = _quantize(graph, node, read, scale, zero_point, {})
    else:
        codes = graph.add_tensor(
            f"{name}_codes", ir.tensor(minifloats.stored_codes(read.codes, fmt, name, dtype))
        )
    _dequantize(graph, node, read, codes, scale, zero_point)


def _as_function(graph: Graph, node: ir.Node, read: qdq.Quantized) -> None:
    if node.domain == DOMAIN:
        return
    name, source = _prefix(read, node), read.source
    if read.codes is not None:
        source = graph.add_const(f"{name}_values", dequantize(read.codes, read.params))
    _replace(node, qdq.write_fake_quantize(graph, source, read.params, name=name, before=node))
