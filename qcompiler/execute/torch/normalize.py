"""Normalizations, Softmax and reductions along axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.execute.torch.site import Function, Rule, Site, along, lift


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """[n, C] beside x [n, N, C, ...]."""
    return values.reshape(values.shape[0], 1, -1, *[1] * (x.dim() - 3))


def _batch(site: Site) -> Function:
    if site.attr("training_mode", 0):
        raise site.refuse("trains")
    site.only_first_output()
    epsilon = site.attr("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        factor = scale / torch.sqrt(variance + epsilon)
        return x * _channels(factor, x) + _channels(bias - mean * factor, x)

    return run


def _standard(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + epsilon)


def _layer(site: Site) -> Function:
    site.only_first_output()
    epsilon, axis = site.attr("epsilon", 1e-5), site.attr("axis", -1)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[along(axis, x) :]
        whole = [value is None or value.shape == (1, *shape) for value in (scale, bias)]
        if all(whole):
            return F.layer_norm(x, shape, scale[0], None if bias is None else bias[0], epsilon)
        y = F.layer_norm(x, shape, None, None, epsilon) * lift(scale, x.dim())
        return y if bias is None else y + lift(bias, x.dim())

    return run


def _rms(site: Site) -> Function:
    epsilon, axis = site.attr("epsilon", 1e-5), site.attr("axis", -1)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(along(axis, x), x.dim()))
        return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + epsilon) * lift(scale, x.dim())

    return run


def _instance(site: Site) -> Function:
    epsilon = site.attr("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return _standard(x, tuple(range(3, x.dim())), epsilon) * _channels(scale, x) + _channels(bias, x)

    return run


def _group(site: Site) -> Function:
    epsilon, groups = site.attr("epsilon", 1e-5), site.attr("num_groups")

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        c = x.shape[2]
        y = _standard(x.reshape(*x.shape[:2], groups, -1), (3,), epsilon).reshape(x.shape)
        scale, bias = (  # before operator set 21 there is one value a group
            value if value.shape[1] == c else value.repeat_interleave(c // groups, 1) for value in (scale, bias)
        )
        return y * _channels(scale, x) + _channels(bias, x)

    return run


def _mean_variance(site: Site) -> Function:
    axes = site.attr("axes", [0, 2, 3])

    def run(x: Tensor) -> Tensor:
        dims = tuple(along(axis, x) for axis in axes)
        centred = x - x.mean(dims, keepdim=True)
        return centred / (torch.sqrt((centred * centred).mean(dims, keepdim=True)) + 1e-9)

    return run


def _lp(site: Site) -> Function:
    axis, p = site.attr("axis", -1), site.attr("p", 2)
    return lambda x: x / x.norm(p, along(axis, x), keepdim=True)


def _lrn(site: Site) -> Function:
    size, alpha, beta = site.attr("size"), site.attr("alpha", 1e-4), site.attr("beta", 0.75)
    bias = site.attr("bias", 1.0)

    def run(x: Tensor) -> Tensor:
        before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
        squares = F.pad((x * x).movedim(2, -1), (before, after))
        near = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 2)
        return x / (bias + alpha / size * near) ** beta

    return run


def _softmax(site: Site) -> Function:
    axis = site.attr("axis", -1)
    function = F.log_softmax if site.node.op_type == "LogSoftmax" else F.softmax
    return lambda x: function(x, along(axis, x))


def _hardmax(site: Site) -> Function:
    axis = site.attr("axis", -1)

    def run(x: Tensor) -> Tensor:
        dim = along(axis, x)
        return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0)

    return run


def _reduction(function: Function) -> Rule:
    """Axes from input 1, or from the attribute of older operator sets."""

    def rule(site: Site) -> Function:
        axes = site.ints(1) if site.value(1) is not None else site.attr("axes")
        keep = bool(site.attr("keepdims", 1))
        if not axes and site.attr("noop_with_empty_axes", 0):
            return lambda x, *rest: x

        def run(x: Tensor, *rest: Tensor) -> Tensor:
            dims = tuple(along(axis, x) for axis in axes) if axes else tuple(range(1, x.dim()))
            return function(x, dims, keep) if dims else x

        return run

    return rule


def _prod(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = x.prod(dim, keepdim=keep)
    return x


def _place(function: Function) -> Rule:
    def rule(site: Site) -> Function:
        axis, keep, last = site.attr("axis", 0), bool(site.attr("keepdims", 1)), site.attr("select_last_index", 0)

        def run(x: Tensor) -> Tensor:
            dim = along(axis, x)
            if last:
                return x.shape[dim] - 1 - function(x.flip(dim), dim, keepdim=keep)
            return function(x, dim, keepdim=keep)

        return run

    return rule


def _cumsum(site: Site) -> Function:
    axis = (site.ints(1) or [0])[0]
    exclusive, reverse = site.attr("exclusive", 0), site.attr("reverse", 0)

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        dim = along(axis, x)
        x = x.flip(dim) if reverse else x
        y = x.cumsum(dim)
        y = y - x if exclusive else y
        return y.flip(dim) if reverse else y

    return run


RULES: dict[str, Rule] = {
    "BatchNormalization": _batch, "LayerNormalization": _layer, "RMSNormalization": _rms,
    "qcompiler::RMSNormalization": _rms, "InstanceNormalization": _instance, "GroupNormalization": _group,
    "MeanVarianceNormalization": _mean_variance, "LpNormalization": _lp, "LRN": _lrn,
    "Softmax": _softmax, "LogSoftmax": _softmax, "Hardmax": _hardmax, "CumSum": _cumsum,
    "ReduceMean": _reduction(lambda x, dims, keep: x.mean(dims, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, dims, keep: x.sum(dims, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, dims, keep: x.amax(dims, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, dims, keep: x.amin(dims, keepdim=keep)),
    "ReduceProd": _reduction(_prod),
    "ReduceL1": _reduction(lambda x, dims, keep: x.abs().sum(dims, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, dims, keep: torch.sqrt((x * x).sum(dims, keepdim=keep))),
    "ReduceSumSquare": _reduction(lambda x, dims, keep: (x * x).sum(dims, keepdim=keep)),
    "ReduceLogSum": _reduction(lambda x, dims, keep: torch.log(x.sum(dims, keepdim=keep))),
    "ReduceLogSumExp": _reduction(lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep)),
    "ArgMax": _place(torch.argmax), "ArgMin": _place(torch.argmin),
}  # fmt: skip
