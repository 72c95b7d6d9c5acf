"""Commands and their options. Heavy modules are imported inside the commands: `--help` stays fast."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter

from qcompiler import __version__
from qcompiler.cli.console import Console
from qcompiler.cli.options import Circuit, Common, Firmware, Flag, Images, Shapes, State, Texts, ints, pairs
from qcompiler.errors import QCompilerError

GOAL_MISSED, TOO_SLOW, INTERRUPTED = 4, 5, 130

app = App(
    name="qcompile",
    help="The quantizing compiler: ONNX in, a verified integer bundle out.\n\n"
    "Example: qcompile MODEL --target cpu -o OUT --calib DATA",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


_COMMON, _SHAPES, _STATE, _IMAGES, _FIRMWARE, _CIRCUIT = Common(), Shapes(), State(), Images(), Firmware(), Circuit()


@app.command(name="compile")
@app.default
def compile_command(
    model: Path,
    /,
    *,
    target: str = "cpu",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    calib: str | None = None,
    recipe: str | None = None,
    precision: str | None = None,
    budget: Texts = (),
    energy_table: Path | None = None,
    pareto: int | None = None,
    nonlinear: str | None = None,
    exclude: Texts = (),
    arithmetic: str | None = None,
    samples: int | None = None,
    select: str | None = None,
    cpu: str | None = None,
    arch: str | None = None,
    qdq_form: str = "qcdq",
    seed: int = 0,
    overwrite: Flag = False,
    bench: Flag = False,
    require_speedup: Flag = False,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    eval_data: str | None = None,
    labels: str | None = None,
    metric: str = "top1",
    firmware: Firmware = _FIRMWARE,
    circuit: Circuit = _CIRCUIT,
    shapes: Shapes = _SHAPES,
    state: State = _STATE,
    images: Images = _IMAGES,
    common: Common = _COMMON,
) -> int:
    """Compile MODEL into a bundle (the default command).

    Parameters
    ----------
    model
        The float .onnx file.
    target
        Where it will run; see `qcompile targets`.
    output
        Directory of the bundle; default MODEL.TARGET.
    calib
        Calibration data: .npz keyed by input name, .npy, a folder of images, module:function, or `random`.
    recipe
        A preset (see docs/recipes.md) or a .toml file; by default `auto` below 8 bits, else `default`.
    precision
        Bits of weights and activations, as w8a8, w4a8 or w8a16; or formats, as e2m1w-int8a; `auto`: for a budget.
    budget
        What the bits of weights are chosen for, repeatable: size=180KiB (of weights), bops=3G, latency=0.6x or 3ms,
        flash=, ram=, instructions=, lut= where the target knows them; a number, or a share of 8 bits as 0.5x.
    energy_table
        A device's picojoules, a JSON file, for a budget of energy; see docs/mixed_precision.md.
    pareto
        Write so many bundles along the curve of loss over a budget (default: size) into the folder --output.
    nonlinear
        integer, or float: operators without an integer form and non-linear ones run in float32 between the others.
    exclude
        Regular expression of node names to keep at 8 bits; repeatable.
    arithmetic
        Requantization: float or fixed (the bits that firmware gives); default is the target's.
    samples
        Use at most so many calibration samples.
    select
        How --samples are chosen from all data: random, stratified, kmeans, outlier_cover, moment_match, degradation or
        composite; default: the first ones.
    cpu
        Instruction sets of the cpu target: native, all, or names separated by commas.
    arch
        For the cuda target: architectures to make cubins for where nvcc is found: all (default), none, or such as
        sm_80,sm_90.
    qdq_form
        Spelling of the bundle's qdq.onnx: qcdq (8-bit storage and Clip), standard (int4 weights) or functions.
    seed
        Seed of everything random.
    overwrite
        Replace an existing bundle.
    bench
        Measure latency against onnxruntime and put it into the report.
    require_speedup
        Exit with 5 if the bundle is slower than onnxruntime float32.
    min_sqnr
        Accuracy goal: exit with 4 if the output SQNR in dB is lower.
    max_drop
        Accuracy goal: exit with 4 if the metric on --eval-data falls by more than this (points for top1). With
        `--precision auto` and no budget: the smallest weights that meet it.
    eval_data
        Data for --max-drop and --pareto, in any form that calibration data has.
    labels
        Key of the labels in --eval-data, or a .npy file.
    metric
        Metric for --max-drop; see `qcompile eval`.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.compile import CompileRequest, run_compile

        request = CompileRequest(
            model=model,
            target=target,
            output=output,
            calib=calib,
            recipe=recipe,
            precision=precision,
            budget=dict(pairs(budget, "--budget size=180KiB")),
            energy_table=energy_table,
            pareto=pareto,
            nonlinear=nonlinear,
            exclude=exclude,
            arithmetic=arithmetic,
            samples=samples,
            select=select,
            target_options={
                **firmware.table(),
                **circuit.table(),
                **({"cpu": cpu} if cpu else {}),
                **({"arch": arch} if arch else {}),
            },
            qdq_form=qdq_form,
            seed=seed,
            overwrite=overwrite,
            bench=bench,
            require_speedup=require_speedup,
            min_sqnr=min_sqnr,
            max_drop=max_drop,
            eval_data=eval_data,
            labels=labels,
            metric=metric,
            shapes=shapes.shapes(),
            dims=shapes.dims(),
            constants=shapes.constants(),
            state=state.pairs(),
            position=state.position,
            preprocess=images.table(),
        )
        return run_compile(request, console)


@app.command(name="verify")
def verify_command(
    bundle: Path,
    /,
    *,
    data: str,
    samples: int | None = None,
    threads: str = "1",
    images: Images = _IMAGES,
    common: Common = _COMMON,
) -> int:
    """Compare BUNDLE with the oracle, bit for bit; exit 1 on a mismatch.

    Parameters
    ----------
    bundle
        The directory that qcompile wrote.
    data
        Samples, in any form that --calib takes.
    samples
        At most so many.
    threads
        Thread counts to check, as 1,2.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_verify

        return run_verify(bundle, data, samples, ints(threads, "--threads"), images.table(), console)


@app.command(name="eval")
def eval_command(
    source: Path,
    /,
    *,
    data: str,
    labels: str | None = None,
    metric: str = "top1",
    against: Path | None = None,
    samples: int | None = None,
    threads: int = 1,
    shapes: Shapes = _SHAPES,
    images: Images = _IMAGES,
    common: Common = _COMMON,
) -> int:
    """Measure a metric of SOURCE, an .onnx file (float, QDQ or integer) or a bundle.

    Parameters
    ----------
    source
        .onnx file or bundle.
    data
        Samples, in any form that --calib takes.
    labels
        Key of the labels in the .npz, or a .npy file.
    metric
        top1, mse, psnr, cosine, sqnr or module:function (called with outputs and labels).
    against
        A model whose outputs are the reference instead of labels.
    samples
        At most so many.
    threads
        Threads of the runtime.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_eval

        return run_eval(
            source,
            data,
            labels,
            metric,
            against,
            samples,
            threads,
            shapes.shapes(),
            shapes.dims(),
            shapes.constants(),
            images.table(),
            console,
        )


@app.command(name="resolve")
def resolve_command(
    bundle: Path,
    /,
    *,
    budget: Texts,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    common: Common = _COMMON,
) -> int:
    """Choose the bits of BUNDLE's weights anew, for another budget, from the scores in its report: no data, no probes.

    Parameters
    ----------
    bundle
        The directory that qcompile wrote with --budget.
    budget
        As of the compiler: size=150KiB, bops=2G, size=0.5x; repeatable.
    output
        Write the recipe (.toml) that compiles the model with these bits.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.resolve import run_resolve

        return run_resolve(bundle, dict(pairs(budget, "--budget size=180KiB")), output, console)


@app.command(name="bench")
def bench_command(
    bundle: Path,
    /,
    *,
    against: str = "",
    threads: int = 1,
    seconds: float = 2.0,
    require_speedup: Flag = False,
    common: Common = _COMMON,
) -> int:
    """Measure the latency of BUNDLE, interleaved with its peers.

    Parameters
    ----------
    bundle
        The directory that qcompile wrote.
    against
        Peers, as onnxruntime,openvino: the same model in float32 and as the QDQ file.
    threads
        Threads for all.
    seconds
        About how long each contender runs.
    require_speedup
        Exit with 5 if onnxruntime float32 is faster.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_bench

        return run_bench(bundle, [p for p in against.split(",") if p], threads, seconds, require_speedup, console)


@app.command(name="targets")
def targets_command(*, common: Common = _COMMON) -> int:
    """List targets and what each can do."""
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_targets

        return run_targets(console)


@app.command(name="calibrate-costs")
def calibrate_costs_command(
    *,
    target: str = "cpu",
    cpu: str | None = None,
    threads: int = 1,
    classes: str = "",
    scale: float = 1.0,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    common: Common = _COMMON,
) -> int:
    """Measure what kernels take on this machine, for latency budgets (two to four minutes; leave the machine idle).

    Parameters
    ----------
    target
        Whose kernels.
    cpu
        Instruction set, as x86-64-v3; default: this machine's.
    threads
        Threads that share a kernel.
    classes
        Only these, as conv3x3,dense (then --output is needed); default: all.
    scale
        Share of the samples: 0.5 takes half the time.
    output
        File of the table; default: the user's cache, where it is found again.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_calibrate_costs

        options = {"cpu": cpu, "threads": threads, "classes": [c for c in classes.split(",") if c], "scale": scale}
        return run_calibrate_costs(target, options, output, console)


@app.command(name="inspect")
def inspect_command(
    model: Path, /, *, nonlinear: str = "integer", shapes: Shapes = _SHAPES, common: Common = _COMMON
) -> int:
    """Tell what MODEL contains and how it would be quantized.

    Parameters
    ----------
    model
        The .onnx file.
    nonlinear
        As for compile: what `float` would make float islands of.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_inspect

        return run_inspect(model, shapes.shapes(), shapes.dims(), shapes.constants(), console, nonlinear)


def run(argv: list[str]) -> int:
    """Parse, run, and turn every error into one paragraph and an exit code."""
    console = Console(as_json="--json" in argv, quiet=True)
    with _Interruption() as interruption:
        try:
            if os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())  # module:function may lie there, as with python -m
            return int(app(argv, exit_on_error=False, print_error=False) or 0)
        except SystemExit as error:  # --help and --version
            return error.code if isinstance(error.code, int) else 0
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in argv:
                traceback.print_exc()
            stopped = interruption.happened or isinstance(error, KeyboardInterrupt)
            text, code = ("interrupted; no half bundle is left.", INTERRUPTED) if stopped else _explain(error)
            console.error(text, code)
            return code


class _Interruption:
    """Remembers Ctrl-C: extension modules that are being imported turn KeyboardInterrupt into ImportError."""

    def __init__(self) -> None:
        self.happened = False
        self._before: Any = None

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: object) -> None:
        self.happened = True
        raise KeyboardInterrupt


def _explain(error: BaseException) -> tuple[str, int]:
    """One paragraph and the exit code."""
    text = " ".join(str(error).split())
    if isinstance(error, cyclopts.CycloptsError):
        return f"{text} See `qcompile --help`.", 2
    if isinstance(error, QCompilerError):
        return text, error.exit_code
    if isinstance(error, OSError):  # a full disk, a folder without permission
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}. Check the path, its permissions and the free space.", 2
    return (  # the last resort: a bug of ours, said as one
        f"internal error ({type(error).__name__}: {text}). This is a bug in qcompiler; run again with --debug and "
        "report the traceback.",
        1,
    )
