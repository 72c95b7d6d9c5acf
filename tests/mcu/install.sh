#!/usr/bin/env bash
# Install Debian's cross compilers and emulators. Exit code 3: they are not here and cannot be had.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../debian_packages.sh"
debian_packages "the boards need" \
    arm-none-eabi-gcc:gcc-arm-none-eabi,libnewlib-arm-none-eabi qemu-system-arm:qemu-system-arm \
    riscv64-unknown-elf-gcc:gcc-riscv64-unknown-elf,picolibc-riscv64-unknown-elf qemu-system-riscv32:qemu-system-misc
