"""Run a graph part by part over many samples: what layer-by-layer passes need.

A pass asks for the inputs of a layer, changes the layer, and asks for the next one; every node runs once a sample, with
the constants that it has at that moment. Between two requests only values are kept that a node still to come reads:
quantized ones as codes, and beyond a limit of bytes in temporary files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.execute.ort import Session
from qcompiler.graph.model import Graph, operand
from qcompiler.graph.qdq import FLOATS, is_quantizer

LIMIT = 1 << 30
"""Bytes of kept values from which on further ones go to temporary files."""


def workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Prefix:
    """The part of `graph` that has run, over `samples`. Use as a context manager: temporary files go with it.

    samples: input name -> array of the model's static shape, each. The graph's constants may change between requests;
    its nodes may not.
    """

    def __init__(self, graph: Graph, samples: Iterable[Mapping[str, NDArray]], *, limit: int = LIMIT) -> None:
        self.graph = graph
        self.count = 0
        self._limit, self._bytes = limit, 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._kept: dict[str, NDArray] = {}
        self._ran: set[ir.Node] = set()
        self._cheap = _cheap_nodes(graph)
        stacked: dict[str, list[NDArray]] = {str(value.name): [] for value in graph.inputs}
        for sample in samples:
            self.count += 1
            for name, arrays in stacked.items():
                arrays.append(sample[name])
        for name, arrays in stacked.items():
            self._kept[name] = np.stack(arrays)

    def __enter__(self) -> Prefix:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def walk(self, names: Sequence[str], *, advance: bool = True) -> Iterator[list[NDArray]]:
        """Run on to the values called `names`: their arrays, sample by sample in order. To be read to the end.

        advance: without it nothing counts as having run: a look ahead, at values that are about to change.
        """
        wanted = [name for name in dict.fromkeys(names) if name not in self._kept]
        session, feeds, kept = self._part(wanted, advance) if wanted else (None, [], [])
        stores: dict[str, NDArray] = {}

        def run(index: int) -> dict[str, NDArray]:
            fetched = dict.fromkeys([*wanted, *kept])
            feed = {name: self._kept[name][index] for name in feeds}
            return dict(zip(fetched, session.run(feed, list(fetched)), strict=True)) if session is not None else {}

        with ThreadPoolExecutor(workers()) as pool:
            ahead = 4 * workers()  # results wait in memory, so not all are asked for at once
            pending = [pool.submit(run, i) for i in range(min(ahead, self.count))]
            for index in range(self.count):
                found = pending.pop(0).result()
                if index + ahead < self.count:
                    pending.append(pool.submit(run, index + ahead))
                for name in kept:
                    if name not in stores:
                        stores[name] = self._store(found[name])
                    stores[name][index] = found[name]
                yield [found[name] if name in found else self._kept[name][index] for name in names]
        if advance:
            self._kept.update(stores)
            self._forget()

    def _part(self, names: Sequence[str], advance: bool) -> tuple[Session, list[str], list[str]]:
        """A session from kept values to `names` and to what is to be kept: (session, its inputs, values to keep)."""
        by_name = {str(value.name): value for value in self.graph.values()}
        part: dict[ir.Node, None] = {}
        pending = [by_name[name] for name in names]
        feeds: dict[str, None] = {}
        while pending:
            value = pending.pop()
            node, name = value.producer(), str(value.name)
            if name in self._kept:
                feeds[name] = None
            elif node is not None and node not in part:
                part[node] = None
                pending += [source for source in node.inputs if source is not None]
        if advance:
            self._ran |= {node for node in part if node not in self._cheap}
        kept = [
            str(value.name)
            for node in (part if advance else ())
            for value in node.outputs
            if value.name and node not in self._cheap and self._needed(value)
        ]
        copy = self.graph.clone()
        values = {str(value.name): value for value in copy.values()}
        copy.ir.outputs.clear()
        for name in [*names, *kept]:
            if values[name].type is None:
                values[name].type = ir.TensorType(ir.DataType.FLOAT)
        copy.ir.outputs.extend(values[name] for name in dict.fromkeys([*names, *kept]))
        inputs = []
        for name in feeds:
            old = values[name]
            if old.is_graph_input():
                inputs.append(old)
                continue
            new = ir.Value(name=f"{name}_kept", shape=old.shape, type=old.type or ir.TensorType(ir.DataType.FLOAT))
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            inputs.append(new)
        for value in [value for value in copy.ir.inputs if value not in inputs]:
            copy.ir.inputs.remove(value)
        for value in inputs:
            if value not in list(copy.ir.inputs):
                copy.ir.inputs.append(value)
        copy.sweep()
        for value, name in zip(inputs, feeds, strict=True):
            value.name = name if value.name == f"{name}_kept" else value.name
        return Session(copy), list(feeds), kept

    def _needed(self, value: ir.Value) -> bool:
        """Whether a node to come reads the value, directly or behind cheap nodes."""
        for use in value.uses():
            if use.node in self._cheap:
                if any(self._needed(output) for output in use.node.outputs):
                    return True
            elif use.node not in self._ran:
                return True
        return False

    def _forget(self) -> None:
        by_name = {str(value.name): value for value in self.graph.values()}
        for name in [name for name in self._kept if not self._needed(by_name[name])]:
            array = self._kept.pop(name)
            if isinstance(array, np.memmap):
                Path(str(array.filename)).unlink(missing_ok=True)
            else:
                self._bytes -= array.nbytes

    def _store(self, first: NDArray) -> NDArray:
        shape, size = (self.count, *first.shape), self.count * first.nbytes
        if self._bytes + size <= self._limit:
            self._bytes += size
            return np.empty(shape, first.dtype)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")
        handle, path = tempfile.mkstemp(dir=self._folder.name)
        os.close(handle)
        return np.memmap(path, first.dtype, "w+", shape=shape)


def _cheap_nodes(graph: Graph) -> set[ir.Node]:
    """Nodes that run again in every part instead of being kept: what only constants go into, and DequantizeLinear
    (its codes have a quarter of its bytes)."""
    cheap: set[ir.Node] = set()
    for node in graph.nodes():
        constant = all(
            value is None
            or graph.const(value) is not None
            or value.producer() in cheap
            and _constant(value, cheap, graph)
            for value in node.inputs
        )
        codes = is_quantizer(node) and node.op_type == "DequantizeLinear"
        if constant or codes and operand(node).dtype not in FLOATS:  # onnxruntime hands out no codes of such types
            cheap.add(node)
    return cheap


def _constant(value: ir.Value, cheap: set[ir.Node], graph: Graph) -> bool:
    node = value.producer()
    if node is None:
        return graph.const(value) is not None
    return node in cheap and all(source is None or _constant(source, cheap, graph) for source in node.inputs)
