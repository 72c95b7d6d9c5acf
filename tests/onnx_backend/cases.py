"""ONNX's own node tests as questions to qcompiler: load, calibrate on the case's inputs, quantize, run the oracle.

What is expected of codes: the float operator on the very values that its quantized inputs stand for, computed by
onnxruntime, then cut to the range of the output format. The oracle may differ by half a step of the output scale, which
is rounding, by the operator's own stated error, and by what float32 sums of onnxruntime are off.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from qcompiler.calibrate.statistics import with_outputs
from qcompiler.driver import quantize
from qcompiler.errors import QCompilerError
from qcompiler.execute.oracle import Oracle
from qcompiler.execute.ort import Session
from qcompiler.formats import Int, parse_format
from qcompiler.graph.integrity import OPSET_MAX
from qcompiler.graph.qdq import dequantized_values, quantizer_of

VARIADIC = frozenset({"Add", "Sub", "Mul", "Div", "MatMul", "Concat", "Max", "Min", "Sum", "Mean", "Pow", "Where",
                      "Attention"})
"""Operators all of whose inputs are activations; elsewhere the first input is, and the others are constants."""
STEPS = {"Softmax": 1.0, "LogSoftmax": 1.0, "Normalize": 1.0, "Piecewise": 1.0, "Div": 1.0, "Requantize": 0.5,
         "Interpolate": 0.02}
"""Own error in steps of the output beyond the half of rounding, by integer operator: as their docstrings state it."""
FLOAT_SLACK = 1e-5


@dataclass(frozen=True)
class Outcome:
    """passed, refused or failed, and why."""

    name: str
    operator: str
    kind: str
    why: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def cases() -> Iterator[tuple[str, onnx.ModelProto, list[Any]]]:
    """Name, model and inputs of every node test that ships with onnx."""
    from onnx.backend.test import loader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = loader.load_model_tests(kind="node")
    for case in found:
        inputs = [np.asarray(x) if isinstance(x, np.generic) else x for x in case.data_sets[0][0]]
        yield case.name, _of_known_set(case.model), inputs


def _of_known_set(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as one of operator set 21 where its set is newer than what is read, if its one operator had the same
    attributes and inputs then: most operators of newer sets differ in the types that they take."""
    (node, *more), own = model.graph.node or [None], next((o for o in model.opset_import if not o.domain), None)
    if node is None or more or node.domain or own is None or own.version <= OPSET_MAX:
        return model
    try:
        old, new = (onnx.defs.get_schema(node.op_type, version) for version in (21, own.version))
    except onnx.defs.SchemaError:
        return model
    if set(old.attributes) != set(new.attributes) or len(old.inputs) != len(new.inputs):
        return model
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    next(o for o in asked.opset_import if not o.domain).version = 21
    return asked


def ask(name: str, model: onnx.ModelProto, inputs: list[Any], precision: str) -> Outcome:
    """Quantize one case and compare. Everything but a QCompilerError and an agreement is a failure."""
    operator = model.graph.node[0].op_type if len(model.graph.node) == 1 else "several"
    try:
        proto, activations = with_constants(model, inputs)
        result = quantize(proto, activations, options={"precision": precision})
        worst = compare(result, activations)
    except QCompilerError as error:
        return Outcome(name, operator, "refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome(name, operator, "failed", f"{type(error).__name__}: {error}")
    if worst:
        return Outcome(name, operator, "failed", worst)
    return Outcome(name, operator, "passed")


def with_constants(model: onnx.ModelProto, inputs: list[Any]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A copy whose parameters are initializers, and the arrays of the inputs that stay, one sample each."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    several = len(proto.graph.node) > 1 or proto.graph.node[0].op_type in VARIADIC
    values = list(proto.graph.input)
    activations: dict[str, np.ndarray] = {}
    for i, (value, array) in enumerate(zip(values, inputs, strict=False)):
        if not isinstance(array, np.ndarray) or not value.type.HasField("tensor_type"):
            continue  # sequences and optionals stay, to be refused
        if (several or i == 0) and (array.dtype.kind == "f" or i == 0) and array.dtype.kind != "O":
            activations[value.name] = array[None]
        else:
            proto.graph.input.remove(value)
            kind = value.type.tensor_type.elem_type
            proto.graph.initializer.append(helper.make_tensor(value.name, kind, array.shape, array.ravel().tolist()))
    shapes = {value.name: array.shape for value, array in zip(values, inputs, strict=False) if hasattr(array, "shape")}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        if value.name in shapes and len(tensor.shape.dim) == len(shapes[value.name]):
            for dim, size in zip(tensor.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = size
    return proto, _grouped(proto, activations)


def _grouped(proto: onnx.ModelProto, activations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Calibration arrays: where all inputs share a leading dimension it counts samples, else whole inputs do."""
    leading = {array.shape[1] if array.ndim > 1 else 1 for array in activations.values()}
    grouped = len(leading) == 1 and leading.pop() > 1
    return {name: array[0] if grouped else array for name, array in activations.items()}


def compare(result: Any, activations: dict[str, np.ndarray]) -> str:
    """What differs by more than it may; '' if nothing does.

    Every quantized value is judged by itself: its float operator reads what the oracle's codes of its inputs stand for.
    """
    graph, qdq = result.integer_graph, result.qdq_graph.clone()
    sample = next(iter(result.samples))
    values = Oracle(graph).run_all(sample)
    known = {str(value.name): value for value in graph.values()}
    judged, feeds, sources = [], {}, []
    for name, dequantized in dequantized_values(qdq).items():
        coded = known.get(name) if not qdq.value(dequantized).is_graph_output() else known[name].producer().inputs[0]
        coded = known.get(f"{name}_quantized") if coded is not None and coded.is_graph_input() else coded
        if coded is None:
            continue
        source = quantizer_of(qdq, qdq.value(dequantized)).source
        fmt, scale, zero = meaning(coded)
        real = ((values[coded.name].astype(np.int64) - zero).astype(np.float32) * np.float32(scale)).astype(np.float32)
        new = ir.Value(name=f"fed_{len(feeds)}", shape=ir.Shape(real.shape), type=ir.TensorType(ir.DataType.FLOAT))
        qdq.ir.inputs.append(new)
        for use in list(qdq.value(dequantized).uses()):
            use.node.replace_input_with(use.idx, new)
        feeds[new.name] = real
        judged.append((coded, fmt, scale, zero))
        sources.append(str(source.name))
    numbers = [str(value.name) for value in qdq.outputs if value.dtype not in (None, ir.DataType.FLOAT)]
    if not judged and not numbers:
        return "nothing was judged"
    plain = with_outputs(qdq, [*sources, *numbers])
    inputs = {str(value.name) for value in plain.inputs}
    found = Session(plain).run({k: v for k, v in {**sample, **feeds}.items() if k in inputs}, [*sources, *numbers])
    wanted, exact = found[: len(sources)], found[len(sources) :]
    for name, want in zip(numbers, exact, strict=True):  # places and truth values: equal
        if values[name].dtype != want.dtype or not np.array_equal(values[name], want):
            return f"`{name}` differs"
    for (coded, fmt, scale, zero), want in zip(judged, wanted, strict=True):
        steps = np.clip(want.astype(np.float64) / scale + zero, fmt.min, fmt.max)
        gap = np.abs(values[coded.name].astype(np.float64) - steps)
        allowed = 0.5 + own_error(coded, {c.name for c, *_ in judged}) + FLOAT_SLACK * (1 + np.abs(steps))
        if not (gap <= allowed).all():
            return f"`{coded.name}` is {gap.max():.3f} steps off, {float(np.max(allowed)):.3f} allowed"
    return ""


def meaning(value: ir.Value) -> tuple[Int, float, int]:
    """Format, scale and zero point of an integer value."""
    read = value.metadata_props
    return parse_format(read["qcompiler.format"]), float(read["qcompiler.scale"]), int(read["qcompiler.zero_point"])


def own_error(value: ir.Value | None, judged: set[str]) -> float:
    """Steps that the operators between judged values may be off, as their docstrings say."""
    node = value.producer() if value is not None else None
    if node is None:
        return 0.0
    inner = [v for v in node.inputs if v is not None and v.name not in judged]
    return STEPS.get(node.op_type, 0.0) + sum(own_error(v, judged) for v in inner)
