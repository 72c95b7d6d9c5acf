"""Graph: a thin wrapper over onnx_ir.Model with the few operations that passes need.

Nodes and values are onnx_ir's own (`ir.Node`, `ir.Value`). Constants are initializers, and their tensors are
immutable: passes replace a tensor, they never write into its array, so clones are cheap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from qcompiler.errors import ModelError

if TYPE_CHECKING:
    import onnx

LARGE = 1 << 30
"""Bytes of constants from which on a model is not handled as one protobuf message, which ends at 2 GiB."""
DOMAIN = "qcompiler"
"""Domain of our own operators."""


class Graph:
    """A model whose nodes are in topological order and whose constants are initializers.

    `path` is where it came from, for error messages; `notes` are remarks of the import for the report: where, what.
    """

    def __init__(self, model: onnx_ir.Model, path: str | Path = "model") -> None:
        self.model = model
        self.path = str(path)
        self.notes: list[tuple[str, str]] = []

    # -- making and saving -------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str, **constants: Any) -> Graph:
        """From ONNX's text form; `constants` turn graph inputs of these names into initializers."""
        graph = cls(onnx_ir.from_onnx_text(text))
        inputs = {value.name: value for value in graph.inputs}
        for name, array in constants.items():
            value = inputs[name]
            graph.ir.inputs.remove(value)
            value.const_value = onnx_ir.tensor(np.asarray(array), name=name)
            value.shape = onnx_ir.Shape(np.shape(array))
            graph.ir.register_initializer(value)
        return graph

    def clone(self) -> Graph:
        """A copy to change freely; tensors are shared."""
        copy = Graph(self.model.clone(), self.path)
        copy.notes = list(self.notes)
        return copy

    def to_proto(self) -> onnx.ModelProto:
        """The ONNX ModelProto."""
        return onnx_ir.to_proto(self.model)

    def save(self, path: str | Path) -> None:
        """Write the .onnx file; constants of a large model go to a file beside it."""
        onnx_ir.save(self.model, path, external_data=f"{Path(path).name}.data" if self.is_large() else None)

    def is_large(self) -> bool:
        """Whether the constants have more than LARGE bytes."""
        tensors = (value.const_value for value in self.ir.initializers.values())
        return sum(tensor.nbytes for tensor in tensors if tensor is not None) > LARGE

    def note(self, where: onnx_ir.Node | str, text: str) -> None:
        """Leave a remark of the import."""
        self.notes.append((where if isinstance(where, str) else str(where.name or where.outputs[0].name), text))

    # -- looking -----------------------------------------------------------------------------------------------

    @property
    def ir(self) -> onnx_ir.Graph:
        """The onnx_ir graph."""
        return self.model.graph

    @property
    def inputs(self) -> list[onnx_ir.Value]:
        """Graph inputs that are not initializers."""
        return [value for value in self.ir.inputs if not value.is_initializer()]

    @property
    def outputs(self) -> list[onnx_ir.Value]:
        """Graph outputs."""
        return list(self.ir.outputs)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.ir.opset_imports.get("", 0))

    def nodes(self, *op_types: str, domain: str | None = None) -> list[onnx_ir.Node]:
        """Nodes in topological order, of the given types if any; a list, so the graph may change meanwhile."""
        return [
            node
            for node in self.ir
            if (not op_types or node.op_type in op_types) and (domain is None or node.domain == domain)
        ]

    def value(self, name: str) -> onnx_ir.Value:
        """The value called `name`. Raises ModelError."""
        for value in self.values():
            if value.name == name:
                return value
        raise ModelError(f"no value is called `{name}`.", where=self.path)

    def values(self) -> Iterable[onnx_ir.Value]:
        """Every input, initializer and node output."""
        yield from self.inputs
        yield from self.ir.initializers.values()
        for node in self.ir:
            yield from (value for value in node.outputs if value.name)

    def const(self, value: onnx_ir.Value | None) -> NDArray | None:
        """The array behind an initializer, or None. Do not write into it."""
        if value is None or value.const_value is None or not value.is_initializer():
            return None
        return value.const_value.numpy()

    def sole_user(self, value: onnx_ir.Value | None) -> onnx_ir.Node | None:
        """The one node that reads `value`, or None if there are more, none, or it is a graph output."""
        if value is None:
            return None
        users = {use.node for use in value.uses()}
        return users.pop() if len(users) == 1 and not value.is_graph_output() else None

    def shape(self, value: onnx_ir.Value | None) -> tuple[int, ...]:
        """The static shape. Raises ModelError when it is unknown or dynamic."""
        if value is None:
            raise ModelError("an operator lacks an input that it needs.", where=self.path)
        if value.shape is None or any(not isinstance(d, int) for d in value.shape):
            raise ModelError(
                f"the shape of `{value.name}` is {value.shape or 'unknown'}, not static.",
                where=self.path,
                hint="Fix dynamic dimensions with --shape or --dim.",
            )
        return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]

    # -- changing ----------------------------------------------------------------------------------------------

    def fresh_name(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, ... if a value has that name already."""
        taken = {value.name for value in self.values()}
        name, i = base, 0
        while name in taken:
            i += 1
            name = f"{base}_{i}"
        return name

    def add_const(self, name: str, array: NDArray | np.generic) -> onnx_ir.Value:
        """A new initializer; `name` is made unique."""
        return self.add_tensor(name, onnx_ir.tensor(np.asarray(array, order="C")))

    def add_tensor(self, name: str, tensor: Any) -> onnx_ir.Value:
        """A new initializer from an onnx_ir tensor (for element types that numpy lacks)."""
        value = onnx_ir.Value(
            name=self.fresh_name(name),
            shape=onnx_ir.Shape(tensor.shape),
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.ir.register_initializer(value)
        return value

    def set_const(self, value: onnx_ir.Value, array: NDArray) -> None:
        """Replace the tensor of an initializer, for all its users."""
        value.const_value = onnx_ir.tensor(np.asarray(array, order="C"), name=value.name)
        value.shape = onnx_ir.Shape(np.shape(array))
        value.type = onnx_ir.TensorType(value.const_value.dtype)

    def set_input_const(self, node: onnx_ir.Node, index: int, array: NDArray, *, name: str | None = None) -> None:
        """Let input `index` of `node` be the constant `array`; other readers of the old value keep it.

        The old initializer keeps its name when nothing else reads it; an absent input is added.
        """
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        if old is not None and self.const(old) is not None and self.sole_user(old) is node and name is None:
            self.set_const(old, array)
        else:
            base = name or (f"{old.name}_own" if old is not None else f"{node.outputs[0].name}_input{index}")
            node.replace_input_with(index, self.add_const(base, array))

    def add_node(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        before: onnx_ir.Node | None = None,
        after: onnx_ir.Node | None = None,
        domain: str = "",
        name: str | None = None,
        outputs: Sequence[str] | int = 1,
        like: onnx_ir.Value | None = None,
    ) -> onnx_ir.Node:
        """A new node, placed before or after another, else at the end.

        outputs: names, or how many; `like` gives shape and element type to the first output.
        """
        node = onnx_ir.node(
            op_type,
            inputs,
            attributes=attributes,
            domain=domain,
            num_outputs=outputs if isinstance(outputs, int) else len(outputs),
            name=name,
        )
        names = [None] * outputs if isinstance(outputs, int) else outputs
        for i, (value, given) in enumerate(zip(node.outputs, names, strict=True)):
            value.name = self.fresh_name(given or f"{name or op_type}_out{i or ''}")
        if like is not None:
            node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
        if before is not None:
            self.ir.insert_before(before, node)
        elif after is not None:
            self.ir.insert_after(after, node)
        else:
            self.ir.append(node)
        if domain and domain not in self.model.opset_imports:
            self.model.opset_imports[domain] = 1
        return node

    def replace_uses(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        """Every reader of `old`, graph outputs included, reads `new` instead; output names stay."""
        if old.is_graph_output():
            if new.is_graph_input() or new.is_initializer() or new.is_graph_output():
                new = self.add_node("Identity", [new], like=old).outputs[0]
            final, old.name = old.name, self.fresh_name(f"{old.name}_before")
            new.name = final
            new.shape, new.type = new.shape or old.shape, new.type or old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def remove(self, *nodes: onnx_ir.Node) -> None:
        """Remove nodes that nothing reads."""
        self.ir.remove(list(nodes), safe=True)

    def bypass(self, node: onnx_ir.Node, value: onnx_ir.Value) -> None:
        """Readers of `node`'s first output read `value`; the node goes."""
        self.replace_uses(node.outputs[0], value)
        self.remove(node)

    def sweep(self) -> None:
        """Remove nodes and initializers that reach no output."""
        for node in reversed(self.nodes()):
            if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
                self.ir.remove(node, safe=True)
        for name, value in list(self.ir.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.ir.initializers[name]

    # -- running and identity ----------------------------------------------------------------------------------

    def run(self, **inputs: NDArray) -> NDArray | list[NDArray]:
        """Outputs by onnxruntime without optimizations; a bare array if there is one."""
        from qcompiler.execute.ort import Session

        outputs = Session(self).run(inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def fingerprint(self) -> str:
        """sha256 over structure and constants, independent of file layout and documentation strings."""
        digest = hashlib.sha256()

        def add(*parts: Any) -> None:
            digest.update(repr(parts).encode())

        add([(v.name, str(v.shape), str(v.dtype)) for v in self.inputs], [v.name for v in self.outputs])
        for name, value in sorted(self.ir.initializers.items()):
            add(name, str(value.const_value.dtype), tuple(value.const_value.shape))  # type: ignore[union-attr]
            array = np.ascontiguousarray(value.const_value.numpy())  # type: ignore[union-attr]
            plain = array.dtype.kind in "biuf" and array.size
            digest.update(array.reshape(-1).view(np.uint8) if plain else value.const_value.tobytes())  # type: ignore[union-attr, arg-type]
        for node in self.ir:
            add(node.domain, node.op_type, [v and v.name for v in node.inputs], [v.name for v in node.outputs])
            add(sorted((k, str(a.value)) for k, a in node.attributes.items()))
        return digest.hexdigest()


def operand(node: onnx_ir.Node, index: int = 0) -> onnx_ir.Value:
    """Input `index`, which must be there. Raises ModelError."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ModelError(f"node `{node.name or node.op_type}` lacks its input {index}.", hint="Export the model again.")
    return value


def attribute(node: onnx_ir.Node, name: str, default: Any = None) -> Any:
    """An attribute as a plain Python value (lists as lists, tensors as arrays)."""
    found = node.attributes.get(name)
    if found is None or found.value is None:
        return default
    value = found.value
    if isinstance(value, tuple | list):
        return list(value)
    return value.numpy() if isinstance(value, onnx_ir.TensorProtocol) else value


def set_attributes(node: onnx_ir.Node, **values: Any) -> None:
    """Set attributes from plain Python values; None removes one."""
    for name, value in values.items():
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = onnx_ir.convenience.convert_attribute(name, value)


def attributes(node: onnx_ir.Node) -> dict[str, Any]:
    """All attributes as plain Python values."""
    return {name: attribute(node, name) for name in node.attributes}


def operator_key(node: onnx_ir.Node) -> str:
    """`domain::type`, or the bare type for the default domain."""
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
