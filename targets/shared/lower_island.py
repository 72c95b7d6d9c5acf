"""Lowering of float islands: node by node, through TVM's operator library."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.targets.shared.library import library_calls
from qcompiler.targets.shared.program import Program
from qcompiler.targets.shared.views import View


def lower_island(program: Program, node: ir.Node) -> None:
    """A float node. Its kernels are one unit of work each: threads do not share it. Raises UnsupportedError."""
    calls = library_calls(program.graph, node)
    inputs = [None if value is None else program.view(value) for value in node.inputs]
    made: dict[str, View] = {}
    for call in calls:
        rank = len(call.shape)
        if call is calls[-1]:
            output = program.view(node.outputs[0])
        else:
            output = program.scratch(call.output, call.dtype, call.shape, range(rank))
        made[call.output] = output
        views = [
            program.constant(one, f"{node.name}/constant")
            if not isinstance(one, int | str)
            else made[one]
            if isinstance(one, str)
            else inputs[one]
            for one in call.inputs
        ]
        for view in (*views, output):
            assert view is not None and view.is_dense(), f"an island reads and writes dense values ({node.name})"
        temporaries = [
            program.scratch(f"{node.name}/temporary", dtype, (elements,), (0,))
            for dtype, elements in call.kernel.temporaries
        ]
        program.call(call.kernel, 1, *(view for view in views if view is not None), output, *temporaries)
