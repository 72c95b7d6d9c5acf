"""Search the ranges of activations by what their readers make of them.

For each activation quantizer, in topological order, scales of .5 to 1.1 of the present one, then zero points around the
present one, then scales nearby are tried, and that is kept which minimises

    sum over the readers' outputs of |y_quantized - y_float|^2 / |y_float|^2

where a reader is a layer with its bias and its Relu or Clip, its other inputs come from the quantized network, whose
earlier ranges are searched already, and y_float is the float model's own. For an output of the network its own error
counts. The present range is always a candidate. Quantizers that share parameters are searched as one. A change that
raises the error of the network's outputs on the data by a tenth is taken back, and of all states on the way that with
the least error stays: never worse than at the start. (Without a check vit_digits gets worse at w4a4, with one that
forgives nothing resnet20_cifar10_jpeg loses half of the gain.) It fits its samples: with few of them the error on
others can grow where bias_correction alone does well (docs/precision.md), so measure.

Left alone: minifloats, more than `bits` bits, probabilities (their range is fixed), values that share their quantizer
with a constant or a cache, models that came with quantizers. Zero points at an end of the format (behind a Relu) stay
there; behind a Clip the range does not grow; scales that are powers of two stay such. Biases get the scale of the new
product. As in bias_correction the network is run once for each of `groups` runs of quantizers; what one run looks at is
held for `samples` samples.

Run it right after insert_qdq. Source: searching scales by the error of a layer's output is PTQ4ViT's (Yuan et al.
2022); grid, quantized prefix and the check of the network's outputs are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler import assignment as decisions
from qcompiler.assignment import WEIGHTED, clip_bounds
from qcompiler.calibrate.data import Sample
from qcompiler.calibrate.statistics import with_outputs
from qcompiler.context import Context
from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.ort import Session
from qcompiler.formats import Minifloat, QuantParams
from qcompiler.graph import qdq
from qcompiler.graph.analysis import moves_only
from qcompiler.graph.functions import MINIFLOAT_QUANTIZE
from qcompiler.graph.model import Graph
from qcompiler.graph.stages import Stage

STAGE = (Stage.QDQ, Stage.QDQ)
FITS = True
RATIOS = tuple(0.5 + 0.05 * i for i in range(13))
NEAR = (0.9625, 0.975, 0.9875, 1.0125, 1.025, 1.0375)
SHIFTS = (-2, -1, 1, 2)
BIAS_LIMIT = 2.0**30
SLACK = 1.1
"""A change may raise the error of the network's outputs by this factor: later ones, found behind it, make it good."""


@dataclass(frozen=True, kw_only=True)
class Options:
    bits: int = 8
    """Quantizers of at most so many bits are searched."""
    samples: int = 128
    """Calibration samples that are used, at most."""
    groups: int = 64
    """Runs over the data; more is more exact and slower."""


@dataclass(eq=False)
class Problem:
    """Quantizers with one set of parameters, and what reads them.

    quantizers: the DequantizeLinear nodes; ratios: of scales that are tried; inputs: names of the values that are fed;
    outputs: name in the quantized graph -> name in the float graph; largest: the scale may not exceed this ratio;
    smallest: nor fall below this one.
    """

    quantizers: list[ir.Node]
    params: QuantParams
    ratios: tuple[float, ...] = RATIOS
    inputs: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    largest: float = np.inf
    smallest: float = 0.0
    fed: list[Sample] = field(default_factory=list)
    wanted: list[list[NDArray]] = field(default_factory=list)
    biases: list[tuple[ir.Node, QuantParams, NDArray[np.float64]]] = field(default_factory=list)
    """DequantizeLinear of a bias of a reader, the weight's parameters, the bias as it was found."""


def run(graph: Graph, options: Options, context: Context) -> Graph:
    """Change scales, zero points and biases in place. Raises RecipeError outside a pipeline, CalibrationError without
    data."""
    reference = context.float_graph
    if reference is None:
        raise RecipeError("it needs the float graph.", where="search_ranges", hint="Run it right after insert_qdq.")
    if any(qdq.is_quantizer(node) for node in reference.ir):
        context.note("search_ranges", "left out: the model came with its quantizers")
        return graph
    if context.samples is None:
        raise CalibrationError("it needs calibration data.", where="search_ranges")
    problems = find_problems(graph, reference, context, options.bits)
    left = [str(node.outputs[0].name) for node in graph.nodes(MINIFLOAT_QUANTIZE)]
    if left:
        context.note("search_ranges", f"{len(left)} minifloats keep their ranges, as `{left[0]}`")
    if not problems:
        return graph
    outputs = _Outputs(reference, context, options.samples)
    before = now = least = outputs.error(graph)
    first = best = [problem.params for problem in problems]
    runs = np.array_split(np.arange(len(problems)), min(max(options.groups, 1), len(problems)))
    for done, members in enumerate(runs):
        chosen = [problems[i] for i in members]
        start = [problem.params for problem in chosen]
        _feed(graph, reference, chosen, context, options.samples)
        found = [search(graph, problem) for problem in chosen]
        for problem, params in zip(chosen, found, strict=True):
            set_params(graph, problem, params)
            problem.fed, problem.wanted = [], []
        if found != start:
            error = outputs.error(graph)
            if error > now * SLACK:
                for problem, params in zip(chosen, start, strict=True):
                    set_params(graph, problem, params)
            else:
                now = error
        if now < least:
            least, best = now, [problem.params for problem in problems]
        context.progress("search ranges", done + 1, len(runs))
    for problem, params in zip(problems, best, strict=True):
        set_params(graph, problem, params)
    changed = sum(a != b for a, b in zip(first, best, strict=True))
    context.facts["search_ranges"] = {
        "error_before": before, "error_after": least, "changed": changed, "of": len(problems)
    }  # fmt: skip
    return graph


class _Outputs:
    """The float network's outputs on a few samples."""

    def __init__(self, reference: Graph, context: Context, limit: int) -> None:
        assert context.samples is not None
        session = Session(reference)
        self.samples = list(islice(context.samples, limit))
        self.wanted = [session.run(sample) for sample in self.samples]
        squares = (float(np.square(one, dtype=np.float64).sum()) for outputs in self.wanted for one in outputs)
        self.energy = max(sum(squares), 1e-30)

    def error(self, graph: Graph) -> float:
        """Squared error of a network's outputs, relative to the float outputs' energy."""
        session, total = Session(graph), 0.0
        for sample, wanted in zip(self.samples, self.wanted, strict=True):
            for got, want in zip(session.run(sample), wanted, strict=True):
                total += float(np.square(got - want, dtype=np.float64).sum())
        return total / self.energy


# -- finding -------------------------------------------------------------------------------------------------------


def find_problems(graph: Graph, reference: Graph, context: Context, bits: int) -> list[Problem]:
    """Problems in topological order of their first quantizers."""
    groups = context.assignment.groups if context.assignment is not None else []
    leader = {name: group[0] for group in groups for name in group}
    constants = context.assignment.constants if context.assignment is not None else {}
    specs = context.assignment.activations.values() if context.assignment is not None else ()
    ratios = (0.5, 2.0) if any(spec.scale_type == "power_of_two" for spec in specs) else RATIOS
    fixed = {group[0] for group in groups if any(name in constants for name in group)}
    together: dict[str, list[ir.Node]] = {}
    for node in graph.nodes("DequantizeLinear"):
        read = qdq.quantizer_of(graph, node.outputs[0])
        if read is not None and read.codes is None:
            name = str(node.outputs[0].name if node.outputs[0].is_graph_output() else read.source.name)
            together.setdefault(leader.get(name, name), []).append(node)
    known = {str(value.name) for value in reference.values()}
    problems = []
    for name, nodes in together.items():
        if name in fixed:
            continue  # the codes of a constant share its parameters
        reads = [qdq.read_quantizer(graph, node) for node in nodes]
        params = reads[0].params
        if isinstance(params.format, Minifloat):
            continue
        if params.format.bits > bits or params.axis is not None or any(read.params != params for read in reads):
            continue
        makers = [read.source.producer() for read in reads]
        if any(maker is not None and maker.op_type in ("Softmax", "CacheSoftmax") for maker in makers):
            continue
        problem = Problem(nodes, params, ratios)
        bounded = [clip_bounds(graph, maker) for maker in makers]
        if any(bounds is not None and max(-bounds[0], bounds[1]) < np.inf for bounds in bounded):
            problem.largest = 1.0
        if _describe(graph, problem, known):
            problems.append(problem)
    return problems


def _describe(graph: Graph, problem: Problem, known: set[str]) -> bool:
    """Fill in inputs, outputs and limits; False if nothing comparable reads the quantizers."""
    made: set[ir.Value] = set()
    inputs: dict[str, None] = {}
    for node in problem.quantizers:
        source = qdq.read_quantizer(graph, node).source
        if not _moved_within(graph, source.producer(), made):
            inputs[str(source.name)] = None
        made.add(node.outputs[0])
    own = {qdq.read_quantizer(graph, node).source for node in problem.quantizers}
    for node in problem.quantizers:
        value = node.outputs[0]
        if value.is_graph_output():
            problem.outputs[str(value.name)] = str(value.name)
        for user in dict.fromkeys(use.node for use in value.uses()):
            if user.outputs[0] in own:
                if not _moved_within(graph, user, made):
                    return False
                continue
            reader = list(_reader(graph, user))
            output = reader[-1].outputs[0]
            name = str(output.name)
            target = name if name in known else name.removesuffix("_float")
            if target not in known:
                continue
            problem.outputs[name] = target
            inner = {v for one in reader for v in one.outputs} | made
            for one in reader:
                inputs.update(
                    (str(v.name), None) for v in one.inputs if v is not None and v not in inner and not _fixed(graph, v)
                )
            bias = _bias(graph, user) if user.inputs[0] is value else None
            weight = qdq.quantizer_of(graph, user.inputs[1]) if bias is not None else None
            if bias is not None and weight is not None:
                codes, scale = bias[1]
                problem.biases.append((bias[0], weight.params, codes * scale.astype(np.float64)))
                problem.smallest = max(problem.smallest, float(np.abs(codes).max(initial=0)) / BIAS_LIMIT)
    problem.inputs = list(inputs)
    return bool(problem.outputs)


def _moved_within(graph: Graph, node: ir.Node | None, made: set[ir.Value]) -> bool:
    """Whether a node only moves values that have the problem's quantizers already."""
    if node is None or not (moves_only(node) or node.op_type == "Concat"):
        return False
    moved = node.inputs[:1] if node.op_type != "Concat" else node.inputs
    return all(value in made for value in moved)


def _reader(graph: Graph, node: ir.Node) -> Iterator[ir.Node]:
    """A layer: the node, the Add of its bias, its Relu or Clip."""
    yield node
    if node.op_type == "MatMul" and node.inputs[1] is not None and _fixed(graph, node.inputs[1]):
        add = graph.sole_user(node.outputs[0])
        if add is not None and add.op_type == "Add" and any(v is not None and _fixed(graph, v) for v in add.inputs):
            yield add
            node = add
    clip = graph.sole_user(node.outputs[0])
    if node.op_type in decisions.FUSES_CLIP and clip is not None and clip_bounds(graph, clip) is not None:
        yield clip


def _fixed(graph: Graph, value: ir.Value) -> bool:
    """A constant, or codes of one behind a DequantizeLinear."""
    if graph.const(value) is not None:
        return True
    maker = value.producer()
    return maker is not None and maker.op_type == "DequantizeLinear" and graph.const(maker.inputs[0]) is not None


def _bias(graph: Graph, node: ir.Node) -> tuple[ir.Node, tuple[NDArray, NDArray]] | None:
    """The DequantizeLinear of a layer's bias, its codes and scale."""
    if node.op_type not in WEIGHTED or node.domain:
        return None
    held: Iterable[ir.Value | None] = node.inputs[2:3]
    if node.op_type == "MatMul":
        add = graph.sole_user(node.outputs[0])
        held = add.inputs if add is not None and add.op_type == "Add" else ()
    for value in held:
        maker = value.producer() if value is not None else None
        found = qdq.read_bias(graph, maker) if maker is not None else None
        if maker is not None and found is not None:
            return maker, found
    return None


# -- measuring -----------------------------------------------------------------------------------------------------


def _feed(graph: Graph, reference: Graph, problems: list[Problem], context: Context, limit: int) -> None:
    """What each problem is fed with, and what its outputs should be, of up to `limit` samples."""
    assert context.samples is not None
    given = {str(value.name) for value in graph.inputs}
    inputs = [name for name in dict.fromkeys(n for p in problems for n in p.inputs) if name not in given]
    targets = [name for name in dict.fromkeys(n for p in problems for n in p.outputs.values()) if name not in given]
    quantized = Session(with_outputs(graph, inputs)) if inputs else None
    exact = Session(with_outputs(reference, targets)) if targets else None
    for index, sample in enumerate(context.samples):
        if index == limit:
            break
        values, wanted = dict(sample), dict(sample)
        if quantized is not None:
            values |= zip(inputs, quantized.run({n: sample[n] for n in quantized.input_names}, inputs), strict=True)
        if exact is not None:
            wanted |= zip(targets, exact.run({n: sample[n] for n in exact.input_names}, targets), strict=True)
        for problem in problems:
            problem.fed.append({name: values[name] for name in problem.inputs})
            problem.wanted.append([wanted[name] for name in problem.outputs.values()])


def search(graph: Graph, problem: Problem) -> QuantParams:
    """The best parameters for what the problem was fed with; the present ones unless others are better."""
    session, start = Session(_local(graph, problem)), problem.params
    energy = [max(float(np.square(np.stack(column), dtype=np.float64).sum()), 1e-30)
              for column in zip(*problem.wanted, strict=True)]  # fmt: skip
    names = list(problem.outputs)

    def error(params: QuantParams) -> float:
        total = 0.0
        extra = {"search_scale": params.scale, "search_zero": params.zero_point.astype(params.format.storage)}
        for fed, wanted in zip(problem.fed, problem.wanted, strict=True):
            for got, want, scale in zip(session.run({**fed, **extra}, names), wanted, energy, strict=True):
                total += float(np.square(got - want, dtype=np.float64).sum()) / scale
        return total

    best, least = start, error(start)
    for stage in (problem.ratios, SHIFTS, NEAR if problem.ratios is RATIOS else ()):
        base = best
        for step in stage:
            trial = _moved(base, int(step)) if stage is SHIFTS else _scaled(base, float(step))
            if trial is None or trial == base or not _allowed(problem, trial):
                continue
            found = error(trial)
            if found < least:
                best, least = trial, found
    return best


def _scaled(params: QuantParams, ratio: float) -> QuantParams:
    return QuantParams(params.format, params.scale * np.float32(ratio), params.zero_point)


def _moved(params: QuantParams, step: int) -> QuantParams | None:
    """The range moved by steps of a 32nd of it, at least one code; None at an end of the format or where it is
    signed around 0."""
    fmt, zero = params.format, int(params.zero_point)
    if zero in (fmt.min, fmt.max) or (fmt.signed and zero == 0):
        return None
    moved = zero + step * max(1, (fmt.max - fmt.min + 1) // 32)
    return QuantParams(fmt, params.scale, np.int64(moved)) if fmt.min < moved < fmt.max else None


def _allowed(problem: Problem, trial: QuantParams) -> bool:
    ratio = float(trial.scale) / float(problem.params.scale)
    return problem.smallest < ratio <= problem.largest + 1e-6 and bool(np.isfinite(trial.scale) and trial.scale > 0)


def _local(graph: Graph, problem: Problem) -> Graph:
    """The problem as a graph of its own, with scale and zero point as inputs."""
    copy = with_outputs(graph, problem.outputs)
    by_name = {str(value.name): value for value in copy.values()}
    scale = ir.Value(name="search_scale", shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT))
    storage = ir.DataType.from_numpy(problem.params.format.storage)
    zero = ir.Value(name="search_zero", shape=ir.Shape(()), type=ir.TensorType(storage))
    for node in problem.quantizers:
        for old, new in zip(node.inputs[1:3], (scale, zero), strict=True):
            kept = by_name.get(str(old.name))  # type: ignore[union-attr]
            if kept is not None:  # else nothing that counts here reads this quantizer
                kept.replace_all_uses_with(new)
    copy.ir.inputs.clear()
    for name in problem.inputs:
        old = by_name[name]
        value = ir.Value(name=f"fed/{name}", shape=old.shape, type=old.type)
        old.replace_all_uses_with(value)
        copy.ir.inputs.append(value)
        old.name = copy.fresh_name(f"{name}/cut") if old.producer() is not None else f"{name}/cut"
        value.name = name
    copy.ir.inputs.extend([scale, zero])
    copy.sweep()
    return copy


def set_params(graph: Graph, problem: Problem, params: QuantParams) -> None:
    """Write parameters into the quantizers and the scales of the biases of products that read them."""
    for node in problem.quantizers:
        scale, zero = node.inputs[1:3]
        assert scale is not None and zero is not None
        graph.set_const(scale, params.scale)
        graph.set_const(zero, params.zero_point.astype(params.format.storage))
    for holder, weight, exact in problem.biases:
        new = np.broadcast_to(params.scale * weight.scale, exact.shape).astype(np.float32)
        graph.set_const(holder.inputs[0], np.rint(exact / new).astype(np.int32))  # type: ignore[arg-type]
        graph.set_const(holder.inputs[1], new)  # type: ignore[arg-type]
    problem.params = params
