"""The product as two functions: `quantize` (model -> graphs) and `compile` (model -> bundle)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.budget import give_costs, run_within, with_packing, with_ways_out
from qcompiler.bundle import Bundle, check_destination, manifest_of, report_files, self_test, write_bundle
from qcompiler.calibrate.data import Samples, load_samples
from qcompiler.calibrate.preprocess import Preprocess
from qcompiler.calibrate.rollout import rollout
from qcompiler.choose import AUTO, choose_passes, facts_of
from qcompiler.context import Context, Note
from qcompiler.errors import CalibrationError, RecipeError, UnsupportedError
from qcompiler.evaluate import Runner, predict, runner, sqnr, take, verify
from qcompiler.execute.oracle import Oracle
from qcompiler.graph.io import load_graph
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import is_quantizer
from qcompiler.graph.stages import Stage
from qcompiler.graph.state import bind_state, state_pairs
from qcompiler.plan import LEAST_BITS, QUALITY_SAMPLES, check_precision, hold_out, recipe_for, with_budget, with_search
from qcompiler.recipe import Recipe, pass_module
from qcompiler.selection import check_selection, choose_samples
from qcompiler.target import Target
from qcompiler.tolerance import Tolerance, cut, verify_parts

Model = "str | Path | onnx.ModelProto | ir.Model"
Calibration = "str | Path | Mapping[str, NDArray] | Iterable[Any]"
Progress = Callable[[str, int, int], None]

LAYER_SAMPLES = 4
CHECKED_SAMPLES = 2


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass
class Result:
    """What quantization made: three graphs of the same model, and how it came about."""

    float_graph: Graph
    """As loaded: the reference of every comparison."""
    qdq_graph: Graph | None
    """Quantizers as ONNX nodes; runs in onnxruntime. None if the recipe ends before."""
    integer_graph: Graph | None
    """The exact meaning. None if the recipe ends before."""
    recipe: Recipe
    context: Context
    samples: Samples
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[tuple[str, Graph]] = field(default_factory=list)
    """The QDQ graph behind each pass that made or refined it."""
    held_out: Samples | None = None
    """Calibration samples that no pass saw, where passes fit their samples: quality is measured on these."""

    def save(self, path: str | Path, form: str = "standard") -> None:
        """Write the QDQ graph as an .onnx file. Raises RecipeError when the recipe did not make one.

        form: `standard` (ONNX's own 4- and 2-bit types where the operator set has them), `qcdq` (8-bit storage and
        Clip) or `functions` (our FakeQuantize with a function body); see the pass `export_qdq`.
        """
        self.exported(form).save(path)

    def exported(self, form: str) -> Graph:
        """A copy of the QDQ graph in another form."""
        if self.qdq_graph is None:
            raise RecipeError("it makes no QDQ graph.", where=f"recipe `{self.recipe.name}`", hint="Add insert_qdq.")
        export = pass_module("export_qdq")
        graph = export.run(self.qdq_graph.clone(), export.Options(form=form), self.context)
        assert isinstance(graph, Graph)
        return graph


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
    recipe: str | Path | Recipe | None = None,
    *,
    target: str | Target = "cpu",
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    constants: Mapping[str, float] | None = None,
    state: Mapping[str, str] | str | None = None,
    position: str | None = None,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    samples: int | None = None,
    select: str | None = None,
    arithmetic: str | None = None,
    options: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    energy_table: str | Path | None = None,
    target_options: Mapping[str, Any] | None = None,
    until: str | None = None,
    seed: int = 0,
    progress: Progress = _silent,
) -> Result:
    """Quantize a float model.

    model: path, ModelProto or onnx_ir.Model. calibration: path of .npz, .npy or an image folder, `module:function`,
    "random", a mapping of input name to array [n, ...], or an iterable of samples. state: pairs of output and input
    that are kept between steps, or "auto" (by naming; see qcompiler/graph/state.py); calibration is then sequences
    [n, steps, ...] of the other inputs. position: the input that counts steps. recipe: preset, file or value; by
    default `auto` below 8 bits, else `default`. options: overrides of the recipe's quantization keys (precision,
    exclude, ...). budget: name (size, bops, latency, flash, ram, ...) -> number or text such as 180KiB or 0.5x: an
    integer program then chooses the bits of every weight. energy_table: file of the device's (qcompiler/energy.py), for
    a budget of energy. target_options: those of `compile`; costs depend on them.
    constants: inputs that always have one value. A recipe without `integerize` ends in a QDQ file, for which the target
    does not matter. until: the last pass to run, of a recipe whose later ones only say what is being prepared for.
    samples: how many samples are used, the first ones; with `select` those that this method chooses from all of them
    (qcompiler/calibrate/select). Raises QCompilerError.
    """
    watch = Stopwatch()
    chosen = find_target(target)
    arithmetic = _arithmetic(arithmetic, chosen)
    options = with_budget(options, budget)
    plan = recipe_for(recipe, options).override(options)
    if budget:
        plan = with_search(plan)
    file_only = "integerize" not in plan.passes
    bits = check_precision(plan, None if file_only else chosen)
    if select is not None:
        check_selection(select, samples, calibration)
    with watch("load"):
        graph = load_graph(model, shapes=shapes, dims=dims, constants=constants)
        own = any(is_quantizer(node) for node in graph.ir)
        if state:
            graph = bind_state(graph, state, position)
        if calibration is None and not own:
            raise CalibrationError(
                "calibration data is missing.",
                where=graph.path,
                hint="Pass --calib with a .npz keyed by input name, a .npy, a folder of images or module:function; "
                "`--calib random` works without data, at the cost of accuracy.",
            )
        prepared = (
            preprocess if isinstance(preprocess, Preprocess) or preprocess is None else Preprocess.parse(preprocess)
        )
        # A model that came quantized needs no data; what is reported about it is then measured on noise.
        limit = samples if select is None else None
        data = _load("random" if calibration is None else calibration, graph, prepared, limit, seed)
    selection = None
    if select is not None and samples is not None:
        with watch("select"):
            selection = choose_samples(data, graph, select, samples, seed, calibration, plan, chosen, progress)
        data = selection.samples
    known = data if calibration is not None else None
    can = None if file_only else chosen.capabilities
    context = Context(capabilities=can, samples=known, seed=seed, progress=progress)
    context.notes += [Note("load", where, text) for where, text in graph.notes]
    if selection is not None:
        context.facts["selection"] = selection.describe()
        told = f"{len(selection.indices)} of {selection.pool} samples chosen by {select}, seed {seed}"
        context.notes.append(Note("select", "calibration", told))
    if known is None:
        context.notes.append(Note("load", "graph", "no calibration data: the model's own quantizers, quality on noise"))
    if plan.name == AUTO and bits is not None:
        fewest = (LEAST_BITS, bits[1]) if "assign_bits" in plan.options else bits
        plan, reasons = choose_passes(plan, facts_of(graph, *fewest))
        context.notes += [Note(AUTO, name, why) for name, why in reasons]
    held_out = None
    if known is not None and any(getattr(pass_module(name), "FITS", False) for name in plan.passes):
        context.samples, held_out = hold_out(known)
    give_costs(context, plan, graph, chosen, target_options or {}, arithmetic, energy_table)
    running = plan if until is None else plan.until(until)
    with with_ways_out(plan, chosen, target_options or {}):
        done, context = run_within(graph, running, context, arithmetic=arithmetic)
    seconds = {**watch.seconds, **done.seconds}
    return Result(graph, done.qdq_graph, done.integer_graph, plan, context, data, seconds, done.steps, held_out)


def _load(calibration: Any, graph: Graph, prepared: Preprocess | None, limit: int | None, seed: int) -> Samples:
    """Samples, or sequences for a model with state."""
    path = Path(calibration) if isinstance(calibration, str | Path) else None
    if not state_pairs(graph) or (path is not None and path.suffix != ".npz"):
        return load_samples(calibration, graph, prepared, limit, seed)
    if path is not None:
        if not path.is_file():
            raise CalibrationError("no such file.", where=str(path))
        with np.load(path, allow_pickle=False) as arrays:
            calibration = dict(arrays)
    if not isinstance(calibration, Mapping) or any(name in calibration for name in state_pairs(graph).values()):
        return load_samples(calibration, graph, prepared, limit, seed)
    return rollout(calibration, graph, limit)


def compile(  # noqa: A001 (the product's verb)
    model: Any,
    target: str | Target = "cpu",
    calibration: Any = None,
    recipe: str | Path | Recipe | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    target_options: Mapping[str, Any] | None = None,
    qdq_form: str = "qcdq",
    bench: bool = False,
    facts: Mapping[str, Any] | None = None,
    progress: Progress = _silent,
    **quantization: Any,
) -> Bundle:
    """Quantize a model, lower it, and write a bundle. Further keywords are those of `quantize`.

    output: the bundle's directory; default: the model's name with `.TARGET` beside the working directory.
    qdq_form: spelling of the bundle's qdq.onnx, see `Result.save`. bench: measure latency against onnxruntime for the
    report. facts: to stand in the report beside those of the passes. Raises QCompilerError.
    """
    from qcompiler.report import build_report, render_html

    chosen = find_target(target)
    path = Path(output) if output is not None else _default_output(model, chosen.name)
    check_destination(path, overwrite)
    building = with_packing(target_options, quantization.get("budget"), chosen)
    _check_options(building, chosen)
    if qdq_form not in (forms := pass_module("export_qdq").FORMS):
        hint = f"Forms: {', '.join(forms)}."
        raise RecipeError(f"`{qdq_form}` is no form of a QDQ file.", where="qdq_form", hint=hint)
    arithmetic = _arithmetic(quantization.get("arithmetic"), chosen)
    plan = recipe_for(recipe, with_budget(quantization.get("options"), quantization.get("budget")))
    if pass_module(plan.passes[-1]).STAGE[1] is not Stage.INTEGER:
        raise RecipeError(
            "it makes no integer graph.", where=f"recipe `{plan.name}`", hint="Let it end with integerize."
        )
    result = quantize(
        model, calibration, plan, target=chosen, target_options=building, progress=progress, **quantization
    )
    assert result.qdq_graph is not None and result.integer_graph is not None
    watch = Stopwatch()
    with watch("lower"):
        lowered = chosen.build(result.integer_graph, dict(building), progress)
    oracle = Oracle(result.integer_graph)
    sample = next(iter(result.samples))
    files = {
        **lowered.files,
        "qdq.onnx": result.exported(qdq_form).to_proto().SerializeToString(deterministic=True),
        "integer.onnx": result.integer_graph.to_proto().SerializeToString(deterministic=True),
        "recipe.toml": (_about_data(result) + result.recipe.to_toml()).encode(),
        "selftest.npz": self_test({name: sample[name] for name in oracle.input_names}, oracle.run(sample)),
    }
    if chosen.runtime:
        loader = Path(__file__).resolve().parent.parent / "runtime" / "loader.py"
        if not loader.is_file():  # an installed wheel keeps the rooms inside the package
            loader = Path(__file__).resolve().parent / "runtime" / "loader.py"
        files["loader.py"] = loader.read_bytes()
    about = (lowered.manifest, lowered.sizes, Tolerance(oracle)(sample, oracle.run(sample)))
    manifest = manifest_of(chosen.name, arithmetic, result.integer_graph, files, *about)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        trial = write_bundle(Path(folder) / "bundle", files, manifest, overwrite=False)
        with watch("evaluate"):
            found = {**lowered.facts, **_evaluate(result, trial, oracle, progress)}
            if (parts := cut(result.integer_graph)) is not None and found.get("verification"):
                lowered = chosen.build(parts.graph, dict(building), progress)
                few = take(result.samples, CHECKED_SAMPLES)
                found["verification"]["parts"] = verify_parts(parts, oracle, lowered, manifest, few)
        if bench and chosen.runtime:
            with watch("bench"):
                found["latency"] = _bench(result, trial)
    seconds = {stage: round(s, 3) for stage, s in {**result.seconds, **watch.seconds}.items()}
    result.context.facts.update(facts or {})
    report = build_report(result, manifest, str(path), found, seconds)
    return write_bundle(path, files, manifest, overwrite, report_files(report, render_html(report)))


def _about_data(result: Result) -> str:
    """A comment for the recipe's file, if calibration samples were chosen."""
    told = [note.text for note in result.context.notes if note.source == "select"]
    return "".join(f"# calibration: {text}\n" for text in told)


def find_target(target: str | Target) -> Target:
    """A target by name, or itself. Raises RecipeError."""
    if isinstance(target, Target):
        return target
    from qcompiler.targets import get_target

    return get_target(target)


def _arithmetic(name: str | None, target: Target) -> str:
    has = target.capabilities.arithmetic
    if name is None:
        return has[0]
    if name not in ("float", "fixed"):
        raise RecipeError(f"`{name}` is not a requantization.", where="arithmetic", hint="Choose float or fixed.")
    if name not in has:
        raise UnsupportedError(
            f"it has no {name} requantization.", where=f"target `{target.name}`", hint=f"It has {' and '.join(has)}."
        )
    return name


def _check_options(options: Mapping[str, Any], target: Target) -> None:
    for name in options:
        if name not in target.options:
            known = ", ".join(target.options) or "none"
            raise RecipeError(f"it has no option `{name}`.", where=f"target `{target.name}`", hint=f"It has {known}.")
    target.check(options)


def _default_output(model: Any, target: str) -> Path:
    stem = Path(model).stem if isinstance(model, str | Path) else "model"
    return Path(f"{stem}.{target}")


def bundle_runner(bundle: Bundle, *, threads: int = 1) -> Runner:
    """What runs a bundle on this machine: the runtime, or what the target has in its place.

    Raises UnsupportedError where it can only run elsewhere, BundleError where it is damaged.
    """
    target = find_target(bundle.target)
    if target.runtime:
        return runner(bundle, threads=threads)
    if target.host is None:
        raise UnsupportedError(
            f"a bundle for `{target.name}` does not run on this machine.",
            where=str(bundle.path),
            hint="Try its integer.onnx, which has the same bits.",
        )
    return target.host(bundle.path, bundle.manifest)


def _evaluate(result: Result, bundle: Bundle, oracle: Oracle, progress: Progress) -> dict[str, Any]:
    """Quality on calibration samples: bit-exactness, SQNR and agreement of the outputs, SQNR of every layer."""
    samples = result.held_out or result.samples
    total = min(QUALITY_SAMPLES, len(samples))
    reference = runner(result.float_graph)
    want = predict(reference, take(samples, total), lambda i: progress("evaluate float", i, total))
    try:
        own: Runner | None = bundle_runner(bundle)
    except UnsupportedError:  # a bundle for elsewhere, and no tool here that could try it
        own = None
    run = own or oracle.run
    got = predict(run, take(samples, total), lambda i: progress("evaluate bundle", i, total))
    facts: dict[str, Any] = {
        "quality": {
            "samples": total,
            "held_out": result.held_out is not None,
            "sqnr_db": round(sqnr(want, got), 3),
            "max_error": float(np.abs(want.astype(np.float64) - got).max()),
        }
    }
    if want.dtype.kind in "iu":  # decisions of the model's own
        facts["quality"]["top1_agreement"] = float((want == got).mean())
    elif want.ndim > 1 and 1 < want.shape[1] == want[0].size:  # scores of classes; not images, not sequences
        facts["quality"]["top1_agreement"] = float((want.argmax(1) == got.argmax(1)).mean())
    if own:
        checked = verify(
            oracle.run, [own], ["1 thread"], take(result.samples, CHECKED_SAMPLES), tolerance=Tolerance(oracle)
        )
        facts["verification"] = checked.document()
    from qcompiler.report.layers import describe_steps, layer_quality, step_quality

    steps = step_quality(result, list(take(samples, LAYER_SAMPLES)), progress)
    facts["layers"] = layer_quality(result, steps[-1], steps[0])
    facts["passes"] = describe_steps(result, steps)
    return facts


def _bench(result: Result, bundle: Bundle) -> list[dict[str, Any]]:
    from qcompiler.latency import measure, peer_calls
    from qcompiler.report import precision

    assert result.integer_graph is not None
    sample: dict[str, NDArray] = next(iter(result.samples))
    session = bundle.load()
    contenders = [
        ("qcompiler", precision(result.integer_graph), lambda: session.run(sample)),
        *peer_calls(["onnxruntime"], result.float_graph, result.qdq_graph, sample, 1),
    ]
    return [row.document() for row in measure(contenders, seconds=1.0)]
