"""Single nodes in onnxruntime, as the judge of operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from qcompiler.execute.ort import Session


def run_node(
    op_type: str, inputs: list[Any], attributes: dict[str, Any], domain: str = "", outputs: int = 1
) -> list[np.ndarray]:
    """One node in onnxruntime."""
    names = [f"i{i}" for i in range(len(inputs))]
    present = {name: x for name, x in zip(names, inputs, strict=True) if x is not None}
    node = helper.make_node(
        op_type,
        [name if name in present else "" for name in names],
        [f"y{i}" for i in range(outputs)],
        domain=domain,
        **attributes,
    )
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in present.items()
    ]
    results = [helper.make_tensor_value_info(f"y{i}", TensorProto.UNDEFINED, None) for i in range(outputs)]
    graph = helper.make_graph([node], "g", declared, results)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if not domain:
        model = onnx.shape_inference.infer_shapes(model)
    else:
        for value in model.graph.output:
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(inputs[-1].dtype)
    return Session(model.SerializeToString()).run(present)
