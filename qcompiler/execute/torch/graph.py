"""A FLOAT or QDQ graph as a torch module: the one differentiable executor, on which passes that learn stand.

Samples are an axis of their own, before the static shape of every value: [n, *shape], and rules (rules.py) know it.
So the batch of 1 that graphs are made for stays what it is, whatever Reshape and Transpose do with it, and still each
node runs once for all samples. The alternatives: `torch.func.vmap` of one sample is exact too and about as fast, but
functions may not look at values in it and learning passes would have to be written around it; rewriting the shapes of
Reshapes to a batch of n must guess where the batch went. Measured on a busy machine, one thread, 32 samples, samples
per second forward (and with backward), by `python -m benchmarks.torch_executor`:

                        this          vmap          sample by sample
    resnet20_cifar10    424 (114)     371 (118)     123 (42)
    mobilenetv2         591 (99)      449 (101)     82 (22)
    vit_hybrid          110 (37)      108 (35)      52 (18)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, ModelError, UnsupportedError
from qcompiler.execute.torch.parts import function_body, quantizes, tied_values
from qcompiler.execute.torch.quantizer import Quantizer
from qcompiler.execute.torch.rules import RULES
from qcompiler.execute.torch.site import Function, Site
from qcompiler.formats import Blocks, Log, QuantParams
from qcompiler.graph import qdq
from qcompiler.graph.minifloats import FLOAT_CODES
from qcompiler.graph.model import Graph, operator_key
from qcompiler.quantizer import dequantize

_UNROLLED, _SPELLED = ("LSTM", "GRU", "RNN"), ("Attention", "RotaryEmbedding", "Compress", "ReverseSequence")
_HINTS = {
    **dict.fromkeys(_UNROLLED, "Run the pass `unroll_recurrent` before."),
    **dict.fromkeys(_SPELLED, "Run the pass `spell_out` before."),
}


@dataclass(frozen=True, eq=False)
class _Step:
    """One call: names of what it reads (None where absent) and writes."""

    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    function: Function


class TorchGraph(nn.Module):
    """Run a graph, or any part of it, on many samples at once, with gradients.

    graph: FLOAT or QDQ; not changed. trainable: names of float initializers (and of quantized weights, see
    `float_weights`) that become parameters, or a test of a name; more can be had by `parameter`.
    float_weights: value name -> float32 array, as `float_weights()` finds them: those weights are float and pass
    through their Quantizer, so that gradients reach weight and scale. Other quantized constants are what their codes
    mean.

    weights: initializer name -> nn.Parameter, of the trainable ones.
    quantizers: name of the dequantized value -> module; replace one with `set_quantizer`. Values that must share their
    parameters (what a MaxPool reads and makes) share their module.
    inputs, outputs: names of the graph's.
    Raises UnsupportedError naming node and type for an operator that torch has no rule for, ModelError for names that
    are no float initializers.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        trainable: Iterable[str] | Callable[[str], bool] = (),
        float_weights: Mapping[str, NDArray] | None = None,
    ) -> None:
        super().__init__()
        self.where = graph.path
        self.inputs = [str(value.name) for value in graph.inputs]
        self.outputs = [str(value.name) for value in graph.outputs]
        self._shapes = {str(v.name): v.shape for v in graph.values() if v.shape is not None}
        self._slots: dict[str, str] = {}  # torch allows no dots in names of parameters and modules
        self._modules_of: dict[str, str] = {}
        self._steps: list[_Step] = []
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], tuple[list[_Step], list[list[str]]]] = {}
        for name, value in graph.ir.initializers.items():
            array = graph.const(value)
            if array is not None and array.dtype.name in FLOAT_CODES:
                array = array.astype(np.float32)
            if array is not None and array.dtype.kind in "fiub":
                self._add_constant(name, array)
        self._tied = tied_values(graph)
        given = dict(float_weights or {})
        for node in graph.nodes():
            self._steps.append(self._quantizer(graph, node, given) or self._node(graph, node))
        if given:
            raise ModelError(f"`{min(given)}` is no weight with a quantizer.", where=self.where)
        self._makers = {name: i for i, step in enumerate(self._steps) for name in step.outputs}
        names = [name for name in self._slots if trainable(name)] if callable(trainable) else list(trainable)
        for name in names:
            self.parameter(name)

    # -- what learns -------------------------------------------------------------------------------------------

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Initializer name -> parameter, of the trainable ones."""
        slots = {name: getattr(self, slot) for name, slot in self._slots.items()}
        return {name: tensor for name, tensor in slots.items() if isinstance(tensor, nn.Parameter)}

    @property
    def quantizers(self) -> dict[str, nn.Module]:
        """Name of the dequantized value -> its Quantizer (or what took its place)."""
        return {name: getattr(self, slot) for name, slot in self._modules_of.items()}

    @property
    def constants(self) -> list[str]:
        """Names of the float constants, all of which can become parameters."""
        return [name for name, slot in self._slots.items() if getattr(self, slot).is_floating_point()]

    def parameter(self, name: str) -> nn.Parameter:
        """The float initializer `name` as a parameter of its own shape, without samples. Raises ModelError."""
        slot = self._slots.get(name, "")
        tensor = getattr(self, slot) if slot else None
        if tensor is None or not tensor.is_floating_point():
            raise ModelError(
                f"`{name}` is no float constant.",
                where=self.where,
                hint="A quantized weight becomes one with float_weights; scales belong to `quantizers`.",
            )
        if isinstance(tensor, nn.Parameter):
            return tensor
        delattr(self, slot)
        parameter = nn.Parameter(tensor.clone())
        self.register_parameter(slot, parameter)
        return parameter

    def set_quantizer(self, name: str, module: nn.Module) -> None:
        """Let another module make the dequantized value `name`: called with the float value, [n, *shape]."""
        if name not in self._modules_of:
            raise ModelError(f"no quantizer makes `{name}`.", where=self.where)
        setattr(self, self._modules_of[name], module)

    def __deepcopy__(self, memo: Any) -> TorchGraph:
        raise TypeError("a TorchGraph cannot be copied, its steps are bound to it: make another from the graph")

    # -- running -----------------------------------------------------------------------------------------------

    def forward(
        self,
        values: Mapping[str, Any],
        wanted: Sequence[str] | None = None,
        *,
        taps: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Values `wanted` (by default the outputs) from given ones, which may be any: only what lies between is run.

        values: name -> tensor or array [n, *shape]; a constant may be given too, as [1, *shape] or one a sample.
        taps: name -> function of the value as it is computed; what it returns goes on in its place.
        Returns [n, *shape] each, [1, *shape] for what depends on no given value.
        Raises CalibrationError for a value that is missing or has another shape.
        """
        given = {name: self._checked(name, value) for name, value in values.items()}
        names = tuple(self.outputs if wanted is None else wanted)
        steps, dead = self._plan(frozenset(given), names)
        keep = set(names)
        found: dict[str, Tensor] = dict(given)
        for step, gone in zip(steps, dead, strict=True):
            result = step.function(*[None if name is None else self._get(found, name) for name in step.inputs])
            found.update(zip(step.outputs, result if isinstance(result, tuple) else (result,), strict=False))
            for name in step.outputs if taps else ():
                if name in taps:  # type: ignore[operator]
                    found[name] = taps[name](found[name])  # type: ignore[index]
            for name in gone:
                if name not in keep:
                    found.pop(name, None)
        return {name: self._get(found, name) for name in names}

    @property
    def dtype(self) -> torch.dtype:
        """The float type that it runs in: float32 until `.double()`."""
        tensors = (*self.parameters(), *self.buffers())
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def _get(self, found: Mapping[str, Tensor], name: str) -> Tensor:
        tensor = found.get(name)
        return getattr(self, self._slots[name]).unsqueeze(0) if tensor is None else tensor

    def _checked(self, name: str, value: Any) -> Tensor:
        tensor = value
        if not isinstance(value, Tensor):
            tensor = torch.from_numpy(np.array(value, order="C"))  # a copy: read-only arrays (of a file) are welcome
            tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        shape = self._shapes.get(name)
        if shape is None and name not in self._makers:
            raise CalibrationError(f"no value is called `{name}`.", where=self.where)
        if shape is not None and tuple(tensor.shape[1:]) != tuple(shape):
            raise CalibrationError(
                f"`{name}` is {list(shape)}, so samples of it are [n, {', '.join(map(str, shape))}], "
                f"not {list(tensor.shape)}.",
                where=self.where,
                hint="Stack samples along a new first axis.",
            )
        return tensor

    def _plan(self, given: frozenset[str], wanted: tuple[str, ...]) -> tuple[list[_Step], list[list[str]]]:
        """Steps from given to wanted values, in order, and what nothing reads any more after each."""
        if (given, wanted) in self._plans:
            return self._plans[given, wanted]
        needed: set[int] = set()
        seen, stack = set(given), list(wanted)
        while stack:
            name = stack.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self._makers:
                needed.add(self._makers[name])
                stack += [value for value in self._steps[self._makers[name]].inputs if value is not None]
            elif name not in self._slots:
                known = name in self._shapes
                raise CalibrationError(
                    f"`{name}` is {'needed and not given' if known else 'no value of the graph'}.", where=self.where
                )
        steps = [self._steps[i] for i in sorted(needed)]
        last = {name: i for i, step in enumerate(steps) for name in (*step.outputs, *step.inputs) if name is not None}
        dead: list[list[str]] = [[] for _ in steps]
        for name, i in last.items():
            dead[i].append(name)
        self._plans[given, wanted] = steps, dead
        return steps, dead

    # -- making ready ------------------------------------------------------------------------------------------

    def _add_constant(self, name: str, array: NDArray) -> None:
        array = array.astype(np.float32 if array.dtype.kind == "f" else bool if array.dtype.kind == "b" else np.int64)
        slot = self._slots[name] = f"constant{len(self._slots)}"
        self.register_buffer(slot, torch.from_numpy(array), persistent=False)

    def _add_module(self, name: str, module: nn.Module) -> Callable[[], Any]:
        slot = self._modules_of[name] = f"quantizer{len(self._modules_of)}"
        self.add_module(slot, module)
        return lambda: getattr(self, slot)

    def _node(self, graph: Graph, node: ir.Node) -> _Step:
        site = Site(graph, node, lambda: self.dtype)
        rule = RULES.get(operator_key(node))
        inputs = tuple(None if value is None or not value.name else str(value.name) for value in node.inputs)
        outputs = tuple(str(value.name) for value in node.outputs)
        if rule is not None:
            return _Step(inputs, outputs, rule(site))
        if (node.domain, node.op_type, node.overload) not in graph.model.functions:
            raise UnsupportedError(
                f"node `{node.name or node.outputs[0].name}`: the torch executor has no rule for {operator_key(node)}.",
                where=self.where,
                hint=_HINTS.get(node.op_type, "Leave out the passes that learn, or cut the model before this node."),
            )
        body = TorchGraph(function_body(graph, node))
        self.add_module(f"body{len(self._steps)}", body)
        names = {f"input{i}": i for i in range(len(inputs))}

        def run(*tensors: Tensor) -> Tensor:
            # onnx_ir gives a value that is read twice one name, that of its first place
            return body({name: tensors[names[name]] for name in body.inputs})["output"]

        return _Step(inputs, outputs[:1], run)

    def _quantizer(self, graph: Graph, node: ir.Node, float_weights: dict[str, NDArray]) -> _Step | None:
        """The step of a quantizer with constant parameters of integers or minifloats."""
        if not qdq.is_quantizer(node) or any(v is not None and graph.const(v) is None for v in node.inputs[1:]):
            return None
        name, source = str(node.outputs[0].name), node.inputs[0]
        assert source is not None
        bias = qdq.read_bias(graph, node)
        if bias is not None:
            return self._constant_step(source, name, (bias[0] * bias[1]).astype(np.float32))
        if graph.const(source) is None and node.op_type == "DequantizeLinear" and not quantizes(source):
            return None
        read = qdq.read_quantizer(graph, node)
        if isinstance(read.params.format, Log | Blocks):
            return None
        if read.codes is not None and node.op_type == "DequantizeLinear":
            array = float_weights.pop(name, None)
            if array is not None and array.shape != read.codes.shape:
                raise ModelError(f"`{name}` is {read.codes.shape}, its float weight {array.shape}.", where=self.where)
            step = self._constant_step(source, name, dequantize(read.codes, read.params) if array is None else array)
            if array is None and name not in self._tied:
                return step
            # Codes that are moved (by Concat, by Gather from a table) have to follow a scale that is learned.
            source_name = step.inputs[0] if step.inputs else None
            if source_name is None:
                return step
        else:
            source_name = str(read.source.name)
        module = self._add_module(name, self._shared(name, read.params) or Quantizer(read.params))
        return _Step((source_name,), (name,), lambda x: module()(x))

    def _shared(self, name: str, params: QuantParams) -> nn.Module | None:
        """The quantizer of a value that must keep the parameters of this one (before and behind a MaxPool, ...): one
        module for both, so that what is learned stays equal."""
        for other, module in self.quantizers.items():
            same = name in self._tied and self._tied[name] == self._tied.get(other)
            if same and isinstance(module, Quantizer) and module.params() == params:
                return module
        return None

    def _constant_step(self, source: ir.Value, name: str, array: NDArray[np.float32]) -> _Step:
        """Codes become what they mean; the initializer's name then stands for the float values."""
        if len({use.node for use in source.uses()}) > 1:  # codes that are read with several scales
            self._add_constant(name, array)
            return _Step((), (), lambda: ())
        self._replace_constant(source, array)
        return _Step((str(source.name),), (name,), lambda x: x)

    def _replace_constant(self, source: ir.Value, array: NDArray) -> None:
        setattr(self, self._slots[str(source.name)], torch.from_numpy(np.array(array, np.float32)))
