"""The report's content, JSON-able: verdict first, then quality, size, layers, notes, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompiler.formats import Blocks, Log, Minifloat, NumberFormat, parse_format
from qcompiler.graph.islands import describe_islands
from qcompiler.graph.model import Graph
from qcompiler.graph.qdq import LOGARITHM_KEY, MINIFLOAT_KEY
from qcompiler.ops.macs import node_macs

if TYPE_CHECKING:
    from qcompiler.driver import Result


RANDOM = ("random", "random:normal", "random:uniform")
"""Sources of samples that are no data."""


def build_report(
    result: Result, manifest: Mapping[str, Any], bundle: str, facts: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Everything that the terminal and the page show. `facts` come from the driver's evaluation."""
    assert result.integer_graph is not None
    mixed = result.context.facts.get("assign_bits")
    sizes = {
        "float_bytes": float_bytes(result.float_graph), **manifest["size"],
        "weight_bytes": packed_bytes(result.integer_graph), "stored_bytes": manifest["size"]["weight_bytes"],
    }  # fmt: skip
    report = {
        "verdict": "",
        "bundle": bundle,
        "model": result.float_graph.path,
        "target": manifest["target"],
        "recipe": result.recipe.name,
        "precision": precision(result.integer_graph),
        "arithmetic": manifest["arithmetic"],
        **({"assignment": {i["name"]: i["chosen"] for i in mixed["items"]}} if mixed else {}),
        "calibration": {
            "source": result.samples.source,
            "samples": len(result.samples),
            **({} if result.held_out is None else {"held_out": len(result.held_out)}),
            **({"selection": chosen} if (chosen := result.context.facts.get("selection")) else {}),
        },
        "quality": facts["quality"],
        "size": sizes,
        "macs": macs(result.integer_graph),
        "operators": operators(result.integer_graph),
        "islands": describe_islands(result.integer_graph),
        "verification": facts.get("verification"),
        "latency": facts.get("latency", []),
        "fit": facts.get("fit"),
        "circuit": facts.get("circuit"),
        "worst_layers": sorted(facts["layers"], key=lambda row: row["sqnr_db"])[:10],
        "layers": facts["layers"],
        "passes": facts["passes"],
        "notes": [{"pass": n.source, "where": n.where, "text": n.text} for n in result.context.notes],
        "facts": result.context.facts,
        "seconds": dict(seconds),
        "versions": manifest["versions"],
    }
    return {**report, "verdict": verdict(report)}


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence on what was lost and won."""
    sizes, quality = report["size"], report["quality"]
    ratio = sizes["float_bytes"] / max(sizes["stored_bytes"], 1)
    checked = report["verification"]
    exact = ""
    if checked is not None:
        exact = _exactness(checked)
    agreement = f", {quality['top1_agreement']:.1%} of decisions unchanged" if "top1_agreement" in quality else ""
    speed = ""
    by = {(row["runtime"], row["precision"]): row["median_ms"] for row in report["latency"]}
    if ("onnxruntime", "float32") in by:
        ours = next(ms for (name, _), ms in by.items() if name == "qcompiler")
        speed = f", {by['onnxruntime', 'float32'] / ours:.1f}x the speed of onnxruntime float32"
    random = ""
    if report["calibration"]["source"] in RANDOM:
        random = " Calibrated on RANDOM data: the figures say nothing about accuracy."
    smaller = f"weights {ratio:.1f}x smaller, " if sizes["float_bytes"] else ""
    return (
        f"{report['precision']} on {report['target']}: {smaller}output SQNR {quality['sqnr_db']:.1f} dB"
        f"{agreement}{speed}{exact}.{random}"
    )


def passed(checked: Mapping[str, Any]) -> bool:
    """Whether target and oracle agree: bit for bit, or within the tolerance of float islands behind these."""
    parts = [checked, *([checked["parts"]] if "parts" in checked else [])]
    return all(part["bit_exact"] or part.get("within_tolerance", False) for part in parts)


def _exactness(checked: Mapping[str, Any]) -> str:
    if not passed(checked):
        return ", NOT BIT-EXACT: do not ship, report a bug"
    if "within_tolerance" in checked:
        return ", bit-exact with the oracle but for float islands, which are within tolerance"
    return ", bit-exact with the oracle"


def float_bytes(graph: Graph) -> int:
    """Bytes of the float model's constants."""
    total = 0
    for value in graph.ir.initializers.values():
        if value.const_value is not None and value.dtype is not None and value.dtype.is_floating_point():
            total += int(value.const_value.nbytes)
    return total


def packed_bytes(graph: Graph) -> int:
    """Bytes of the codes of all weights at their widths: what a budget for size is held against. Targets add biases,
    scales and padding, and may store narrow codes in whole bytes."""
    found: dict[str, int] = {}
    for node in graph.nodes("Conv", "ConvTranspose", "MatMul"):
        weight = node.inputs[1]
        if weight is not None and graph.const(weight) is not None:
            fmt, count = _format(weight), prod(graph.shape(weight))
            bits = 8 if fmt is None else fmt.bits
            exponents = -(-count // fmt.size) if isinstance(fmt, Blocks) else 0
            found[str(weight.name)] = -(-count * bits // 8) + exponents
    return sum(found.values())


def precision(graph: Graph) -> str:
    """w8a8 where all agree, else the widths found, as w4+8a8; a8 for a model without weighted layers. With minifloats
    the formats, as e2m1+int8w-int8a."""
    weights, activations = set(), set()
    for node in graph.nodes():
        if node.op_type in ("Conv", "ConvTranspose", "MatMul") and node.inputs[1] is not None:
            weights.add(_format(node.inputs[1]))
            activations.add(_format(node.inputs[0]))
    if not weights:
        activations = {_format(value) for node in graph.nodes() for value in node.outputs}
    parts = [(letter, found - {None}) for letter, found in (("w", weights), ("a", activations)) if found - {None}]
    if any(isinstance(fmt, Minifloat | Blocks) for _, found in parts for fmt in found):
        named = [(sorted({_family(fmt) for fmt in found if fmt is not None}), letter) for letter, found in parts]
        return "-".join("+".join(names) + letter for names, letter in named)
    return "".join(
        letter + "+".join(map(str, sorted({fmt.bits for fmt in found if fmt is not None}))) for letter, found in parts
    )


def _family(fmt: NumberFormat) -> str:
    """Token of a minifloat; integers and logarithms without sign, base and what is narrow."""
    if isinstance(fmt, Minifloat | Blocks):
        return fmt.token
    return f"{'log' if isinstance(fmt, Log) else 'int'}{fmt.bits}"


def _format(value: ir.Value | None) -> NumberFormat | None:
    """The format that was chosen: levels of a logarithm or a minifloat have more bits than its codes."""
    known = value.metadata_props if value is not None else {}
    token = known.get(LOGARITHM_KEY) or known.get(MINIFLOAT_KEY) or known.get("qcompiler.format")
    return parse_format(token) if token else None


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one inference."""
    return sum(node_macs(graph, node) for node in graph.nodes())


def operators(graph: Graph) -> dict[str, int]:
    """How many nodes of each kind."""
    counts: dict[str, int] = {}
    for node in graph.nodes():
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))
