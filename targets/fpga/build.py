"""Integer graph -> the files of a bundle: RTL, memories, testbenches, scripts for tools, a C twin, the bill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import RecipeError
from qcompiler.execute.oracle import Oracle
from qcompiler.formats import Int
from qcompiler.graph.model import Graph
from qcompiler.graph.state import state_pairs
from qcompiler.target import Lowered
from qcompiler.targets.fpga.axi import axi_testbench, wrapper
from qcompiler.targets.fpga.engines import beats
from qcompiler.targets.fpga.kernels import kernels_of
from qcompiler.targets.fpga.layers import Stream
from qcompiler.targets.fpga.netlist import Netlist, axis, container, memory_file, verilog
from qcompiler.targets.fpga.parts import cycles_of, limits_of
from qcompiler.targets.fpga.plan import plan_of
from qcompiler.targets.fpga.reader import network_of, refuse_states
from qcompiler.targets.fpga.report import bill
from qcompiler.targets.fpga.scripts import scripts
from qcompiler.targets.fpga.synthesis import need_yosys, synthesize
from qcompiler.targets.fpga.testbench import Port, hex_words, testbench
from qcompiler.targets.fpga.twin import twin, twin_program
from qcompiler.targets.shared.boundary import strip_boundary

Progress = Callable[[str, int, int], None]
RTL = Path(__file__).resolve().parent / "rtl"
DRIVER = RTL.parent / "templates" / "pynq_driver.py"
VECTORS = 2


def check(options: Mapping[str, Any]) -> None:
    """Raise RecipeError for values of options that `build` cannot use, UnsupportedError for tools that are not here."""
    limits_of(options)
    cycles_of(options)
    if options.get("exact_cost"):
        need_yosys()
    if not str(options.get("vectors", VECTORS)).isdigit() or int(options.get("vectors", VECTORS)) < 1:
        raise RecipeError(f"`{options['vectors']}` is no count.", where="option vectors")


def build(graph: Graph, options: dict[str, Any], progress: Progress) -> Lowered:
    """Verilog under rtl/, memory files, a self-checking testbench, scripts. Raises UnsupportedError by node name."""
    check(options)
    refuse_states(state_pairs(graph))
    stripped = strip_boundary(graph)
    network = network_of(stripped)
    progress("fold", 0, 1)
    plan = plan_of(network, options)
    part, limits, net = plan.part, plan.limits, plan.net
    program = twin_program(stripped)
    progress("fold", 1, 1)
    texts = {f"rtl/{file.name}": file.read_text() for file in sorted(RTL.iterdir()) if file.suffix in (".v", ".vh")}
    texts["rtl/qc_top.v"] = verilog(net)
    texts["rtl/qc_axi.v"] = wrapper(net)
    for instance in net.instances:
        for key, words in instance.module.files.items():
            texts[f"mem/{memory_file(instance, key)}"] = hex_words(words())
    facts = {
        "top": net.name,
        "inputs": [_port(side, "s", i, len(net.inputs), stripped) for i, side in enumerate(net.inputs)],
        "outputs": [_port(side, "m", i, len(net.outputs), stripped) for i, side in enumerate(net.outputs)],
        "part": part.name,
        "cycles": plan.times.interval,
        "latency_cycles": plan.times.latency,
    }
    texts |= _bench(stripped, net, facts, int(options.get("vectors", VECTORS)))
    texts |= scripts(net.name, part, limits["dsp"] > 0)
    texts |= twin(stripped, program, int(options.get("vectors", VECTORS)))
    kernels = kernels_of(network, program)
    texts["driver/pynq_driver.py"] = DRIVER.read_text()
    files = {path: text.encode() for path, text in texts.items()}
    counted = None
    if options.get("exact_cost"):
        progress("yosys", 0, 1)
        counted = synthesize(files, net.name, part.family, dsp=limits["dsp"] > 0)
        progress("yosys", 1, 1)
    report = bill(plan, network, options, counted)
    for row in report["layers"]:
        row["kernels"] = kernels.get(row["node"], [])
    stored = sum(
        module.parameters.get("WORDS", 0) * _word_bits(module.parameters, module.kind)
        for module in (instance.module for instance in net.instances)
    )
    kept = sum(
        p["WIDTH"] * p["DEPTH"] * p.get("CF", 1)
        for p in (instance.module.parameters for instance in net.instances if "DEPTH" in instance.module.parameters)
    )
    sizes = {"weight_bytes": -(-stored // 8), "arena_bytes": -(-kept // 8), "arena_lower_bound": -(-kept // 8)}
    return Lowered(files, facts, sizes, {"circuit": report})


def _word_bits(p: Mapping[str, int], kind: str) -> int:
    if kind == "qc_mac":
        return p["PE"] * p["SIMD"] * p["WB"]
    return p["LANES"] * (p["BB"] + p["MB"]) if kind == "qc_requant" else 0


def _port(side: tuple[str, Stream, Any, int], letter: str, index: int, count: int, graph: Graph) -> dict[str, Any]:
    """A stream at the top, for the manifest: what a driver has to know."""
    name, stream, _, lanes = side
    shape = list(graph.shape(graph.value(name)))
    found: dict[str, Any] = {
        "name": name, "stem": axis(letter, index, count), "format": stream.fmt.token, "lanes": lanes,
        "container": container(stream.fmt.bits), "beats": stream.codes // lanes, "shape": shape,
    }  # fmt: skip
    flat = np.arange(stream.codes).reshape(shape)
    for order in permutations(range(len(shape))) if len(shape) <= 5 else ():
        if np.array_equal(flat.transpose(order).reshape(-1), stream.order.reshape(-1)):
            return found | {"perm": list(order)}
    return found | {"order": stream.order.reshape(-1).tolist()}


def _bench(graph: Graph, net: Netlist, facts: Mapping[str, Any], count: int) -> dict[str, str]:
    """tb/: codes at random, the oracle's answers, and the testbench that compares."""
    rng, oracle = np.random.default_rng(1), Oracle(graph)
    samples: list[dict[str, NDArray]] = [
        {
            name: rng.integers(stream.fmt.min, stream.fmt.max + 1, graph.shape(graph.value(name))).astype(
                stream.fmt.storage
            )
            for name, stream, _, _ in net.inputs
        }
        for _ in range(count)
    ]
    answers = [dict(zip(oracle.output_names, oracle.run(sample), strict=True)) for sample in samples]
    found: dict[str, str] = {}
    ports: dict[str, list[Port]] = {"in": [], "out": []}
    for stem, sides, tensors, described in (
        ("in", net.inputs, samples, facts["inputs"]), ("out", net.outputs, answers, facts["outputs"])
    ):  # fmt: skip
        for i, ((name, stream, _, lanes), port) in enumerate(zip(sides, described, strict=True)):
            wide = replace(stream, fmt=Int(port["container"], signed=stream.fmt.signed))
            words = [word for tensor in tensors for word in beats(wide, tensor[name], lanes)]
            found[f"tb/{stem}{i}.hex"] = hex_words(words)
            ports[stem].append(Port(port["stem"], lanes * port["container"], len(words)))
    found["tb/tb.v"] = testbench(net.name, net.name, ports["in"], ports["out"], active_low=True)
    found["tb/tb_axi.v"] = axi_testbench(ports["in"], ports["out"], count)
    return found
