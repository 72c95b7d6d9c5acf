"""Read any ONNX model into a Graph: static shapes, one operator set, constants as initializers, nothing folded away.

What `load_graph` promises of its result: operator set 21 or newer, nodes sorted, constants are initializers and not
inputs, functions other than our own inlined, every shape static, shape arithmetic folded, weights finite, quantizers
of any spelling are qcompiler::FakeQuantize.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from qcompiler.errors import ModelError, QCompilerError, RecipeError, UnsupportedError
from qcompiler.graph import model as model_module
from qcompiler.graph.control import reason_kept, unroll
from qcompiler.graph.integrity import OPSET_MAX, check, check_domains
from qcompiler.graph.lift import lift
from qcompiler.graph.model import DOMAIN, Graph, attribute
from qcompiler.graph.widen import widen

OPSET = 21
"""Older models are converted to this operator set; newer ones keep theirs."""

_INFINITE = frozenset({"Where", "Clip", "Max", "Min", "Pad", "Add", "Expand", "Trilu"})
"""Operators for whose constants infinity has a meaning (masks, absent bounds)."""


def read_model(path: str | Path) -> ir.Model:
    """A model as the file has it, checked for integrity only.

    Raises ModelError when the file is missing, is not ONNX, is truncated or contradicts itself.
    """
    with _quiet(), _errors(str(path)):
        model = ir.from_proto(_read(Path(path)))
        ir.external_data.set_base_dir(model.graph, Path(path).absolute().parent)
        return model


def load_graph(
    source: str | Path | onnx.ModelProto | ir.Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    constants: Mapping[str, float] | None = None,
    lifted: bool = True,
) -> Graph:
    """Read a model and make it static.

    source: file (external data beside it is read too), ModelProto or onnx_ir.Model; the latter two are not changed.
    shapes: input name -> full shape. dims: name of a symbolic dimension -> its size. constants: input name
    -> the number that it always is; it is no input then. lifted: respell quantizers; without, QDQ and INTEGER graphs
    are read as they are.
    Raises ModelError (missing, damaged, not finite, still dynamic), UnsupportedError (operators of foreign domains,
    operator sets outside 7..25), RecipeError (`shapes` or `dims` name nothing or contradict the model).
    """
    where = str(source) if isinstance(source, str | Path) else "model"
    with _quiet(), _errors(where):
        return _load(source, where, shapes or {}, dims or {}, constants or {}, lifted)


def _load(
    source: str | Path | onnx.ModelProto | ir.Model,
    where: str,
    shapes: Mapping[str, Sequence[int]],
    dims: Mapping[str, int],
    constants: Mapping[str, float],
    lifted: bool,
) -> Graph:
    if isinstance(source, str | Path):
        proto = _read(Path(source))
    elif isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        check(proto, where)
    else:
        proto = ir.to_proto(source.clone())
        check(proto, where)
    check_domains(proto, where)
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, OPSET_MAX)
    _drop_listed_initializers(proto)
    _fix_dimensions(proto, shapes, dims, where)
    _fix_inputs(proto, constants, where)
    proto.ir_version = max(proto.ir_version, 10)
    folder = Path(source).absolute().parent if isinstance(source, str | Path) else Path()
    model = _sorted_and_inlined(proto, folder)
    if model.opset_imports.get("", OPSET) < OPSET:
        model = _convert(model, where)
        ir.external_data.set_base_dir(model.graph, folder)
    graph = Graph(model, where)
    graph.notes += widen(model)
    if lifted:
        lift(graph)
    _infer(graph)
    _fold(graph)
    _uncast_inputs(graph)
    _check_static(graph)
    _check_finite(graph)
    return graph


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """Damaged bytes make onnx and onnx_ir raise nearly anything: all of it is a ModelError."""
    try:
        yield
    except QCompilerError:
        raise
    except Exception as error:
        raise ModelError(f"is damaged: {error}.", where=where, hint="Export it again.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the warnings of onnx_ir and onnxscript from the user: what matters becomes an error here."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -- reading ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> onnx.ModelProto:
    where = str(path)
    if path.is_dir():
        raise ModelError("is a folder, not an ONNX file.", where=where)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}.", where=where, hint="Check the path.") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError lives in a module that differs between its backends
        raise ModelError(
            "is not an ONNX model, or the file is truncated.", where=where, hint="Export or download it again."
        ) from error
    check(proto, where)
    try:
        if _external_bytes(proto, path.parent) <= model_module.LARGE:
            onnx.load_external_data_for_model(proto, str(path.parent))
    except Exception as error:  # onnx raises ValidationError, OSError or ValueError, depending on the damage
        raise ModelError(
            f"its external data cannot be read: {error}.", where=where, hint="Keep the data files beside the model."
        ) from error
    return proto


def _external_bytes(proto: onnx.ModelProto, folder: Path) -> int:
    """Bytes of the initializers in other files. Raises OSError or ValueError where a file is missing or short."""
    total = 0
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {entry.key: entry.value for entry in tensor.external_data}
        if "location" not in told:
            raise ValueError(f"`{tensor.name}` names no file")
        size = (folder / told["location"]).stat().st_size
        start, length = int(told.get("offset", 0)), int(told.get("length", 0))
        if start + length > size:
            raise ValueError(f"`{told['location']}` has {size} bytes, `{tensor.name}` ends at {start + length}")
        total += length or size - start
    return total


# -- dimensions ------------------------------------------------------------------------------------------------


def _drop_listed_initializers(proto: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def _fix_dimensions(
    proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], dims: Mapping[str, int], where: str
) -> None:
    """Make input shapes static in place; stale shapes of other values go, for inference to find anew."""
    inputs = {value.name: value.type.tensor_type for value in proto.graph.input}
    symbols = {d.dim_param for t in inputs.values() for d in t.shape.dim if d.dim_param}
    for given, known, what, option in ((shapes, inputs, "input", "shape"), (dims, symbols, "dimension", "dim")):
        for name in given:
            if name not in known:
                has = ", ".join(f"`{k}`" for k in sorted(known)) or "none by name"
                raise RecipeError(f"--{option} {name}: the model has no {what} `{name}`; it has {has}.", where=where)
    for name, size in [*dims.items(), *((n, s) for n, shape in shapes.items() for s in shape)]:
        if int(size) < 1:
            raise RecipeError(f"the dimension {size} given for `{name}` is not positive.", where=where)
    missing, example = [], []
    dynamic = False
    for name, tensor in inputs.items():
        if not tensor.HasField("shape") and name not in shapes:
            missing.append(f"`{name}` (no shape at all)")
            example.append(f"--shape {name}=...")
            continue
        before = list(tensor.shape.dim)
        if name in shapes:
            shape = [int(s) for s in shapes[name]]
            fixed = [max(d.dim_value, 0) for d in before]  # some exporters write -1
            if tensor.HasField("shape") and (
                len(shape) != len(before) or any(f and f != s for f, s in zip(fixed, shape, strict=True))
            ):
                raise RecipeError(
                    f"--shape {name}={','.join(map(str, shape))} contradicts the model, which has {_spell(before)}.",
                    where=where,
                )
        else:
            shape = [max(d.dim_value, 0) or int(dims.get(d.dim_param, 0)) for d in before]
        if not all(shape):
            missing.append(f"`{name}` {_spell(before)}")
            unnamed = any(not s and not _plain(d.dim_param) for s, d in zip(shape, before, strict=True))
            if unnamed:
                example.append(f"--shape {name}={','.join(str(s or 1) for s in shape)}")
            else:
                example += [f"--dim {d.dim_param}=1" for s, d in zip(shape, before, strict=True) if not s]
            continue
        dynamic |= shape != [d.dim_value for d in before]
        del tensor.shape.dim[:]
        for size in shape:
            tensor.shape.dim.add().dim_value = size
    if missing:
        raise ModelError(
            f"has inputs with dynamic dimensions: {', '.join(missing)}.",
            where=where,
            hint=f"Fix them, for example with {' '.join(dict.fromkeys(example))}.",
        )
    if dynamic:
        del proto.graph.value_info[:]
    for value in proto.graph.output:
        if dynamic or any(d.dim_value < 1 for d in value.type.tensor_type.shape.dim):
            value.type.tensor_type.ClearField("shape")


def _fix_inputs(proto: onnx.ModelProto, constants: Mapping[str, float], where: str) -> None:
    """Inputs that always have one value become initializers, in place."""
    inputs = {value.name: value for value in proto.graph.input}
    for name, number in constants.items():
        if name not in inputs:
            has = ", ".join(f"`{k}`" for k in sorted(inputs))
            raise RecipeError(f"--constant {name}: the model has no input `{name}`; it has {has}.", where=where)
        tensor = inputs[name].type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = np.full([d.dim_value for d in tensor.shape.dim], number, dtype)
        if dtype.kind != "f" and array.size and float(array.flat[0]) != number:
            raise RecipeError(f"--constant {name}: {number:g} is no {dtype}.", where=where)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        proto.graph.input.remove(inputs[name])


def _plain(name: str) -> bool:
    return bool(name) and name not in ("?", "*") and "=" not in name


def _spell(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> str:
    return "[" + ",".join(str(max(d.dim_value, 0) or d.dim_param or "?") for d in dims) + "]"


# -- normal form -----------------------------------------------------------------------------------------------


def _sorted_and_inlined(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, folder)  # of constants too large to be read at once
    for node in model.graph.all_nodes():
        node.doc_string = None
        if node.domain == "ai.onnx":
            node.domain = ""
    model.graph.sort()
    common.InlinePass(criteria=lambda function: function.domain != DOMAIN)(model)
    _lift_constants(model)
    model.doc_string = model.graph.doc_string = None
    return model


def _lift_constants(model: ir.Model) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _convert(model: ir.Model, where: str) -> ir.Model:
    metadata = dict(model.metadata_props)
    try:
        # Adapters such as that of Softmax 13 look at shapes.
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
        converted = ir.from_proto(onnx.version_converter.convert_version(proto, OPSET))
    except Exception as error:  # the converter's C++ part raises RuntimeError, its Python part others
        raise ModelError(
            f"cannot be converted from operator set {model.opset_imports.get('')} to {OPSET}: {error}.",
            where=where,
            hint="Export it again with a newer operator set.",
        ) from error
    converted.metadata_props.update(metadata)
    converted.ir_version = model.ir_version
    _lift_constants(converted)
    return converted


def _infer(graph: Graph) -> None:
    """Shapes of all values, in place."""
    graph.model = common.ShapeInferencePass(strict_mode=False, check_type=False, data_prop=True)(graph.model).model


def _fold(graph: Graph) -> None:
    """Fold constants and shape arithmetic until nothing changes."""
    from onnxscript import optimizer

    for _ in range(8):
        before = len(graph.nodes())
        optimizer.fold_constants(
            graph.model,
            onnx_shape_inference=True,
            input_size_limit=1 << 40,
            output_size_limit=1 << 40,
            should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
        )
        _lift_constants(graph.model)
        graph.sweep()
        _infer(graph)
        unrolled = unroll(graph)
        if unrolled:
            _lift_constants(graph.model)
            _infer(graph)
        if len(graph.nodes()) == before and not unrolled:
            break


def _uncast_inputs(graph: Graph) -> None:
    """An integer input that is only cast to another integer type takes that type."""
    for value in graph.inputs:
        cast = graph.sole_user(value)
        kind = ir.DataType(attribute(cast, "to")) if cast is not None and cast.op_type == "Cast" else None
        if cast is None or kind is None or value.dtype is None or cast.outputs[0].is_graph_output():
            continue
        if value.dtype.is_integer() and kind in (ir.DataType.INT64, ir.DataType.INT32):
            graph.note(str(value.name), f"is {kind} now, {value.dtype} in the file, where it is only cast")
            value.type = ir.TensorType(kind)
            graph.bypass(cast, value)


def _check_static(graph: Graph) -> None:
    for node in graph.nodes():
        if node.op_type in ("If", "Loop", "Scan") and not node.domain:
            raise UnsupportedError(
                f"{node.op_type} (node `{node.name or node.outputs[0].name}`) {reason_kept(graph, node)}.",
                where=graph.path,
                hint="If it depends on an input that always has one value, give that with --constant NAME=VALUE.",
            )
        for value in node.outputs:
            if value.name and (value.shape is None or any(not isinstance(d, int) for d in value.shape)):
                raise ModelError(
                    f"the shape of `{value.name}`, made by the {node.op_type} node `{node.name or value.name}`, is "
                    f"{value.shape if value.shape is not None else 'unknown'}: it depends on data.",
                    where=graph.path,
                    hint="Cut the model before this node, or export it with fixed shapes.",
                )


def _all_finite(array: np.ndarray) -> bool:
    flat, step = array.reshape(-1), 1 << 22
    return all(bool(np.isfinite(flat[i : i + step]).all()) for i in range(0, flat.size, step))


def _check_finite(graph: Graph) -> None:
    for name, value in graph.ir.initializers.items():
        array = graph.const(value)
        if array is None or array.dtype.kind != "f" or _all_finite(array):
            continue
        if np.isnan(array).any() or {use.node.op_type for use in value.uses()} - _INFINITE:
            raise ModelError(
                f"the initializer `{name}` holds {int((~np.isfinite(array)).sum())} values that are NaN or infinite.",
                where=graph.path,
                hint="The training diverged or the file is damaged; export it again.",
            )
