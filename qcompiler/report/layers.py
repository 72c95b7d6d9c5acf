"""How well every quantized value follows the float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.calibrate.statistics import with_outputs
from qcompiler.evaluate import BEST_DB
from qcompiler.execute.ort import Session
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import dequantized_values

if TYPE_CHECKING:
    from qcompiler.driver import Result


Quality = Mapping[str, float]
"""Value name -> SQNR in dB."""


def layer_quality(result: Result, quality: Quality, rounded: Quality) -> list[dict[str, Any]]:
    """Name, operator, format and SQNR of every integer value whose float counterpart still has its name; rounded: the
    SQNR before any pass refined the QDQ graph."""
    assert result.integer_graph is not None
    integer = {str(value.name): value for value in result.integer_graph.values()}
    rows = []
    for name, db in quality.items():
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
                "sqnr_db": db,
                "sqnr_db_rounded": rounded.get(name),
            }
        )
    return rows


def value_quality(
    reference: Graph,
    quantized: Graph,
    samples: Sequence[Mapping[str, NDArray]],
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, float]:
    """SQNR in dB of every quantized value of a QDQ graph that the float graph `reference` knows by name."""
    pairs = dequantized_values(quantized)
    known = {value.name for value in reference.values()}
    names = [name for name in pairs if name in known]
    if not names:
        return {}
    exact = Session(with_outputs(reference, names))
    rounded = Session(with_outputs(quantized, [pairs[name] for name in names]))
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for done, sample in enumerate(samples, 1):
        progress("evaluate layers", done, len(samples))
        got = rounded.run(sample, [pairs[name] for name in names])
        for i, (a, b) in enumerate(zip(exact.run(sample, names), got, strict=True)):
            signal[i] += float((a.astype(np.float64) ** 2).sum())
            noise[i] += float(((a.astype(np.float64) - b) ** 2).sum())
    ratio = [BEST_DB if n == 0 else 10 * float(np.log10(max(s, 1e-30) / n)) for s, n in zip(signal, noise, strict=True)]
    return dict(zip(names, (round(db, 2) for db in ratio), strict=True))


def step_quality(
    result: Result, samples: Sequence[Mapping[str, NDArray]], progress: Callable[[str, int, int], None]
) -> list[dict[str, float]]:
    """`value_quality` behind every pass that made or refined the QDQ graph: the first is plain rounding, the last what
    came of it."""
    return [value_quality(_prepared(result), graph, samples, progress) for _, graph in result.steps]


def describe_steps(result: Result, qualities: Sequence[Quality]) -> list[dict[str, Any]]:
    """What these passes cost and won: seconds, mean SQNR of all values that are not exact, and that of the outputs."""
    assert result.qdq_graph is not None
    outputs = [str(value.name) for value in result.qdq_graph.outputs]
    rows = []
    for (name, _), quality in zip(result.steps, qualities, strict=True):
        inexact = [db for db in quality.values() if db < BEST_DB] or list(quality.values())
        last = [quality[output] for output in outputs if output in quality]
        rows.append(
            {
                "pass": name,
                "seconds": round(result.seconds.get(name, 0.0), 3),
                "mean_sqnr_db": round(float(np.mean(inexact)), 2) if inexact else None,
                "output_sqnr_db": round(float(np.mean(last)), 2) if last else None,
            }
        )
    return rows


def _prepared(result: Result) -> Graph:
    """The prepared float graph: in the one as loaded, a Conv before BatchNormalization holds another value."""
    return result.context.float_graph or result.float_graph


def _weight_format(node: ir.Node) -> str:
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul") or node.inputs[1] is None:
        return ""
    return str(node.inputs[1].metadata_props.get("qcompiler.format", ""))
