"""Every rule of the torch executor: values equal to onnxruntime's, gradients to finite differences."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qcompiler.execute.ort import Session
from qcompiler.graph.model import operator_key
from tests.execute.torch_cases import CASES

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")
SAMPLES = 3


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_onnxruntime(name: str):
    from qcompiler.execute.torch import TorchGraph

    graph = CASES[name].graph()
    samples = [CASES[name].inputs(graph, seed) for seed in range(SAMPLES)]
    session, module = Session(graph), TorchGraph(graph)
    want = [session.run(sample) for sample in samples]
    got = module({key: np.stack([sample[key] for sample in samples]) for key in samples[0]})
    for i, output in enumerate(graph.outputs):
        expected = np.stack([arrays[i] for arrays in want])
        result = got[output.name].numpy()
        assert result.shape == expected.shape
        largest = max(float(np.abs(expected.astype(np.float64)).max()), 1e-30)
        assert np.abs(result.astype(np.float64) - expected).max() <= 1e-5 * largest


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.differentiable])
def test_gradients_are_those_of_finite_differences(name: str):
    """By inputs and float constants, of two samples, in float64."""
    from qcompiler.execute.torch import TorchGraph

    graph = CASES[name].graph()
    module = TorchGraph(graph).double()
    samples = [CASES[name].inputs(graph, seed) for seed in range(2)]
    values = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    # a bound of Clip is read when the graph is made ready: it cannot learn
    constants = {v.name: graph.const(v)[None] for v in graph.ir.initializers.values()}
    fixed = {"Clip", "Clip one side", "Pad", "Resize", "Resize cubic", "GridSample"}
    values.update({} if name in fixed else constants)
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in values.items()}
    real = {k: t.double().requires_grad_() for k, t in tensors.items() if t.is_floating_point()}
    assert real, "nothing to differentiate"
    names = [value.name for value in graph.outputs]

    def function(*arguments):
        found = module({**tensors, **dict(zip(real, arguments, strict=True))})
        return tuple(found[key] for key in names)

    assert torch.autograd.gradcheck(function, tuple(real.values()), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_what_the_product_imports_has_a_rule():
    """The operators of docs/operators.md, but those that float passes write as others or that have function bodies."""
    from qcompiler.execute.torch.rules import RULES

    text = (Path(__file__).parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")
    imported = set(re.findall(r"^\| `([\w:]+)` \|", text[text.index("| ONNX operator |") :], re.MULTILINE))
    own = {"QuickGelu"}  # of our domain, which the page leaves out
    imported = {f"qcompiler::{name}" if name in own else name for name in imported}
    spelled_out = {"Attention", "Compress", "ReverseSequence", "RotaryEmbedding"}
    assert imported - set(RULES) == spelled_out | {"qcompiler::CacheSoftmax", "qcompiler::CacheWrite"}


def test_every_rule_has_a_case():
    from qcompiler.execute.torch.rules import RULES

    found = {operator_key(node) for case in CASES.values() for node in case.graph().nodes()}
    assert set(RULES) == found & set(RULES), f"no case: {sorted(set(RULES) - found)}"
