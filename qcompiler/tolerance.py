"""How a target is compared with the oracle where a graph has float islands.

Two float32 kernels of one operator round differently, so a code that leaves an island can differ by one step, where the
real value lies near the middle between two codes, and the integer operators behind it carry that on.

1. In parts (`cut`): the graph is compiled once more, cut at the borders of all islands, and the oracle's own values are
   put in at every cut. So no difference is carried on: every integer value is compared bit for bit, and every code that
   leaves an island may differ by one step.
2. As a whole (`Tolerance`): outputs that no island reaches are compared bit for bit. How much the operators behind an
   island make of a step does not follow from the graph alone, so it is measured, for every sample: the tolerance of an
   output is the most that any of its elements moves in RUNS runs of the oracle in which *every* code that leaves an
   island is moved by -1, 0 or 1 at random, and at least one step of the output. (In truth few codes differ.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.execute.oracle import Oracle
from qcompiler.graph.islands import is_island, touched
from qcompiler.graph.model import Graph
from qcompiler.target import Lowered

RUNS = 4
"""Runs with moved codes, for one sample."""
SLACK = 1 + 1e-6
"""Differences of float32 outputs, which are whole steps, are themselves rounded."""
RULE = (
    f"largest change of the output over {RUNS} oracle runs with every code behind an island moved by -1, 0 or 1, "
    "at least one step"
)


class Tolerance:
    """Tolerances of an INTEGER graph's outputs."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        behind = touched(oracle.graph)
        self.reached = [str(value.name) in behind for value in oracle.graph.outputs]
        """Whether an output depends on an island."""
        self.names = oracle.output_names
        self._steps = [_step(oracle.graph, i) for i in range(len(self.reached))]

    def __call__(self, sample: Mapping[str, NDArray], outputs: Sequence[NDArray]) -> list[float]:
        """Largest difference allowed for each output of the sample; 0 means bit for bit.

        outputs: what the oracle makes of the sample.
        """
        found = [step if reached else 0.0 for step, reached in zip(self._steps, self.reached, strict=True)]
        if not any(self.reached):
            return found
        shake = np.random.default_rng(0)
        for _ in range(RUNS):
            moved = self._oracle.run(sample, shake)
            for i, (a, b) in enumerate(zip(moved, outputs, strict=True)):
                if self.reached[i]:
                    found[i] = max(found[i], float(np.abs(a.astype(np.float64) - b).max(initial=0)))
        return [value * SLACK for value in found]


def _step(graph: Graph, index: int) -> float:
    """Of a float output; places and truth values have none."""
    node = graph.outputs[index].producer()
    if node is None or node.op_type != "DequantizeLinear":
        return 0.0
    scale = graph.const(node.inputs[1])
    assert scale is not None
    return float(scale.item())


@dataclass(frozen=True)
class Parts:
    """An INTEGER graph that is cut at the borders of its islands."""

    graph: Graph
    """Its outputs are those of the whole, what islands read, and what leaves them; all of it dequantized."""
    put: Mapping[str, tuple[str, float, int]]
    """New inputs, for values of the whole: name of the value, and scale and zero point if that is codes."""

    def sample(self, values: Mapping[str, NDArray], inputs: Sequence[str]) -> dict[str, NDArray]:
        """Inputs, out of all values of the whole by name."""
        found = {}
        for name in inputs:
            source, scale, zero = self.put.get(name, (name, 0.0, 0))
            array = values[source]
            found[name] = (array.astype(np.int32) - zero).astype(np.float32) * np.float32(scale) if scale else array
        return found


def cut(graph: Graph) -> Parts | None:
    """The graph in parts; None where there is no island."""
    part, put = graph.clone(), dict[str, tuple[str, float, int]]()
    outputs = list(part.ir.outputs)

    def new_input(value: ir.Value, scale: float = 0.0, zero: int = 0) -> ir.Value:
        made = ir.Value(name=part.fresh_name(f"{value.name}_put"), shape=value.shape)
        made.type = ir.TensorType(ir.DataType.FLOAT)
        part.ir.inputs.append(made)
        put[str(made.name)] = (str(value.name), scale, zero)
        return made

    for node in part.nodes():
        if node.op_type == "DequantizeLinear" and any(is_island(use.node) for use in node.outputs[0].uses()):
            value = node.outputs[0]
            outputs.append(value)
            value.replace_all_uses_with(new_input(value))
        elif node.op_type == "QuantizeLinear" and is_island(node.inputs[0].producer()):  # type: ignore[union-attr]
            codes, constants = node.outputs[0], list(node.inputs[1:])
            scale, zero = (part.const(value) for value in constants)
            assert scale is not None and zero is not None
            again = [new_input(codes, float(scale.item()), int(zero.item())), *constants]
            entry = part.add_node("QuantizeLinear", again, after=node, name=f"put/{codes.name}", like=codes)
            entry.outputs[0].metadata_props.update(codes.metadata_props)
            codes.replace_all_uses_with(entry.outputs[0])
            end = part.add_node("DequantizeLinear", [codes, *constants], after=node, name=f"leaves/{codes.name}")
            left = end.outputs[0]
            left.name, left.shape = part.fresh_name(f"{codes.name}_leaves"), codes.shape
            left.type = ir.TensorType(ir.DataType.FLOAT)
            outputs.append(left)
    if not put:
        return None
    part.ir.outputs.clear()
    part.ir.outputs.extend(outputs)
    part.model.metadata_props.clear()  # states are inputs and outputs like others here
    part.sweep()
    return Parts(part, put)


def verify_parts(
    parts: Parts, whole: Oracle, lowered: Lowered, manifest: Mapping[str, Any], samples: Iterable[Mapping[str, NDArray]]
) -> dict[str, Any]:
    """JSON-able: how the parts, as the target lowered them, agree with the oracle on samples of the whole graph.

    manifest: of the bundle of the whole graph.
    """
    from qcompiler.bundle import manifest_of, write_bundle
    from qcompiler.evaluate import verify

    oracle = Oracle(parts.graph)
    about = (lowered.files, lowered.manifest, lowered.sizes)
    manifest = manifest_of(manifest["target"], manifest["arithmetic"], parts.graph, *about)
    given = (parts.sample(whole.run_all(sample), oracle.input_names) for sample in samples)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        bundle = write_bundle(Path(folder) / "parts", lowered.files, manifest, overwrite=False)
        with bundle.load() as session:
            return verify(oracle.run, [session.run], ["1 thread"], given, tolerance=Tolerance(oracle)).document()
