"""Second-order quantities by torch: traces of Hessians, diagonals of the Fisher information. No labels.

The loss is the divergence from the float network's own predictions (losses.py). At the float weights its gradient is 0
and its Hessian the Gauss-Newton matrix J^T M J, so traces are not negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.graph.model import Graph
from qcompiler.passes.mixed_precision.losses import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from qcompiler.execute.torch import TorchGraph

BATCH = 16
TOLERANCE = 1e-3
LAST = 8
"""Draws whose running means are compared with the last one."""


def traces(
    graph: Graph,
    samples: Sequence[Mapping[str, NDArray]],
    names: Sequence[str],
    loss: Loss,
    *,
    draws: int = 50,
    batch: int = BATCH,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> dict[str, tuple[float, float]]:
    """Trace of the Hessian by each weight alone, and the standard error of the estimate, by initializer name.

    Hutchinson: the mean of v_i . (H v)_i over Rademacher v, drawn for all weights at once; a draw of its own for every
    batch of samples. At most `draws` of each, fewer when the means have come to rest within `tolerance` (a share of
    them); deterministic by `seed`. Source: HAWQ-V2, algorithm 1; Hutchinson 1990.
    """
    import torch

    from qcompiler.execute.torch import TorchGraph

    module = TorchGraph(graph, trainable=names)
    parameters = [module.weights[name] for name in names]
    generator = torch.Generator().manual_seed(seed)
    chunks = [samples[i : i + batch] for i in range(0, len(samples), batch)]
    scale = _signal(samples, loss, module)
    prepared = []
    for chunk in chunks:
        value = _loss(module, chunk, loss, scale)
        gradients = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        prepared.append((len(chunk) / len(samples), gradients))
    seen: list[NDArray] = []
    for _ in range(draws):
        total = np.zeros(len(names))
        for share, gradients in prepared:
            signs = [torch.randint(0, 2, one.shape, generator=generator).to(one) * 2 - 1 for one in parameters]
            used = [(g, v) for g, v in zip(gradients, signs, strict=True) if g is not None and g.requires_grad]
            if not used:
                continue
            product = torch.stack([(g * v).sum() for g, v in used]).sum()
            turned = torch.autograd.grad(product, parameters, retain_graph=True, allow_unused=True)
            total += share * np.array([
                0.0 if h is None else float((h.double() * v).sum()) for h, v in zip(turned, signs, strict=True)
            ])  # fmt: skip
        seen.append(total)
        if len(seen) > 2 * LAST and _settled(np.array(seen), tolerance):
            break
    mean = np.mean(seen, 0)
    spread = np.std(seen, 0, ddof=1) / np.sqrt(len(seen)) if len(seen) > 1 else np.full(len(names), np.inf)
    return {name: (float(m), float(s)) for name, m, s in zip(names, mean, spread, strict=True)}


def fisher_diagonal(
    graph: Graph,
    samples: Sequence[Mapping[str, NDArray]],
    names: Sequence[str],
    loss: Loss,
    *,
    draws: int = 4,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Diagonal of the Fisher information by every weight, float64 of its shape: 1/2 sum F dW^2 estimates the loss.

    The mean over samples, one at a time, of squared gradients from random seeds of the outputs whose covariance is the
    loss's curvature in the outputs (`_seeds`).
    """
    import torch

    from qcompiler.execute.torch import TorchGraph

    module = TorchGraph(graph, trainable=names)
    parameters = [module.weights[name] for name in names]
    generator = torch.Generator().manual_seed(seed)
    scale = _signal(samples, loss, module)
    sums = [np.zeros(tuple(one.shape)) for one in parameters]
    for sample in samples:
        outputs = _outputs(module, [sample], loss)
        for _ in range(draws):
            seeds = _seeds(outputs, loss, scale, generator)
            gradients = torch.autograd.grad(outputs, parameters, seeds, retain_graph=True, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient.double().numpy() ** 2
    return {name: total / (len(samples) * draws) for name, total in zip(names, sums, strict=True)}


def activation_traces(
    graph: Graph,
    samples: Sequence[Mapping[str, NDArray]],
    values: Sequence[str],
    loss: Loss,
    *,
    draws: int = 4,
    batch: int = BATCH,
    seed: int = 0,
) -> dict[str, float]:
    """Trace of the loss's Gauss-Newton matrix by each value: sum over its elements of the mean squared gradient.

    values: names of activations or graph inputs. Seeds as in `fisher_diagonal`.
    """
    import torch

    from qcompiler.execute.torch import TorchGraph

    module = TorchGraph(graph)
    generator = torch.Generator().manual_seed(seed)
    scale = _signal(samples, loss, module)
    sums = dict.fromkeys(values, 0.0)
    for i in range(0, len(samples), batch):
        chunk = samples[i : i + batch]
        leaves: dict[str, Tensor] = {}

        def keep(name: str, tensor: Tensor, leaves: dict[str, Tensor] = leaves) -> Tensor:
            leaves[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            return leaves[name]

        inputs = {name: torch.from_numpy(np.stack([one[name] for one in chunk])) for name in module.inputs}
        for name in set(values) & set(inputs):
            inputs[name] = keep(name, inputs[name])
        taps = {name: (lambda one, name=name, keep=keep: keep(name, one)) for name in values if name not in inputs}
        found = module(inputs, [*loss.values, *values], taps=taps)
        outputs = [found[name] for name in loss.values]
        for _ in range(draws):
            seeds = _seeds(outputs, loss, scale, generator)
            wanted = [leaves[name] for name in values]
            gradients = torch.autograd.grad(outputs, wanted, seeds, retain_graph=True, allow_unused=True)
            for name, gradient in zip(values, gradients, strict=True):
                sums[name] += 0.0 if gradient is None else float((gradient.double() ** 2).sum())
    return {name: total / (len(samples) * draws) for name, total in sums.items()}


def _signal(samples: Sequence[Mapping[str, NDArray]], loss: Loss, module: TorchGraph) -> float:
    """mse: sum of squares of the outputs a sample, on average."""
    import torch

    if loss.kind == "kl":
        return 1.0
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(samples), BATCH):
            found = _outputs(module, list(islice(samples, i, i + BATCH)), loss)
            total += sum(float((one.double() ** 2).sum()) for one in found)
    return max(total / len(samples), 1e-300)


def _outputs(module: TorchGraph, chunk: Sequence[Mapping[str, NDArray]], loss: Loss) -> list[Tensor]:
    given = {name: np.stack([sample[name] for sample in chunk]) for name in module.inputs}
    found = module(given, list(loss.values))
    return [found[name] for name in loss.values]


def _loss(module: TorchGraph, chunk: Sequence[Mapping[str, NDArray]], loss: Loss, scale: float) -> Tensor:
    """Mean loss of a batch against its own predictions, held constant: 0, with the right Hessian."""
    import torch

    outputs = _outputs(module, chunk, loss)
    if loss.kind == "mse":
        total = sum(((one - one.detach()) ** 2).sum() for one in outputs)
        return total / (scale * len(chunk))  # type: ignore[return-value, operator]
    logits = outputs[0]
    wanted = torch.log_softmax(logits.detach(), -1)
    rows = logits.numel() // logits.shape[-1]
    return (wanted.exp() * (wanted - torch.log_softmax(logits, -1))).sum() / rows


def _seeds(outputs: Sequence[Tensor], loss: Loss, scale: float, generator: Any) -> list[Tensor]:
    """What gradients start from: random, with the curvature of one sample's loss in the outputs as covariance.

    kl: s = sqrt(p) v - p (sqrt(p) . v) with random signs v has E[s s^T] = diag(p) - p p^T. Drawing a label, y - p, has
    too, but where predictions are sure its squares are rare and large. mse: signs.
    """
    import torch

    signs = [torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1 for z in outputs]
    if loss.kind == "mse":
        return [one * float(np.sqrt(2 / scale)) for one in signs]
    p = torch.softmax(outputs[0].detach(), -1)
    root = p.sqrt() * signs[0]
    rows = int(np.prod(outputs[0].shape[1:-1]))
    return [(root - p * root.sum(-1, keepdim=True)) / float(np.sqrt(rows))]


def _settled(seen: NDArray, tolerance: float) -> bool:
    """Whether the running means have come to rest."""
    means = np.cumsum(seen, 0) / np.arange(1, len(seen) + 1)[:, None]
    last = means[-LAST:]
    return bool((np.abs(last - means[-1]) <= tolerance * np.abs(means[-1])).all())
