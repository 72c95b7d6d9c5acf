"""Bundles, vectors and kernels for `benchmarks.gpu`, made where there is no card: one folder that travels.

    python -m benchmarks.gpu_prepare FOLDER [--only PARTS] [--arch sm_90] [--cache FOLDER]

Quantized graphs and the oracle's answers are kept in the cache, so that a second run only lowers. What is in FOLDER:
networks/NAME (bundles with vectors.npz), float/ (the float models and onnx_ir, for the peers), kernels/ (products of
many tiles and moves, by themselves).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qcompiler
from benchmarks.assets import Case, cases
from qcompiler.bundle import manifest_of, self_test, write_bundle
from qcompiler.calibrate.data import load_samples
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.targets import get_target

RUNS: tuple[tuple[str, int, str], ...] = (
    ("mobilenet_v2_100_224", 1, "w8a8"),
    ("mobilenet_v2_100_224", 32, "w8a8"),
    ("mobilenetv2_cifar10_jpeg", 1, "w4a8"),
    ("resnet20_cifar10_jpeg", 1, "w8a8"),
    ("resnet20_cifar10_jpeg", 32, "w8a8"),
    ("resnet20_cifar10_jpeg", 1, "w4a8"),
    ("vit_hybrid_cifar10_jpeg", 1, "w8a8"),
    ("vit_hybrid_cifar10_jpeg", 32, "w8a8"),
    ("vit_digits", 1, "w4a8"),
    ("espcn_x2", 1, "w8a8"),
    ("ddpm_digits", 1, "w8a8"),
    ("mlperf_tiny_kws", 1, "w8a8"),
    ("stories260k_prefill", 1, "w8a8"),
    ("stories260k_prefill", 1, "w4a8"),
)
"""Network, batch, precision."""
VECTORS = 2
PLACES = "resnet20_cifar10_jpeg-b32-w8a8"
"""The network that is written a second time, with `one_place`."""


@dataclass(frozen=True)
class Prepared:
    """An INTEGER graph and what the oracle makes of some inputs."""

    name: str
    graph: Graph
    inputs: list[dict[str, NDArray]]
    outputs: list[list[NDArray]]


def network(case: Case, name: str, batch: int, precision: str, cache: Path) -> Prepared:
    """Quantized, with vectors; out of the cache if it is there."""
    import onnx_ir as ir

    label = f"{name}-b{batch}-{precision}"
    folder = cache / label
    if not (folder / "vectors.npz").is_file():
        shapes = {key: (batch, *shape[1:]) for key, shape in case.shapes.items()}
        result = qcompiler.quantize(
            str(case.model), case.feed("calib"), shapes=shapes, arithmetic="float", options={"precision": precision}
        )
        assert result.integer_graph is not None
        few = {key: array[: batch * VECTORS] for key, array in case.feed("test").items()}
        inputs = list(load_samples(few, result.float_graph))[: VECTORS if batch == 1 else 1]
        oracle = Oracle(result.integer_graph)
        outputs = [oracle.run(sample) for sample in inputs]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "integer.onnx").write_bytes(result.integer_graph.to_proto().SerializeToString())
        np.savez_compressed(folder / "vectors.npz", **_flat(inputs, outputs))  # type: ignore[arg-type]
    graph = Graph(ir.load(folder / "integer.onnx"), folder / "integer.onnx")
    return Prepared(label, graph, *_vectors(folder / "vectors.npz", [str(v.name) for v in graph.inputs]))


def _flat(inputs: list[dict[str, NDArray]], outputs: list[list[NDArray]]) -> dict[str, NDArray]:
    found = {}
    for s, (given, wanted) in enumerate(zip(inputs, outputs, strict=True)):
        found |= {f"in_{s}_{i}": a for i, a in enumerate(given.values())}
        found |= {f"out_{s}_{i}": a for i, a in enumerate(wanted)}
    return found


def _vectors(path: Path, names: list[str]) -> tuple[list[dict[str, NDArray]], list[list[NDArray]]]:
    inputs: list[dict[str, NDArray]] = []
    outputs: list[list[NDArray]] = []
    with np.load(path) as stored:
        while f"out_{len(outputs)}_0" in stored:
            s = len(outputs)
            inputs.append({name: stored[f"in_{s}_{i}"] for i, name in enumerate(names)})
            outputs.append([stored[key] for key in sorted(stored, key=_place) if key.startswith(f"out_{s}_")])
    return inputs, outputs


def _place(key: str) -> tuple[str, int, int]:
    kind, sample, place = key.split("_")
    return kind, int(sample), int(place)


def problems() -> Iterator[Prepared]:
    """The conformance suite in both arithmetics, and shapes drawn at random."""
    from benchmarks.gpu_shapes import draw
    from tests.conformance.fused import fused_suite
    from tests.conformance.suite import build_suite, samples

    for arithmetic in ("float", "fixed"):
        for label, suite in (
            (f"suite-{arithmetic}", build_suite(arithmetic)),
            (f"fused-{arithmetic}", fused_suite(arithmetic)),
            (f"fuzz-{arithmetic}", draw(arithmetic)),
            (f"old-{arithmetic}", draw(arithmetic, seed=12)),
        ):
            oracle = Oracle(suite.graph)
            inputs = [{name: one[name] for name in oracle.input_names} for one in samples(suite, 2)]
            yield Prepared(label, suite.graph, inputs, [oracle.run(one) for one in inputs])


def stream(elements: int = 1 << 27) -> Prepared:
    """Elementwise operators over more than the caches hold; no vectors."""
    from tests.conformance.problems import Problems

    p = Problems("float")
    p.add("add", (64, elements // 64), (64, elements // 64))
    p.table("table", (64, elements // 64), "uint8", "uint8")
    p.mul("mul", (64, elements // 64), (64, elements // 64))
    return Prepared("stream", p.graph, [], [])


@contextmanager
def any_tile(seed: int = 5) -> Iterator[None]:
    """Products get tiles at random out of all that there are, so that each is tried with each kind of window."""
    from qcompiler.targets.cuda import lower_batched, lower_product, tile
    from qcompiler.targets.cuda.machine import OLD

    random, own = Random(seed), lower_product.choose_tile
    tiles = {"sm_90a": (*tile.TILES, *tile.GROUPS), OLD: tile.SMALL}

    def choose(
        level: str, shape: tile.Shape, bits: int = 8, *, narrow: bool = False, split: bool = True
    ) -> tile.Choice:
        chosen = random.choice(tiles.get(level, tile.TILES))
        width = 8 if chosen.wgmma else bits
        parts = random.choice([1, *tile.parts_of(chosen, shape)]) if split and not chosen.wgmma else 1
        return tile.Choice(chosen, width, parts, narrow and width == 4 and level == "sm_75")

    lower_product.choose_tile = lower_batched.choose_tile = choose
    try:
        yield
    finally:
        lower_product.choose_tile = lower_batched.choose_tile = own


@contextmanager
def one_place() -> Iterator[None]:
    """What lies outside of images is read from one place, as it was before kernels had many: to see what that costs."""
    from qcompiler.targets.cuda.tir import tile

    own = tile.LINES
    tile.LINES = 1
    try:
        yield
    finally:
        tile.LINES = own


def write(prepared: Prepared, folder: Path, arch: str) -> dict[str, Any]:
    """The bundle with its vectors; facts about it."""
    start = time.perf_counter()
    with any_tile() if prepared.name.startswith(("fuzz", "old")) else nullcontext():
        lowered = get_target("cuda").build(prepared.graph, {"arch": arch}, lambda stage, done, total: None)
    files = dict(lowered.files)
    if prepared.inputs and sum(array.nbytes for array in prepared.inputs[0].values()) < 1 << 21:
        files["selftest.npz"] = self_test(prepared.inputs[0], prepared.outputs[0])
    manifest = manifest_of("cuda", "float", prepared.graph, files, lowered.manifest, lowered.sizes)
    path = folder / "networks" / prepared.name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(path, files, manifest, overwrite=True)
    flat = _flat(prepared.inputs, prepared.outputs)
    if flat:
        np.savez_compressed(path / "vectors.npz", **flat)  # type: ignore[arg-type]
    return {
        "name": prepared.name,
        "seconds": round(time.perf_counter() - start, 1),
        **{key: lowered.manifest["variants"][-1][key] for key in ("kernels", "calls")},
        **lowered.facts.get("cuda", {}),
    }


def main() -> int:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--pack", action="store_true", help="write FOLDER.tar.gz too")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--cache", type=Path, default=Path("build/gpu-cache"))
    given = parser.parse_args()
    wanted = [part for part in given.only.split(",") if part]

    def chosen(name: str) -> bool:
        return not wanted or any(part in name for part in wanted)

    facts = []
    for name, batch, precision in RUNS:
        label = f"{name}-b{batch}-{precision}"
        if not chosen(label):
            continue
        case = next(one for one in cases(name) if one.model.stem == name)
        prepared = network(case, name, batch, precision, given.cache)
        facts.append(write(prepared, given.folder, given.arch))
        print(facts[-1], file=sys.stderr, flush=True)
        if label == PLACES:
            with one_place():
                facts.append(write(replace(prepared, name=f"{label}-one-place"), given.folder, given.arch))
        floats = given.folder / "float"
        floats.mkdir(parents=True, exist_ok=True)
        if name.startswith(("mobilenet_v2_", "vit_hybrid", "resnet20")) and batch == 1:
            graph = load_graph(case.model, shapes=case.shapes)
            (floats / case.model.name).write_bytes(graph.to_proto().SerializeToString())
    if chosen("stream"):
        facts.append(write(stream(), given.folder, given.arch))
        print(facts[-1], file=sys.stderr, flush=True)
    for prepared in problems():
        if chosen(prepared.name):
            # Some without a cubin that fits, compiled by NVRTC at load: the common kernels, and those for old cards.
            arch = "sm_61" if prepared.name.startswith("old") else given.arch
            arch = "sm_80" if prepared.name in ("fuzz-fixed", "fused-fixed") else arch
            facts.append(write(prepared, given.folder, arch))
            print(facts[-1], file=sys.stderr, flush=True)
    if chosen("kernels"):
        from benchmarks.gpu_kernels import write_kernels

        facts.append(write_kernels(given.folder / "kernels", given.arch))
        print(facts[-1], file=sys.stderr, flush=True)
    package = importlib.util.find_spec("onnx_ir")
    if package is not None and package.origin is not None:
        copy = given.folder / "float" / "onnx_ir"
        shutil.copytree(Path(package.origin).parent, copy, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("__pycache__", "*_test.py"))  # fmt: skip
    (given.folder / "prepared.json").write_text(json.dumps(facts, indent=1) + "\n")
    if given.pack:
        shutil.make_archive(str(given.folder), "gztar", given.folder.parent, given.folder.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
