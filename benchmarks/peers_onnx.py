"""C generators that read ONNX: emx-onnx-cgen and onnx2c, on our own QDQ graph in ONNX's integer operators.

onnxruntime fuses the QDQ graph to QLinearConv and its like, so the network, its codes and its scales are ours; codes
come in and go out. onnx2c has fewer operators and one scale a tensor: for it weights are requantized, matrix products
are spelled MatMulInteger, and what is left runs in float between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.peers import Inference, compile_object

_FLOAT = {"QLinearAveragePool": "AveragePool", "QLinearSoftmax": "Softmax"}
"""Operator of onnxruntime -> the float one."""
_DROPPED = ("channels_last", "opset")


def integer_model(qdq: onnx.ModelProto) -> onnx.ModelProto:
    """The QDQ model with integer operators, codes at its boundary, and every shape written down."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as work:
        path = str(Path(work) / "fused.onnx")
        options.optimized_model_filepath = path
        onnxruntime.InferenceSession(qdq.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(path)
    _strip(model)
    return with_shapes(model)


def _strip(model: onnx.ModelProto) -> None:
    """Let codes come in and go out."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        kind = constants[node.input[2]].data_type if len(node.input) > 2 and node.input[2] in constants else 0
        if node.op_type == "QuantizeLinear" and node.input[0] == graph.input[0].name:
            graph.input[0].name, graph.input[0].type.tensor_type.elem_type = node.output[0], kind
            graph.node.remove(node)
        elif node.op_type == "DequantizeLinear" and node.output[0] == graph.output[0].name:
            graph.output[0].name, graph.output[0].type.tensor_type.elem_type = node.input[0], kind
            graph.node.remove(node)


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The type and shape of every value, as onnxruntime finds them: its operators have no shape inference in ONNX."""
    import onnxruntime

    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    known = {value.name for value in wide.graph.output}
    names = [name for node in wide.graph.node for name in node.output if name and name not in known]
    wide.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    found = session.run(names, {given.name: np.zeros(given.shape, kind)})
    del model.graph.value_info[:]
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, found, strict=True)
    )
    return model


def standard_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The integer model in standard operators, with one scale a tensor."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, array: NDArray) -> str:
        constants[name] = np.ascontiguousarray(array)
        return name

    for node in graph.node:
        if node.op_type == "QLinearConv":
            weight, scale = constants[node.input[3]], constants[node.input[4]]
            one = scale.max()
            share = (scale / one).reshape(-1, *[1] * (weight.ndim - 1))
            base = node.output[0]
            node.input[3] = constant(f"{base}_w", np.rint(weight * share).astype(weight.dtype))
            if len(node.input) > 8:
                bias = constants[node.input[8]] * (scale / one)
                node.input[8] = constant(f"{base}_b", np.rint(bias).astype(np.int32))
            node.input[4] = constant(f"{base}_s", np.float32(one))
            node.input[5] = constant(f"{base}_z", np.zeros((), weight.dtype))
            nodes.append(node)
        elif node.op_type == "QGemm":
            nodes += _matrix_product(node, constants, constant)
        elif node.op_type in _FLOAT:
            nodes += _in_float(node)
        else:
            if node.domain == "com.microsoft":
                node.domain = ""  # onnx2c knows QLinearAdd by its name
            nodes.append(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items() if name in used)
    del graph.value_info[:]
    return found


def _matrix_product(node: onnx.NodeProto, constants: dict[str, NDArray], constant: Any) -> list[onnx.NodeProto]:
    """QGemm as MatMulInteger, Add, Cast, Mul, QuantizeLinear."""
    a, a_scale, a_zero, w, w_scale, _, bias, scale, zero = node.input
    transposed = next((attribute.i for attribute in node.attribute if attribute.name == "transB"), 0)
    base = node.output[0]
    weight = constants[w].T if transposed else constants[w]
    factor = (constants[a_scale] * constants[w_scale]).astype(np.float32)
    w, factor_name = constant(f"{base}_w", weight), constant(f"{base}_factor", factor)
    a_zero = constant(f"{base}_zero", constants[a_zero].reshape(1))
    w_zero = constant(f"{base}_w_zero", np.zeros(1, weight.dtype))  # onnx2c's code does not compile without it
    return [
        helper.make_node("MatMulInteger", [a, w, a_zero, w_zero], [f"{base}_acc"]),
        helper.make_node("Add", [f"{base}_acc", bias], [f"{base}_sum"]),
        helper.make_node("Cast", [f"{base}_sum"], [f"{base}_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{base}_float", factor_name], [f"{base}_real"]),
        helper.make_node("QuantizeLinear", [f"{base}_real", scale, zero], [base]),
    ]


def _in_float(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """DequantizeLinear, the float operator, QuantizeLinear."""
    x, x_scale, x_zero, scale, zero = node.input
    base, name = node.output[0], _FLOAT[node.op_type]
    inner = helper.make_node(name, [f"{base}_x"], [f"{base}_y"])
    inner.attribute.extend(attribute for attribute in node.attribute if attribute.name not in _DROPPED)
    return [
        helper.make_node("DequantizeLinear", [x, x_scale, x_zero], [f"{base}_x"]),
        inner,
        helper.make_node("QuantizeLinear", [f"{base}_y", scale, zero], [base]),
    ]


def generated(name: str, command: Sequence[str], model: onnx.ModelProto, folder: Path) -> Path:
    """The C file that a generator makes of a model. Raises CalledProcessError with its words."""
    folder.mkdir(parents=True, exist_ok=True)
    path, output = folder / "model.onnx", folder / f"{name}.c"
    onnx.save(model, str(path))
    if name == "emx":
        # Activations on the stack and weights in the text: its other ways need a heap and a file.
        more = ["compile", "--large-temp-threshold", "0", "--large-weight-threshold", "0", str(path), str(output)]
        subprocess.run([*command, *more], check=True, capture_output=True, text=True)
    else:
        done = subprocess.run([*command, str(path)], check=True, capture_output=True, text=True)
        output.write_text(done.stdout)
    return output


def inference(source: Path, level: str) -> Inference:
    """The last function of a generated file, on static input and output."""
    text = source.read_text()
    signature = [match for match in re.finditer(r"(?m)^void (\w+)\(([^;{)]*)\)\s*\{", text)][-1]
    variables, arguments = [], []
    for i, parameter in enumerate(signature[2].split(",")):
        kind = re.sub(r"\bconst\b", "", parameter)
        sizes = re.findall(r"\[(?:restrict |static |const )*(\d+)\]", parameter)
        dimensions = "".join(f"[{size}]" for size in sizes)
        variables.append(f"static {kind.split()[0]} value{i}{dimensions};")
        arguments.append(f"value{i}")
    declaration = re.sub(r"\s+", " ", f"void {signature[1]}({signature[2]});")
    return Inference(
        objects=[compile_object(source, source.with_name(f"{source.stem}{level}.o"), level, ["-std=gnu99"])],
        declarations="\n".join([declaration, *variables]),
        run=f"{signature[1]}({', '.join(arguments)});",
        link=["-lm"],
    )
