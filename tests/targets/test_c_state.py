"""State inside firmware: caches and recurrent states between calls of qc_NAME_run, beside the oracle's steps."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.driver import bundle_runner, compile, quantize
from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.evaluate import runner
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.targets.c.build import build, check
from qcompiler.targets.c.host import STRICT, HostSession, host_compiler
from tests.graph.test_state import STEPS, decoder, sequences
from tests.quantized import float_graph

CELL = """
    p = MatMul(h, w)  u = MatMul(x, v)  s = Add(p, u)  h_new = Tanh(s)
    d = Add(b, x)  a_new = Reshape(d, flat)  b_new = Reshape(a, row)  y = Add(h_new, b)
"""
"""A recurrent cell, and two states of which one becomes the other, so that no copy may come before a reader."""


def cell() -> Graph:
    rng = np.random.default_rng(3)
    header = "float[1,8] x, float[1,8] h, float[8] a, float[1,8] b"
    header += " => float[1,8] y, float[1,8] h_new, float[8] a_new, float[1,8] b_new"
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) / 3 for name in ("w", "v")}
    return float_graph(header, CELL, flat=np.array([8]), row=np.array([1, 8]), **weights)


MODELS: Mapping[str, tuple[Any, Any]] = {
    "decoder": (lambda: decoder(STEPS - 1), "auto"),
    "cell": (cell, {"h_new": "h", "a_new": "a", "b_new": "b"}),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def graph(request: pytest.FixtureRequest) -> Graph:
    make, pairs = MODELS[request.param]
    found = quantize(make().model, {"x": sequences(8)}, target="c", state=pairs).integer_graph
    assert found is not None
    return found


def bundle_of(graph: Graph, path: Path, **options: Any) -> Bundle:
    lowered = build(graph, {"prefix": "net", **options}, lambda stage, done, total: None)
    manifest = manifest_of("c", "fixed", graph, lowered.files, lowered.manifest, lowered.sizes)
    return write_bundle(path, lowered.files, manifest, overwrite=False)


def counts(graph: Graph) -> bool:
    """Whether it has caches, and so a position."""
    return any(value.name == "position" for value in graph.inputs)


def steps_of(graph: Graph, sequence: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Inputs of every step, without states."""
    shape = graph.shape(graph.value("x"))
    counted = [{"position": np.array([t])} if counts(graph) else {} for t in range(len(sequence))]
    return [{"x": x.reshape(shape), **more} for x, more in zip(sequence, counted, strict=True)]


def wanted(graph: Graph, sequence: np.ndarray) -> list[np.ndarray]:
    """y of every step by the oracle, its states handed on."""
    run, pairs, names = runner(graph), state_pairs(graph), [str(v.name) for v in graph.outputs]
    state = {name: np.zeros(graph.shape(graph.value(name)), np.float32) for name in pairs.values()}
    found = []
    for inputs in steps_of(graph, sequence):
        outputs = dict(zip(names, run({**inputs, **state}), strict=True))
        state = {name: outputs[output] for output, name in pairs.items()}
        found.append(outputs["y"])
    return found


@pytest.mark.parametrize("options", [{}, {"arena": "caller", "weights": "bin"}], ids=["static", "caller"])
def test_steps_are_the_oracles(graph: Graph, options: dict[str, str], tmp_path: Path) -> None:
    bundle = bundle_of(graph, tmp_path / "c", **options)
    session = HostSession(bundle.path, bundle.manifest)
    for sequence in sequences(2, seed=5):
        session.reset()
        for inputs, want in zip(steps_of(graph, sequence), wanted(graph, sequence), strict=True):
            (got,) = session.step(inputs)
            np.testing.assert_array_equal(got, want)


def test_states_at_the_boundary_are_the_oracles_too(graph: Graph, tmp_path: Path) -> None:
    """`run` puts states into place, so that what verifies bundles needs to know nothing of them."""
    rng = np.random.default_rng(7)
    inputs = {str(v.name): rng.standard_normal(graph.shape(v)).astype(np.float32) for v in graph.inputs}
    if "position" in inputs:
        inputs["position"] = np.array([3])
    want = runner(graph)(inputs)
    for states in ("inside", "shown"):
        bundle = bundle_of(graph, tmp_path / states, states=states)
        assert ("state" in bundle.manifest["c"]["run"], "states" in bundle.manifest["c"]) == (False, states == "inside")
        for w, got in zip(want, bundle_runner(bundle)(inputs), strict=True):
            np.testing.assert_array_equal(got, w)


def test_two_callers_have_their_own_states(graph: Graph, tmp_path: Path) -> None:
    bundle = bundle_of(graph, tmp_path / "c", arena="caller")
    a, b = (HostSession(bundle.path, bundle.manifest) for _ in range(2))
    first, second = sequences(2, seed=9)
    rows = zip(
        steps_of(graph, first), steps_of(graph, second), wanted(graph, first), wanted(graph, second), strict=True
    )
    for x, y, want_x, want_y in rows:
        np.testing.assert_array_equal(a.step(x)[0], want_x)
        np.testing.assert_array_equal(b.step(y)[0], want_y)


@pytest.mark.parametrize("options", [{}, {"arena": "caller"}], ids=["static", "caller"])
def test_the_self_test_takes_steps_and_sanitizers_say_nothing(
    graph: Graph, options: dict[str, str], tmp_path: Path
) -> None:
    bundle = bundle_of(graph, tmp_path / "c", vectors="6", **options)
    program = str(tmp_path / "selftest")
    flags = [flag for flag in STRICT if flag != "-ffreestanding"]
    command = [host_compiler(), *flags, "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-I", str(bundle.path / "src"), "-o", program, str(bundle.path / "test" / "selftest.c")]
    command += [str(bundle.path / "src" / name) for name in bundle.manifest["c"]["files"]]
    subprocess.run(command, check=True)
    assert subprocess.run([program], check=False).returncode == 0
    text = (bundle.path / "test" / "selftest.c").read_text()
    memory = "state.bytes" if options else ""
    assert text.count(f"qc_net_reset({memory});") == 2
    if counts(graph):
        return  # a cache is not read where nothing was written yet
    (tmp_path / "bad.c").write_text("(void)0;".join(text.rsplit(f"qc_net_reset({memory});", 1)))
    bad = [part.replace(str(bundle.path / "test" / "selftest.c"), str(tmp_path / "bad.c")) for part in command]
    subprocess.run(bad, check=True)
    assert subprocess.run([program], check=False).returncode == 1


def test_a_cache_is_written_where_it_lies(tmp_path: Path) -> None:
    """No copy of it: the arena holds less than a cache, and the report counts the state as RAM."""
    made = compile(
        decoder(STEPS - 1).model, "c", {"x": sequences(8)}, output=tmp_path / "c", state="auto",
        target_options={"prefix": "net"},
    )  # fmt: skip
    size, fit = made.manifest["size"], made.report()["fit"]
    assert made.report()["verification"]["bit_exact"]
    assert size["state_bytes"] == 2 * 2 * STEPS * 4 == fit["state_bytes"]
    assert fit["ram_bytes"] == size["arena_bytes"] + size["state_bytes"] + fit["stack_bytes"]
    writes = [
        call["kernel"] for call in made.manifest["c"]["calls"] if call["node"].startswith(("cachewrite", "output/"))
    ]
    assert len(writes) == 2 and all("writeslot" in kernel for kernel in writes)
    header = (made.path / "src" / "net.h").read_text()
    assert f"#define QC_NET_STATE_BYTES {size['state_bytes']}" in header and "void qc_net_reset(void);" in header


def test_memory_of_the_caller_is_checked(tmp_path: Path) -> None:
    graph = quantize(cell().model, {"x": sequences(2)}, target="c", state=MODELS["cell"][1]).integer_graph
    assert graph is not None
    bundle = bundle_of(graph, tmp_path / "c", arena="caller")
    (tmp_path / "main.c").write_text(
        """#include <stddef.h>
#include "net.h"
static union { int64_t align; uint8_t bytes[QC_NET_ARENA_BYTES]; } arena;
static union { int64_t align; uint8_t bytes[QC_NET_STATE_BYTES + 8]; } state;
static int32_t of(const void *s, uint32_t bytes) {
  return qc_net_init(arena.bytes, QC_NET_ARENA_BYTES, s, bytes);
}
int main(void) {
  return !(of(state.bytes, QC_NET_STATE_BYTES) == QC_OK && of(NULL, QC_NET_STATE_BYTES) == QC_STATE_NULL &&
           of(state.bytes + 4, QC_NET_STATE_BYTES) == QC_STATE_UNALIGNED &&
           of(state.bytes, QC_NET_STATE_BYTES - 1u) == QC_STATE_SMALL);
}
"""
    )
    sources = [str(bundle.path / "src" / name) for name in bundle.manifest["c"]["files"]]
    command = [host_compiler(), "-I", str(bundle.path / "src"), "-o", str(tmp_path / "main"), str(tmp_path / "main.c")]
    subprocess.run([*command, *sources], check=True)
    assert subprocess.run([str(tmp_path / "main")], check=False).returncode == 0


@pytest.mark.parametrize("target", ["c", "cpu"])
def test_a_state_with_two_scales_is_refused(target: str) -> None:
    from qcompiler.targets import get_target

    graph = quantize(cell().model, {"x": sequences(2)}, arithmetic="fixed", state=MODELS["cell"][1]).integer_graph
    assert graph is not None
    for node in graph.nodes("QuantizeLinear"):
        if node.inputs[0] is graph.value("h"):
            node.outputs[0].metadata_props["qcompiler.scale"] = "0.5"
    with pytest.raises(UnsupportedError, match="h_new"):
        get_target(target).build(graph, {}, lambda stage, done, total: None)


def test_options_are_checked() -> None:
    with pytest.raises(RecipeError, match="states"):
        check({"states": "outside"})
