"""QDQ graph -> INTEGER graph: every quantizer and the float operators above it become one integer operator.

For each activation quantizer, in topological order: what lies between it and the quantizers above it is
1. nothing (a graph input): QuantizeLinear;
2. unary functions of one quantized value: one Table (float64, rounded once);
3. one operator of `rules.RULES`, with a Relu or Clip behind it: the operator, whose saturation performs
   the clip; a clip that cuts inside the range of the codes adds a Table;
4. the end of a float island: its nodes stay, between DequantizeLinear and QuantizeLinear (island.py).
A minifloat's levels stand in the integer graph: what multiplies rounds its accumulator to them, what only moves values
moves them, and behind integers a Table or Requantize makes them.
A logarithmic quantizer reads a quantized value (1 of a Table or LogEncode), and a Table of its levels follows it.
Everything else is refused, all of it in one error, before any work is done.

Quantization is monotonic, so quantize(clip(x)) = clip(quantize(x)): fusing a clip changes no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from qcompiler.assignment import is_float, scaled_product
from qcompiler.context import Context
from qcompiler.errors import UnsupportedError
from qcompiler.formats import Log, Minifloat, QuantParams
from qcompiler.graph import stages
from qcompiler.graph.islands import is_island
from qcompiler.graph.model import DOMAIN, Graph
from qcompiler.graph.qdq import is_quantizer, quantizer_of, read_bias, read_quantizer
from qcompiler.graph.stages import Stage
from qcompiler.ops.functions import CLIPS
from qcompiler.passes.integerize import integers
from qcompiler.passes.integerize.minifloats import all_levels, refuses_minifloat, requantizes
from qcompiler.passes.integerize.piecewise import write_function
from qcompiler.passes.integerize.rules import rule_of
from qcompiler.passes.integerize.unary import apply_functions, function_input
from qcompiler.passes.integerize.writer import Writer, level_params
from qcompiler.quantizer import quantize

STAGE = (Stage.QDQ, Stage.INTEGER)


@dataclass(frozen=True, kw_only=True)
class Options:
    arithmetic: str = "float"
    """Requantization: float (one float32 multiply) or fixed (int32 multiplier and rounding shift)."""


@dataclass
class Region:
    """What lies above one quantizer: `functions` from the bottom up, and the operator under them, if any."""

    params: QuantParams
    value: ir.Value
    functions: list[ir.Node]
    core: ir.Node | None
    source: ir.Value
    """The quantized value that the functions read, or the core's output."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """A new INTEGER graph. Raises UnsupportedError listing every node that has no integer form."""
    stages.check(graph, Stage.QDQ)
    quantizers = [node for node in graph.nodes() if is_quantizer(node) and not _is_constant(graph, node)]
    regions = {node: _region(graph, node) for node in quantizers}
    _refuse(graph, list(regions.values()))
    writer = Writer(graph, options.arithmetic)
    for done, (node, region) in enumerate(regions.items()):
        context.progress("integerize", done, len(regions))
        _write(writer, node, region)
    writer.finish()
    context.progress("integerize", len(regions), len(regions))
    stages.check(writer.target, Stage.INTEGER)
    return writer.target


def _is_constant(graph: Graph, node: ir.Node) -> bool:
    return read_bias(graph, node) is not None or read_quantizer(graph, node).codes is not None


def _region(graph: Graph, node: ir.Node) -> Region:
    quantized = read_quantizer(graph, node)
    functions: list[ir.Node] = []
    at = quantized.source
    while True:
        producer = at.producer()
        if producer is None or quantizer_of(graph, at) is not None:
            return Region(quantized.params, node.outputs[0], functions[::-1], None, at)
        if is_island(producer) or scaled_product(graph, producer) is not None:
            return Region(quantized.params, node.outputs[0], functions[::-1], producer, at)
        below = function_input(graph, producer)
        if below is None or producer.op_type in ("Identity",) and producer.domain == DOMAIN:
            return Region(quantized.params, node.outputs[0], functions[::-1], producer, at)
        functions.append(producer)
        at = below


def _refuse(graph: Graph, regions: list[Region]) -> None:
    """Raise UnsupportedError for all regions without an integer form, and for outputs that nothing quantizes."""
    problems: list[tuple[str, str]] = []
    for region in regions:
        clips = [node for node in region.functions if node.op_type not in CLIPS]
        core = region.core
        if isinstance(region.params.format, Log) and (
            region.functions or core is not None or quantizer_of(graph, region.source) is None
        ):
            problems.append((f"the logarithmic quantizer of `{region.source.name}`", "needs a quantizer before it"))
            continue
        if isinstance(region.params.format, Minifloat) and (
            reason := refuses_minifloat(graph, region.params, core, region.functions, region.source)
        ):
            problems.append((f"the {region.params.format} quantizer of `{_name(region)}`", reason))
            continue
        if core is None:
            # Clips of a graph input are a matter of codes, since quantization is monotonic.
            if region.functions and quantizer_of(graph, region.source) is None:
                first = clips[0] if clips else region.functions[0]
                if clips or not region.source.is_graph_input():
                    reads = f"reads `{region.source.name}`, which has no quantizer"
                    problems.append((f"{first.op_type} (node `{first.name}`)", reads))
            continue
        if rule_of(core) is None:
            problems.append((f"{core.op_type} (node `{core.name}`)", "has no integer form yet"))
        elif clips or (region.functions and len(core.outputs) > 1):
            clips = clips or region.functions
            problems.append((f"{clips[0].op_type} (node `{clips[0].name}`)", "needs a quantizer before it"))
        else:
            reason = rule_of(core).refuses(graph, core)  # type: ignore[union-attr]
            if reason:
                problems.append((f"{core.op_type} (node `{core.name}`)", reason))
    for value in graph.outputs:
        if not is_float(value):
            if reason := integers.refuses_output(graph, value):
                problems.append((f"output `{value.name}`", reason))
        elif quantizer_of(graph, value) is None:
            problems.append((f"output `{value.name}`", "is not a quantized float value"))
    if problems:
        unique = list(dict.fromkeys(problems))
        text = "; ".join(f"{what} {why}" for what, why in unique[:8])
        more = f"; and {len(unique) - 8} more" if len(unique) > 8 else ""
        raise UnsupportedError(
            f"{text}{more}.",
            where=graph.path,
            hint="Replace these operators in the model, or cut it before them (`qcompile inspect` lists all nodes).",
        )


def _write(writer: Writer, node: ir.Node, region: Region) -> None:
    graph, params, name = writer.source, region.params, _name(region)
    same = writer.same_as(node, params)
    if same is not None:
        writer.define(node.outputs[0], same, params)
        return
    if region.core is None and quantizer_of(graph, region.source) is not None:
        have = writer.codes(region.source)
        codes = have.value
        if region.functions:
            apply = partial(apply_functions, graph, region.functions)
            codes = write_function(writer, codes, have.params, apply, params, name, linear=_factor(graph, region))
        else:
            codes = writer.requantize(codes, have.params, params, name)
        if isinstance(params.format, Log):
            have = writer.levels(codes, params, name)
            codes, params = have.value, have.params
        writer.define(node.outputs[0], codes, params)
        return
    limits = _limits(graph, region, params)
    inner = name if limits is None else f"{name}_unclipped"
    if region.core is None:
        codes = writer.quantize_input(region.source, params)
    else:
        wanted = params if requantizes(graph, region.core) else level_params(params)
        codes = rule_of(region.core).write(writer, region.core, wanted, inner)  # type: ignore[union-attr]
    if limits is not None:
        inside = level_params(params)
        every = np.arange(inside.format.min, inside.format.max + 1)
        codes = writer.table(codes, inside, np.clip(every, *limits).astype(inside.format.storage), params, name)
    writer.define(node.outputs[0], codes, params)


def _name(region: Region) -> str:
    """Integer values keep the float value's name."""
    quantized = region.functions[-1].outputs[0] if region.functions else region.source
    return str(quantized.name)


def _limits(graph: Graph, region: Region, params: QuantParams) -> tuple[int, int] | None:
    """Codes that a fused clip leaves, if they are fewer than the format has."""
    if not region.functions:
        return None
    bounds = apply_functions(graph, region.functions, np.array([-1e30, 1e30]))
    codes = quantize(np.asarray(bounds, np.float32), params)
    if isinstance(params.format, Minifloat):
        low, high = (int(level) for level in params.format.decode(codes))
        return None if (low, high) == all_levels(params.format) else (low, high)
    low, high = (int(c) for c in codes)
    return None if (low, high) == (params.format.min, params.format.max) else (low, high)


def _factor(graph: Graph, region: Region) -> float | None:
    """The factor, if all that a region does is to multiply by a positive one."""
    real = (
        apply_functions(graph, region.functions, np.array([-1.0, 0.0, 1.0]))
        if all(node.op_type in ("Mul", "Div", "Identity") for node in region.functions)
        else np.zeros(3)
    )
    return float(real[2]) if real[2] > 0 and real[0] == -real[2] else None
