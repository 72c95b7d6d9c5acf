"""How much the outputs of a network care for every value: the diagonal of the Fisher information.

For logits z and what the network predicts, p = softmax(z), F = E_x E_{y ~ p} [(d log p(y) / d value)^2]. To second
order, the Kullback-Leibler divergence that a small error e of a value causes is e^T F e / 2, and the diagonal of F is
what BRECQ weighs errors with. No labels are needed: y is drawn from the network's own prediction, with a seed. For
outputs that are no logits (`loss = "mse"`) the same with the squared error: E_x diag(J^T J), J = d output / d value,
estimated with random signs.

Sources: Li et al. 2021, BRECQ, section 3.3, but with labels drawn from the model instead of those of the data, which
makes it the Fisher information (Martens 2020, New Insights and Perspectives on the Natural Gradient Method);
Hutchinson 1990 for the signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.execute.torch.graph import TorchGraph
from qcompiler.graph.model import Graph


def output_gradients(
    graph: Graph,
    samples: Iterable[Mapping[str, NDArray]],
    values: Sequence[str],
    loss: Literal["kl", "mse"] = "kl",
    *,
    axes: Mapping[str, int] | None = None,
    draws: int = 1,
    batch: int = 8,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Mean over samples of the squared gradient for each value: float64 of the value's shape, or [C] (the mean over the
    other axes) for values with an entry in `axes`.

    graph: FLOAT (or QDQ). samples: dicts of arrays of the static input shapes; read once, `batch` at a time, at most
    `limit`. loss: `kl` where the last axis of the first output holds logits (or a Softmax of them), each position of
    its own; `mse` over all outputs otherwise. draws: random labels or signs for each sample; more is more exact.
    Raises CalibrationError without samples, RecipeError for an unknown loss.
    """
    axes = axes or {}
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    for number, _, squares in _chunks(graph, samples, values, loss, draws, batch, limit, seed):
        for name, square in squares.items():
            reduced = _reduce(square, axes.get(name)).numpy()
            sums[name] = sums[name] + reduced if name in sums else reduced
        count += number
    if not count:
        raise CalibrationError("there are no samples.", where="output_gradients")
    return {name: total / count for name, total in sums.items()}


def value_gradients(
    graph: Graph,
    samples: Iterable[Mapping[str, NDArray]],
    values: Sequence[str],
    loss: Literal["kl", "mse"] = "kl",
    *,
    draws: int = 1,
    batch: int = 8,
    limit: int | None = None,
    seed: int = 0,
) -> Iterator[dict[str, tuple[NDArray[np.float32], NDArray[np.float64]]]]:
    """Values with their squared gradients, element by element, `batch` samples at a time: name -> two arrays
    [n, *shape]. For what depends on values and gradients together; else see `output_gradients`, with its arguments.
    """
    for _, leaves, squares in _chunks(graph, samples, values, loss, draws, batch, limit, seed):
        yield {name: (leaf.detach().float().numpy(), squares[name].numpy()) for name, leaf in leaves.items()}


def weight_gradients(
    graph: Graph,
    samples: Iterable[Mapping[str, NDArray]],
    weights: Sequence[str],
    loss: Literal["kl", "mse"] = "kl",
    *,
    draws: int = 1,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Mean over samples of the squared gradient for each element of float constants, float64 of their shapes.

    The diagonal of the Fisher information for weights: gradients of samples are squared one by one. Raises
    CalibrationError without samples, RecipeError for an unknown loss, ModelError for names that are no constants.
    """
    _check(loss)
    module, generator = TorchGraph(graph, trainable=weights), torch.Generator().manual_seed(seed)
    outputs = [_logits(graph)] if loss == "kl" else module.outputs
    parameters = [module.weights[name] for name in weights]
    sums = [torch.zeros(parameter.shape, dtype=torch.float64) for parameter in parameters]
    count = 0
    for sample in samples if limit is None else islice(samples, limit):
        with torch.enable_grad():
            results = module({name: sample[name][None] for name in module.inputs}, outputs)
        found = [results[name] for name in outputs]
        for gradients in _draws(found, parameters, loss, draws, generator):
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient.double() ** 2 / draws
        count += 1
    if not count:
        raise CalibrationError("there are no samples.", where="weight_gradients")
    return {name: (total / count).numpy() for name, total in zip(weights, sums, strict=True)}


def _check(loss: str) -> None:
    if loss not in ("kl", "mse"):
        raise RecipeError(f"`{loss}` is no loss.", where="output_gradients", hint="Choose kl or mse.")


def _chunks(
    graph: Graph,
    samples: Iterable[Mapping[str, NDArray]],
    values: Sequence[str],
    loss: Literal["kl", "mse"],
    draws: int,
    batch: int,
    limit: int | None,
    seed: int,
) -> Iterator[tuple[int, dict[str, Tensor], dict[str, Tensor]]]:
    """n, values, and the mean over draws of their squared gradients (float64), [n, *shape] each, n samples a time."""
    _check(loss)
    module, generator = TorchGraph(graph), torch.Generator().manual_seed(seed)
    outputs = [_logits(graph)] if loss == "kl" else module.outputs
    stream = iter(samples if limit is None else islice(samples, limit))
    while chunk := list(islice(stream, batch)):
        given = {name: np.stack([sample[name] for sample in chunk]) for name in module.inputs}
        found, leaves = _run(module, given, values, outputs)
        squares = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in zip(values, leaves, strict=True)}
        for gradients in _draws(found, leaves, loss, draws, generator):
            for name, gradient in zip(values, gradients, strict=True):
                if gradient is not None:
                    squares[name] += gradient.double() ** 2 / draws
        yield len(chunk), dict(zip(values, leaves, strict=True)), squares


def _draws(
    found: list[Tensor], leaves: Sequence[Tensor], loss: str, draws: int, generator: torch.Generator
) -> Iterator[tuple[Tensor | None, ...]]:
    """Gradients for random labels or signs, one set of them a draw. Outputs without gradients (of ArgMax) count for
    nothing; CalibrationError if none has one."""
    found = [z for z in found if z.requires_grad]
    if not found:
        hint = "Cut the model before its ArgMax or TopK, or choose another method."
        raise CalibrationError("no output has a gradient.", where="output_gradients", hint=hint)
    for _ in range(draws):
        seeds = [_label(z, generator) if loss == "kl" else _signs(z, generator) for z in found]
        yield torch.autograd.grad(found, leaves, seeds, retain_graph=True, allow_unused=True)


def _run(
    module: TorchGraph, given: Mapping[str, NDArray], values: Sequence[str], outputs: Sequence[str]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the values that they are differentiated by."""
    leaves: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            raise CalibrationError(f"`{name}` is {tensor.dtype}, which has no gradient.", where=module.where)
        leaves[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        return leaves[name]

    inputs = {name: torch.from_numpy(array) for name, array in given.items()}
    for name in set(values) & set(inputs):
        inputs[name] = keep(name, inputs[name])
    taps = {name: (lambda tensor, name=name: keep(name, tensor)) for name in values if name not in inputs}
    with torch.enable_grad():
        found = module(inputs, [*outputs, *values], taps=taps)
    missing = [name for name in values if name not in leaves]
    if missing:
        raise CalibrationError(f"`{missing[0]}` is a constant.", where=module.where, hint="Ask for activations.")
    return [found[name] for name in outputs], [leaves[name] for name in values]


def _logits(graph: Graph) -> str:
    """The first output, or what its Softmax reads."""
    output = graph.outputs[0]
    node = output.producer()
    if node is not None and node.op_type in ("Softmax", "LogSoftmax") and node.inputs[0] is not None:
        return str(node.inputs[0].name)
    return str(output.name)


def _label(logits: Tensor, generator: torch.Generator) -> Tensor:
    """d log p(y) / d logits = onehot(y) - p for one y ~ p at every position."""
    p = torch.softmax(logits.detach(), -1)
    y = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator).reshape(*p.shape[:-1], 1)
    return torch.zeros_like(p).scatter(-1, y, 1.0) - p


def _signs(output: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1


def _reduce(square: Tensor, axis: int | None) -> Tensor:
    """[n, *shape] -> the sum over samples, and the mean over all axes but one."""
    total = square.sum(0)
    if axis is None:
        return total
    return total.movedim(axis, 0).flatten(1).mean(1) if total.dim() > 1 else total
