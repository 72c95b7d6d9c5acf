"""Write docs/results.md from what the other benchmarks left with --json; no figure in it is typed.

    python -m benchmarks.results FOLDER

FOLDER holds accuracy.json, low_bits.json (or several low_bits*.json), mixed_precision*.json, ablation*.json (of
mixed_precision, at several budgets), budgets*.json, cost_model.json, bit_exact.json, latency.json, compile_time.json,
startup.json, determinism.json, mcu.json, c_models.json, fit.json (of mcu_fit), peers.json (of mcu_peers), gpu.json,
fpga*.json (of fpga, fpga_mixed, fpga_exact), formats*.json; one that is missing leaves its section as it was.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    accuracy,
    budgets,
    c_models,
    formats,
    fpga,
    fpga_mixed,
    latency,
    low_bits,
    mcu,
    mcu_fit,
    mcu_peers,
    mixed_precision,
)
from benchmarks.assets import ROOT
from benchmarks.gpu_section import parts
from benchmarks.kept import markdown, with_kept

Document = dict[str, Any]


def section(title: str, name: str, documents: Sequence[Document], text: str, table: str) -> str:
    """One section."""
    return f"\n## {title}\n{measured(name, documents, text, table)}"


def measured(name: str, documents: Sequence[Document], text: str, table: str) -> str:
    """A table, with where and how it was measured."""
    first = documents[0]
    commands = " and ".join(
        f"`{' '.join([f'python -m benchmarks.{name}', *_shown(d['arguments'])])}`" for d in documents
    )
    return f"\n{commands}, {first['date']}, {first['machine']}.\n\n{text}\n\n{table}"


def _shown(arguments: Sequence[str]) -> list[str]:
    """Arguments without the file that the rows went to."""
    at = arguments.index("--json") if "--json" in arguments else len(arguments)
    return [*arguments[:at], *arguments[at + 2 :]]


def accuracy_section(documents: Sequence[Document]) -> str:
    """Float, bundle and QDQ."""
    rows = [[*accuracy.line(row)[:-1], accuracy.state(row)] for document in documents for row in document["rows"]]
    text = (
        "`bundle` runs on the CPU, `qdq` is the QDQ file in onnxruntime with optimizations off. `same`: share of\n"
        "equal decisions of the two; `peer`: of onnxruntime's unoptimized and optimized mode on the very QDQ file.\n"
        "top1 and agreement (with float): more is better; psnr in dB; mse against the input: less is better."
    )
    return section(TITLES["accuracy"], "accuracy", documents, text, markdown([*accuracy.HEADERS[:-1], "goals"], rows))


def low_bits_section(documents: Sequence[Document]) -> str:
    """One row a network and precision, over the draws."""
    rows = [low_bits.line(row) for document in documents for row in document["rows"] if "seeds" in row]
    text = (
        "Recipe `auto`. Weights per output channel, activations per tensor and static, first and last layer 8 bits;\n"
        "aN are the operands of products, values between them have 8 bits (16 where transformers add and normalize).\n"
        "Means over calibration draws, `spread` between them. `bundle` runs on the CPU over the full test split,\n"
        "`gap` is its largest distance from the QDQ file in onnxruntime (first 1,000 samples), `s` the seconds of\n"
        "quantization on one busy core. Goals: the best of six other tools (ONNX Runtime, AIMET, Brevitas, NNCF,\n"
        "Quark, esp-ppq) with a margin. w4a16 stands for weights alone."
    )
    return section(TITLES["low_bits"], "low_bits", documents, text, markdown(low_bits.HEADERS, rows))


def mixed_section(documents: Sequence[Document]) -> str:
    """Equal size, by method."""
    headers, rows = mixed_precision.compact([row for document in documents for row in document["rows"]])
    text = (
        "At the packed size of uniform weights (first and last layer 8 bits), activations of 8 bits, every assignment\n"
        "behind the same passes. Top-1, divergence of predictions from those of the float network, and in brackets\n"
        "how many draws of calibration samples, or assignments, it is the mean of. `product` is what `--budget` does;\n"
        "`best random` the best on the test samples of those drawn at random, `mean random` their mean."
    )
    return section(TITLES["mixed_precision"], "mixed_precision", documents, text, markdown(headers, rows))


def ablation_section(documents: Sequence[Document]) -> str:
    """Scores, at several sizes and as their mean."""
    measured = [row for document in documents for row in document["rows"] if "rows" not in row]
    means = []
    for network, method in dict.fromkeys((row["network"], row["method"]) for row in measured):
        mine = [row for row in measured if (row["network"], row["method"]) == (network, method)]
        if len({row["bits"] for row in mine}) > 2:  # uniform widths are whole
            parts = [f"{sum(row[key] for row in mine) / len(mine):.{d}f}" for key, d in (("accuracy", 4), ("kl", 5))]
            means.append([network, method, ", ".join(f"{row['bits']:g}" for row in mine), *parts])
    headers, rows = mixed_precision.compact(measured)
    text = (
        "As above, by scores of layers alone (gauss_newton, hessian), by what pairs lose together (`pairwise`: where\n"
        "errors add up; `signed`: where they cancel, too), and with both in one (`combined`). Top-1, divergence."
    )
    table = f"{markdown(headers, rows)}\n{markdown(['network', 'method', 'mean bits', 'top-1', 'divergence'], means)}"
    return section(TITLES["ablation"], "mixed_precision", documents, text, table)


def cost_model_section(documents: Sequence[Document]) -> str:
    """Predicted against measured latency."""
    rows = [
        [r["network"], r["precision"], *(f"{r[key]:.4f}" for key in ("measured_ms", "whole_ms")),
         f"{100 * r['error']:+.1f} %"]
        for document in documents for r in document["rows"]
    ]  # fmt: skip
    text = (
        "Latency of the cpu target, one thread: measured, and as the table of kernel times predicts it. Up to 10 % or\n"
        "5 us is the goal."
    )
    table = markdown(["network", "precision", "measured ms", "predicted ms", "error"], rows)
    return section(TITLES["cost_model"], "cost_model", documents, text, table)


def budgets_section(documents: Sequence[Document]) -> str:
    """Budgets on targets."""
    rows = [row for document in documents for row in document["rows"]]
    text = (
        "latency: `--budget latency=0.75x` beside the network's own uniform W8A8, both measured in one run.\n"
        "firmware: flash and RAM 25 % below the W8A8 image, of the linked image. reduction: the fewest bit operations\n"
        "that keep a share of the float metric, beside 16 and 8 bits everywhere; no row: no point of the curve, up to\n"
        "8 bits everywhere, keeps it. scaling: with an empty cache, of probes on so many samples."
    )
    return section(TITLES["budgets"], "budgets", documents, text, budgets.show(rows, markdown))


def bit_exact_section(documents: Sequence[Document]) -> str:
    """One row a network and precision."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for document in documents:
        for row in document["rows"]:
            grouped.setdefault((row["network"], row["precision"]), []).append(row)
    rows = []
    for (network, precision), found in grouped.items():
        bad = [row for row in found if not row["bit_exact"]]
        kinds = [", ".join(dict.fromkeys(row[key] for row in found)) for key in ("arithmetic", "level")]
        result = f"NO: {len(bad)} of {len(found)}" if bad else "yes"
        rows.append([network, precision, *kinds, min(row["samples"] for row in found), "1, 2", result])
    text = "Every output of every sample, compared with the numpy oracle bit for bit, with one and two threads."
    headers = ["network", "precision", "arithmetic", "instruction sets", "samples", "threads", "bit-exact"]
    return section(TITLES["bit_exact"], "bit_exact", documents, text, markdown(headers, rows))


def latency_section(documents: Sequence[Document]) -> str:
    """One row a network and contender."""
    rows = [line for document in documents for line in latency.lines(document["rows"])]
    text = (
        "One inference, interleaved in one run. `speed` is relative to onnxruntime float32, which uses AVX-512 where\n"
        "the machine has it, as does OpenVINO; `qcompiler x86-64-v3` keeps to AVX2. `error`: signal-to-noise ratio of\n"
        "an int8 contender's output against its own QDQ file run without optimizations (200 dB: equal)."
    )
    headers = ["network", "threads", "runtime", "precision", "median ms", "min ms", "speed", "error"]
    return section(TITLES["latency"], "latency", documents, text, markdown(headers, rows))


def sequence_section(documents: Sequence[Document]) -> str:
    """Accuracy and latency of sequence_accuracy.json and sequence_latency.json, in this order."""
    parts = accuracy_section(documents[:1]), latency_section(documents[1:])
    quality, speed = (part.partition("\n\n")[2] for part in parts)
    return f"\n## {TITLES['sequence']}\n\n{quality}\n{speed}"


def compile_section(documents: Sequence[Document]) -> str:
    """Seconds and memory."""
    rows = [
        [r["network"], r["samples"], r["seconds"], r["limit"] or "-", f"{r['peak_bytes'] / (1 << 20):.0f} MiB"]
        for document in documents
        for r in document["rows"]
    ]
    text = "The whole command with the default recipe, in a process of its own. Limit of memory: 2560 MiB."
    headers = ["network", "samples", "seconds", "limit", "peak memory"]
    return section(TITLES["compile_time"], "compile_time", documents, text, markdown(headers, rows))


def startup_section(documents: Sequence[Document]) -> str:
    """Import, help, load."""
    rows = [[r["what"], f"{r['median_s']:.3f}", r["limit_s"]] for document in documents for r in document["rows"]]
    text = "Medians over fresh processes."
    return section(TITLES["startup"], "startup", documents, text, markdown(["what", "seconds", "limit"], rows))


def determinism_section(documents: Sequence[Document]) -> str:
    """Two compiles."""
    rows = [
        [r["network"], r["files"], ", ".join(r["differing"]) or "none"]
        for document in documents
        for r in document["rows"]
    ]
    text = "Two compiles in two processes with different hash seeds, for all instruction sets; files that differ."
    table = markdown(["network", "files", "differing"], rows)
    return section(TITLES["determinism"], "determinism", documents, text, table)


def mcu_section(documents: Sequence[Document]) -> str:
    """Bits and sizes, then instructions."""
    rows = [row for document in documents for row in document["rows"]]
    boards = ", ".join(dict.fromkeys(name for row in rows for name in row["exact"]))
    vectors = min(row["vectors"] for row in rows)
    text = (
        f"Bit-exact: the self-test with {vectors} samples on emulated boards ({boards}), compiled with -O2. Bytes are\n"
        "those of arm-none-eabi-gcc -Os for a Cortex-M4; the arena stands beside its lower bound, the most that is\n"
        "alive at once. `estimate off`: the worse of flash and RAM, where no cross compiler measures them."
    )
    found = section(TITLES["mcu"], "mcu", documents, text, markdown(mcu.HEADERS, mcu.lines(rows)))
    return (
        f"{found}\nInstructions of one inference on the Cortex-M4, counted by the emulator (not cycles), and for each\n"
        "multiply-accumulate by kind of layer. `3x3`: windows over 16 or more planes; `first`: over fewer.\n\n"
        + markdown(mcu.INSTRUCTION_HEADERS, mcu.instruction_lines(rows))
        + "\nThe smallest form, `--optimize-for memory --pack`: bytes, and instructions on the Cortex-M4; and kernels\n"
        "as an object for the Cortex-M55 with its vectors: instructions, and for each multiply-accumulate.\n\n"
        + markdown(mcu.VARIANT_HEADERS, mcu.variant_lines(rows))
    )


def c_models_section(documents: Sequence[Document]) -> str:
    """Every network as firmware."""
    rows = [row for document in documents for row in document["rows"]]
    text = (
        "At W8A8. Bit-exact: the sources, compiled for this machine, against the oracle, by steps where a state is\n"
        "kept inside; `board`: so does the self-test on an emulated Cortex-M7. Flash and RAM are what the report says\n"
        "(arm-none-eabi-gcc -Os for a Cortex-M4), instructions its estimate for one inference or step."
    )
    table = markdown(c_models.HEADERS, (c_models.line(row) for row in rows))
    return section(TITLES["c_models"], "c_models", documents, text, table)


def fit_section(documents: Sequence[Document]) -> str:
    """Reported flash and RAM against linked images."""
    rows = [row for document in documents for row in document["rows"]]
    text = (
        "Bytes of an image for the emulated Cortex-M4 (-Os) that runs the model, less one without it, with the stack\n"
        "that was painted and read back; and how far the report is from them: with the cross compiler (`measured`),\n"
        "and with the estimate where there is none."
    )
    return section(TITLES["fit"], "mcu_fit", documents, text, markdown(mcu_fit.HEADERS, mcu_fit.lines(rows)))


def peers_section(documents: Sequence[Document]) -> str:
    """Other generators; what did not run is said below the table."""
    rows = [row for document in documents for row in document["rows"]]
    text = (
        "One inference at W8A8 on the emulated Cortex-M4. TFLM runs MLPerf Tiny's own int8 models, the others the\n"
        "network and scales of the `c` bundle; onnx2c computes pool and softmax in float. RAM: arena, variables,\n"
        "inputs and outputs, deepest stack of set-up and inference. Flash: code and constants that the model adds to\n"
        "an image. `x ours`: below 1, the peer takes less."
    )
    shown = [{**document, "arguments": _without_places(document["arguments"])} for document in documents]
    failed = "".join(f"\n{line}\n" for line in mcu_peers.reasons(rows))
    table = markdown(mcu_peers.HEADERS, mcu_peers.lines(rows))
    return section(TITLES["peers"], "mcu_peers", shown, text, table) + failed


def _without_places(arguments: Sequence[str]) -> list[str]:
    """Arguments, with folders of one machine left out."""
    return ["..." if "/" in argument else f"'{argument}'" if " " in argument else argument for argument in arguments]


def gpu_section(documents: Sequence[Document]) -> str:
    """Cards: networks, products, elementwise operators."""
    found = []
    for document in documents:
        head = f"\n`python -m benchmarks.gpu`, {document['date']}, {document['card']}.\n"
        tables = (f"\n{text}\n\n{markdown(headers, rows)}" for text, headers, rows in parts(document))
        found.append(head + "".join(tables))
    return f"\n## {TITLES['gpu']}\n" + "".join(found)


def fpga_section(documents: Sequence[Document]) -> str:
    """Circuits against their bills, then accuracy at equal look-up tables."""
    circuits = [d for d in documents if "bill" in d["rows"][0]]
    mixed = [d for d in documents if "budget" in d["rows"][0]]
    exact = [d for d in documents if "twin" in d["rows"][0]]
    found = f"\n## {TITLES['fpga']}\n"
    if circuits:
        text = (
            "The bill, then what was found: cycles from image to image (Verilator), LUTs and registers as yosys\n"
            "counts them (LUT6 of 7-series, LUT4 of ECP5), block RAMs of 18 Kbit, multiplier blocks. `lanes busy`:\n"
            "share of the products that the bottleneck's lanes could have made in the simulated cycles. `exact`: all\n"
            "codes of 5 images are the oracle's, with and without random stalls. `clock`: by nextpnr, of the slowest\n"
            "speed grade."
        )
        rows = [fpga.line(row) for document in circuits for row in document["rows"]]
        found += measured("fpga", circuits, text, markdown(fpga.HEADERS, rows))
    if mixed:
        text = (
            "Bits of weights chosen for look-up tables, beside one width for all (first and last layer 8 bits),\n"
            "activations of 8 bits, over the whole test split. `best uniform`: accuracy and SQNR of\n"
            "circuits that take no more LUTs."
        )
        rows = [fpga_mixed.line(row) for document in mixed for row in document["rows"]]
        found += measured("fpga_mixed", mixed, text, markdown(fpga_mixed.HEADERS, rows))
    if exact:
        text = (
            "Images whose every code, the Softmax's input too, is the oracle's in Verilator, half of them with random\n"
            "stalls; `twin`: the bundle's C program passes its own test."
        )
        headers = ["network", "precision", "images/s", "LUTs by the bill", "images", "exact", "twin"]
        keys = ("network", "precision", "fps", "lut_bill", "frames", "exact")
        rows = [[*(r[k] for k in keys), "yes" if r["twin"] else "NO"] for d in exact for r in d["rows"]]
        found += measured("fpga_exact", exact, text, markdown(headers, rows))
    return found


def formats_section(documents: Sequence[Document]) -> str:
    """Integers and minifloats."""
    text = (
        "Weights and activations by format (`intN`, `eEmM`), recipe `auto`, first and last layer 8 bits. KiB: packed\n"
        "codes of weights; LUTs: the bill of a circuit at 2,000 images a second and 100 MHz, 7-series, no multiplier\n"
        "blocks; error: squared, of the outputs, relative to their energy. ![Error over LUTs](formats.svg)"
    )
    rows = [formats.line(row) for document in documents for row in document["rows"]]
    return section(TITLES["formats"], "formats", documents, text, markdown(formats.HEADERS, rows))


SECTIONS = {
    "accuracy": accuracy_section,
    "low_bits": low_bits_section,
    "mixed_precision": mixed_section,
    "ablation": ablation_section,
    "budgets": budgets_section,
    "cost_model": cost_model_section,
    "bit_exact": bit_exact_section,
    "latency": latency_section,
    "sequence": sequence_section,
    "compile_time": compile_section,
    "startup": startup_section,
    "determinism": determinism_section,
    "mcu": mcu_section,
    "c_models": c_models_section,
    "fit": fit_section,
    "peers": peers_section,
    "gpu": gpu_section,
    "fpga": fpga_section,
    "formats": formats_section,
}


TITLES = {
    "accuracy": "Accuracy",
    "low_bits": "Below 8 bits",
    "mixed_precision": "Mixed precision at equal size",
    "ablation": "Scores of layers and of pairs",
    "budgets": "Budgets on the target's cost",
    "cost_model": "Predicted latency",
    "bit_exact": "Bit-exactness",
    "latency": "Latency",
    "sequence": "Transformers, language and diffusion",
    "compile_time": "Compile time",
    "startup": "Start-up",
    "determinism": "Determinism",
    "mcu": "Microcontrollers",
    "c_models": "Every network as firmware",
    "fit": "Firmware sizes",
    "peers": "Firmware beside its peers",
    "gpu": "Graphics cards",
    "fpga": "Circuits",
    "formats": "Integers and minifloats in circuits",
}
"""Headings on the page, by name of the benchmark's file."""
KEYS = {"mixed_precision": ("network", "mean bits"), "budgets": ("network", "level", "kept", "executor", "samples")}
"""Columns that tell rows apart, of benchmarks that are run for a few networks at a time."""


def page(folder: Path, before: str) -> Iterator[str]:
    """The parts of the page. before: its text until now."""
    yield "# Measured results\n\nWritten by `python -m benchmarks.results` from the benchmarks' JSON files.\n"
    kept = {part.partition("\n")[0]: f"\n## {part}" for part in re.split(r"(?m)^\n## ", before)[1:]}
    for name, make in SECTIONS.items():
        documents = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}*.json"))]
        if documents:
            old = kept.get(TITLES[name], "") if name in KEYS else ""
            yield with_kept(make(documents), old, KEYS.get(name, ()))
        else:
            yield kept.get(TITLES[name], "")
    yield from (text for title, text in kept.items() if title not in TITLES.values())


def main() -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    path = ROOT / "docs" / "results.md"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text("".join(page(parser.parse_args().folder, before)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
