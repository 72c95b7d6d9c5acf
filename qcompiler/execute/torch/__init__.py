"""Run a graph in torch, with gradients: what passes that learn stand on. Needs the extra `learn`.

`TorchGraph` is a FLOAT or QDQ graph as a torch module, `Quantizer` one of its quantizers. Every tensor has a leading
axis of samples before the static shape of the value: [n, *shape], constants [1, *shape].

This package is the only part of the vocabulary that imports torch; whoever uses it imports it inside a function.
"""

from qcompiler.errors import UnsupportedError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise UnsupportedError(
        "passes that learn need torch, which is not installed.", hint="Run: pip install 'qcompiler[learn]'"
    ) from error

from qcompiler.execute.torch.fisher import output_gradients, value_gradients, weight_gradients
from qcompiler.execute.torch.graph import TorchGraph
from qcompiler.execute.torch.parts import float_weights
from qcompiler.execute.torch.quantizer import Quantizer
from qcompiler.execute.torch.rounding import ste_ceil, ste_floor, ste_round
from qcompiler.execute.torch.store import store

__all__ = [
    "Quantizer", "TorchGraph", "float_weights", "output_gradients", "ste_ceil", "ste_floor", "ste_round", "store",
    "value_gradients", "weight_gradients",
]  # fmt: skip
