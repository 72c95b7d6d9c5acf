"""What quantizing to each width does to weights and activations, by rounding or by the solver of the final weights.

With the solver (solve_weights: refit, clip ratio, GPTQ, descent) each layer is solved for the float network's own
inputs, once a width: layers are independent then, as CalibTIP's parallel AdaQuant. Rounding misorders layers that the
solver repairs. Layers that solve_weights leaves alone are rounded here too.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.assignment import WEIGHTED, Assignment
from qcompiler.calibrate.data import Sample, digest_of
from qcompiler.context import Context
from qcompiler.execute.prefix import Prefix, workers
from qcompiler.formats import Int, QuantParams
from qcompiler.graph.model import Graph, operand
from qcompiler.passes import set_ranges, solve_weights
from qcompiler.passes.insert_qdq import float_bias
from qcompiler.passes.mixed_precision.candidates import Item, change
from qcompiler.passes.mixed_precision.probe import Change, load_array, node_key, store_array
from qcompiler.quantizer import fake_quantize
from qcompiler.solve.layers import as_matrices, from_matrices
from qcompiler.solve.moments import Moments

SOLVED_ON = 192
"""Samples that weights are solved on, at most."""
RUN = 8
"""Layers whose moments are held at once."""


def ranges(graph: Graph, assignment: Assignment, items: Sequence[Item], context: Context) -> dict[str, Assignment]:
    """Option by name -> the assignment with every item at it (or at its first option), with its ranges; the last is
    that of the most bits."""
    found = {}
    for label in sorted({label for item in items for label in item.labels}, key=lambda one: (one.isdigit(), one)):
        choice = [item.labels.index(label) if label in item.labels else 0 for item in items]
        own = dataclasses.replace(context, assignment=change(assignment, items, choice), notes=[], facts={})
        set_ranges.run(graph, set_ranges.Options(), own)
        context.statistics = own.statistics
        assert own.assignment is not None
        found[label] = own.assignment
    return found


def rounded(graph: Graph, items: Sequence[Item], found: dict[str, Assignment]) -> list[list[Change]]:
    """What each option of each item changes in the float graph: [item][option]. found: of `ranges`."""
    return [[_rounded(graph, item, found[label]) for label in item.labels] for item in items]


def _rounded(graph: Graph, item: Item, own: Assignment) -> Change:
    if item.kind == "weight":
        name = item.values[0]
        array = graph.const(graph.ir.initializers[name])
        assert array is not None
        return Change({name: fake_quantize(array, own.params[name])})
    if not item.inner:
        return Change(wide={name: own.params[name] for name in item.values})
    # Its own quantizer is there whatever is chosen; the option is the second one, or none.
    return Change(narrow={name: own.narrowed_params[name] for name in item.values if name in own.narrowed_params})


def fixed(assignment: Assignment, items: Sequence[Item]) -> Change:
    """Quantizers of values that are there whatever is chosen. assignment: with ranges."""
    chosen = {name for item in items if item.kind == "activation" and not item.inner for name in item.values}
    return Change(wide={name: assignment.params[name] for name in assignment.activations if name not in chosen})


def layers(graph: Graph, items: Sequence[Item]) -> list[tuple[int, solve_weights.Layer]]:
    """(index of the item, layer) of the weights that solve_weights would solve, in topological order; `params` of the
    layers are still to be set."""
    places = {item.values[0]: i for i, item in enumerate(items) if item.kind == "weight"}
    found = []
    for node in graph.nodes(*WEIGHTED):
        source = decisions.weight_of(graph, node)
        weight = graph.const(source)
        if source is None or weight is None or str(source.name) not in places or len(source.uses()) > 1:
            continue
        if node.op_type == "ConvTranspose" or (node.op_type == "MatMul" and weight.ndim > 2):
            continue
        bias = float_bias(graph, node, decisions.bias_add(graph, node), weight)
        matrices = as_matrices(node, weight.astype(np.float64))
        layer = solve_weights.Layer(
            node, str(operand(node).name), matrices, weight.shape, QuantParams(Int(8), 1.0), None,
            None if bias is None else bias.astype(np.float64),
        )  # fmt: skip
        found.append((places[str(source.name)], layer))
    return found


def moments(
    graph: Graph,
    of_items: Sequence[tuple[int, solve_weights.Layer]],
    samples: Sequence[Sample],
    context: Context,
    options: solve_weights.Options,
) -> Iterator[tuple[int, solve_weights.Layer, tuple[Moments, Moments]]]:
    """Second moments of the float inputs of layers."""
    with Prefix(graph, samples) as one, Prefix(graph, samples) as other:
        for at in range(0, len(of_items), RUN):
            run = of_items[at : at + RUN]
            sums = solve_weights.measure([layer for _, layer in run], one, other, options)
            yield from ((i, layer, own) for (i, layer), own in zip(run, sums, strict=True))
            context.progress("solve weights", min(at + RUN, len(of_items)), len(of_items))


def solved(
    graph: Graph,
    items: Sequence[Item],
    found: dict[str, Assignment],
    changes: Sequence[Sequence[Change]],
    samples: Sequence[Sample],
    context: Context,
    options: solve_weights.Options,
) -> list[list[Change]]:
    """`rounded`, with the codes of solve_weights where it solves. Kept on disk, once for each layer and width.

    samples: should not be those of the probes, on which a solved layer of few bits looks far better than it is
    (resnet20_cifar10_jpeg at the size of w3: 2 bits for the largest layers, worse than uniform on the test set).
    """
    new = [list(one) for one in changes]
    todo = layers(graph, items)
    arrays = [x for sample in samples for name in sorted(sample) for x in (name, sample[name])]
    head = [graph.fingerprint(), digest_of(*arrays), repr(options), "solved-1"]

    def key(layer: solve_weights.Layer, params: QuantParams, what: str) -> str:
        parts = [*head, node_key(layer.node), params.format.token, digest_of(params.scale), what]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    wanted = []
    for i, layer in todo:
        name = items[i].values[0]
        at = [dataclasses.replace(layer, params=found[label].params[name]) for label in items[i].labels]
        stored = [(load_array(key(o, o.params, "weight")), load_array(key(o, o.params, "bias"))) for o in at]
        if any(weight is None or shift is None for weight, shift in stored):
            wanted.append((i, layer))
            continue
        new[i] = [
            _change(name, o, weight, shift) for o, (weight, shift) in zip(at, stored, strict=True)
            if weight is not None and shift is not None
        ]  # fmt: skip
    with ThreadPoolExecutor(workers()) as pool:
        for i, layer, own in moments(graph, wanted, samples, context, options):
            name = items[i].values[0]
            at = [dataclasses.replace(layer, params=found[label].params[name]) for label in items[i].labels]
            every = pool.map(lambda one, own=own: solve_weights.solve(one, own, options, context), at)
            new[i] = []
            for one, (levels, scales, bias, _) in zip(at, every, strict=True):
                weight = from_matrices(one.node, levels * scales[..., None], one.shape).astype(np.float32)
                shift = np.zeros(0) if bias is None or one.bias is None else bias - one.bias
                store_array(key(one, one.params, "weight"), weight)
                store_array(key(one, one.params, "bias"), shift)
                new[i].append(_change(name, one, weight, shift))
    return new


def _change(name: str, layer: solve_weights.Layer, weight: NDArray, shift: NDArray) -> Change:
    return Change({name: weight}, {node_key(layer.node): shift.astype(np.float32)} if shift.size else {})
