"""Products with weights or of activations: Conv, ConvTranspose, Gemm, MatMul, Einsum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.execute.torch.site import Function, Rule, Site, align, common_samples, lift
from qcompiler.execute.torch.spatial import padded, window

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _each_sample(function: Function, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """function(x [N, ...], weight, bias) for tensors with samples: one call, where the weights are constants."""
    if weight.shape[0] == 1 and (bias is None or bias.shape[0] == 1):
        y = function(x.flatten(0, 1), weight[0], None if bias is None else bias[0])
        return y.unflatten(0, x.shape[:2])
    tensors = common_samples([x, weight] if bias is None else [x, weight, bias])
    return torch.stack([function(*one, *[None] * (bias is None)) for one in zip(*tensors, strict=True)])


def _conv(site: Site) -> Function:
    kernel = site.shape(1)[2:]
    shape = window(site, kernel)
    groups, run = site.attr("group", 1), _CONV[len(kernel) - 1]
    same = shape.begin == shape.end

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x if same else padded(x, shape.begin, shape.end)
        return run(x, weight, bias, shape.strides, shape.begin if same else 0, shape.dilations, groups)

    return lambda x, weight, bias=None: _each_sample(one, x, weight, bias)


def _conv_transpose(site: Site) -> Function:
    kernel = site.shape(1)[2:]
    rank, groups = len(kernel), site.attr("group", 1)
    strides, dilations = site.attr("strides", [1] * rank), site.attr("dilations", [1] * rank)
    extra = site.attr("output_padding", [0] * rank)
    sizes, out = site.shape(0)[2:], site.out_shape[2:]
    parts = zip(sizes, strides, dilations, kernel, extra, strict=True)
    full = [(n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in parts]
    if site.attr("output_shape") or site.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        total = [a - b for a, b in zip(full, out, strict=True)]
        upper = site.attr("auto_pad", "NOTSET") == "SAME_UPPER"
        begin = [t // 2 if upper else t - t // 2 for t in total]
    else:
        begin = site.attr("pads", [0] * 2 * rank)[:rank]
    if any(b < 0 or b + o > f for b, o, f in zip(begin, out, full, strict=True)):
        raise site.refuse(f"makes {list(out)}, more than its windows cover")

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # the whole of it, then the part that pads leave
        y = _TRANSPOSED[rank - 1](x, weight, bias, strides, 0, extra, groups, dilations)
        for axis, (start, size) in enumerate(zip(begin, out, strict=True)):
            y = y if y.shape[axis + 2] == size else y.narrow(axis + 2, start, size)
        return y

    return lambda x, weight, bias=None: _each_sample(one, x, weight, bias)


def _gemm(site: Site) -> Function:
    alpha, beta = site.attr("alpha", 1.0), site.attr("beta", 1.0)
    trans_a, trans_b = site.attr("transA", 0), site.attr("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.transpose(1, 2) if trans_a else a
        if b.shape[0] == 1:
            y = F.linear(a, b[0] if trans_b else b[0].T)
        else:
            y = torch.matmul(a, b.transpose(1, 2) if trans_b else b)
        y = y if alpha == 1.0 else y * alpha
        return y if c is None else y + lift(c if beta == 1.0 else c * beta, 3)

    return run


def _matmul(site: Site) -> Function:
    rows, columns = (len(site.shape(i)) > 1 for i in (0, 1))

    def run(a: Tensor, b: Tensor) -> Tensor:
        a = a if rows else a.unsqueeze(1)
        b = b if columns else b.unsqueeze(2)
        if b.shape[:-2].numel() == 1 and a.dim() >= b.dim():
            y = torch.matmul(a, b.reshape(b.shape[-2:]))  # one product; broadcasting would copy the weight
        else:
            y = torch.matmul(*align(a, b))
        y = y if columns else y.squeeze(-1)
        return y if rows else y.squeeze(-2 if columns else -1)

    return run


def _einsum(site: Site) -> Function:
    equation = site.attr("equation").replace(" ", "")
    spare = next(letter for letter in "zyxwvuts" + "ZYXWVUTS" if letter not in equation)
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = [letter for letter in left if letter.isalpha()]
        right = ("..." if "..." in left else "") + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    with_samples = f"{','.join(spare + term for term in left.split(','))}->{spare}{right}"
    return lambda *tensors: torch.einsum(with_samples, *common_samples(tensors))


RULES: dict[str, Rule] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul, "Einsum": _einsum,
}  # fmt: skip
