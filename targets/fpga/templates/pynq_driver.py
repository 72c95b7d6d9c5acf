"""UNTESTED sketch of a driver for boards with PYNQ: no board was at hand, nothing of this file has run on one.

It expects a design with `qc_axi` (its registers at the name `control`) and, for each of its streams, a DMA in simple
mode: `dma_in0`, ..., `dma_out0`, ... in the order of manifest.json; their streams as wide as the circuit's. Reads that
file of the bundle for formats, scales and the order of codes.

    circuit = Circuit("design.bit", "manifest.json")
    (logits,) = circuit.run({"x": image})
"""

from __future__ import annotations

import importlib
import json
import time
from typing import Any

import numpy as np

START, BUSY, DONE, CLEAR_DONE = 1, 1, 2, 2
CONTROL, IMAGES, THROUGH, CYCLES, SIGNATURE = 0x00, 0x04, 0x08, 0x0C, 0x10


class Circuit:
    """The circuit on a board. run: float32 arrays by name in, float32 arrays in the manifest's order out."""

    def __init__(self, bitstream: str, manifest: str) -> None:
        pynq = importlib.import_module("pynq")
        self.overlay = pynq.Overlay(bitstream)
        with open(manifest) as file:
            self.manifest = json.load(file)
        self.ports = self.manifest["fpga"]
        self.control = self.overlay.control
        if self.control.read(SIGNATURE) != 0x51430001:
            raise RuntimeError("no register block of qcompiler at `control`")
        self.buffers: dict[str, list[Any]] = {
            side: [
                pynq.allocate(shape=(int(np.prod(port["shape"])),), dtype=f"uint{port['container']}")
                for port in self.ports[side]
            ]
            for side in ("inputs", "outputs")
        }

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One image."""
        for spec, port, buffer in zip(
            self.manifest["inputs"], self.ports["inputs"], self.buffers["inputs"], strict=True
        ):
            codes = to_codes(inputs[spec["name"]], spec).reshape(-1)[order_of(port)]
            buffer[:] = codes.astype(f"int{port['container']}").view(f"uint{port['container']}")
            buffer.flush()
        self.control.write(CONTROL, CLEAR_DONE)
        self.control.write(IMAGES, 1)
        for i, buffer in enumerate(self.buffers["outputs"]):
            getattr(self.overlay, f"dma_out{i}").recvchannel.transfer(buffer)
        self.control.write(CONTROL, START)
        for i, buffer in enumerate(self.buffers["inputs"]):
            getattr(self.overlay, f"dma_in{i}").sendchannel.transfer(buffer)
        while not self.control.read(CONTROL) & DONE:
            time.sleep(0)
        found = []
        for i, (spec, port, buffer) in enumerate(
            zip(self.manifest["outputs"], self.ports["outputs"], self.buffers["outputs"], strict=True)
        ):
            getattr(self.overlay, f"dma_out{i}").recvchannel.wait()
            buffer.invalidate()
            signed = not spec["format"].startswith("u")
            stream = np.array(buffer).view(f"int{port['container']}") if signed else np.array(buffer)
            codes = np.empty_like(stream)
            codes[order_of(port)] = stream
            found.append((codes.reshape(spec["shape"]).astype(np.float32) - spec["zero_point"]) * spec["scale"])
        return found


def order_of(port: dict[str, Any]) -> np.ndarray:
    """The place in the tensor of each code of a stream."""
    flat = np.arange(int(np.prod(port["shape"]))).reshape(port["shape"])
    return flat.transpose(port["perm"]).reshape(-1) if "perm" in port else np.array(port["order"])


def to_codes(values: np.ndarray, spec: dict[str, Any]) -> np.ndarray:
    """Codes of integers: round half to even, saturate."""
    token = str(spec["format"])
    signed, bits = not token.startswith("u"), int("".join(filter(str.isdigit, token)))
    low = -(1 << (bits - 1)) + token.endswith("n") if signed else 0
    high = (1 << (bits - signed)) - 1
    codes = np.rint(values.astype(np.float32) / np.float32(spec["scale"])) + spec["zero_point"]
    return np.clip(codes, low, high).astype(np.int64)
