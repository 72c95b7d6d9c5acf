"""Block by block, with cached activations: what reconstruction does, on the committed networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.driver import quantize
from qcompiler.execute.cache import ActivationCache
from qcompiler.execute.ort import Session
from qcompiler.graph.blocks import blocks, has_weight
from qcompiler.graph.qdq import quantizer_of

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_blocks_one_after_another_are_the_network(digits: Any, name: str):
    """Each block runs from the cached outputs of those before; at the end stands what the whole graph gives."""
    from qcompiler.execute.torch import TorchGraph

    x = digits.data["x_calib"][:12]
    result = quantize(getattr(digits, name), {"x": x}, "fast", dims={"N": 1}, options={"precision": "w4a8"})
    graph = result.qdq_graph
    found = blocks(graph)
    assert max(sum(has_weight(graph, node) for node in block.nodes) for block in found) <= 4
    module = TorchGraph(graph)
    params = {}
    for block in found:
        for output in block.outputs:
            read = quantizer_of(graph, graph.value(output))
            if read is not None:
                params[output] = read.params
    with ActivationCache(limit=40_000, codes=params) as cache, torch.no_grad():
        for one in x:
            cache.append(module.inputs[0], one[None])
        for block in found:
            for batch in np.array_split(np.arange(len(x)), 5):
                given = {value: cache.read(value, batch) for value in block.inputs}
                for value, tensor in module(given, block.outputs).items():
                    cache.extend(value, tensor.numpy())
        assert cache.bytes_on_disk > 0 and len(cache) == len(x)
        got = cache.read(module.outputs[0])
        whole = module({module.inputs[0]: x[:, None]})[module.outputs[0]].numpy()
    step = float(params[module.outputs[0]].scale)
    assert np.abs(got - whole).max() <= 1.01 * step and (got != whole).mean() < 0.02
    session = Session(graph)
    by_ort = np.stack([session.run({module.inputs[0]: one[None]})[0] for one in x])
    assert np.abs(got - by_ort).max() <= 4.01 * step and (got.argmax(-1) == by_ort.argmax(-1)).all()


def test_reconstruction_of_one_block_reduces_its_error(digits: Any):
    """Weights and scales of a block at 3 bits learn its float output from the quantized inputs that it will have."""
    from qcompiler.execute.torch import TorchGraph, float_weights, store

    x = digits.data["x_calib"][:32]
    result = quantize(digits.cnn, {"x": x}, "fast", dims={"N": 1}, options={"precision": "w3a8"})
    graph, source = result.qdq_graph, result.context.float_graph
    assert source is not None
    block = next(b for b in blocks(graph) if any(node.op_type == "Add" for node in b.nodes))
    (entry,), (exit_,) = block.inputs, block.outputs
    name = quantizer_of(graph, graph.value(exit_)).source.name
    weights = float_weights(graph, source)
    module = TorchGraph(graph, float_weights=weights)
    inside = [str(v.name) for node in block.nodes for v in node.inputs if v is not None and v.is_initializer()]
    learned = [module.parameter(n) for n in inside if n.endswith("_codes")]
    values = {module.inputs[0]: x[:, None]}
    with torch.no_grad():
        target = TorchGraph(source)(values, [name])[name]
        start = module(values, [entry])[entry]
        before = (module({entry: start}, [exit_])[exit_] - target).square().mean().item()
    optimizer = torch.optim.Adam(learned, lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        (module({entry: start}, [exit_])[exit_] - target).square().mean().backward()
        optimizer.step()
    store(module, graph)
    stored = TorchGraph(graph)({entry: start}, [exit_])[exit_]
    assert (stored - target).square().mean().item() < 0.7 * before
