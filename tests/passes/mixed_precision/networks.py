"""Networks that tests of mixed precision share: small, with every kind of item."""

from __future__ import annotations

import numpy as np

from qcompiler.calibrate.data import load_samples
from qcompiler.context import Context
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.passes import decide
from qcompiler.passes.mixed_precision.candidates import Item, find_items

RESIDUAL = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,3,8,8] x, float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[8,1,3,3] w3, float[8] b3,
   float[32,6] w4, float[6,5] w5, float[5] b5, int64[2] shape) => (float[1,5] y) {
  [c1] h1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
  [r1] a1 = Relu(h1)
  [c2] h2 = Conv <pads = [1,1,1,1]> (a1, w2, b2)
  [sum] s = Add(h2, a1)
  [r2] a2 = Relu(s)
  [c3] h3 = Conv <group = 8, pads = [1,1,1,1], strides = [2,2]> (a2, w3, b3)
  [r3] a3 = Relu(h3)
  [pool] p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a3)
  [flat] f = Reshape(p, shape)
  [fc] m = MatMul(f, w4)
  [r4] a4 = Relu(m)
  [last] q = MatMul(a4, w5)
  [bias] y = Add(q, b5)
}"""
SHAPES = {
    "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 1, 3, 3), "b3": (8,), "w4": (32, 6),
    "w5": (6, 5), "b5": (5,),
}  # fmt: skip


def residual(precision: str = "w8a8", *, count: int = 24, biases: float = 0.3, **options) -> tuple[Graph, Context]:
    """A residual block, a depthwise convolution and two products, behind `decide`."""
    rng = np.random.default_rng(0)
    constants = {
        name: (rng.standard_normal(shape) * (biases if name[0] == "b" else 0.3)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    graph = load_graph(Graph.parse(RESIDUAL, shape=np.int64([1, 32]), **constants).to_proto())
    x = np.cumsum(rng.standard_normal((count, 3, 8, 8)), axis=3).astype(np.float32)
    context = Context(samples=load_samples({"x": x}, graph))
    options = {"keep_first_last": False, **options}
    return decide.run(graph, decide.Options(precision=precision, **options), context), context


def items_of(graph: Graph, context: Context, activations: tuple[int, ...] = ()) -> list[Item]:
    """Items with weights of 2, 3, 4 and 8 bits."""
    assert context.assignment is not None
    return find_items(graph, context.assignment, (2, 3, 4, 8), activations)
