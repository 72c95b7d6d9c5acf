"""What a model keeps between two calls of qc_NAME_run: where each state lies, and qc_NAME_reset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from qcompiler.graph.model import Graph
from qcompiler.targets.shared.codegen import comment
from qcompiler.targets.shared.layout import storage_of

ALIGNMENT = 8


@dataclass(frozen=True)
class State:
    """One state: the input that it is, and its place in the memory of all states."""

    value: ir.Value
    offset: int
    count: int
    """Codes."""

    @property
    def storage(self) -> str:
        """dtype of its codes."""
        return storage_of(self.value)

    @property
    def zero_point(self) -> int:
        """The code of the real 0, with which it begins."""
        return int(self.value.metadata_props["qcompiler.zero_point"])


def states_of(graph: Graph, pairs: Mapping[str, str]) -> list[State]:
    """All states in the order of `pairs`. graph: has codes at its boundary."""
    by_name, found, offset = {str(value.name): value for value in graph.inputs}, [], 0
    for name in pairs.values():
        value = by_name[name]
        count = prod(graph.shape(value))
        found.append(State(value, offset, count))
        offset += -(-count * np.dtype(storage_of(value)).itemsize // ALIGNMENT) * ALIGNMENT
    return found


def state_bytes(states: list[State]) -> int:
    """Bytes of their memory."""
    last = states[-1] if states else None
    return (
        0 if last is None else last.offset + -(-last.count * np.dtype(last.storage).itemsize // ALIGNMENT) * ALIGNMENT
    )


def reset_signature(name: str, caller: bool) -> str:
    """`void qc_NAME_reset(...)` without the semicolon."""
    return f"void qc_{name}_reset({'void *state' if caller else 'void'})"


def macros(states: list[State], upper: str) -> list[str]:
    """Lines of NAME.h: sizes, and where each state lies with its quantization."""
    lines = ["", f"#define {upper}_STATE_BYTES {state_bytes(states)}", f"#define {upper}_STATES {len(states)}"]
    for i, state in enumerate(states):
        meta = state.value.metadata_props
        lines += [
            "",
            f"/* state{i}: `{comment(str(state.value.name))}`, {meta['qcompiler.format']} in {state.storage}_t */",
            f"#define {upper}_STATE{i}_OFFSET {state.offset}",
            f"#define {upper}_STATE{i}_SIZE {state.count}",
            f"#define {upper}_STATE{i}_SCALE {float(meta['qcompiler.scale']).hex()}",
            f"#define {upper}_STATE{i}_ZERO_POINT ({meta['qcompiler.zero_point']})",
        ]
    return lines


def declarations(states: list[State], name: str, caller: bool) -> list[str]:
    """Lines of NAME.h: the functions."""
    found = [
        f"/* Let all states be the real 0, as before the first step: call it before the first qc_{name}_run. */",
        f"{reset_signature(name, caller)};",
        "",
    ]
    if not caller:
        found += [
            f"/* The memory of the states, QC_{name.upper()}_STATE_BYTES: copy it away to go on from there later. */",
            f"void *qc_{name}_state(void);",
            "",
        ]
    return found


def definitions(states: list[State], name: str, caller: bool) -> str:
    """C text of the memory and of these functions."""
    text = ""
    if not caller:
        text += f"static union {{\n  int64_t align;\n  uint8_t bytes[QC_{name.upper()}_STATE_BYTES];\n}} kept;\n\n"
        text += f"void *qc_{name}_state(void) {{\n  return kept.bytes;\n}}\n\n"
    text += f"{reset_signature(name, caller)} {{\n  uint8_t *const s = {'state' if caller else 'kept.bytes'};\n"
    for i, state in enumerate(states):
        kind = f"{state.storage}_t"
        text += f"  {kind} *const s{i} = (void *)&s[{state.offset}];\n"
    for i, state in enumerate(states):
        text += f"  for (int32_t i = 0; i < {state.count}; ++i) {{\n    s{i}[i] = {state.zero_point};\n  }}\n"
    return text + "}\n"
