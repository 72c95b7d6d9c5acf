"""An fpga bundle on this machine: its circuit in a simulator, codes through its streams."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import BundleError
from qcompiler.formats import Int, parse_integers
from qcompiler.targets.fpga.engines import beats
from qcompiler.targets.fpga.layers import Stream
from qcompiler.targets.fpga.simulators import QUIET, command, need
from qcompiler.targets.fpga.testbench import hex_words, recorder
from qcompiler.targets.shared.codes import codes_of, real_of, storage_of


def stuck(facts: Mapping[str, Any]) -> int:
    """Cycles without a beat that are taken for a deadlock."""
    return 4 * int(facts["latency_cycles"]) + 10000


def port_stream(port: Mapping[str, Any]) -> Stream:
    """A stream at the top, where every code has whole bytes."""
    order = np.arange(int(np.prod(port["shape"]))).reshape(port["shape"])
    order = order.transpose(port["perm"]) if "perm" in port else np.array(port["order"])
    fmt = parse_integers(port["format"])
    return Stream(port["name"], Int(port["container"], signed=fmt.signed), order.reshape(1, 1, -1))


class HostSession:
    """A bundle in a simulator. Raises UnsupportedError without one, BundleError for damage.

    `cycles` tells of the last run: from the first beat in to the last beat out. stall: a seed; sources and sinks then
    pause at random.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], simulator: str = "", stall: int = 0) -> None:
        self.inputs, self.outputs = manifest["inputs"], manifest["outputs"]
        self.facts, self.simulator, self.stall = manifest["fpga"], need(simulator), stall
        self.cycles = 0
        self._streams = [[port_stream(port) for port in self.facts[side]] for side in ("inputs", "outputs")]
        self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")
        self.folder = Path(self._folder.name)
        for file in (*path.glob("mem/*.hex"), *path.glob("rtl/*")):
            (self.folder / file.name).write_bytes(file.read_bytes())
        self.sources = sorted(file.name for file in self.folder.glob("*.v"))
        if self.simulator == "verilator":
            self._build()

    def _build(self) -> None:
        (self.folder / "sim.cpp").write_text(_harness(self.facts))
        command(
            ["verilator", "--cc", "--exe", "--build", *QUIET, "-I.", "--top-module", self.facts["top"], "-Mdir", "obj",
             "-MAKEFLAGS", "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O1", "-o", "sim", "sim.cpp", *self.sources],
            self.folder,
        )  # fmt: skip

    def run_codes(self, codes: Sequence[NDArray]) -> list[NDArray]:
        """Codes in and out, in the storage of their formats."""
        return self.run_many([codes])[0]

    def run_many(self, frames: Sequence[Sequence[NDArray]]) -> list[list[NDArray]]:
        """Several images, one behind the other without a pause."""
        ports = self.facts["inputs"]
        for i, (port, stream) in enumerate(zip(ports, self._streams[0], strict=True)):
            words = [word for frame in frames for word in beats(stream, frame[i], port["lanes"])]
            if self.simulator == "verilator":
                (self.folder / f"in{i}.bin").write_bytes(np.array(words, np.uint64).tobytes())
            else:
                (self.folder / f"in{i}.hex").write_text(hex_words(words))
        found = self._simulate(len(frames))
        results: list[list[NDArray]] = [[] for _ in frames]
        for port, stream, given, spec in zip(
            self.facts["outputs"], self._streams[1], found, self.outputs, strict=True
        ):
            cell, lanes = port["container"], port["lanes"]
            parts = [(given >> np.uint64(cell * k)) & np.uint64((1 << cell) - 1) for k in range(lanes)]
            raw = np.stack(parts, 1).reshape(len(frames), -1).astype(f"uint{cell}")
            raw = raw.view(f"int{cell}") if stream.fmt.signed else raw
            for k, row in enumerate(raw):
                tensor = np.empty_like(row)
                tensor[stream.order.reshape(-1)] = row
                results[k].append(tensor.reshape(spec["shape"]).astype(storage_of(spec)))
        return results

    def _simulate(self, frames: int) -> list[NDArray[np.uint64]]:
        outputs = self.facts["outputs"]
        if self.simulator == "verilator":
            done = subprocess.run(
                ["obj/sim", str(frames), str(self.stall)], cwd=self.folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise BundleError(f"the simulation stopped: {done.stdout.strip()}", where=self.facts["top"])
            self.cycles = int(done.stdout)
            return [np.fromfile(self.folder / f"out{i}.bin", np.uint64) for i in range(len(outputs))]
        (self.folder / "rec.v").write_text(recorder(self.facts, frames, stuck(self.facts)))
        command(["iverilog", "-g2005", "-I.", "-s", "tb", "-o", "rec.vvp", "rec.v", *self.sources], self.folder)
        said = command(["vvp", "-n", "rec.vvp", *(["+stall"] if self.stall else [])], self.folder)
        if "DONE" not in said:
            raise BundleError(f"the simulation stopped: {said.strip()[-300:]}", where=self.facts["top"])
        self.cycles = int(said.split("cycles")[1].split()[0])
        return [
            np.array([int(word, 16) for word in (self.folder / f"rec{i}.hex").read_text().split()], np.uint64)
            for i in range(len(outputs))
        ]

    def run(self, inputs: Mapping[str, NDArray]) -> list[NDArray]:
        """float32 by name in, float32 in the manifest's order out."""
        found = self.run_codes([codes_of(inputs, spec) for spec in self.inputs])
        return [real_of(array, spec) for array, spec in zip(found, self.outputs, strict=True)]


def _harness(facts: Mapping[str, Any]) -> str:
    """A C++ program around Verilator's model: words of in<i>.bin into the streams, out<i>.bin from them."""
    top, limit = f"V{facts['top']}", stuck(facts)
    reads = [f"  read({i}, in[{i}]);" for i in range(len(facts["inputs"]))]
    drive, taken, given = [], [], []
    for i, port in enumerate(facts["inputs"]):
        stem = port["stem"]
        drive.append(f"    if (!held[{i}]) offer[{i}] = ni[{i}] < in[{i}].size() && !rests();")
        drive.append(f"    top.{stem}_tvalid = offer[{i}]; if (offer[{i}]) top.{stem}_tdata = in[{i}][ni[{i}]];")
        taken.append(f"    bool go{i} = offer[{i}] && top.{stem}_tready; held[{i}] = offer[{i}] && !go{i};")
        taken.append(f"    if (go{i}) {{ ++ni[{i}]; idle = 0; if (!begun) begun = cycle; }}")
    for i, port in enumerate(facts["outputs"]):
        stem = port["stem"]
        drive.append(f"    top.{stem}_tready = !rests();")
        given.append(
            f"    if (top.{stem}_tvalid && top.{stem}_tready) {{ out[{i}].push_back(top.{stem}_tdata); idle = 0; }}"
        )
    enough = " && ".join(f"out[{i}].size() >= {port['beats']} * frames" for i, port in enumerate(facts["outputs"]))
    writes = [f"  write({i}, out[{i}]);" for i in range(len(facts["outputs"]))]
    lines = [
        f'#include "{top}.h"', "#include <cstdint>", "#include <cstdio>", "#include <cstdlib>", "#include <string>",
        "#include <vector>", "static uint32_t state = 0;",
        "static bool rests() { if (!state) return false; state = state * 1664525u + 1013904223u; return state >> 31; }",
        "typedef std::vector<uint64_t> Words;",
        "static void read(int i, Words &words) {",
        '  FILE *file = fopen(("in" + std::to_string(i) + ".bin").c_str(), "rb"); uint64_t word;',
        "  while (fread(&word, 8, 1, file) == 1) words.push_back(word);", "  fclose(file);", "}",
        "static void write(int i, const Words &words) {",
        '  FILE *file = fopen(("out" + std::to_string(i) + ".bin").c_str(), "wb");',
        "  fwrite(words.data(), 8, words.size(), file);", "  fclose(file);", "}",
        "double sc_time_stamp() { return 0; }",
        "int main(int argc, char **argv) {",
        "  size_t frames = strtoul(argv[1], 0, 10); state = strtoul(argv[2], 0, 10);",
        f"  Words in[{len(facts['inputs'])}], out[{len(facts['outputs'])}];",
        f"  size_t ni[{len(facts['inputs'])}] = {{}}; bool offer[{len(facts['inputs'])}] = {{}};",
        f"  bool held[{len(facts['inputs'])}] = {{}}; uint64_t cycle = 0, idle = 0, begun = 0;",
        *reads, f"  {top} top; top.aclk = 0; top.aresetn = 0;",
        "  for (int i = 0; i < 8; ++i) { top.aclk = !top.aclk; top.eval(); }",
        "  top.aresetn = 1;", f"  while (!({enough})) {{", *drive, "    top.eval();", "    ++cycle; ++idle;", *taken,
        *given, "    top.aclk = 1; top.eval(); top.aclk = 0; top.eval();",
        f'    if (idle > {limit}) {{ printf("no beat for {limit} cycles, a deadlock\\n"); return 1; }}', "  }",
        *writes, '  printf("%llu\\n", (unsigned long long)(cycle - begun + 1));', "  return 0;", "}", "",
    ]  # fmt: skip
    return "\n".join(lines)
