"""The cpu target: x86-64 shared libraries, one for each instruction set."""

from qcompiler.target import Target
from qcompiler.targets.cpu.build import build, check
from qcompiler.targets.cpu.capabilities import CAPABILITIES

TARGET = Target(
    "cpu",
    CAPABILITIES,
    build,
    check=check,
    options={"cpu": "instruction sets to build for: native (default), all, or names separated by commas"},
)
