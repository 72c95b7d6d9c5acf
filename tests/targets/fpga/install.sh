#!/usr/bin/env bash
# Install Debian's simulators and synthesis. Exit code 3: they are not here and cannot be had.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../debian_packages.sh"
debian_packages "circuits need" iverilog:iverilog verilator:verilator yosys:yosys
