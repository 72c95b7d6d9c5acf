"""Write what a TorchGraph has learned into the QDQ graph that it was made from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import CalibrationError
from qcompiler.execute.torch.graph import TorchGraph
from qcompiler.execute.torch.parts import quantizes
from qcompiler.execute.torch.quantizer import Quantizer
from qcompiler.formats import Minifloat, QuantParams
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph, attribute
from qcompiler.graph.stages import Stage, check
from qcompiler.quantizer import quantize

BIAS_LIMIT = 2.0**30
"""Largest code of a bias: what int32 accumulators can take, see insert_qdq."""


def store(module: TorchGraph, graph: Graph) -> Graph:
    """Change scales, zero points, codes and float constants of `graph` in place; formats stay.

    Quantized weights that were float (or trainable) are quantized anew. Biases keep their float value: their codes and
    scales follow s_x * s_w. Where nothing was learned, nothing changes. Raises CalibrationError for a learned scale
    that is not positive, a weight or bias that is not finite, and a bias that leaves 30 bits at its new scale.
    """
    by_name = {str(value.name): value for value in graph.values()}
    weights = {name: tensor.detach().cpu().float().numpy() for name, tensor in module.weights.items()}
    for name, array in weights.items():
        if not np.isfinite(array).all():
            hint = "Lower the learning rate."
            raise CalibrationError(f"`{name}` became NaN or infinite.", where=graph.path, hint=hint)
    biases = {node: values for node in graph.nodes() if (values := _float_bias(graph, node, weights)) is not None}
    for name, quantizer in module.quantizers.items():
        node = by_name[name].producer()
        if isinstance(quantizer, Quantizer) and node is not None:
            _write_params(graph, node, quantizer.params())
    for node in graph.nodes("DequantizeLinear"):
        if node in biases or graph.const(node.inputs[0]) is None:
            continue
        _write_codes(graph, node, module, weights)
    quantized = {str(node.inputs[0].name) for node in graph.nodes("DequantizeLinear") if node.inputs[0] is not None}
    for name, array in weights.items():
        if name in by_name and name not in quantized:
            graph.set_const(by_name[name], array)
    for product in graph.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
        _write_bias(graph, product, biases)
    check(graph, Stage.QDQ)
    return graph


def _float_bias(graph: Graph, node: ir.Node, learned: dict[str, NDArray]) -> NDArray[np.float64] | None:
    read = qdq.read_bias(graph, node)
    if read is None or node.inputs[0] is None:
        return None
    given = learned.get(str(node.inputs[0].name))
    return (read[0].astype(np.float64) * read[1]) if given is None else given.astype(np.float64)


def _write_params(graph: Graph, node: ir.Node, params: QuantParams) -> None:
    if qdq.read_quantizer(graph, node).params == params:
        return
    if isinstance(params.format, Minifloat) and graph.const(node.inputs[0]) is not None:
        qdq.set_constant(graph, node, params)
        return
    members = {node, *(quantizes(node.inputs[0]) if node.inputs[0] is not None else ())}
    ends = [one for one in members if one.op_type != "Clip"]
    arrays: tuple[NDArray, ...] = (params.scale, params.zero_point)
    if isinstance(params.format, Minifloat):
        ends_in = node.inputs[0].dtype if node.inputs[0] is not None else None
        arrays = (qdq.scale_beside(params, ends_in),)
    for index, array in enumerate(arrays, start=1):
        old = node.inputs[index] if len(node.inputs) > index else None
        if old is None:
            if array.any():
                raise CalibrationError(f"`{node.name}` has no zero point that could learn.", where=graph.path)
            continue
        constant = graph.const(old)
        assert constant is not None
        array = np.asarray(array, constant.dtype).reshape(constant.shape)
        if {use.node for use in old.uses()} <= members:
            graph.set_const(old, array)
        else:
            new = graph.add_const(str(old.name), array)
            for one in ends:
                one.replace_input_with(index, new)


def _write_codes(graph: Graph, node: ir.Node, module: TorchGraph, weights: dict[str, NDArray]) -> None:
    """Codes of a weight that was float in the module."""
    source = node.inputs[0]
    assert source is not None
    name, output = str(source.name), str(node.outputs[0].name)
    params = qdq.read_quantizer(graph, node).params
    array = weights.get(name)
    if array is None and output in module.quantizers:
        array = module({}, [name])[name][0].detach().cpu().float().numpy()
    if array is not None:
        codes = quantize(array, params)
        if isinstance(params.format, Minifloat):
            qdq.set_constant(graph, node, params, codes)
        else:
            graph.set_const(source, codes)


def _write_bias(graph: Graph, product: ir.Node, biases: dict[ir.Node, NDArray[np.float64]]) -> None:
    """New codes and scale of the bias of a product (MatMul has it in the Add behind it)."""
    x, w = (qdq.quantizer_of(graph, value) for value in product.inputs[:2])
    at = product
    if product.op_type == "MatMul":
        user = graph.sole_user(product.outputs[0])
        if user is None or user.op_type != "Add":
            return
        at = user
    node = next((m for v in at.inputs if v is not None and (m := v.producer()) in biases), None)
    if x is None or w is None or node is None:
        return
    values = biases[node]
    scale = x.params.scale * w.params.scale * np.float32(attribute(product, "alpha", 1.0))
    if scale.size not in (1, values.size):  # grouped ConvTranspose: the channels of every group
        scale = np.tile(scale, values.size // scale.size)
    scale = np.broadcast_to(scale.reshape(-1), values.shape).astype(np.float32)
    read = qdq.read_bias(graph, node)
    assert read is not None and node.inputs[0] is not None and node.inputs[1] is not None
    codes = np.rint(values / scale.astype(np.float64))
    if np.abs(codes).max(initial=0) >= BIAS_LIMIT:
        raise CalibrationError(
            f"the bias of `{product.name}` does not fit 30 bits at its learned scale.",
            where=graph.path,
            hint="Lower the learning rate of scales.",
        )
    if not np.array_equal(scale, read[1]):
        graph.set_const(node.inputs[1], scale)
    if not np.array_equal(codes, read[0]):
        graph.set_const(node.inputs[0], codes.astype(np.int32))
