"""Calibration data of models with state: sequences, step by step, with the states that the float model makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibrate.data import Sample, Samples, digest_of
from qcompiler.errors import CalibrationError
from qcompiler.execute.ort import Session
from qcompiler.graph.model import Graph
from qcompiler.graph.state import POSITION_KEY, state_pairs

EVERY = 8
"""One step in so many is a sample: neighbours tell little new, and statistics take longer than the steps."""


def rollout(sequences: Mapping[str, NDArray], graph: Graph, limit: int | None = None) -> Samples:
    """A sample for every EVERY-th step of each sequence. States start at 0; the position, if not given, counts from 0.

    sequences: arrays [n, T, ...] by input name, without states; the shape of a step may leave out dimensions of 1.
    limit: sequences that are read. Raises CalibrationError.
    """
    pairs = state_pairs(graph)
    states = set(pairs.values())
    position = graph.model.metadata_props.get(POSITION_KEY)
    free = [value for value in graph.inputs if value.name not in states]
    wanted = {str(value.name) for value in free if value.name != position or position in sequences}
    arrays = {name: np.asarray(array) for name, array in sequences.items() if name in {str(v.name) for v in free}}
    if missing := sorted(wanted - set(arrays)):
        raise CalibrationError(
            f"no sequences for the input {', '.join(f'`{name}`' for name in missing)}.",
            where="calibration data",
            hint="A model with state takes arrays [sequences, steps, ...] for its other inputs.",
        )
    lengths = {array.shape[:2] for array in arrays.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 2:
        raise CalibrationError("sequences need the same [sequences, steps] in front.", where="calibration data")
    count, steps = next(iter(lengths))
    count = min(count, limit or count)
    shapes = {str(value.name): (graph.shape(value), value.dtype.numpy()) for value in graph.inputs if value.dtype}
    for name, array in arrays.items():
        if np.prod(array.shape[2:]) != np.prod(shapes[name][0]):
            raise CalibrationError(
                f"a step of `{name}` has shape {list(array.shape[2:])}, the model expects {list(shapes[name][0])}.",
                where="calibration data",
            )
    outputs = [str(value.name) for value in graph.outputs]

    def stream() -> Iterator[Sample]:
        session = Session(graph)
        for i in range(count):
            state: dict[str, Any] = {name: np.zeros(*shapes[name]) for name in states}
            for t in range(steps):
                sample = {name: array[i, t].reshape(shapes[name][0]).astype(shapes[name][1]) for name, array in
                          arrays.items()}  # fmt: skip
                if position is not None and position not in sample:
                    shape, dtype = shapes[position]
                    sample[position] = np.full(shape, t, dtype)
                sample |= state
                if t % EVERY == i % EVERY:
                    yield sample
                results = dict(zip(outputs, session.run(sample), strict=True))
                state = {name: results[output] for output, name in pairs.items()}

    digest = digest_of(*(part for name in sorted(arrays) for part in (name, arrays[name][:count])), str(count))
    total = sum(len(range(i % EVERY, steps, EVERY)) for i in range(count))
    return Samples(f"{count} sequences of {steps} steps", stream, digest, total)
