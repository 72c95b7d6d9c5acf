#!/usr/bin/env bash
# Install Debian's cross compilers and emulators where that is allowed; otherwise say what is missing. Exit code 3: the
# tools are not here and cannot be had.
set -euo pipefail
missing=()
need() { # tool packages...
    command -v "$1" >/dev/null || missing+=("${@:2}")
}
need arm-none-eabi-gcc gcc-arm-none-eabi libnewlib-arm-none-eabi
need qemu-system-arm qemu-system-arm
need riscv64-unknown-elf-gcc gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf
need qemu-system-riscv32 qemu-system-misc
[ "${#missing[@]}" -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "the boards need ${missing[*]} (Debian's packages; as root this script installs them)" >&2
    exit 3
fi
export DEBIAN_FRONTEND=noninteractive
install=(timeout 600 apt-get install -y -q --no-install-recommends "${missing[@]}")
if ! { "${install[@]}" || { timeout 120 apt-get update -q && "${install[@]}"; }; } >&2; then
    echo "apt-get could not install ${missing[*]}" >&2
    exit 3
fi
