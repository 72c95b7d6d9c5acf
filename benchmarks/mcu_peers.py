"""Other firmware generators on the same emulated Cortex-M4: instructions, RAM and flash of one inference at int8.

    python -m benchmarks.mcu_peers [--only PARTS] [--levels=-O2,-Os] [--work FOLDER] [--versions TEXT] [--json FILE]
        [--tflm FOLDER --cmsis-nn FOLDER --headers FOLDER,... --tiny FOLDER] [--emx COMMAND] [--onnx2c COMMAND]

Peers are not part of this repository: each option names where one lies, and a peer without its option is left out.
--tflm: github.com/tensorflow/tflite-micro, with CMSIS-NN (github.com/ARM-software/CMSIS-NN), folders that hold
flatbuffers/, fixedpoint/ (gemmlowp) and ruy/, and the models of github.com/mlcommons/tiny. --emx: emx-onnx-cgen of
PyPI. --onnx2c: github.com/kraiskil/onnx2c. --versions: of what, for the record. What was built stays in --work.
Instructions are no cycles.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import peers_onnx
from benchmarks.assets import Case, arguments, networks, write_json
from benchmarks.bundles import quantize
from benchmarks.peers import M4, Inference, compile_object, measure
from benchmarks.peers_tflm import MODELS, Tflm
from qcompiler.cli.console import table
from qcompiler.driver import Result
from qcompiler.targets.c.build import build
from tests.mcu.boards import build_plugin

OURS = "qcompiler"
Maker = Callable[[Case, Result, str, Path], Inference]


def ours(case: Case, result: Result, level: str, folder: Path) -> Inference:
    """The c target at W8A8."""
    assert result.integer_graph is not None
    lowered = build(result.integer_graph, {"prefix": "net"}, lambda stage, done, total: None)
    for path, data in lowered.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    source = folder / "src"
    objects = []
    for name in lowered.manifest["files"]:
        output = folder / f"{name}{level}.o"
        output.unlink(missing_ok=True)
        objects.append(compile_object(source / name, output, level, ["-std=c99", f"-I{source}"]))
    names = [f"{kind}{i}" for kind in ("input", "output") for i in range(lowered.manifest["run"].count(f"*{kind}"))]
    variables = [f"static uint8_t {name}[QC_NET_{name.upper()}_SIZE];" for name in names]
    return Inference(
        objects=objects,
        declarations="\n".join(['#include "net.h"', *variables]),
        run=f"qc_net_run({', '.join(f'(void *){name}' for name in names)});",
        flags=[f"-I{source}"],
    )


def emx(command: str) -> Maker:
    """emx-onnx-cgen on the integer model."""

    def make(case: Case, result: Result, level: str, folder: Path) -> Inference:
        model = peers_onnx.integer_model(result.qdq_graph.to_proto())
        return peers_onnx.inference(peers_onnx.generated("emx", [command], model, folder), level)

    return make


def onnx2c(command: str) -> Maker:
    """onnx2c on the integer model in standard operators."""

    def make(case: Case, result: Result, level: str, folder: Path) -> Inference:
        model = peers_onnx.standard_model(peers_onnx.integer_model(result.qdq_graph.to_proto()))
        return peers_onnx.inference(peers_onnx.generated("onnx2c", [command], model, folder), level)

    return make


def makers(given: Any, work: Path) -> Iterator[tuple[str, Maker]]:
    """Ourselves and every peer that the command line names."""
    yield OURS, ours
    if given.tflm:
        headers = [Path(name).resolve() for name in given.headers.split(",")]
        tflm = Tflm(Path(given.tflm).resolve(), Path(given.cmsis_nn).resolve(), headers, Path(given.tiny), work)
        yield "TFLM + CMSIS-NN", lambda case, result, level, folder: tflm.inference(case.name, level)
    if given.emx:
        yield "emx-onnx-cgen", emx(given.emx)
    if given.onnx2c:
        yield "onnx2c", onnx2c(given.onnx2c)


def rows(case: Case, level: str, found: Sequence[tuple[str, Maker]], work: Path) -> Iterator[dict[str, Any]]:
    """One network at one level: figures, or why there are none."""
    result = quantize(case, "w8a8", "fixed")
    for name, maker in found:
        folder = work / case.name / f"{name.split()[0]}{level}"
        folder.mkdir(parents=True, exist_ok=True)
        row: dict[str, Any] = {"network": case.name, "level": level, "runtime": name}
        try:
            figures = measure(maker(case, result, level, folder), folder, level, work / "count.so")
            row |= {**asdict(figures), "ram": figures.ram}
        except subprocess.CalledProcessError as error:
            words = (error.stderr or "").strip().splitlines()
            reason = next((line for line in words if "rror" in line or "Fatal" in line), "\n".join(words[-1:]))
            row["error"] = f"{Path(error.cmd[0]).name}: {reason.strip()[:200]}"
        except RuntimeError as error:
            row["error"] = str(error)
        yield row


def lines(found: Sequence[Mapping[str, Any]]) -> Iterator[list[object]]:
    """Lines of the table; ratios are those of the peer to us."""
    own = {(row["network"], row["level"]): row for row in found if row["runtime"] == OURS}
    for row in found:
        head = [row["network"], row["level"], row["runtime"]]
        if "error" in row:
            yield [*head, "did not run", *[""] * 5]
            continue
        base = own[row["network"], row["level"]]
        cells: list[object] = []
        for key, unit in (("instructions", 1e6), ("ram", 1024), ("flash", 1024)):
            cells += [f"{row[key] / unit:.2f}", "" if row is base else f"{row[key] / base[key]:.2f}"]
        yield [*head, *cells]


def reasons(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why peers did not run."""
    return [f"{row['network']} {row['level']} {row['runtime']}: {row['error']}" for row in found if "error" in row]


HEADERS = ["network", "level", "runtime", "M instructions", "x ours", "RAM KiB", "x ours", "flash KiB", "x ours"]


def main() -> int:
    """Print the table."""
    options = ("tflm", "cmsis-nn", "headers", "tiny", "emx", "onnx2c", "work", "versions")
    given = arguments(__doc__, levels={"default": "-O2,-Os"}, **{name: {"default": ""} for name in options})
    if reason := M4.missing():
        sys.exit(reason)
    if given.tflm and not (given.cmsis_nn and given.headers and given.tiny):
        sys.exit("--tflm needs --cmsis-nn, --headers and --tiny")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(given.work or scratch).resolve()
        work.mkdir(parents=True, exist_ok=True)
        build_plugin(work / "count.so")
        sides = list(makers(given, work))
        for case in networks(given.only or ",".join(MODELS)):
            for level in given.levels.split(","):
                for row in rows(case, level, sides, work):
                    print(row, file=sys.stderr, flush=True)
                    found.append(row)
                    write_json(given.json, found)
    print(table(HEADERS, list(lines(found))))
    print("\n".join(reasons(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
