"""Load and run a bundle with numpy and ctypes only.

This file is copied into every bundle, so it imports nothing of ours and must run where onnx, torch, TVM and
qcompiler cannot be imported:

    from loader import load
    session = load("bundle")
    outputs = session.run({"x": array})

A bundle with state (a cache of attention, a recurrent layer) keeps it between steps, as codes:

    session.reset()
    outputs = session.step({"ids": array})
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import json
import mmap
import os
import threading
from collections.abc import Mapping
from importlib import import_module
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
        schema, files = int(manifest["schema"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleLoadError(f"{root}/manifest.json is damaged ({_say(error)}). Compile the model again.") from error
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


def _say(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


class Session:
    """A loaded bundle. `run` takes arrays by input name and returns output arrays in order.

    `step` does the same with the states of a bundle that has them left out: they are kept inside, from the last `reset`
    on; `run` takes and returns them as float32 and leaves those inside alone.

    One session has one arena: calls from several Python threads are safe, and wait for each other. Sessions are
    independent of one another, so open one for each thread that shall run at the same time.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1, check: bool = True) -> None:
        self._handle: int | None = None
        self._library: Any = None
        self._lock = threading.Lock()
        self.path = Path(path)
        self.manifest = read_manifest(path, check=check)
        if "cpu" not in self.manifest:
            raise BundleLoadError(
                f"{path}: a bundle for target `{self.manifest.get('target')}`; only `cpu` bundles run in this process."
            )
        if threads < 1:
            raise BundleLoadError(f"{path}: threads must be at least 1, not {threads}.")
        self.threads = threads
        try:
            self.inputs: list[dict[str, Any]] = self.manifest["inputs"]
            self.outputs: list[dict[str, Any]] = self.manifest["outputs"]
            self._shapes = [(spec["name"], tuple(spec["shape"]), np.dtype(spec["dtype"])) for spec in self.inputs]
            self._states = state_places(self.inputs, self.outputs)
            variant = self._pick()
            self.level: str = variant["level"]
            library, weights = self.path / variant["library"], self.path / variant["weights"]
            weight_bytes = int(variant["weight_bytes"])
        except (KeyError, TypeError) as error:
            raise BundleLoadError(
                f"{path}/manifest.json is damaged ({_say(error)}). Compile the model again."
            ) from error
        self._in = (ctypes.c_void_p * len(self.inputs))()
        self._out = (ctypes.c_void_p * len(self.outputs))()
        self._view = _map(weights, weight_bytes)
        self._library = _library(library)
        self.reset()
        self._handle = self._library.qc_open(self._view.ctypes.data, threads)
        if not self._handle:
            raise BundleLoadError(f"{path}: no memory, or no {threads} threads, can be had.")

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
        """Outputs in the order of the manifest, as new arrays. Raises BundleLoadError if inputs do not fit."""
        arrays = checked(self.path, inputs, self._shapes)
        results = [np.empty(spec["shape"], spec["dtype"]) for spec in self.outputs]
        if not self._states:
            with self._lock:
                self._call(arrays, results)
            return results
        for i, o in self._states:
            arrays[i], results[o] = quantize(arrays[i], self.inputs[i]), self._fresh(i)
        with self._lock:
            self._call(arrays, results)
        for _, o in self._states:
            results[o] = dequantize(results[o], self.outputs[o])
        return results

    def reset(self) -> None:
        """Let all states be 0, as before the first step."""
        self._kept = {i: np.full_like(self._fresh(i), self.inputs[i]["zero_point"]) for i, _ in self._states}
        self._spare = {i: self._fresh(i) for i, _ in self._states}

    def step(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """One step: inputs without states, outputs without states. Raises BundleLoadError if inputs do not fit."""
        if not self._states:
            raise BundleLoadError(f"{self.path}: the bundle has no state. Call run, or compile with --state.")
        taken = {i for i, _ in self._states}
        given = checked(self.path, inputs, [shape for i, shape in enumerate(self._shapes) if i not in taken])
        with self._lock:
            rest = iter(given)
            arrays = [self._kept[i] if i in taken else next(rest) for i in range(len(self.inputs))]
            results = [np.empty(spec["shape"], spec["dtype"]) for spec in self.outputs]
            for i, o in self._states:
                results[o] = self._spare[i]
            self._call(arrays, results)
            self._kept, self._spare = self._spare, self._kept
        made = {o for _, o in self._states}
        return [result for o, result in enumerate(results) if o not in made]

    def _fresh(self, i: int) -> np.ndarray:
        return np.empty(self.inputs[i]["shape"], storage(self.inputs[i]["format"]))

    def _call(self, arrays: list[np.ndarray], results: list[np.ndarray]) -> None:
        """Run the library; the lock is held."""
        if not self._handle:
            raise BundleLoadError(f"{self.path}: the session is closed.")
        for pointers, group in ((self._in, arrays), (self._out, results)):
            for i, array in enumerate(group):
                pointers[i] = array.ctypes.data
        self._library.qc_run(self._handle, self._in, self._out)

    def self_test(self) -> None:
        """Run the sample that was packed with the bundle. Raises BundleLoadError unless every bit is right (or, of
        outputs that depend on float islands, within the tolerance in the manifest)."""
        self_test(self)

    def close(self) -> None:
        """End the threads, free the arena, unload the library. More calls do nothing."""
        with self._lock:
            if self._handle:
                self._library.qc_close(self._handle)
            self._handle = None
            if self._library is not None:
                _ctypes.dlclose(self._library._handle)  # dlopen counts; without this every bundle stays mapped
            self._library = None
            self._view = np.empty(0, np.uint8)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()


def checked(
    path: Path, inputs: Mapping[str, np.ndarray], shapes: list[tuple[str, tuple[int, ...], np.dtype]]
) -> list[np.ndarray]:
    """The arrays of these inputs in order, contiguous. Raises BundleLoadError for other names, shapes or types."""
    if inputs.keys() != {name for name, _, _ in shapes}:
        expected = ", ".join(f"`{name}`" for name, _, _ in shapes)
        given = ", ".join(f"`{name}`" for name in inputs) or "none"
        raise BundleLoadError(f"{path}: the inputs are {expected}; given: {given}.")
    arrays = []
    for name, shape, dtype in shapes:
        array = np.asarray(inputs[name])
        if array.shape != shape:
            raise BundleLoadError(f"{path}: input `{name}` has shape {array.shape}, not {shape}.")
        if array.dtype != dtype:
            raise BundleLoadError(
                f"{path}: input `{name}` is {array.dtype}, not {dtype}. Convert it with .astype(np.{dtype})."
            )
        arrays.append(np.ascontiguousarray(array))
    return arrays


def self_test(session: Any) -> None:
    """Compare a session's answer to the packed sample with the oracle's. Raises BundleLoadError."""
    name = str(session.manifest.get("self_test", "selftest.npz"))
    try:
        with np.load(session.path / name, allow_pickle=False) as stored:
            given = {spec["name"]: stored[f"in_{i}"] for i, spec in enumerate(session.inputs)}
            wanted = [stored[f"out_{i}"] for i in range(len(session.outputs))]
    except Exception as error:  # numpy and zipfile raise many types for a damaged file
        raise BundleLoadError(f"{session.path}: the self-test `{name}` cannot be read ({_say(error)}).") from error
    for spec, want, got in zip(session.outputs, wanted, session.run(given), strict=True):
        same = want.shape == got.shape and want.dtype == got.dtype
        exact = same and want.tobytes() == got.tobytes()
        if not exact and not (same and np.abs(want.astype(np.float64) - got).max() <= spec.get("tolerance", -1)):
            raise BundleLoadError(
                f"{session.path}: the self-test failed: output `{spec['name']}` is not what the compiler computed. "
                "Do not use this bundle here; report a bug with the processor's name."
            )


def state_places(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(input, output) of every state, by place."""
    places = {spec["name"]: o for o, spec in enumerate(outputs)}
    return [(i, places[spec["state"]]) for i, spec in enumerate(inputs) if "state" in spec]


def storage(token: str) -> np.dtype:
    """dtype of the codes of a format such as uint8, int4 or int16."""
    bits = int("".join(c for c in token if c.isdigit()))
    return np.dtype(f"{'u' if token.startswith('u') else ''}int{8 if bits <= 8 else 16}")


def quantize(x: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """Codes of float32 values: clip(rint(x / scale) + z), as the compiler's own quantizer."""
    bits, signed = int("".join(c for c in spec["format"] if c.isdigit())), not spec["format"].startswith("u")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    codes = np.rint(x / np.float32(spec["scale"])).astype(np.float64) + spec["zero_point"]
    return np.clip(codes, low + spec["format"].endswith("n"), high).astype(storage(spec["format"]))


def dequantize(codes: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """Values of codes: float32(code - z) * scale."""
    return (codes.astype(np.int64) - spec["zero_point"]).astype(np.float32) * np.float32(spec["scale"])


def _library(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        raise BundleLoadError(f"{path}: the library cannot be loaded ({error}). Copy the bundle again.") from error
    try:
        library.qc_open.restype = ctypes.c_void_p
        library.qc_open.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        library.qc_run.restype = None
        library.qc_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        library.qc_close.restype = None
        library.qc_close.argtypes = [ctypes.c_void_p]
    except AttributeError as error:
        raise BundleLoadError(f"{path}: not the library of a bundle ({error}). Compile the model again.") from error
    return library


def _map(path: Path, size: int) -> np.ndarray:
    """A file's bytes, mapped, not read; the mapping ends with the array."""
    try:
        with open(path, "rb") as file:
            view = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        raise BundleLoadError(f"{path}: the weights cannot be read ({error}). Copy the bundle again.") from error
    if len(view) != size:
        raise BundleLoadError(f"{path}: it has {len(view)} bytes instead of {size}. Copy the bundle again.")
    return view


def load(path: str | os.PathLike[str], *, threads: int = 1, check: bool = True, **options: Any) -> Any:
    """Open a bundle: a Session, or for the target `cuda` a CudaSession, which takes options (`device`).

    `check` compares every file with the manifest's sha256. Raises BundleLoadError.
    """
    if read_manifest(path, check=False).get("target") != "cuda":
        return Session(path, threads=threads, check=check, **options)
    home = f"{__package__}." if __package__ else ""
    return import_module(f"{home}cuda_loader").CudaSession(path, check=check, **options)
