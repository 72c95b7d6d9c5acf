"""The float passes together, on real networks: clean graphs with the same outputs."""

from __future__ import annotations

import pytest

from qcompiler.graph.io import load_graph
from qcompiler.passes import (
    cancel_transposes,
    canonicalize,
    cross_layer_equalization,
    eliminate_dead_code,
    fold_batchnorm,
    merge_pad,
    recognize_activations,
)

PASSES = (
    canonicalize,
    cancel_transposes,
    canonicalize,
    recognize_activations,
    merge_pad,
    fold_batchnorm,
    merge_pad,
    cross_layer_equalization,
    eliminate_dead_code,
)
CLEAN = frozenset({
    "Conv", "Gemm", "Relu", "Clip", "HardSwish", "HardSigmoid", "Add", "Mul", "MaxPool", "AveragePool",
    "GlobalAveragePool", "ReduceMean", "Reshape", "Flatten", "Softmax", "Sigmoid", "Concat", "Slice", "Pad", "Resize",
    "LRN",
})  # fmt: skip
MODELS = {
    "models/resnet20_cifar10": {"N": 1}, "models/resnet20_cifar10_jpeg": {"N": 2},
    "models/mobilenetv2_cifar10_jpeg": {"N": 2}, "models/mobilenet_v1_025_224": {"N": 1},
    "models/mobilenet_v2_100_224": {"N": 1}, "models/mlperf_tiny_resnet8": {"N": 2}, "models/mlperf_tiny_kws": {"N": 2},
    "models/mlperf_tiny_vww": {"N": 1}, "models/mlperf_tiny_ad": {"N": 2}, "models/espcn_x2": {},
    "graphs/light_squeezenet": {}, "graphs/light_shufflenet": {}, "graphs/onnx2c_helloworld": {"N": 3},
    "graphs/onnx2c_mnist_cntk": {}, "graphs/onnx2c_mnist_pytorch": {}, "graphs/onnx2c_nodes_out_of_order": {},
    "graphs/qonnx_residual_block": {}, "graphs/espcn_nn_resize_float": {},
    "graphs/st_mobilenet_v2_128_05": {"unk__150": 1}, "graphs/torch_raw_resnet20": {"N": 2},
    "graphs/ultraface_rfb_320": {}, "graphs/tract_keras_tf2": {"unk__6": 2},
}  # fmt: skip
ALSO = {
    "graphs/ultraface_rfb_320": {"Transpose", "Exp", "Sub"},
    "graphs/light_shufflenet": {"Transpose"},
    "models/mlperf_tiny_resnet8": {"Transpose"},
    "models/mlperf_tiny_vww": {"Transpose"},
}
"""Transposes of channel shuffles and detection heads, and one behind an NHWC input."""


@pytest.mark.parametrize("name", MODELS)
def test_real_networks_become_clean_and_stay_equal(assets, unchanged, name):
    after, _ = unchanged(load_graph(assets / f"{name}.onnx", dims=MODELS[name]), *PASSES)
    kinds = {node.op_type for node in after.nodes()}
    assert kinds <= CLEAN | ALSO.get(name, set())
    if name.startswith("models/mlperf"):
        assert not kinds & {"Transpose"} or after.nodes("Transpose") == after.nodes()[:1]
    if "mobilenet" in name:
        assert "Pad" not in kinds


def test_the_digits_cnn_becomes_clean(digits, unchanged):
    after, _ = unchanged(load_graph(digits.cnn, dims={"N": 8}), *PASSES)
    assert {node.op_type for node in after.nodes()} == {"Conv", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"}


def test_the_digits_vit_stays_equal(digits, unchanged):
    after, _ = unchanged(load_graph(digits.vit, dims={"N": 8}), *PASSES)
    assert len(after.nodes("MatMul")) == 2 * 8


def test_the_committed_digits_networks_are_accurate(digits):
    data = digits.data
    for path, least in ((digits.cnn, 0.99), (digits.vit, 0.97)):
        logits = load_graph(path, dims={"N": 500}).run(x=data["x_test"])
        assert (logits.argmax(axis=1) == data["y_test"]).mean() >= least
