"""Commands and their options. Heavy modules are imported inside the commands: `--help` stays fast."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter

from qcompiler import __version__
from qcompiler.cli.console import Console
from qcompiler.errors import QCompilerError, RecipeError

GOAL_MISSED, TOO_SLOW, INTERRUPTED = 4, 5, 130

app = App(
    name="qcompile",
    help="The quantizing compiler: ONNX in, a verified integer bundle out. `qcompile MODEL --target cpu -o OUT --calib DATA`",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    json: bool = False
    "Print one JSON document on stdout and nothing else."
    quiet: bool = False
    "No progress on stderr."
    debug: bool = False
    "Show tracebacks."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shapes:
    """How dynamic dimensions are fixed."""

    shape: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    "Full shape of an input, as x=1,3,48,192; repeatable."
    dim: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    "Value of a named dimension, as batch=1; repeatable."

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name -> shape. Raises RecipeError."""
        return {name: _ints(value, f"--shape {name}") for name, value in _pairs(self.shape, "--shape x=1,3,48,192")}

    def dims(self) -> dict[str, int]:
        """Dimension name -> value. Raises RecipeError."""
        return {name: _ints(value, f"--dim {name}")[0] for name, value in _pairs(self.dim, "--dim batch=1")}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Images:
    """Preprocessing of images (folders, and arrays that hold images)."""

    resize: str | None = None
    "Short side, or height,width."
    crop: str | None = None
    "Centre crop: size, or height,width."
    scale: float | None = None
    "Factor on stored values, 0.00392157 for 0..255 to 0..1."
    mean: str | None = None
    "Per-channel mean after scaling, as 0.485,0.456,0.406."
    std: str | None = None
    "Per-channel standard deviation."
    layout: str | None = None
    "NCHW, NHWC or none."
    colour: str | None = None
    "RGB or BGR."

    def table(self) -> dict[str, Any] | None:
        """Keys that were given, or None."""
        found: dict[str, Any] = {}
        for key in ("resize", "crop"):
            if (text := getattr(self, key)) is not None:
                sizes = _ints(text, f"--{key}")
                found[key] = sizes[0] if len(sizes) == 1 else sizes
        for key in ("mean", "std"):
            if (text := getattr(self, key)) is not None:
                found[key] = _floats(text, f"--{key}")
        found |= {key: getattr(self, key) for key in ("scale", "layout", "colour") if getattr(self, key) is not None}
        return found or None


_COMMON, _SHAPES, _IMAGES = Common(), Shapes(), Images()
Path_ = Annotated[Path, Parameter(show_default=False)]


@app.command(name="compile")
@app.default
def compile_command(
    model: Path,
    *,
    target: str = "cpu",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    calib: str | None = None,
    recipe: str = "default",
    precision: str | None = None,
    exclude: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    arithmetic: str | None = None,
    samples: int | None = None,
    cpu: str | None = None,
    seed: int = 0,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    bench: Annotated[bool, Parameter(negative="")] = False,
    require_speedup: Annotated[bool, Parameter(negative="")] = False,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    eval_data: str | None = None,
    labels: str | None = None,
    metric: str = "top1",
    shapes: Shapes = _SHAPES,
    images: Images = _IMAGES,
    common: Common = _COMMON,
) -> int:
    """Compile MODEL into a bundle (the default command).

    Parameters
    ----------
    model: The float .onnx file.
    target: Where it will run; see `qcompile targets`.
    output: Directory of the bundle; default MODEL.TARGET.
    calib: Calibration data: .npz keyed by input name, .npy, a folder of images, module:function, or `random`.
    recipe: A preset (default, fast, mobile) or a .toml file.
    precision: Bits of weights and activations, as w8a8, w4a8 or w8a16.
    exclude: Regular expression of node names to keep at 8 bits; repeatable.
    arithmetic: Requantization: float or fixed (the bits that firmware gives); default is the target's.
    samples: Use at most so many calibration samples.
    cpu: Instruction sets of the cpu target: native, all, or names separated by commas.
    seed: Seed of everything random.
    overwrite: Replace an existing bundle.
    bench: Measure latency against onnxruntime and put it into the report.
    require_speedup: Exit with 5 if the bundle is slower than onnxruntime float32.
    min_sqnr: Accuracy goal: exit with 4 if the output SQNR in dB is lower.
    max_drop: Accuracy goal: exit with 4 if the metric on --eval-data falls by more than this (points for top1).
    eval_data: Data for --max-drop, in any form that --calib takes.
    labels: Key of the labels in --eval-data, or a .npy file.
    metric: Metric for --max-drop; see `qcompile eval`.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import CompileRequest, run_compile

        request = CompileRequest(
            model=model, target=target, output=output, calib=calib, recipe=recipe, precision=precision, exclude=exclude,
            arithmetic=arithmetic, samples=samples, cpu=cpu, seed=seed, overwrite=overwrite, bench=bench,
            require_speedup=require_speedup, min_sqnr=min_sqnr, max_drop=max_drop, eval_data=eval_data, labels=labels,
            metric=metric, shapes=shapes.shapes(), dims=shapes.dims(), preprocess=images.table(),
        )
        return run_compile(request, console)


@app.command(name="verify")
def verify_command(
    bundle: Path, *, data: str, samples: int | None = None, threads: str = "1", images: Images = _IMAGES,
    common: Common = _COMMON,
) -> int:
    """Compare BUNDLE with the oracle, bit for bit; exit 1 on a mismatch.

    Parameters
    ----------
    bundle: The directory that qcompile wrote.
    data: Samples, in any form that --calib takes.
    samples: At most so many.
    threads: Thread counts to check, as 1,2.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_verify

        return run_verify(bundle, data, samples, _ints(threads, "--threads"), images.table(), console)


@app.command(name="eval")
def eval_command(
    source: Path, *, data: str, labels: str | None = None, metric: str = "top1", against: Path | None = None,
    samples: int | None = None, threads: int = 1, shapes: Shapes = _SHAPES, images: Images = _IMAGES,
    common: Common = _COMMON,
) -> int:
    """Measure a metric of SOURCE, an .onnx file (float, QDQ or integer) or a bundle.

    Parameters
    ----------
    source: .onnx file or bundle.
    data: Samples, in any form that --calib takes.
    labels: Key of the labels in the .npz, or a .npy file.
    metric: top1, mse, psnr, cosine, sqnr or module:function (called with outputs and labels).
    against: A model whose outputs are the reference instead of labels.
    samples: At most so many.
    threads: Threads of the runtime.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_eval

        return run_eval(
            source, data, labels, metric, against, samples, threads, shapes.shapes(), shapes.dims(), images.table(), console
        )


@app.command(name="bench")
def bench_command(
    bundle: Path, *, against: str = "", threads: int = 1, seconds: float = 2.0, require_speedup: bool = False,
    common: Common = _COMMON,
) -> int:
    """Measure the latency of BUNDLE, interleaved with its peers.

    Parameters
    ----------
    bundle: The directory that qcompile wrote.
    against: Peers, as onnxruntime,openvino: the same model in float32 and as the QDQ file.
    threads: Threads for all.
    seconds: About how long each contender runs.
    require_speedup: Exit with 5 if onnxruntime float32 is faster.
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


@app.command(name="inspect")
def inspect_command(model: Path, *, shapes: Shapes = _SHAPES, common: Common = _COMMON) -> int:
    """Tell what MODEL contains and how it would be quantized.

    Parameters
    ----------
    model: The .onnx file.
    """
    with Console(as_json=common.json, quiet=common.quiet) as console:
        from qcompiler.cli.commands import run_inspect

        return run_inspect(model, shapes.shapes(), shapes.dims(), console)


def run(argv: list[str]) -> int:
    """Parse, run, and turn every error into one paragraph and an exit code."""
    as_json, debug = "--json" in argv, "--debug" in argv
    console = Console(as_json=as_json, quiet=True)
    try:
        result = app(argv, exit_on_error=False, print_error=False)
        return int(result or 0)
    except cyclopts.CycloptsError as error:
        text = " ".join(str(error).split())
        console.error(f"{text} See `qcompile --help`.", 2)
        return 2
    except KeyboardInterrupt:
        console.error("interrupted; nothing was written.", INTERRUPTED)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except QCompilerError as error:
        if debug:
            traceback.print_exc()
        console.error(str(error), error.exit_code)
        return error.exit_code
    except Exception as error:  # the last resort: a bug of ours, said as one
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        console.error(
            f"internal error ({type(error).__name__}: {text}). This is a bug in qcompiler; run again with --debug and "
            "report the traceback.",
            1,
        )
        return 1


def _pairs(items: tuple[str, ...], example: str) -> list[tuple[str, str]]:
    pairs = []
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise RecipeError(f"`{item}` is not NAME=VALUE.", where=example.split()[0], hint=f"For example {example}.")
        pairs.append((name, value))
    return pairs


def _ints(text: str, where: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise RecipeError(f"`{text}` is not a list of whole numbers.", where=where) from error


def _floats(text: str, where: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RecipeError(f"`{text}` is not a list of numbers.", where=where) from error
