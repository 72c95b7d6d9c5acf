"""Integer graph -> program: one rule an operator, in a plain table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from qcompiler.errors import UnsupportedError
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import Graph, operator_key
from qcompiler.targets.shared import layout
from qcompiler.targets.shared.lower_attention import lower_batch_matmul
from qcompiler.targets.shared.lower_choice import (
    lower_arg_extreme,
    lower_cast,
    lower_compare,
    lower_extreme,
    lower_reduce_extreme,
    lower_select,
    lower_slope,
    lower_top_k,
)
from qcompiler.targets.shared.lower_fold import lower_length, lower_tile
from qcompiler.targets.shared.lower_interpolate import lower_interpolate
from qcompiler.targets.shared.lower_island import lower_island
from qcompiler.targets.shared.lower_movement import (
    lower_concat,
    lower_depth_to_space,
    lower_expand,
    lower_identity,
    lower_pad,
    lower_reshape,
    lower_resize,
    lower_slice,
    lower_split,
    lower_transpose,
)
from qcompiler.targets.shared.lower_pointwise import (
    lower_add,
    lower_dequantize,
    lower_div,
    lower_log_encode,
    lower_mul,
    lower_quantize,
    lower_requantize,
    lower_table,
)
from qcompiler.targets.shared.lower_products import lower_conv, lower_conv_transpose, lower_matmul
from qcompiler.targets.shared.lower_sequence import (
    lower_cache_write,
    lower_gather,
    lower_normalize,
    lower_piecewise,
    lower_softmax,
)
from qcompiler.targets.shared.lower_windows import lower_pool, lower_reduce_mean
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.stream import Chain, lower_chain

Rule = Callable[[Program, ir.Node], None]

RULES: dict[str, Rule] = {
    "qcompiler::Add": lower_add,
    "qcompiler::AveragePool": lower_pool,
    "qcompiler::BatchMatMul": lower_batch_matmul,
    "qcompiler::CacheWrite": lower_cache_write,
    "qcompiler::Compare": lower_compare,
    "qcompiler::Conv": lower_conv,
    "qcompiler::ConvTranspose": lower_conv_transpose,
    "qcompiler::Div": lower_div,
    "qcompiler::Interpolate": lower_interpolate,
    "qcompiler::LogEncode": lower_log_encode,
    "qcompiler::MatMul": lower_matmul,
    "qcompiler::MaxPool": lower_pool,
    "qcompiler::Mul": lower_mul,
    "qcompiler::Normalize": lower_normalize,
    "qcompiler::Piecewise": lower_piecewise,
    "qcompiler::ReduceL2": lower_length,
    "qcompiler::ReduceMax": lower_reduce_extreme,
    "qcompiler::ReduceMean": lower_reduce_mean,
    "qcompiler::ReduceMin": lower_reduce_extreme,
    "qcompiler::Requantize": lower_requantize,
    "qcompiler::Select": lower_select,
    "qcompiler::Slope": lower_slope,
    "qcompiler::Softmax": lower_softmax,
    "qcompiler::Table": lower_table,
    "ArgMax": lower_arg_extreme,
    "ArgMin": lower_arg_extreme,
    "Cast": lower_cast,
    "Concat": lower_concat,
    "DepthToSpace": lower_depth_to_space,
    "DequantizeLinear": lower_dequantize,
    "Expand": lower_expand,
    "Gather": lower_gather,
    "Identity": lower_identity,
    "Max": lower_extreme,
    "Min": lower_extreme,
    "Pad": lower_pad,
    "QuantizeLinear": lower_quantize,
    "Reshape": lower_reshape,
    "Resize": lower_resize,
    "Slice": lower_slice,
    "Split": lower_split,
    "Tile": lower_tile,
    "TopK": lower_top_k,
    "Transpose": lower_transpose,
}


def check_operators(graph: Graph, target: str, *, floats: bool = False) -> None:
    """Raise UnsupportedError, naming every node without a rule, before any work is done. floats: islands have one."""
    missing = [n for n in graph.nodes() if (not floats if is_island(n) else operator_key(n) not in RULES)]
    if missing:
        names = ", ".join(f"{node.op_type} (node `{node.name}`)" for node in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UnsupportedError(
            f"no lowering for {names}{more}.",
            where=f"target `{target}`",
            hint="Exclude these nodes from the model or open an issue with the operator's attributes.",
        )


def lower(
    graph: Graph,
    machine: Machine,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    streams: tuple[Chain, ...] = (),
    states: Mapping[str, str] | None = None,
    rules: Mapping[str, Rule] = RULES,
) -> Program:
    """The finished program of an INTEGER graph for one machine. streams: chains to be done in bands (stream.py).
    states: outputs kept for the next run -> the inputs that they become; both hold the same kind of codes.
    rules: a target's own in place of some of RULES."""
    program = Program(graph, machine, states=states or {})
    layout.assign(program)
    nodes = graph.nodes()
    named = {str(node.name): node for node in nodes}
    last = {chain[-1]: chain for chain in streams}
    inside = {name for chain in streams for name in chain}
    for i, node in enumerate(nodes):
        progress("lower", i, len(nodes))
        program.node = node.name or node.op_type
        if node.name in last:
            lower_chain(program, [named[name] for name in last[str(node.name)]])
        elif node.name not in inside:
            rule = lower_island if is_island(node) else rules[operator_key(node)]
            rule(program, node)
    program.keep_states()
    program.finish()
    progress("lower", len(nodes), len(nodes))
    return program
