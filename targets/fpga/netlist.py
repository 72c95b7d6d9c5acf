"""Folded layers -> one Verilog module: engines, forks, width converters, queues, and AXI-Stream at the top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm

from qcompiler.targets.fpga.engines import Engine, Module, in_block
from qcompiler.targets.fpga.layers import Network, Stream
from qcompiler.targets.fpga.schedule import Schedule

WIDE = ("MA", "MB", "OFFSET", "PAD")
"""Parameters that may have more than 32 bits."""


@dataclass(frozen=True)
class Link:
    """Wires between two modules: data, valid, ready; marked: first and last besides."""

    name: str
    width: int
    marked: bool = False


@dataclass(frozen=True)
class Instance:
    """A module in its place. ports: stem -> link, or links side by side."""

    name: str
    node: str
    module: Module
    ports: dict[str, Link | tuple[Link, ...]]


@dataclass
class Netlist:
    """What the top module has. inputs and outputs: port -> (stream, link, lanes)."""

    name: str
    instances: list[Instance] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    inputs: list[tuple[str, Stream, Link, int]] = field(default_factory=list)
    outputs: list[tuple[str, Stream, Link, int]] = field(default_factory=list)
    _used: dict[str, int] = field(default_factory=dict)

    def link(self, width: int, marked: bool = False) -> Link:
        """A new one."""
        self.links.append(Link(f"l{len(self.links)}", width, marked))
        return self.links[-1]

    def add(self, node: str, module: Module, ports: dict[str, Link | tuple[Link, ...]], out: Link) -> Link:
        """Place a module: its output."""
        stem = f"{re.sub(r'[^A-Za-z0-9_]+', '_', node).strip('_').lower() or 'n'}_{module.kind.removeprefix('qc_')}"
        stem = stem if stem[0].isalpha() else f"n_{stem}"
        count = self._used[stem] = self._used.get(stem, 0) + 1
        name = stem if count == 1 else f"{stem}_{count}"
        self.instances.append(Instance(name, node, module, {**ports, "m": out}))
        return out


def netlist_of(
    name: str, network: Network, engines: Mapping[str, Engine], lanes: Mapping[str, int], plan: Schedule
) -> Netlist:
    """The circuit. engines by the name of their output; lanes by name of inputs, `out NAME` of outputs."""
    net = Netlist(name)
    links: dict[str, tuple[Link, int]] = {}
    readers: dict[str, int] = {}
    for source in [source for layer in network.layers for source in layer.inputs] + [*network.sources.values()]:
        readers[source] = readers.get(source, 0) + 1
    waiting: dict[str, list[Link]] = {}

    def written(source: str, link: Link, width: int) -> None:
        links[source] = link, width
        count = readers.get(source, 0)
        if count > 1:
            branches = [net.link(link.width) for _ in range(count)]
            module = Module("qc_fork", {"WIDTH": link.width, "N": count})
            net.instances.append(
                Instance(f"fork_{len(net.instances)}", source, module, {"s": link, "m": tuple(branches)})
            )
            waiting[source] = branches

    def read(source: str) -> tuple[Link, int]:
        link, width = links[source]
        return (waiting[source].pop(0) if source in waiting else link), width

    for key, stream in network.inputs.items():
        link = net.link(lanes[key] * stream.fmt.bits)
        net.inputs.append((key, stream, link, lanes[key]))
        written(key, link, lanes[key])
    bits_of = {key: stream.fmt.bits for key, stream in network.inputs.items()}
    for layer in network.layers:
        engine = engines[layer.output.name]
        given = []
        for i, source in enumerate(layer.inputs):
            link, width = read(source)
            link = _converted(net, layer.node, link, width, engine.in_lanes[i], bits_of[source])
            depth = plan.depths.get((layer.output.name, i))
            if depth is not None:
                words = depth * -(-engines_pixels(network, source) // engine.in_lanes[i])
                link = _queue(net, layer.node, link, words, engine.fold.block)
            given.append(link)
        out = given[0]
        for k, module in enumerate(engine.modules):
            last = k == len(engine.modules) - 1
            result = net.link(*((engine.out_lanes * layer.output.fmt.bits,) if last else _between(module)))
            stems = "s" if len(given) == 1 or k else "ab"
            ports: dict[str, Link | tuple[Link, ...]] = dict(zip(stems, [out] if stems == "s" else given, strict=True))
            out = net.add(layer.node, module, ports, result)
        bits_of[layer.output.name] = layer.output.fmt.bits
        written(layer.output.name, out, engine.out_lanes)
    for key, source in network.sources.items():
        link, width = read(source)
        wanted = lanes[f"out {key}"]
        link = _converted(net, "output", link, width, wanted, bits_of[source])
        net.outputs.append((key, network.outputs[key], link, wanted))
    return net


def engines_pixels(network: Network, source: str) -> int:
    """Codes of a pixel of a stream."""
    if source in network.inputs:
        return network.inputs[source].channels
    return next(layer.output.channels for layer in network.layers if layer.output.name == source)


def _between(module: Module) -> tuple[int, bool]:
    """Width of the output of a module that is not an engine's last, and whether it is marked."""
    p = module.parameters
    if module.kind in ("qc_window", "qc_fifo"):
        return p["WIDTH"], module.kind == "qc_window"
    return (p["PE"] if module.kind == "qc_mac" else p["LANES"]) * p["ACC"], False


def _converted(net: Netlist, node: str, link: Link, have: int, want: int, bits: int) -> Link:
    """Regrouped codes: up to the least common multiple, then down."""
    both = lcm(have, want)
    if both != have:
        module = Module("qc_widen", {"WIDTH": have * bits, "N": both // have})
        link = net.add(node, module, {"s": link}, net.link(both * bits))
    if both != want:
        module = Module("qc_narrow", {"WIDTH": want * bits, "N": both // want})
        link = net.add(node, module, {"s": link}, net.link(want * bits))
    return link


def _queue(net: Netlist, node: str, link: Link, words: int, block: int) -> Link:
    parameters = {"WIDTH": link.width, "DEPTH": max(2, words), "BLOCK": int(in_block(link.width, words, block))}
    return net.add(node, Module("qc_fifo", parameters), {"s": link}, net.link(link.width))


# -- text ----------------------------------------------------------------------------------------------------------


def container(bits: int) -> int:
    """Bits that a code has in AXI-Stream data: whole bytes."""
    return 8 if bits <= 8 else 16


def verilog(net: Netlist) -> str:
    """The top module."""
    ports = ["input aclk", "input aresetn"]
    # A register, not an inverter: yosys gives the latter to every flip-flop of an ECP5 anew, a tenth of all LUTs. It is
    # late by a cycle, in which inputs and outputs (a border is there before any input) stay closed.
    body: list[str] = ["  wire clk = aclk;", "  reg rst;", "  always @(posedge clk) rst <= !aresetn;"]
    for i, (_, stream, link, lanes) in enumerate(net.inputs):
        stem, cell = axis("s", i, len(net.inputs)), container(stream.fmt.bits)
        ports.append(f"input [{lanes * cell - 1}:0] {stem}_tdata, input {stem}_tvalid, output {stem}_tready")
        codes = ", ".join(f"{stem}_tdata[{k * cell} +: {stream.fmt.bits}]" for k in reversed(range(lanes)))
        body += _wires(link)
        body += [f"  assign {link.name}_tdata = {{{codes}}};", f"  assign {link.name}_tvalid = {stem}_tvalid;",
                 f"  assign {stem}_tready = {link.name}_tready && !rst;"]  # fmt: skip
    taken = {link.name for _, _, link, _ in net.inputs}
    for link in net.links:
        body += _wires(link) if link.name not in taken else []
    for i, (_, stream, link, lanes) in enumerate(net.outputs):
        stem, bits = axis("m", i, len(net.outputs)), stream.fmt.bits
        cell = container(bits)
        beats = stream.codes // lanes
        ports.append(
            f"output [{lanes * cell - 1}:0] {stem}_tdata, output {stem}_tvalid, output {stem}_tlast, "
            f"input {stem}_tready"
        )
        for k in range(lanes):
            top = f"{link.name}_tdata[{k * bits + bits - 1}]" if stream.fmt.signed else "1'b0"
            high = f"{{{cell - bits}{{{top}}}}}, " if cell > bits else ""
            body.append(
                f"  assign {stem}_tdata[{k * cell} +: {cell}] = {{{high}{link.name}_tdata[{k * bits} +: {bits}]}};"
            )
        body += [
            f"  assign {stem}_tvalid = {link.name}_tvalid && !rst;", f"  assign {link.name}_tready = {stem}_tready;",
            f"  reg [{max(1, (beats - 1).bit_length()) - 1}:0] {stem}_count;",
            f"  assign {stem}_tlast = {stem}_count == {beats - 1};",
            "  always @(posedge clk)", f"    if (rst) {stem}_count <= 0;",
            f"    else if ({stem}_tvalid && {stem}_tready) {stem}_count <= {stem}_tlast ? 0 : {stem}_count + 1'b1;",
        ]  # fmt: skip
    body += [text for instance in net.instances for text in _instance(instance)]
    head = ",\n    ".join(ports)
    return f"// Generated by qcompiler.\nmodule {net.name} (\n    {head});\n" + "\n".join(body) + "\nendmodule\n"


def axis(side: str, index: int, count: int) -> str:
    """Stem of a stream's signals at the top: s_axis, or s_axis_0 where there are several."""
    return f"{side}_axis" if count == 1 else f"{side}_axis_{index}"


def memory_file(instance: Instance, parameter: str) -> str:
    """Name of a memory file in mem/."""
    return f"{instance.name}_{parameter.removesuffix('FILE').lower()}.hex"


def _wires(link: Link) -> list[str]:
    marks = f", {link.name}_first, {link.name}_last" if link.marked else ""
    return [f"  wire [{link.width - 1}:0] {link.name}_tdata;",
            f"  wire {link.name}_tvalid, {link.name}_tready{marks};"]  # fmt: skip


def _instance(instance: Instance) -> list[str]:
    module = instance.module
    parameters = [f".{key}({_number(key, value)})" for key, value in module.parameters.items()]
    parameters += [f'.{key}("{memory_file(instance, key)}")' for key in module.files]
    ports = [".clk(clk)", ".rst(rst)"]
    for stem, links in instance.ports.items():
        several = links if isinstance(links, tuple) else (links,)
        for wire in ("tdata", "tvalid", "tready"):
            names = ", ".join(f"{link.name}_{wire}" for link in reversed(several))
            ports.append(f".{stem}_{wire}({{{names}}})" if len(several) > 1 else f".{stem}_{wire}({names})")
        if len(several) == 1 and several[0].marked:
            ports += [f".{stem}_{mark}({several[0].name}_{mark})" for mark in ("first", "last")]
    return [f"  {module.kind} #({', '.join(parameters)})", f"    {instance.name} ({', '.join(ports)});"]


def instance_module(name: str, instance: Instance) -> str:
    """A module of this name with nothing but the instance in it, whose links are its ports."""
    ports, sides = ["input clk", "input rst"], []
    for stem, links in instance.ports.items():
        for link in links if isinstance(links, tuple) else (links,):
            there, back = ("output", "input") if stem == "m" else ("input", "output")
            ports += [f"{there} [{link.width - 1}:0] {link.name}_tdata", f"{there} {link.name}_tvalid"]
            ports += [f"{there} {link.name}_{mark}" for mark in ("first", "last") if link.marked]
            sides.append(f"{back} {link.name}_tready")
    body = "\n".join(_instance(instance))
    return f"module {name} ({', '.join([*ports, *sides])});\n{body}\nendmodule\n"


def _number(key: str, value: int) -> str:
    if key == "PAD":
        return f"{max(1, value.bit_length())}'h{value:x}"
    if key in WIDE:
        return f"{'-' if value < 0 else ''}64'sd{abs(value)}"
    return str(value)
