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

from collections.abc import Iterable, Mapping, Sequence
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
    if loss not in ("kl", "mse"):
        raise RecipeError(f"`{loss}` is no loss.", where="output_gradients", hint="Choose kl or mse.")
    module, generator = TorchGraph(graph), torch.Generator().manual_seed(seed)
    outputs = [_logits(graph)] if loss == "kl" else module.outputs
    axes = axes or {}
    sums: dict[str, NDArray[np.float64]] = {}
    count, stream = 0, iter(samples if limit is None else islice(samples, limit))
    while chunk := list(islice(stream, batch)):
        given = {name: np.stack([sample[name] for sample in chunk]) for name in module.inputs}
        found, leaves = _run(module, given, values, outputs)
        for _ in range(draws):
            seeds = [_label(z, generator) if loss == "kl" else _signs(z, generator) for z in found]
            gradients = torch.autograd.grad(found, leaves, seeds, retain_graph=True, allow_unused=True)
            for name, leaf, gradient in zip(values, leaves, gradients, strict=True):
                one = torch.zeros_like(leaf) if gradient is None else gradient
                square = _reduce(one.double() ** 2, axes.get(name)) / draws
                sums[name] = sums[name] + square.numpy() if name in sums else square.numpy()
        count += len(chunk)
    if not count:
        raise CalibrationError("there are no samples.", where="output_gradients")
    return {name: total / count for name, total in sums.items()}


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
