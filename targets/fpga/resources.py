"""What modules take: look-up tables, registers, block RAMs and multiplier blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qcompiler.targets.fpga.engines import Engine, Module


@dataclass(frozen=True)
class Resources:
    """lut: LUT6; bram: in halves of a 36 Kbit block, that is 18 Kbit; dsp: multiplier blocks."""

    lut: int = 0
    ff: int = 0
    bram: int = 0
    dsp: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.lut + other.lut, self.ff + other.ff, self.bram + other.bram, self.dsp + other.dsp
        )


def total(found: Iterable[Resources]) -> Resources:
    """The sum."""
    return sum(found, Resources())


def engine_resources(engine: Engine) -> Resources:
    """Of one engine."""
    return total(module_resources(module) for module in engine.modules)


def module_resources(module: Module) -> Resources:
    p = module.parameters
    if module.kind == "qc_mac":
        lanes = p["PE"] * p["SIMD"]
        return Resources(lut=lanes * (p["WB"] * p["AB"] + p["AB"]), dsp=lanes * p["DSP"])
    if module.kind == "qc_requant":
        return Resources(lut=300 + 60 * p["LANES"] * p["STAGES"])
    return Resources(lut=200)
