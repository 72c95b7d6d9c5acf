"""Trained transformers and diffusion networks of the shared assets: integer throughout, and exact on both targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.driver import compile


def calibration(assets: Path, name: str) -> dict[str, np.ndarray]:
    if name == "vit_digits":
        with np.load(assets / "data" / "digits.npz") as data:
            return {"input": data["x_calib"][:32]}
    if name == "ddpm_digits":
        with np.load(assets / "data" / "ddpm_digits.npz") as data:
            return {"x": data["x_calib"][:32], "t": data["extra_calib"][:32]}
    with np.load(assets / "data" / "tinystories_tokens.npz") as data:
        return {"ids": data["ids_calib"][:8].astype(np.int64)}


@pytest.mark.parametrize(("name", "target"), [
    ("vit_digits", "cpu"), ("vit_digits", "c"), ("ddpm_digits", "cpu"), ("stories260k_prefill", "c"),
])  # fmt: skip
def test_every_operator_is_integer_and_exact(assets: Path, name: str, target: str, tmp_path: Path) -> None:
    bundle = compile(
        assets / "models" / f"{name}.onnx", target, calibration(assets, name), "minmax", output=tmp_path / "bundle",
        dims={"N": 1},
    )  # fmt: skip
    assert bundle.report()["verification"]["bit_exact"]
    graph = bundle.integer_graph()
    kinds = {node.op_type for node in graph.nodes()}
    assert {"BatchMatMul", "Softmax", "Normalize"} <= kinds
    # Float only at the boundary.
    assert len(graph.nodes("QuantizeLinear")) <= len(graph.inputs)
    assert len(graph.nodes("DequantizeLinear")) == len(graph.outputs)
