"""The product as two functions: `quantize` (model -> graphs) and `compile` (model -> bundle)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.bundle import Bundle, add_report, check_destination, manifest_of, self_test, write_bundle
from qcompiler.calibrate.data import Samples, load_samples
from qcompiler.calibrate.preprocess import Preprocess
from qcompiler.context import Context
from qcompiler.errors import CalibrationError
from qcompiler.evaluate import predict, runner, sqnr, take, verify
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.pipeline import run_pipeline
from qcompiler.recipe import Recipe, load_recipe
from qcompiler.target import Target

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Model = "str | Path | onnx.ModelProto | ir.Model"
Calibration = "str | Path | Mapping[str, NDArray] | Iterable[Any]"
Progress = Callable[[str, int, int], None]

QUALITY_SAMPLES = 32
LAYER_SAMPLES = 4
CHECKED_SAMPLES = 2


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass
class Result:
    """What quantization made: three graphs of the same model, and how it came about."""

    float_graph: Graph
    """As loaded: the reference of every comparison."""
    qdq_graph: Graph
    """Quantizers as ONNX nodes; runs in onnxruntime."""
    integer_graph: Graph
    """The exact meaning."""
    recipe: Recipe
    context: Context
    samples: Samples
    seconds: dict[str, float] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the QDQ graph as an .onnx file."""
        self.qdq_graph.save(path)


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def quantize(
    model: Any,
    calibration: Any = None,
    recipe: str | Path | Recipe = "default",
    *,
    target: str | Target = "cpu",
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    samples: int | None = None,
    arithmetic: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = _silent,
) -> Result:
    """Quantize a float model.

    model: path, ModelProto or onnx_ir.Model. calibration: path of .npz, .npy or an image folder, `module:function`,
    "random", a mapping of input name to array [n, ...], or an iterable of samples. options: overrides of the
    recipe's quantization keys (precision, exclude, ...). Raises QCompilerError.
    """
    watch = Stopwatch()
    chosen = _target(target)
    plan = load_recipe(recipe).override(options or {})
    with watch("load"):
        graph = load_graph(model, shapes=shapes, dims=dims)
        if calibration is None:
            raise CalibrationError(
                "calibration data is missing.", where=graph.path,
                hint="Pass --calib with a .npz keyed by input name, a .npy, a folder of images or module:function; "
                "`--calib random` works without data, at the cost of accuracy.",
            )
        prepared = preprocess if isinstance(preprocess, Preprocess) or preprocess is None else Preprocess.parse(preprocess)
        data = load_samples(calibration, graph, prepared, samples)
    context = Context(capabilities=chosen.capabilities, samples=data, seed=seed, progress=progress)
    arithmetic = arithmetic or chosen.capabilities.arithmetic[0]
    done = run_pipeline(graph, plan, context, arithmetic=arithmetic)
    return Result(
        graph, done.qdq_graph, done.integer_graph, plan, context, data, {**watch.seconds, **done.seconds}
    )


def compile(  # noqa: A001 (the product's verb)
    model: Any,
    target: str | Target = "cpu",
    calibration: Any = None,
    recipe: str | Path | Recipe = "default",
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    target_options: Mapping[str, Any] | None = None,
    bench: bool = False,
    progress: Progress = _silent,
    **quantization: Any,
) -> Bundle:
    """Quantize a model, lower it, and write a bundle. Further keywords are those of `quantize`.

    output: the bundle's directory; default: the model's name with `.TARGET` beside the working directory.
    bench: measure latency against onnxruntime for the report. Raises QCompilerError.
    """
    from qcompiler.report import build_report, render_html

    chosen = _target(target)
    path = Path(output) if output is not None else _default_output(model, chosen.name)
    check_destination(path, overwrite)
    result = quantize(model, calibration, recipe, target=chosen, progress=progress, **quantization)
    watch = Stopwatch()
    with watch("lower"):
        lowered = chosen.build(result.integer_graph, dict(target_options or {}), progress)
    arithmetic = str(quantization.get("arithmetic") or chosen.capabilities.arithmetic[0])
    oracle = Oracle(result.integer_graph)
    sample = next(iter(result.samples))
    files = {
        **lowered.files,
        "qdq.onnx": result.qdq_graph.to_proto().SerializeToString(deterministic=True),
        "integer.onnx": result.integer_graph.to_proto().SerializeToString(deterministic=True),
        "recipe.toml": result.recipe.to_toml().encode(),
        "selftest.npz": self_test(sample, oracle.run(sample)),
    }
    if chosen.runtime:
        loader = Path(__file__).resolve().parent.parent / "runtime" / "loader.py"
        if not loader.is_file():  # an installed wheel keeps the rooms inside the package
            loader = Path(__file__).resolve().parent / "runtime" / "loader.py"
        files["loader.py"] = loader.read_bytes()
    manifest = manifest_of(chosen.name, arithmetic, result.integer_graph, files, lowered.manifest, lowered.sizes)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        trial = write_bundle(Path(folder) / "bundle", files, manifest, overwrite=False)
        with watch("evaluate"):
            facts = _evaluate(result, trial, oracle, chosen, progress)
        if bench and chosen.runtime:
            with watch("bench"):
                facts["latency"] = _bench(result, trial)
    seconds = {stage: round(s, 3) for stage, s in {**result.seconds, **watch.seconds}.items()}
    report = build_report(result, manifest, str(path), facts, seconds)
    bundle = write_bundle(path, files, manifest, overwrite)
    add_report(bundle, report, render_html(report))
    return bundle


def _target(target: str | Target) -> Target:
    if isinstance(target, Target):
        return target
    from qcompiler.targets import get_target

    return get_target(target)


def _default_output(model: Any, target: str) -> Path:
    stem = Path(model).stem if isinstance(model, str | Path) else "model"
    return Path(f"{stem}.{target}")


def _evaluate(result: Result, bundle: Bundle, oracle: Oracle, target: Target, progress: Progress) -> dict[str, Any]:
    """Quality on calibration samples: bit-exactness, SQNR and agreement of the outputs, SQNR of every layer."""
    total = min(QUALITY_SAMPLES, len(result.samples))
    reference = runner(result.float_graph)
    want = predict(reference, take(result.samples, total), lambda i: progress("evaluate float", i, total))
    run = runner(bundle) if target.runtime else oracle.run
    got = predict(run, take(result.samples, total), lambda i: progress("evaluate bundle", i, total))
    flat_want, flat_got = want.reshape(len(want), -1), got.reshape(len(got), -1)
    facts: dict[str, Any] = {
        "quality": {
            "samples": total,
            "sqnr_db": round(sqnr(want, got), 3),
            "max_error": float(np.abs(want.astype(np.float64) - got).max()),
        }
    }
    if flat_want.shape[1] > 1:
        facts["quality"]["top1_agreement"] = float((flat_want.argmax(1) == flat_got.argmax(1)).mean())
    if target.runtime:
        checked = verify(oracle.run, [run], ["1 thread"], take(result.samples, CHECKED_SAMPLES))
        facts["verification"] = checked.document()
    facts["layers"] = _layer_quality(result, progress)
    return facts


def _layer_quality(result: Result, progress: Progress) -> list[dict[str, Any]]:
    """Name, operator, format and SQNR of every integer value whose float counterpart still has its name."""
    from qcompiler.calibrate.statistics import with_outputs
    from qcompiler.execute.ort import Session
    from qcompiler.graph.qdq import dequantized_values

    pairs = dequantized_values(result.qdq_graph)
    known = {value.name for value in result.float_graph.values()}
    names = [name for name in pairs if name in known]
    reference = Session(with_outputs(result.float_graph, names))
    quantized = Session(with_outputs(result.qdq_graph, [pairs[name] for name in names]))
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    count = min(LAYER_SAMPLES, len(result.samples))
    for done, sample in enumerate(take(result.samples, count), 1):
        progress("evaluate layers", done, count)
        for i, (a, b) in enumerate(
            zip(reference.run(sample, names), quantized.run(sample, [pairs[n] for n in names]), strict=True)
        ):
            signal[i] += float((a.astype(np.float64) ** 2).sum())
            noise[i] += float(((a.astype(np.float64) - b) ** 2).sum())
    integer = {str(value.name): value for value in result.integer_graph.values()}
    rows = []
    for i, name in enumerate(names):
        value = integer.get(name)
        producer = value.producer() if value is not None else None
        if value is None or producer is None:
            continue
        rows.append(
            {
                "name": name,
                "operator": producer.op_type,
                "format": value.metadata_props.get("qcompiler.format", ""),
                "weight_format": _weight_format(producer),
                "sqnr_db": round(200.0 if noise[i] == 0 else 10 * float(np.log10(max(signal[i], 1e-30) / noise[i])), 2),
            }
        )
    return rows


def _weight_format(node: ir.Node) -> str:
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul") or node.inputs[1] is None:
        return ""
    return str(node.inputs[1].metadata_props.get("qcompiler.format", ""))


def _bench(result: Result, bundle: Bundle) -> list[dict[str, Any]]:
    from qcompiler.latency import measure, peer_calls

    sample: dict[str, NDArray] = next(iter(result.samples))
    session = bundle.load()
    contenders = [
        ("qcompiler", "int8", lambda: session.run(sample)),
        *peer_calls(["onnxruntime"], result.float_graph, result.qdq_graph, sample, 1),
    ]
    return [row.document() for row in measure(contenders, seconds=1.0)]
