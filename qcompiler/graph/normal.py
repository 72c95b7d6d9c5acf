"""What a BatchNormalization said of the value that it made, kept when it is folded away: mean and deviation by channel.

fold_batchnorm leaves them as metadata `qcompiler.normal` of the value that holds the normalized numbers from then on;
passes that scale channels of a value scale them along. insert_qdq takes them out of the QDQ graph, where they would
only make files larger: later passes read them in `context.float_graph`.
"""

from __future__ import annotations

import base64

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.graph.model import Graph

NORMAL_KEY = "qcompiler.normal"
"""Metadata key of a value: base64 of float32 [2, C], little endian: means, then deviations."""


def mark_normal(value: ir.Value, mean: NDArray, deviation: NDArray) -> None:
    """Remember mean and standard deviation, [C] each, of the channels (axis 1) of a value."""
    both = np.stack([mean, np.abs(deviation)]).astype("<f4")
    value.metadata_props[NORMAL_KEY] = base64.b64encode(both.tobytes()).decode("ascii")


def normal_of(value: ir.Value | None) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Mean and deviation, float64 [C] each, or None if no BatchNormalization is known or the channels are others."""
    text = value.metadata_props.get(NORMAL_KEY) if value is not None else None
    if value is None or text is None:
        return None
    mean, deviation = np.frombuffer(base64.b64decode(text), "<f4").reshape(2, -1).astype(np.float64)
    shape = value.shape
    if shape is None or len(shape) < 2 or shape[1] != len(mean) or not np.isfinite((mean, deviation)).all():
        return None
    return mean, deviation


def scale_normal(value: ir.Value, factor: NDArray, shift: NDArray | float = 0.0) -> None:
    """Follow a value whose channels were multiplied by `factor` and shifted by `shift`, float [C]."""
    found = normal_of(value)
    if found is not None:
        mark_normal(value, found[0] * factor + shift, found[1] * factor)


def clear_normals(graph: Graph) -> None:
    """Forget them all."""
    for value in graph.values():
        value.metadata_props.pop(NORMAL_KEY, None)
