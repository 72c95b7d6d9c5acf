#!/usr/bin/env bash
# Install Debian's simulators and synthesis where that is allowed; otherwise say what is missing. Exit code 3: the tools
# are not here and cannot be had.
set -euo pipefail
missing=()
for tool in iverilog verilator yosys; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
[ "${#missing[@]}" -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "circuits need ${missing[*]} (Debian's packages; as root this script installs them)" >&2
    exit 3
fi
export DEBIAN_FRONTEND=noninteractive
install=(timeout 600 apt-get install -y -q --no-install-recommends "${missing[@]}")
if ! { "${install[@]}" || { timeout 120 apt-get update -q && "${install[@]}"; }; } >&2; then
    echo "apt-get could not install ${missing[*]}" >&2
    exit 3
fi
