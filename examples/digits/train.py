"""Train the small networks that the tests use, on scikit-learn's digits, and write them as ONNX.

    python examples/digits/train.py            (torch, scikit-learn and onnx; half a minute on one core)

Writes beside itself: cnn.onnx (Conv-BatchNorm-ReLU6, depthwise and residual parts, stride, global average pool),
vit.onnx (patches of 2, width 32, 2 blocks) and digits.npz (x_calib, x_test float32 [N,1,8,8] in 0..1; y_* int64).
Same versions and seed give the same files.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
OPSET = 18


class Writer:
    """Collects nodes and initializers of one ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, name: str, array) -> str:
        """An initializer; its name."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op_type: str, inputs: list[str], name: str, **attributes) -> str:
        """A node with one output called `name`; that name."""
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def model(self, name: str, shape: list) -> onnx.ModelProto:
        """x float [shape] -> logits float [N,10]."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
        graph = helper.make_graph(self.nodes, name, [x], [y], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        model.producer_name = "examples/digits/train.py"
        onnx.checker.check_model(model, full_check=True)
        return model


def build_networks():
    """The two torch modules; each can write itself into a Writer."""
    import torch
    from torch import nn

    def array(tensor) -> np.ndarray:
        return tensor.detach().numpy().astype(np.float32)

    class Block(nn.Module):
        """Conv, BatchNorm and, if wanted, ReLU6."""

        def __init__(self, c, m, kernel=3, stride=1, groups=1, act=True):
            super().__init__()
            self.conv = nn.Conv2d(c, m, kernel, stride, kernel // 2, groups=groups, bias=False)
            self.norm, self.act = nn.BatchNorm2d(m), act

        def forward(self, x):
            y = self.norm(self.conv(x))
            return nn.functional.relu6(y) if self.act else y

        def write(self, w: Writer, x: str, name: str) -> str:
            conv, norm = self.conv, self.norm
            k, s = list(conv.kernel_size), list(conv.stride)
            spec = {"kernel_shape": k, "strides": s, "pads": [p // 2 for p in k] * 2, "group": conv.groups}
            y = w.node("Conv", [x, w.const(f"{name}.weight", array(conv.weight))], f"{name}_conv", **spec)
            parts = {"gamma": norm.weight, "beta": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
            inputs = [y, *(w.const(f"{name}.{key}", array(value)) for key, value in parts.items())]
            y = w.node("BatchNormalization", inputs, f"{name}_norm", epsilon=norm.eps)
            if self.act:
                low, high = w.const(f"{name}.low", np.float32(0)), w.const(f"{name}.high", np.float32(6))
                y = w.node("Clip", [y, low, high], f"{name}_relu6")
            return y

    class Inverted(nn.Module):
        """Expand, depthwise, project; the input is added where shapes allow."""

        def __init__(self, c, m, expand, stride=1):
            super().__init__()
            hidden = c * expand
            self.parts = nn.ModuleList(
                [Block(c, hidden, 1), Block(hidden, hidden, 3, stride, hidden), Block(hidden, m, 1, act=False)]
            )
            self.residual = c == m and stride == 1

        def forward(self, x):
            y = x
            for part in self.parts:
                y = part(y)
            return x + y if self.residual else y

        def write(self, w: Writer, x: str, name: str) -> str:
            y = x
            for part, kind in zip(self.parts, ("expand", "depthwise", "project"), strict=True):
                y = part.write(w, y, f"{name}_{kind}")
            return w.node("Add", [x, y], f"{name}_add") if self.residual else y

    class Cnn(nn.Module):
        """About 20 thousand parameters."""

        def __init__(self):
            super().__init__()
            blocks = [Block(1, 16), Inverted(16, 16, 3), Inverted(16, 32, 3, 2), Inverted(32, 32, 3), Block(32, 64, 1)]
            self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(64, 10)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((2, 3)))

        def write(self) -> onnx.ModelProto:
            w, x = Writer(), "x"
            for i, block in enumerate(self.blocks):
                x = block.write(w, x, f"block{i}")
            x = w.node("Flatten", [w.node("GlobalAveragePool", [x], "pool")], "features", axis=1)
            weights = [w.const("head.weight", array(self.head.weight)), w.const("head.bias", array(self.head.bias))]
            w.node("Gemm", [x, *weights], "logits", transB=1)
            return w.model("digits_cnn", ["N", 1, 8, 8])

    class Attention(nn.Module):
        """One pre-norm transformer block: attention over 4 heads, then a GELU network."""

        def __init__(self, dim, heads=4):
            super().__init__()
            self.heads, self.dim = heads, dim
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
            self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

        def forward(self, x):
            n, t, d = x.shape
            h = self.norm1(x)
            q, k, v = (f(h).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            p = (q @ k.transpose(2, 3) / math.sqrt(d // self.heads)).softmax(-1)
            x = x + self.out((p @ v).transpose(1, 2).reshape(n, t, d))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

        def write(self, w: Writer, x: str, name: str) -> str:
            def linear(layer, x, key):
                y = w.node("MatMul", [x, w.const(f"{name}.{key}.weight", array(layer.weight.T))], f"{name}_{key}_mm")
                return w.node("Add", [y, w.const(f"{name}.{key}.bias", array(layer.bias))], f"{name}_{key}")

            def norm(layer, x, key):
                parts = [w.const(f"{name}.{key}.{p}", array(getattr(layer, p))) for p in ("weight", "bias")]
                return w.node("LayerNormalization", [x, *parts], f"{name}_{key}", axis=-1, epsilon=layer.eps)

            shape = w.const(f"{name}.split", np.array([0, 0, self.heads, -1], np.int64))
            h = norm(self.norm1, x, "norm1")
            q, k, v = (
                w.node(
                    "Transpose",
                    [w.node("Reshape", [linear(layer, h, key), shape], f"{name}_{key}_heads")],
                    f"{name}_{key}_turned",
                    perm=[0, 2, 3, 1] if key == "k" else [0, 2, 1, 3],
                )
                for layer, key in ((self.q, "q"), (self.k, "k"), (self.v, "v"))
            )
            factor = w.const(f"{name}.factor", np.float32(1 / math.sqrt(self.dim // self.heads)))
            s = w.node("Mul", [w.node("MatMul", [q, k], f"{name}_scores"), factor], f"{name}_scaled")
            y = w.node("MatMul", [w.node("Softmax", [s], f"{name}_weights", axis=-1), v], f"{name}_mixed")
            y = w.node("Transpose", [y], f"{name}_mixed_turned", perm=[0, 2, 1, 3])
            merge = w.const(f"{name}.merge", np.array([0, 0, self.dim], np.int64))
            y = linear(self.out, w.node("Reshape", [y, merge], f"{name}_merged"), "out")
            x = w.node("Add", [x, y], f"{name}_add1")
            h = linear(self.up, norm(self.norm2, x, "norm2"), "up")
            root = w.const(f"{name}.root", np.float32(math.sqrt(0.5)))
            erf = w.node("Erf", [w.node("Mul", [h, root], f"{name}_gelu_in")], f"{name}_gelu_erf")
            one, half = w.const(f"{name}.one", np.float32(1)), w.const(f"{name}.half", np.float32(0.5))
            gate = w.node("Mul", [w.node("Add", [erf, one], f"{name}_gelu_sum"), half], f"{name}_gelu_gate")
            y = linear(self.down, w.node("Mul", [h, gate], f"{name}_gelu"), "down")
            return w.node("Add", [x, y], f"{name}_add2")

    class Vit(nn.Module):
        """16 tokens of width 32 from patches of 2 x 2; the mean of the tokens is classified."""

        def __init__(self, dim=32):
            super().__init__()
            self.patch = nn.Conv2d(1, dim, 2, 2)
            self.position = nn.Parameter(torch.randn(1, 16, dim) * 0.02)
            self.blocks = nn.ModuleList([Attention(dim) for _ in range(2)])
            self.norm, self.head, self.dim = nn.LayerNorm(dim), nn.Linear(dim, 10), dim

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2) + self.position
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x).mean(1))

        def write(self) -> onnx.ModelProto:
            w = Writer()
            weights = [w.const("patch.weight", array(self.patch.weight)), w.const("patch.bias", array(self.patch.bias))]
            x = w.node("Conv", ["x", *weights], "patches", kernel_shape=[2, 2], strides=[2, 2])
            x = w.node("Reshape", [x, w.const("tokens.shape", np.array([0, self.dim, -1], np.int64))], "flat")
            x = w.node("Transpose", [x], "tokens", perm=[0, 2, 1])
            x = w.node("Add", [x, w.const("position", array(self.position))], "placed")
            for i, block in enumerate(self.blocks):
                x = block.write(w, x, f"block{i}")
            parts = [w.const("norm.weight", array(self.norm.weight)), w.const("norm.bias", array(self.norm.bias))]
            x = w.node("LayerNormalization", [x, *parts], "norm", axis=-1, epsilon=self.norm.eps)
            axes = w.const("mean.axes", np.array([1], np.int64))
            x = w.node("ReduceMean", [x, axes], "mean", keepdims=0)
            head = [w.const("head.weight", array(self.head.weight)), w.const("head.bias", array(self.head.bias))]
            w.node("Gemm", [x, *head], "logits", transB=1)
            return w.model("digits_vit", ["N", 1, 8, 8])

    return Cnn, Vit


def train(network, x, y, *, epochs: int, rate: float):
    """Adam with a cosine schedule, small random shifts; the network in evaluation mode."""
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-2)
    batches = -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            shift = tuple(torch.randint(-1, 2, (2,)).tolist())
            batch = torch.roll(x[index], shift, (2, 3)) if torch.rand(()) < 0.5 else x[index]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(batch), y[index], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main() -> None:
    """Train both, compare ONNX with torch, write the files."""
    import torch
    from onnx.reference import ReferenceEvaluator
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.images[order, None] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    train_x, test_x, train_y, test_y = x[:1297], x[1297:], y[:1297], y[1297:]
    np.savez_compressed(HERE / "digits.npz", x_calib=train_x[:256], y_calib=train_y[:256], x_test=test_x, y_test=test_y)
    cnn, vit = build_networks()
    for name, make, epochs, rate in (("cnn", cnn, 40, 3e-3), ("vit", vit, 80, 2e-3)):
        network = train(make(), torch.from_numpy(train_x), torch.from_numpy(train_y), epochs=epochs, rate=rate)
        model = network.write()
        with torch.no_grad():
            wanted = network(torch.from_numpy(test_x)).numpy()
        (found,) = ReferenceEvaluator(model).run(None, {"x": test_x})
        if not np.allclose(found, wanted, rtol=1e-3, atol=1e-3):
            raise SystemExit(f"{name}: the ONNX file differs from torch by {np.abs(found - wanted).max()}")
        onnx.save(model, HERE / f"{name}.onnx")
        size = sum(p.numel() for p in network.parameters())
        print(f"{name}: {size} parameters, top-1 {np.mean(wanted.argmax(1) == test_y):.4f} of {len(test_y)}")


if __name__ == "__main__":
    main()
