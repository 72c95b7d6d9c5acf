"""The bill of a circuit: every layer's share, the verdict against a part, and what would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from qcompiler.targets.fpga.engines import Engine
from qcompiler.targets.fpga.fold import excess
from qcompiler.targets.fpga.layers import Network
from qcompiler.targets.fpga.parts import CLOCK, PARTS
from qcompiler.targets.fpga.plan import Plan
from qcompiler.targets.fpga.resources import Resources, module_resources, total

FITS, TOO_BIG = "FITS", "TOO BIG"
_SAY = {"lut": "LUTs", "ff": "registers", "bram": "18-Kbit block RAMs", "dsp": "multiplier blocks"}

_CODINGS = ("two's complement", "sign-magnitude", "sign-magnitude, -0 lowest")


def bill(
    plan: Plan, network: Network, options: Mapping[str, Any], counted: Resources | None = None
) -> dict[str, Any]:
    """For the report, JSON-able. Everything is the estimate of resources.py; counted: what yosys made of the circuit,
    which then decides whether it fits."""
    part, limits, times = plan.part, plan.limits, plan.times
    shares: dict[str, Resources] = {}
    for instance in plan.net.instances:
        shares[instance.node] = shares.get(instance.node, Resources()) + module_resources(instance.module, part.family)
    whole = total(shares.values())
    rows = []
    for layer in network.layers:
        engine = plan.folding.engines[layer.output.name]
        share = shares.pop(layer.node, Resources())
        bits = f"w{layer.weight_bits}" if layer.weights is not None else ""
        rows.append(
            {"node": layer.node, "kind": layer.kind, "bits": f"{bits}a{layer.formats[0].bits}",
             "weights": _coding(engine), "pe": engine.fold.pe, "simd": engine.fold.simd, "cycles": engine.cycles,
             "busy": round(engine.cycles / times.interval, 3), "macs": layer.macs, **asdict(share)}
        )  # fmt: skip
    over = excess(counted or whole, limits)
    verdict = TOO_BIG if over else FITS
    rate = CLOCK / times.interval
    advice = _advice(counted or whole, over, options, part.family)
    asked = options.get("fps")
    if asked is not None and rate < float(asked):
        verdict = TOO_BIG
        advice.append(
            f"{rate:.0f} images a second of {asked} are reached: engines wait for each other. Ask for a little more."
        )
    rows.append({"node": "forks, joins and streams", "kind": "wires", **asdict(total(shares.values()))})
    exact = {} if counted is None else {"counted": asdict(counted)}
    return {
        "part": part.name, "family": part.family, "verdict": verdict, "limits": dict(limits), **asdict(whole),
        "cycles": times.interval, "latency_cycles": times.latency, "clock_mhz": CLOCK / 1e6, "fps": round(rate, 1),
        "latency_ms": times.latency / CLOCK * 1e3, "how": "estimated", **exact, "layers": rows, "advice": advice,
    }  # fmt: skip


def _coding(engine: Engine) -> str:
    """How the weights' memory has them, or ''."""
    if engine.layer.weights is None:
        return ""
    fmt = engine.layer.weight_format
    return fmt.token if fmt is not None else _CODINGS[engine.fold.signs]


def _advice(
    whole: Resources, over: list[tuple[str, int, int]], options: Mapping[str, Any], family: str
) -> list[str]:
    if not over:
        return []
    found = [f"{have} {_SAY[what]} of {limit}: {have - limit} too many" for what, have, limit in over]
    if options.get("fps") is not None and any(what == "lut" for what, _, _ in over):
        found.append("fewer images a second take fewer LUTs: leave out --fps for the fastest circuit that fits")
    larger = [
        part.name for part in PARTS.values()
        if part.family == family and part.lut >= whole.lut and part.ff >= whole.ff and part.bram >= whole.bram
        and part.dsp >= whole.dsp
    ]  # fmt: skip
    if larger and options.get("lut") is None:
        found.append(f"it fits {larger[0]} (--part)")
    found.append("fewer bits: --precision w4a8 or w4a4, or --budget lut=... to choose them layer by layer")
    return found
