"""Engines of a circuit and PrimFuncs of its C twin are of the same layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qcompiler.driver import quantize
from qcompiler.errors import BundleError
from qcompiler.formats import Int
from qcompiler.graph.model import Graph
from qcompiler.targets.fpga.build import build
from qcompiler.targets.fpga.kernels import PRODUCTS, kernel_extents, kernels_of
from qcompiler.targets.fpga.layers import Layer, Network
from qcompiler.targets.fpga.reader import network_of
from qcompiler.targets.fpga.twin import twin_program
from qcompiler.targets.shared.boundary import strip_boundary

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits"


def integers(precision: str) -> Graph:
    result = quantize(
        DIGITS / "cnn.onnx", "random", "minmax", target="fpga", options={"precision": precision}, samples=4,
        dims={"N": 1},
    )  # fmt: skip
    assert result.integer_graph is not None
    return result.integer_graph


@pytest.mark.parametrize("precision", ["w4a8", "w8a16", "e2m1w-e2m1a"])
def test_every_product_has_one_kernel_of_the_same_extents(precision: str) -> None:
    graph = strip_boundary(integers(precision))
    network, program = network_of(graph), twin_program(graph)
    found = kernels_of(network, program)
    products = [layer.node for layer in network.layers if layer.kind in PRODUCTS]
    assert len(products) == 12
    assert all(len(found[node]) == 1 for node in products)
    told = [kernel_extents(call, program) for call in program.calls if call.node in products]
    assert len(told) == len(products)


@pytest.mark.parametrize("change", ["stride", "channels", "type"])
def test_an_engine_of_another_layer_is_refused(digits: Graph, change: str) -> None:
    graph = strip_boundary(digits)
    network, program = network_of(graph), twin_program(graph)
    index = next(i for i, layer in enumerate(network.layers) if layer.kind == "depthwise")
    layers = list(network.layers)
    layers[index] = changed(layers[index], change)
    with pytest.raises(BundleError, match=layers[index].node):
        kernels_of(Network(network.inputs, network.outputs, network.sources, layers), program)


def changed(layer: Layer, change: str) -> Layer:
    assert layer.window is not None and layer.weights is not None
    if change == "stride":
        return replace(layer, window=replace(layer.window, strides=(3, 3)))
    if change == "channels":
        return replace(layer, weights=layer.weights[:-1])
    return replace(layer, formats=(Int(16),))


def test_the_report_names_the_kernel_of_each_engine(digits: Graph) -> None:
    lowered = build(digits, {"part": "xc7z020", "fps": 1000}, lambda stage, done, total: None)
    code = lowered.files["model_c/model_kernels.c"].decode()
    rows = [row for row in lowered.facts["circuit"]["layers"] if row["kind"] in PRODUCTS]
    assert len(rows) == 12
    assert all(f"{row['kernels'][0]}(" in code for row in rows)
