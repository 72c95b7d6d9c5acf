"""What a rule sees of a node, and the helpers that all families of operators share.

A rule is called once, when a graph is made ready: `rule(site)` checks attributes and constant arguments and returns the
function that runs the node. That function gets a tensor for every input (None for an absent one) and returns the first
output, or a tuple of all. Tensors are [n, *shape], with n = 1 for constants and what depends on constants alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.errors import UnsupportedError
from qcompiler.graph.model import Graph, attribute

Function = Callable[..., Any]
Rule = Callable[["Site"], Function]


@dataclass(frozen=True, eq=False)
class Site:
    """A node of a graph. `dtype` says the float type that the graph runs in, when it runs."""

    graph: Graph
    node: ir.Node
    dtype: Callable[[], torch.dtype] = lambda: torch.float32

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a plain Python value."""
        return attribute(self.node, name, default)

    def value(self, index: int) -> ir.Value | None:
        """Input `index`, None if it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def const(self, index: int) -> NDArray | None:
        """The array of input `index`, None if it is absent. Raises UnsupportedError if it is computed."""
        value = self.value(index)
        array = self.graph.const(value)
        if value is not None and array is None:
            raise self.refuse(f"reads `{value.name}` (input {index}), which is not constant")
        return array

    def ints(self, index: int) -> list[int] | None:
        """A constant input as a list of integers, None if it is absent."""
        array = self.const(index)
        return None if array is None else [int(v) for v in np.asarray(array).reshape(-1)]

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Static shape of input `index`."""
        return self.graph.shape(self.value(index))

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Static shape of the first output."""
        return self.graph.shape(self.node.outputs[0])

    def only_first_output(self) -> None:
        """Raise UnsupportedError if another output than the first is read."""
        for value in self.node.outputs[1:]:
            if value.uses() or value.is_graph_output():
                raise self.refuse(f"has a second output (`{value.name}`) that is read")

    def refuse(self, why: str) -> UnsupportedError:
        """The error that names the node."""
        name = self.node.name or self.node.outputs[0].name
        return UnsupportedError(
            f"node `{name}`: {self.node.op_type} {why}; the torch executor cannot run it.",
            where=self.graph.path,
            hint="Leave out the passes that learn, or cut the model before this node.",
        )


def align(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Give tensors [n, *shape] the rank of the highest, as broadcasting of the shapes behind the samples wants it."""
    rank = max(tensor.dim() for tensor in tensors)
    return tuple(lift(tensor, rank) for tensor in tensors)


def lift(tensor: Tensor, rank: int) -> Tensor:
    """[n, *shape] -> [n, 1, .., 1, *shape] of `rank` dimensions."""
    missing = rank - tensor.dim()
    return tensor if missing <= 0 else tensor.reshape(tensor.shape[0], *[1] * missing, *tensor.shape[1:])


def along(axis: int, tensor: Tensor) -> int:
    """Dimension of the tensor that is axis `axis` of the value (negative from the end)."""
    return axis + 1 if axis >= 0 else axis + tensor.dim()


def common_samples(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors expanded to one number of samples."""
    n = max(tensor.shape[0] for tensor in tensors)
    return [tensor if tensor.shape[0] == n else tensor.expand(n, *tensor.shape[1:]) for tensor in tensors]


def plain(function: Function) -> Rule:
    """The rule of an operator without attributes whose inputs broadcast."""

    def rule(site: Site) -> Function:
        if len(site.node.inputs) == 1:
            return function
        return lambda *tensors: function(*align(*tensors))

    return rule
