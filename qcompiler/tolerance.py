"""How far what a target computes behind float islands may be from the oracle, and what surrounds the first of them.

Two float32 kernels of one operator round differently, so a code that leaves an island can differ by one step, where the
real value lies near the middle between two codes, and the integer operators behind it carry that on. How much they
make of it does not follow from the graph alone, so it is measured, for every sample: the tolerance of an output is the
most that any of its elements moves in RUNS runs of the oracle in which *every* code that leaves an island is moved by
-1, 0 or 1 at random, and at least one step of the output. Outputs that no island reaches have tolerance 0, and are
compared bit for bit. So are all values that the first islands read, and what leaves these within one step: that part of
the graph is compiled once more for it, with these values as outputs (`first_islands`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
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
                    found[i] = max(found[i], float(np.abs(a - b).max(initial=0)))
        return [value * SLACK for value in found]


def _step(graph: Graph, index: int) -> float:
    node = graph.outputs[index].producer()
    scale = graph.const(node.inputs[1]) if node is not None else None
    return 0.0 if scale is None else float(scale.item())


def first_islands(graph: Graph) -> Graph | None:
    """The part of an INTEGER graph up to the first islands. Its outputs, dequantized: what these read, and the codes
    that leave them. None where there is no island."""
    part = graph.clone()
    rank: dict[str, int] = {}  # how many islands one after the other a value depends on
    outputs: list[ir.Value] = []
    for node in part.nodes():
        values = [value for value in node.inputs if value is not None]
        depth = max((rank.get(str(value.name), 0) for value in values), default=0)
        leaves = node.op_type == "QuantizeLinear" and is_island(node.inputs[0].producer())  # type: ignore[union-attr]
        rank.update(dict.fromkeys((str(value.name) for value in node.outputs), depth + leaves))
        if is_island(node) and depth == 0:
            makers = [value.producer() for value in values]
            outputs += [maker.outputs[0] for maker in makers if maker is not None and not is_island(maker)]
        if leaves and depth == 0:
            codes, inputs = node.outputs[0], [node.outputs[0], *node.inputs[1:]]
            end = part.add_node("DequantizeLinear", inputs, after=node, name=f"leaves/{codes.name}")
            outputs.append(end.outputs[0])
            end.outputs[0].name, end.outputs[0].shape = part.fresh_name(f"{codes.name}_leaves"), codes.shape
            end.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    if not outputs:
        return None
    part.ir.outputs.clear()
    part.ir.outputs.extend(dict.fromkeys(outputs))
    part.model.metadata_props.clear()  # states have lost their outputs
    part.sweep()
    return part


def verify_part(
    part: Graph, lowered: Lowered, whole: Mapping[str, Any], samples: Iterable[Mapping[str, NDArray]], count: int
) -> dict[str, Any]:
    """JSON-able: how `part` (see `first_islands`), compiled alone, agrees with the oracle on `count` samples: what
    islands read bit for bit, and the codes that leave them within one step.

    whole: the manifest of the bundle that it is a part of.
    """
    from qcompiler.bundle import manifest_of, write_bundle
    from qcompiler.evaluate import take, verify

    oracle = Oracle(part)
    manifest = manifest_of(whole["target"], whole["arithmetic"], part, lowered.files, lowered.manifest, lowered.sizes)
    given = ({name: sample[name] for name in oracle.input_names} for sample in take(samples, count))
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        bundle = write_bundle(Path(folder) / "part", lowered.files, manifest, overwrite=False)
        with bundle.load() as session:
            checked = verify(oracle.run, [session.run], ["1 thread"], given, tolerance=Tolerance(oracle))
    return checked.document()
