"""Probes: the outputs of the network with only some items quantized, over a few samples.

A probe is a set of (item, option). What it changes is known beforehand as arrays (`Change`), so a probe is a copy of
the float graph with other weights and some quantizers, run by onnxruntime: an independent task. Outputs are kept on
disk beside the statistics, by a digest of the graph, the samples and the change, so what was interrupted goes on, and
another score or budget costs nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler import __version__
from qcompiler import assignment as decisions
from qcompiler.calibrate.data import digest_of
from qcompiler.calibrate.statistics import cache_directory, with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, UnsupportedError
from qcompiler.execute.ort import Session
from qcompiler.execute.prefix import workers
from qcompiler.execute.tasks import check_executor, run_tasks
from qcompiler.formats import QuantParams
from qcompiler.graph import qdq
from qcompiler.graph.model import Graph
from qcompiler.passes.insert_qdq import quantize_activation
from qcompiler.passes.mixed_precision.losses import Loss, loss_of

ELEMENTS = 1 << 16
"""Elements of a sample's output that are kept, at most: whole rows, evenly spread."""
Probe = tuple[tuple[int, int], ...]
"""(item, option), each; () is the base itself."""


@dataclass(frozen=True, eq=False)
class Change:
    """What one option of one item does to the float graph.

    constants: initializer -> array. biases: `node_key` of a node -> what is added to its bias, float32 [M]. wide:
    value -> parameters of a quantizer for all readers; narrow: of one through which only products read it.
    """

    constants: Mapping[str, NDArray] = field(default_factory=dict)
    biases: Mapping[str, NDArray] = field(default_factory=dict)
    wide: Mapping[str, QuantParams] = field(default_factory=dict)
    narrow: Mapping[str, QuantParams] = field(default_factory=dict)

    def digest(self) -> str:
        """Of its content."""
        parts: list[str | NDArray] = []
        for what, arrays in (("constants", self.constants), ("biases", self.biases)):
            for name in sorted(arrays):
                parts += [what, name, arrays[name]]
        for what, params in (("wide", self.wide), ("narrow", self.narrow)):
            for name in sorted(params):
                one = params[name]
                parts += [what, name, one.format.token, str(one.axis), one.scale, one.zero_point]
        return digest_of(*parts)


class Probes:
    """Runs probes and remembers them.

    graph: FLOAT. changes: [item][option]. base: changes that hold in every probe unless the probe changes that item
    itself: None for the float network, or an option for each item; extra: changes that always hold. count: samples,
    the first ones. executor: see qcompiler.execute.tasks. Raises CalibrationError without samples.
    """

    def __init__(
        self,
        graph: Graph,
        changes: Sequence[Sequence[Change]],
        context: Context,
        *,
        loss: Loss,
        count: int = 64,
        base: Sequence[int] | None = None,
        extra: Change | None = None,
        executor: str = "serial",
    ) -> None:
        check_executor(executor)
        if context.samples is None:
            raise CalibrationError("sensitivity is measured on calibration data.", where="assign_bits",
                                   hint="Pass --calib DATA, or --calib random.")  # fmt: skip
        if graph.is_large():
            hint = "Choose another score, such as local."
            raise UnsupportedError("the model is too large to be copied for probes.", where=graph.path, hint=hint)
        self.changes, self.loss, self.base, self.context, self.executor = changes, loss, base, context, executor
        self.samples = list(islice(context.samples, count))
        self.float_base = base is None and extra is None
        arrays = [part for sample in self.samples for name in sorted(sample) for part in (name, sample[name])]
        head = [__version__, "probe-1", graph.fingerprint(), digest_of(*arrays), *loss.values]
        self._head = "\n".join([*head, loss.kind, (extra or Change()).digest()])
        self._digests = [[one.digest() for one in options] for options in changes]
        looked = with_outputs(graph, loss.values)
        threads = workers() if executor == "serial" else 1
        self._payload = {
            "model": looked.to_proto().SerializeToString(), "samples": self.samples, "changes": changes, "base": base,
            "extra": extra, "threads": threads, "loss": loss,
        }  # fmt: skip
        self._found: dict[str, NDArray] = {}
        self._exact: NDArray | None = None
        self.ran = 0
        """Probes that were run and not found on disk."""

    def exact(self) -> NDArray[np.float32]:
        """Outputs of the float network, [n, rows, C]."""
        if self._exact is None:
            bare = {**self._payload, "base": None, "extra": None}
            self._exact = next(run_tasks(make, bare, [()]))[1]
        return self._exact

    def outputs(self, probes: Iterable[Probe], stage: str = "sensitivity") -> list[NDArray[np.float32]]:
        """Outputs [n, rows, C] of each probe."""
        probes = [tuple(sorted(probe)) for probe in probes]
        keys = [self._key(probe) for probe in probes]
        missing: dict[str, Probe] = {}
        for key, probe in zip(keys, probes, strict=True):
            if key not in self._found and (stored := load_array(key)) is not None:
                self._found[key] = stored
            if key not in self._found:
                missing[key] = probe
        done, total = len(set(keys)) - len(missing), len(set(keys))
        self.context.progress(stage, done, total)
        names = list(missing)
        for index, result in run_tasks(make, self._payload, list(missing.values()), self.executor):
            self._found[names[index]] = result
            store_array(names[index], result)
            done += 1
            self.ran += 1
            self.context.progress(stage, done, total)
        return [self._found[key] for key in keys]

    def losses(self, probes: Iterable[Probe], stage: str = "sensitivity") -> NDArray[np.float64]:
        """Loss of each probe against the float network."""
        return np.array([loss_of(self.loss, self.exact(), found) for found in self.outputs(probes, stage)])

    def evaluate(self, choice: Sequence[int]) -> float:
        """Loss with an option of every item."""
        return float(self.losses([tuple(enumerate(choice))], "evaluate")[0])

    def _key(self, probe: Probe) -> str:
        taken = dict(enumerate(self.base) if self.base is not None else ())
        taken.update(probe)
        parts = sorted(self._digests[i][k] for i, k in taken.items())
        return hashlib.sha256("\n".join([self._head, *parts]).encode()).hexdigest()


# -- the task ------------------------------------------------------------------------------------------------------


def make(payload: Mapping[str, Any]) -> Callable[[Probe], NDArray]:
    """The function that does a probe, for run_tasks."""
    proto = onnx.load_model_from_string(payload["model"])
    graph = Graph(ir.from_proto(proto))
    loss, samples = payload["loss"], payload["samples"]

    def probe(task: Probe) -> NDArray:
        taken = dict(enumerate(payload["base"]) if payload["base"] is not None else ())
        taken.update(task)
        changes = [payload["changes"][i][k] for i, k in sorted(taken.items())]
        changed = apply(graph.clone(), [*changes, *([payload["extra"]] if payload["extra"] is not None else [])])
        session = Session(changed, optimize=not any(one.wide or one.narrow for one in changes))
        with ThreadPoolExecutor(payload["threads"]) as pool:
            found = pool.map(lambda sample: _rows(loss, session.run(sample, session.output_names)), samples)
            return np.stack(list(found))

    return probe


def _rows(loss: Loss, outputs: Sequence[NDArray]) -> NDArray[np.float32]:
    """Outputs of one sample as [rows, C], no more than ELEMENTS."""
    if loss.kind == "kl":
        rows = outputs[0].reshape(-1, outputs[0].shape[-1])
    else:
        rows = np.concatenate([one.reshape(-1, 1) for one in outputs])
    keep = max(1, ELEMENTS // rows.shape[1])
    return np.asarray(rows[:: -(-len(rows) // keep)], np.float32)


def node_key(node: ir.Node) -> str:
    """Name of a node, or of what it makes where it has none."""
    return str(node.name or node.outputs[0].name)


def apply(graph: Graph, changes: Sequence[Change]) -> Graph:
    """Make changes in place."""
    by_name = {str(value.name): value for value in graph.values()}
    nodes = {node_key(node): node for node in graph.nodes()}
    for one in changes:
        for name, array in one.constants.items():
            graph.set_const(by_name[name], array)
        for name, shift in one.biases.items():
            _shift_bias(graph, nodes[name], shift)
    wide = {name: params for one in changes for name, params in one.wide.items()}
    narrow = {name: params for one in changes for name, params in one.narrow.items()}
    for name, params in wide.items():
        quantize_activation(graph, by_name[name], params, narrow.pop(name, None))
    for name, params in narrow.items():
        uses = decisions.operand_uses(graph, by_name[name])
        second = qdq.write_quantizer(graph, by_name[name], params, name=f"{name}_narrow")
        for node, index in uses:
            node.replace_input_with(index, second)
    return graph


def _shift_bias(graph: Graph, node: ir.Node, shift: NDArray) -> None:
    """Add [M] to the bias of a layer."""
    add = decisions.bias_add(graph, node)
    if add is not None:
        index = 0 if add.inputs[1] is node.outputs[0] else 1
        old = graph.const(add.inputs[index])
        assert old is not None
        graph.set_input_const(add, index, (old + shift.astype(np.float32)).astype(np.float32))
        return
    old = graph.const(node.inputs[2]) if len(node.inputs) > 2 else None
    graph.set_input_const(node, 2, np.asarray(shift + (0 if old is None else old), np.float32))


# -- cache ---------------------------------------------------------------------------------------------------------


def load_array(key: str) -> NDArray | None:
    """An array kept on disk, None if there is none."""
    directory = cache_directory()
    if directory is None:
        return None
    try:
        return np.asarray(np.load(directory / "probes" / f"{key}.npy", allow_pickle=False))
    except (OSError, ValueError, EOFError):  # a damaged file in a cache is the same as none
        return None


def store_array(key: str, array: NDArray) -> None:
    """Keep an array on disk."""
    directory = cache_directory()
    if directory is None:
        return
    part = Path(directory) / "probes" / f"{key}.{os.getpid()}.part"
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.save(file, array, allow_pickle=False)
        part.replace(part.with_name(f"{key}.npy"))
    except OSError:
        part.unlink(missing_ok=True)  # no cache is no error
