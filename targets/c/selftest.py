"""selftest.c: seeded inputs and the oracle's answers, so that a board can prove its bits."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.execute.oracle import Oracle
from qcompiler.formats import parse_format
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import FORMAT_KEY, INDICES_KEY
from qcompiler.graph.state import POSITION_KEY
from qcompiler.targets.c.emit import Sources
from qcompiler.targets.c.text import array
from qcompiler.targets.shared.boundary import is_index
from qcompiler.targets.shared.layout import storage_of

VECTORS = 4
ZERO_KEY = "qcompiler.zero_point"
WHOLE = 2048
"""Outputs up to so many codes are stored; of larger ones the CRC-32."""


def limits(value: ir.Value) -> tuple[int, int]:
    """Lowest and highest number that an input may hold: codes of its format, or indices."""
    if is_index(value):
        return 0, int(value.metadata_props.get(INDICES_KEY, 2)) - 1
    fmt = parse_format(value.metadata_props[FORMAT_KEY])
    return fmt.min, fmt.max


def codes(count: int, seed: int, low: int, high: int) -> NDArray[np.int64]:
    """The codes that selftest.c makes: a 32-bit linear congruential generator, high bits."""
    state, found = seed, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        found.append((state >> 16) % (high - low + 1) + low)
    return np.array(found, np.int64)


def answers(graph: Graph, vectors: int = VECTORS, states: Mapping[str, str] | None = None) -> list[list[NDArray]]:
    """Output codes of every vector, by the oracle. `graph` has codes at its boundary.

    states: outputs that are kept -> the inputs that they become; vectors are then steps, and these are not returned.
    """
    oracle, states = Oracle(graph), states or {}
    names = [str(value.name) for value in graph.outputs]
    shown = [value for value in graph.inputs if value.name not in states.values()]
    kept = {
        str(value.name): np.full(graph.shape(value), int(value.metadata_props[ZERO_KEY]), storage_of(value))
        for value in graph.inputs
        if value.name in states.values()
    }
    found = []
    for vector in range(vectors):
        inputs = dict(kept)
        for i, value in enumerate(shown):
            shape = graph.shape(value)
            drawn = codes(int(np.prod(shape)), 1 + vector * 16 + i, *limits(value)).reshape(shape)
            if value.name == graph.model.metadata_props.get(POSITION_KEY):
                drawn = np.full(shape, vector)
            inputs[str(value.name)] = drawn.astype(storage_of(value))
        outputs = dict(zip(names, oracle.run(inputs), strict=True))
        kept = {name: outputs[output] for output, name in states.items()}
        found.append([array for name, array in outputs.items() if name not in states])
    return found


def selftest(sources: Sources, expected: list[list[NDArray]]) -> str:
    """C text with main(): 0 if every bit is right."""
    name = sources.name
    values = sources.values()
    inputs = [v for v in values if v[0].startswith("input")]
    outputs = [v for v in values if v[0].startswith("output")]
    parts = [f'#include "{name}.h"\n']
    for i, (_, value, kind, count) in enumerate(outputs):
        for vector, arrays in enumerate(expected):
            flat = np.ascontiguousarray(arrays[i], storage_of(value)).ravel()
            if count <= WHOLE:
                parts.append(array(f"want_{vector}_{i}", kind, flat.tolist()))
            else:
                parts.append(f"static const uint32_t want_{vector}_{i} = {zlib.crc32(flat.tobytes())}u;\n")
    for cname, _, kind, count in values:
        parts.append(f"static {kind} {cname}[{count}];")
    for one in (parameter.rpartition("*")[2] for parameter in sources.memory()):
        size = f"QC_{name.upper()}_{one.upper()}_BYTES"
        parts.append(f"static union {{ int64_t align; uint8_t bytes[{size}]; }} {one};")
    parts.append(_CRC if any(count > WHOLE for _, _, _, count in outputs) else "")
    parts.append(_DIFFERS if any(count <= WHOLE for _, _, _, count in outputs) else "")
    parts += [_FILL.replace("KIND", kind) for kind in sorted({kind for _, _, kind, _ in inputs})]
    memory = [parameter.rpartition("*")[2] for parameter in sources.memory()]
    given = ", ".join(f"{one}.bytes, QC_{name.upper()}_{one.upper()}_BYTES" for one in memory)
    start = f"int32_t wrong = qc_{name}_init({given}) != QC_OK"
    parts.append(f"int main(void);\nint main(void) {{\n  {start};")
    reset = f"  qc_{name}_reset({'state.bytes' if sources.caller_arena else ''});"
    # With states the vectors are steps; behind the last, a reset leads to the first again.
    order = [*range(len(expected)), *([0] if sources.states and expected else [])]
    for vector in order:
        if sources.states and vector == 0:
            parts.append(reset)
        for i, (cname, value, kind, count) in enumerate(inputs):
            low, high = limits(value)
            if value.name == sources.graph.model.metadata_props.get(POSITION_KEY):
                low = high = vector
            parts.append(f"  fill_{kind}({cname}, {count}, {1 + vector * 16 + i}u, {high - low + 1}u, {low});")
        arguments = [f"{one}.bytes" for one in memory] + [v[0] for v in values]
        parts.append(f"  qc_{name}_run({', '.join(arguments)});")
        for i, (cname, _, _, count) in enumerate(outputs):
            want = f"want_{vector}_{i}"
            if count <= WHOLE:
                parts.append(f"  wrong += differs({cname}, {want}, (uint32_t)sizeof {cname});")
            else:
                parts.append(f"  wrong += crc32((const uint8_t *){cname}, (uint32_t)sizeof {cname}) != {want};")
    parts.append("  return wrong != 0;\n}\n")
    return "\n".join(part for part in parts if part)


# One call an input and an output: compilers take minutes over a main() with a loop for each of hundreds.
_FILL = """static void fill_KIND(KIND *codes, int32_t count, uint32_t state, uint32_t range, int32_t low) {
  for (int32_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    codes[i] = (KIND)((int32_t)((state >> 16) % range) + low);
  }
}
"""

_DIFFERS = """static int32_t differs(const void *got, const void *want, uint32_t size) {
  const uint8_t *a = (const uint8_t *)got, *b = (const uint8_t *)want;
  int32_t found = 0;
  for (uint32_t i = 0; i < size; ++i) found |= a[i] != b[i];
  return found;
}
"""

_CRC = """static uint32_t crc32(const uint8_t *data, uint32_t size) {
  uint32_t crc = 0xFFFFFFFFu;
  for (uint32_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int32_t bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
  }
  return ~crc;
}
"""
