"""How well every quantized value follows the float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.calibrate.statistics import with_outputs
from qcompiler.execute.ort import Session
from qcompiler.graph.qdq import dequantized_values

if TYPE_CHECKING:
    from qcompiler.driver import Result


def layer_quality(
    result: Result, samples: Sequence[Mapping[str, NDArray]], progress: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    """Name, operator, format and SQNR of every integer value whose float counterpart still has its name."""
    assert result.qdq_graph is not None and result.integer_graph is not None
    pairs = dequantized_values(result.qdq_graph)
    # The prepared float graph: in the one as loaded, a Conv before BatchNormalization holds another value.
    prepared = result.context.float_graph or result.float_graph
    known = {value.name for value in prepared.values()}
    names = [name for name in pairs if name in known]
    reference = Session(with_outputs(prepared, names))
    quantized = Session(with_outputs(result.qdq_graph, [pairs[name] for name in names]))
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for done, sample in enumerate(samples, 1):
        progress("evaluate layers", done, len(samples))
        for i, (a, b) in enumerate(
            zip(reference.run(sample, names), quantized.run(sample, [pairs[n] for n in names]), strict=True)
        ):
            signal[i] += float((a.astype(np.float64) ** 2).sum())
            noise[i] += float(((a.astype(np.float64) - b) ** 2).sum())
    integer = {str(value.name): value for value in result.integer_graph.values()}
    rows = []
    for i, name in enumerate(names):
        value = integer.get(name)
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear":  # a graph output goes by its own name
            value = producer.inputs[0]
            producer = value.producer() if value is not None else None
        if value is None or producer is None:
            continue
        rows.append(
            {
                "name": name,
                "operator": producer.op_type,
                "format": value.metadata_props.get("qcompiler.format", ""),
                "weight_format": _weight_format(producer),
                "sqnr_db": round(200.0 if noise[i] == 0 else 10 * float(np.log10(max(signal[i], 1e-30) / noise[i])), 2),
            }
        )
    return rows


def _weight_format(node: ir.Node) -> str:
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul") or node.inputs[1] is None:
        return ""
    return str(node.inputs[1].metadata_props.get("qcompiler.format", ""))
