"""Load and run a bundle with numpy and ctypes only.

This file is copied into every bundle, so it imports nothing of ours and must run where onnx, torch, TVM and
qcompiler cannot be imported:

    from loader import load
    session = load("bundle")
    outputs = session.run({"x": array})
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1


class BundleLoadError(Exception):
    """A bundle is damaged, does not fit this machine, or was fed the wrong arrays."""


def cpu_flags() -> set[str]:
    """Instruction-set flags of this processor (Linux); empty if they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


def read_manifest(path: str | os.PathLike[str], *, check: bool = True) -> dict[str, Any]:
    """manifest.json of a bundle; with `check`, every file's sha256 is compared. Raises BundleLoadError."""
    root = Path(path)
    if not (root / "manifest.json").is_file():
        raise BundleLoadError(f"{root}: not a bundle (no manifest.json). Give the directory that qcompile wrote.")
    try:
        manifest = json.loads((root / "manifest.json").read_text())
        schema, files = manifest["schema"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleLoadError(f"{root}/manifest.json is damaged ({error}). Compile the model again.") from error
    if schema > SCHEMA:
        raise BundleLoadError(
            f"{root}: bundle schema {schema} is newer than this loader's {SCHEMA}. Use its own loader."
        )
    for name, digest in files.items() if check else ():
        file = root / name
        if not file.is_file():
            raise BundleLoadError(f"{root}: `{name}` is missing. Copy the whole bundle, or compile the model again.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise BundleLoadError(
                f"{root}: `{name}` is damaged (its sha256 differs from the manifest). Copy the bundle again."
            )
    return dict(manifest)


class Session:
    """A loaded bundle. `run` takes float32 arrays by input name and returns output arrays in order."""

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1, check: bool = True) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(path, check=check)
        if "cpu" not in self.manifest:
            raise BundleLoadError(
                f"{path}: a bundle for target `{self.manifest.get('target')}`; only `cpu` bundles run in this process."
            )
        if threads < 1:
            raise BundleLoadError(f"threads must be at least 1, not {threads}.")
        self.inputs: list[dict[str, Any]] = self.manifest["inputs"]
        self.outputs: list[dict[str, Any]] = self.manifest["outputs"]
        self.threads = threads
        variant = self._pick()
        self.level = variant["level"]
        self._library = ctypes.CDLL(str(self.path.resolve() / variant["library"]))
        with open(self.path / variant["weights"], "rb") as file:
            self._weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = np.frombuffer(self._weights, np.uint8)
        library = self._library
        library.qc_open.restype = ctypes.c_void_p
        library.qc_open.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        library.qc_run.restype = None
        library.qc_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        library.qc_close.argtypes = [ctypes.c_void_p]
        library.qc_close.restype = None
        self._handle = library.qc_open(self._view.ctypes.data, threads)
        if not self._handle:
            raise BundleLoadError(f"{path}: out of memory or threads ({threads} asked for).")
        self._in = (ctypes.c_void_p * len(self.inputs))()
        self._out = (ctypes.c_void_p * len(self.outputs))()
        self._shapes = [(spec["name"], tuple(spec["shape"]), np.dtype(spec["dtype"])) for spec in self.inputs]

    def _pick(self) -> dict[str, Any]:
        have = cpu_flags()
        variants: list[dict[str, Any]] = self.manifest["cpu"]["variants"]
        fitting = [v for v in variants if have.issuperset(v["cpu_flags"])]
        if not fitting:
            lacking = "; ".join(f"{v['level']} lacks {', '.join(sorted(set(v['cpu_flags']) - have))}" for v in variants)
            raise BundleLoadError(
                f"{self.path}: this processor cannot run any variant of the bundle ({lacking}). "
                "Compile it for this machine with --cpu."
            )
        return fitting[-1]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs in the order of the manifest, as new arrays. Raises BundleLoadError on wrong names, shapes, dtypes."""
        if not self._handle:
            raise BundleLoadError(f"{self.path}: the session is closed.")
        if inputs.keys() != {name for name, _, _ in self._shapes}:
            expected = ", ".join(f"`{name}`" for name, _, _ in self._shapes)
            given = ", ".join(f"`{name}`" for name in inputs) or "none"
            raise BundleLoadError(f"{self.path}: the inputs are {expected}; given: {given}.")
        keep = []
        for i, (name, shape, dtype) in enumerate(self._shapes):
            array = np.asarray(inputs[name])
            if array.shape != shape:
                raise BundleLoadError(f"{self.path}: input `{name}` has shape {array.shape}, not {shape}.")
            if array.dtype != dtype:
                raise BundleLoadError(
                    f"{self.path}: input `{name}` is {array.dtype}, not {dtype}. Convert it with .astype(np.{dtype})."
                )
            array = np.ascontiguousarray(array)
            keep.append(array)
            self._in[i] = array.ctypes.data
        results = [np.empty(spec["shape"], spec["dtype"]) for spec in self.outputs]
        for i, array in enumerate(results):
            self._out[i] = array.ctypes.data
        self._library.qc_run(self._handle, self._in, self._out)
        return results

    def close(self) -> None:
        """Free the arena and end the threads."""
        if getattr(self, "_handle", None):
            self._library.qc_close(self._handle)
            self._handle = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def load(path: str | os.PathLike[str], *, threads: int = 1, check: bool = True) -> Session:
    """Open a bundle. `check` compares every file with the manifest's sha256. Raises BundleLoadError."""
    return Session(path, threads=threads, check=check)
