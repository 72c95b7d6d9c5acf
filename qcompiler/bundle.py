"""A bundle: a directory that runs on its target, with the manifest, the recipe, the graphs and the report.

Files are written beside the destination and renamed into place, so there is never half a bundle. Everything but the
report (which tells of one run: paths, seconds, latencies) is identical byte for byte between two compiles.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler import __version__
from qcompiler.errors import BundleError
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import INDICES_KEY
from qcompiler.graph.state import state_pairs

SCHEMA = 1
_REPORT = ("report.json", "report.html")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read the manifest and compare every file's sha256. Raises BundleError."""
        from qcompiler.runtime.loader import BundleLoadError, read_manifest

        try:
            return cls(Path(path), read_manifest(path))
        except BundleLoadError as error:
            raise BundleError(str(error)) from error

    @property
    def target(self) -> str:
        """Name of the target."""
        return str(self.manifest["target"])

    def integer_graph(self) -> Graph:
        """The INTEGER graph that defines every bit."""
        import onnx_ir as ir

        return Graph(ir.load(self.path / "integer.onnx"), self.path / "integer.onnx")

    def qdq_graph(self) -> Graph:
        """The QDQ graph."""
        import onnx_ir as ir

        return Graph(ir.load(self.path / "qdq.onnx"), self.path / "qdq.onnx")

    def report(self) -> dict[str, Any]:
        """report.json."""
        return dict(json.loads((self.path / "report.json").read_text()))

    def load(self, *, threads: int = 1) -> Any:
        """A qcompiler.runtime Session."""
        from qcompiler.runtime.loader import BundleLoadError, load

        try:
            return load(self.path, threads=threads)
        except BundleLoadError as error:
            raise BundleError(str(error)) from error


def check_destination(path: Path, overwrite: bool) -> None:
    """Raise BundleError unless a bundle may be written at `path`."""
    if path.exists() and not overwrite:
        raise BundleError("exists already.", where=str(path), hint="Choose another --output, or pass --overwrite.")
    if path.exists() and not ((path / "manifest.json").is_file() or path.is_dir() and not any(path.iterdir())):
        raise BundleError(
            "exists and is no bundle, so it is not overwritten.", where=str(path), hint="Choose another --output."
        )
    parent = _parent(path)
    if not parent.is_dir():
        raise BundleError(f"the folder `{parent}` does not exist.", where=str(path), hint="Create it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BundleError(
            f"the folder `{parent}` is not writable.",
            where=str(path),
            hint="Choose another --output, or change its mode.",
        )


def describe_values(graph: Graph) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs for the manifest: name, shape, dtype and the quantization at the boundary."""

    def entry(value: Any, inner: Any) -> dict[str, Any]:
        dtype = "float32" if value.dtype is None else str(value.dtype.numpy())
        found = {"name": value.name, "shape": list(graph.shape(value)), "dtype": dtype}
        if inner is None:  # indices, or an input that nothing reads
            indices = value.metadata_props.get(INDICES_KEY)
            return found | ({} if indices is None else {"indices": int(indices)})
        meta = inner.metadata_props
        return found | {
            "format": meta["qcompiler.format"],
            "scale": float(meta["qcompiler.scale"]),
            "zero_point": int(meta["qcompiler.zero_point"]),
        }

    pairs = state_pairs(graph)
    taken_up = {name: output for output, name in pairs.items()}
    inputs = []
    for value in graph.inputs:
        readers = [use.node for use in value.uses() if use.node.op_type == "QuantizeLinear"]
        inputs.append(entry(value, readers[0].outputs[0] if readers else None))
        if value.name in taken_up:
            inputs[-1]["state"] = taken_up[str(value.name)]
    outputs = []
    for value in graph.outputs:
        producer = value.producer()
        assert producer is not None, "a graph output of the INTEGER stage is computed"
        outputs.append(entry(value, producer.inputs[0] if producer.op_type == "DequantizeLinear" else None))
        if value.name in pairs:
            outputs[-1]["state"] = pairs[str(value.name)]
    return inputs, outputs


def self_test(inputs: Mapping[str, NDArray], outputs: Sequence[NDArray]) -> bytes:
    """One sample and the oracle's answer, as an .npz (whose zip entries carry no clock)."""
    arrays = {f"in_{i}": np.asarray(a) for i, a in enumerate(inputs.values())}
    arrays |= {f"out_{i}": np.asarray(a) for i, a in enumerate(outputs)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Versions of what took part."""
    found = {"qcompiler": __version__}
    for name in ("apache-tvm", "numpy", "onnx", "onnx-ir", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def manifest_of(
    target: str,
    arithmetic: str,
    graph: Graph,
    files: Mapping[str, bytes],
    target_facts: Mapping[str, Any],
    sizes: Mapping[str, int],
    tolerance: Sequence[float] = (),
) -> dict[str, Any]:
    """The manifest's content for these files. tolerance: of each output of the self-test, 0 for bit for bit."""
    inputs, outputs = describe_values(graph)
    for entry, allowed in zip(outputs, tolerance, strict=False):
        entry.update({"tolerance": allowed} if allowed else {})
    return {
        "schema": SCHEMA,
        "target": target,
        "arithmetic": arithmetic,
        "inputs": inputs,
        "outputs": outputs,
        "size": dict(sizes),
        "versions": versions(),
        "self_test": "selftest.npz",
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
        target: dict(target_facts),
    }


def write_bundle(
    path: Path,
    files: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    overwrite: bool,
    report: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write all files beside `path` and rename. `report`: files that the manifest does not list.

    Raises BundleError; whatever stops it, nothing is left behind and an old bundle stays as it was.
    """
    check_destination(path, overwrite)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=_parent(path)))
    except OSError as error:
        raise BundleError(f"cannot write there ({error.strerror}).", where=str(path)) from error
    try:
        for name, data in {**files, **(report or {}), "manifest.json": to_json(manifest)}.items():
            file = staging / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        staging.chmod(0o755)
        _swap(staging, path)
    except OSError as error:
        raise BundleError(
            f"writing failed ({error.strerror or error}); nothing was left there.",
            where=str(path),
            hint="Check the space and the permissions of its folder.",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Bundle(path, dict(manifest))


def report_files(report: Mapping[str, Any], html: str) -> dict[str, bytes]:
    """The report's files for `write_bundle`."""
    return dict(zip(_REPORT, (to_json(report), html.encode()), strict=True))


def to_json(value: Any) -> bytes:
    """Indented JSON with a final newline."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _parent(path: Path) -> Path:
    """The folder that holds `path` itself, also where `path` is a link to elsewhere."""
    return Path(os.path.abspath(path)).parent


def _swap(staging: Path, path: Path) -> None:
    """Put `staging` at `path`; an old bundle goes only once the new one stands."""
    if not path.exists():
        os.rename(staging, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=_parent(path)))
    try:
        os.rename(path, old / "bundle")
        try:
            os.rename(staging, path)
        except BaseException:
            os.rename(old / "bundle", path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
