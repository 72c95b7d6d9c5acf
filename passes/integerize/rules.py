"""How each float operator of a QDQ graph becomes an integer operator: one rule an operator, in a plain table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.formats import QuantParams
from qcompiler.graph.model import Graph
from qcompiler.passes.integerize import elementwise, movement, products, windows
from qcompiler.passes.integerize.writer import Writer


@dataclass(frozen=True)
class Rule:
    """refuses(graph, node) -> reason or ''; write(writer, node, output parameters, output name) -> codes."""

    write: Callable[[Writer, ir.Node, QuantParams, str], ir.Value]
    refuses: Callable[[Graph, ir.Node], str]


RULES: dict[str, Rule] = {
    "Add": Rule(elementwise.write_add, elementwise.refuses_pair),
    "AveragePool": Rule(windows.write_average_pool, windows.refuses_max_pool),
    "Conv": Rule(products.write_conv, products.needs_weight),
    "ConvTranspose": Rule(products.write_conv, products.needs_weight),
    "Div": Rule(elementwise.write_div, elementwise.refuses_div),
    "Gemm": Rule(products.write_matmul, products.refuses_gemm),
    "GlobalAveragePool": Rule(windows.write_mean, windows.refuses_mean),
    "GlobalMaxPool": Rule(windows.write_max_pool, windows.refuses_max_pool),
    "MatMul": Rule(products.write_matmul, products.refuses_matmul),
    "MaxPool": Rule(windows.write_max_pool, windows.refuses_max_pool),
    "Mul": Rule(elementwise.write_mul, elementwise.refuses_pair),
    "ReduceMean": Rule(windows.write_mean, windows.refuses_mean),
    "ReduceSum": Rule(windows.write_mean, windows.refuses_mean),
    "Softmax": Rule(windows.write_softmax, movement.reads_unquantized),
    "Sub": Rule(elementwise.write_add, elementwise.refuses_pair),
    **{name: Rule(movement.write, movement.refuses) for name in movement.MOVEMENT},
}
