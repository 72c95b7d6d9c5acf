"""Places of the largest codes: ArgMax, ArgMin, TopK; and Cast between integers and truth values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.ops.operator import Operator

Inputs = list[NDArray | None]


def _place(inputs: Inputs, attributes: dict[str, Any], sign: int) -> list[NDArray]:
    x, axis = inputs[0], int(attributes.get("axis", 0))
    assert x is not None
    values = sign * x.astype(np.int64)
    if attributes.get("select_last_index", 0):
        places = values.shape[axis] - 1 - np.flip(values, axis).argmax(axis)
    else:
        places = values.argmax(axis)
    return [np.expand_dims(places, axis) if attributes.get("keepdims", 1) else np.asarray(places)]


def arg_max(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """int64 place of the largest code along `axis`, the first of equals (the last with select_last_index)."""
    return _place(inputs, attributes, 1)


def arg_min(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """int64 place of the smallest code along `axis`, the first of equals (the last with select_last_index)."""
    return _place(inputs, attributes, -1)


def top_k(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """The k largest (smallest) codes along `axis` in order, and their int64 places; equals keep their order."""
    x, k = inputs
    assert x is not None and k is not None
    axis = int(attributes.get("axis", -1))
    values = x.astype(np.int64) * (-1 if attributes.get("largest", 1) else 1)
    places = np.argsort(values, axis=axis, kind="stable").take(np.arange(int(k.reshape(()))), axis=axis)
    return [np.take_along_axis(x, places, axis=axis), places.astype(np.int64)]


def cast(inputs: Inputs, attributes: dict[str, Any]) -> list[NDArray]:
    """Integers and truth values as another such type; what does not fit wraps."""
    assert inputs[0] is not None
    return [inputs[0].astype(ir.DataType(attributes["to"]).numpy())]


ARG_MAX = Operator("ArgMax", "", arg_max)
ARG_MIN = Operator("ArgMin", "", arg_min)
CAST = Operator("Cast", "", cast)
TOP_K = Operator("TopK", "", top_k)
