"""Respell the quantizers of a QDQ graph for other tools; every form means the same, bit for bit.

qcdq       QuantizeLinear, Clip on the codes, DequantizeLinear, in 8- and 16-bit storage: what insert_qdq writes
standard   constants of 4 bits (and 2 bits, from operator set 25) in ONNX's own types, the others as qcdq;
           activations too with `packed_activations` (onnxruntime 1.32 optimizes such files only without a Clip before)
functions  one node `qcompiler::FakeQuantize(x, scale, zero_point)` a quantizer, with a function body of standard
           operators in the model, so that it runs in any runtime; constants stay float, on the grid of their format

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
from qcompiler.formats import Log, NumberFormat
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage
from qcompiler.quantizer import dequantize

STAGE = (Stage.QDQ, Stage.QDQ)
FORMS = ("qcdq", "standard", "functions")
TWO_BIT_OPSET = 25


@dataclass(frozen=True, kw_only=True)
class Options:
    form: str = "standard"
    """qcdq, standard or functions."""
    two_bit: bool = False
    """Raise the operator set to 25 to spell 2 bits as ONNX's own type (few runtimes have it)."""
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
        if isinstance(read.params.format, Log):
            continue  # it has one spelling
        if options.form == "functions":
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
    axis = {} if params.axis is None else {"axis": params.axis}
    if read.codes is None:
        quantize = graph.add_node("QuantizeLinear", [read.source, scale, zero_point], axis, before=node,
                                  name=f"{name}/quantize", outputs=[f"{name}_codes"])  # fmt: skip
        codes = quantize.outputs[0]
        codes.shape, codes.type = read.source.shape, ir.TensorType(zero_point.dtype)  # type: ignore[arg-type]
    else:
        codes = graph.add_tensor(f"{name}_codes", ir.tensor(read.codes.astype(dtype)))
    new = graph.add_node("DequantizeLinear", [codes, scale, zero_point], axis, before=node,
                         name=f"{name}/dequantize", like=node.outputs[0])  # fmt: skip
    new.metadata_props[qdq.FORMAT_KEY] = params.format.token
    _replace(node, new.outputs[0])


def _as_function(graph: Graph, node: ir.Node, read: qdq.Quantized) -> None:
    if node.op_type == qdq.FAKE_QUANTIZE:
        return
    name, source = _prefix(read, node), read.source
    if read.codes is not None:
        source = graph.add_const(f"{name}_values", dequantize(read.codes, read.params))
    _replace(node, qdq.write_fake_quantize(graph, source, read.params, name=name, before=node))
