"""Kernels by themselves, for `benchmarks.gpu`: products of 4096^3 by every tile, sums in parts, products of two
activations, and what the instructions can do.

A kernel of the list has pointers by role (x, y, w, bias, scale, table, line, or a size in bytes) and numbers, so that
the card's side needs no compiler: it fills x and w at random, and knows what y has to be.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from qcompiler.formats import parse_integers
from qcompiler.targets.cuda.cubin import compile_cubins
from qcompiler.targets.cuda.emit import TEMPLATES
from qcompiler.targets.cuda.machine import THREAD
from qcompiler.targets.cuda.tile import GROUPS, TILES, Choice, Shape, choose_tile
from qcompiler.targets.cuda.tir.batched import NUMBERS as PAIR_NUMBERS
from qcompiler.targets.cuda.tir.batched import BatchedProduct, Operand
from qcompiler.targets.cuda.tir.epilogue import Codes, code_numbers
from qcompiler.targets.cuda.tir.product import PARTS, Product
from qcompiler.targets.cuda.tir.staging import NUMBERS
from qcompiler.targets.cuda.tir.tile import LINE, LINES, Tile
from qcompiler.targets.shared.tir.requantize import Requantize

SIDE = 4096
LOOPS = 512
"""Rounds of eight products in a kernel that only multiplies."""

_PEAK = """
extern "C" __global__ void __launch_bounds__(256) qc_peak_mma(int *y, int loops) {
  int c[8][4] = {};
  uint a[4] = {threadIdx.x, threadIdx.x * 3, threadIdx.x * 5, threadIdx.x * 7}, b[2] = {threadIdx.x, 9u * threadIdx.x};
  for (int i = 0; i < loops; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) qc_mma_u8s8(c[j], a, b);
  }
  int sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) sum += c[j][0] + c[j][1] + c[j][2] + c[j][3];
  y[blockIdx.x * 256 + threadIdx.x] = sum;
}
"""
_PEAK_GROUP = """
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
extern "C" __global__ void __launch_bounds__(256) qc_peak_wgmma(int *y, int loops) {
  QC_SHARED(memory);
  int c[128] = {};
  for (int i = threadIdx.x; i < 98304 / 4; i += 256) ((int *)memory)[i] = i * 2654435761u;
  qc_proxy_fence();
  __syncthreads();
  const uchar *a = memory + (threadIdx.x / 128) * 8192, *b = memory + 32768;
  for (int i = 0; i < loops; ++i) {
    qc_wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) qc_wgmma256_u8s8(c, a + 32 * j, b + 32 * j);
    qc_wgmma_commit();
    qc_wgmma_wait1_128(c);
  }
  qc_wgmma_finish_128(c);
  int sum = 0;
#pragma unroll
  for (int j = 0; j < 128; ++j) sum += c[j];
  y[blockIdx.x * 256 + threadIdx.x] = sum;
}
#endif
"""


def product_entry(
    tile: Tile,
    rows: int = SIDE,
    side: int = SIDE,
    bits: int = 8,
    *,
    inner: int | None = None,
    parts: int = 1,
    narrow: bool = False,
) -> tuple[Product, dict[str, Any]]:
    """A product of [rows, inner] by [inner, side] by one tile, and how it is launched.

    bits: of a weight in memory; inner: `side` if it is not given; parts: of each sum; narrow: products of 4 bits.
    """
    inner = inner or side
    spec = Product("uint8", Codes("float", "uint8"), tile, 16, 16, True, (), bits, narrow, parts > 1)
    launch, tiles = spec.launch(1, rows, side, parts), inner // tile.step
    values = dict.fromkeys(NUMBERS, 0) | {
        "pixels": rows, "channels": side, "tiles": tiles, "y_pixel": side, "columns": rows,
        "positions": rows, "stride_y": 1, "stride_x": 1, "height": 1, "width": rows, "x_image": 0, "x_row": 0,
        "x_pixel": inner, "x_group": inner, "y_group": side, "w_group": side * inner * bits // 8, "p_group": side,
        "parts": parts, "part_tiles": -(-tiles // parts),
    }  # fmt: skip
    codes = code_numbers(Requantize("float", parse_integers("uint8"), 0))
    kind = "wgmma" if tile.wgmma else "mma"
    label = (
        f"{kind} {tile.pixels}x{tile.channels}x{tile.step} by {tile.warp_pixels}x{tile.warp_channels}, {tile.stages}"
    )
    if inner != side:
        label = f"{rows} rows, {inner} by {side} weights, {label}, {parts} part{'s' if parts > 1 else ''}"
    elif rows != side:
        label = f"{rows} rows by {side}^2 weights of {bits} bits, {label}"
    return spec, {
        "kind": "product", "label": label, "rows": rows, "side": side, "inner": inner, "bits": bits, "narrow": narrow,
        "channels": tile.channels, "step": tile.step, "grid": list(launch.grid), "threads": launch.threads,
        "shared": launch.shared,
        "pointers": ["x", "y", "w", "bias", "scale", "table", "line", *(["sums", "counters"] * spec.split)],
        "sums": prod(launch.grid) * tile.pixels * tile.channels * spec.split,
        "numbers": (numbers := [*(values[name] for name in (*NUMBERS, *(PARTS if spec.split else ()))), *codes]),
        "priced": {"kernel": "qc_product_0", "grid": list(launch.grid), "macs": rows * inner * side,
                   "bytes": rows * (inner + side) + side * inner * bits // 8, "tiled": spec.tiled(numbers)},
    }  # fmt: skip


def pair_entry(
    tile: Tile, batch: int, rows: int, inner: int, columns: int, *, keys: bool
) -> tuple[BatchedProduct, dict[str, Any]]:
    """A product of two activations [batch, rows, inner] and [batch, inner, columns], and how it is launched. keys:
    whether b lies as [batch, columns, inner]."""
    b = Operand("uint8", 16) if keys else Operand("uint8", 0, words=True)
    spec = BatchedProduct(Operand("uint8", 16), b, Codes("float", "uint8"), tile, 16, False, False)
    launch = spec.launch(batch, rows, columns)
    values = {
        "rows": rows, "inner": inner, "columns": columns, "tiles": -(-inner // tile.step),
        "a_zero_point": PAIR_ZEROS[0], "b_zero_point": PAIR_ZEROS[1], "a_row": inner, "a_k": 1,
        "b_k": 1 if keys else columns, "b_n": inner if keys else 1, "y_row": columns, "y_n": 1,
        "extent1": 1, "extent2": batch, "a0": 0, "a1": 0, "a2": rows * inner,
        "b0": 0, "b1": 0, "b2": inner * columns, "y0": 0, "y1": 0, "y2": rows * columns,
    }  # fmt: skip
    codes = code_numbers(Requantize("float", parse_integers("uint8"), 0))
    label = f"{batch} x {rows} x {inner} by {inner} x {columns}, b {'as rows' if keys else 'turned'}, two activations"
    return spec, {
        "kind": "pair", "label": label, "batch": batch, "rows": rows, "inner": inner, "columns": columns, "keys": keys,
        "zeros": list(PAIR_ZEROS), "zero_bytes": LINES * LINE, "grid": list(launch.grid),
        "threads": launch.threads, "shared": launch.shared,
        "pointers": ["a", "b", "y", "scale", "zeros"],
        "numbers": (numbers := [*(values[name] for name in PAIR_NUMBERS), *codes]),
        "priced": {"kernel": "qc_batchedproduct_0", "grid": list(launch.grid), "macs": batch * rows * inner * columns,
                   "bytes": batch * (rows * inner + inner * columns + rows * columns), "tiled": spec.tiled(numbers)},
    }  # fmt: skip


THIN, WIDE = 16, 16384
"""Rows and weights [WIDE, WIDE] of products that wait for weights, which are more than the caches hold."""
THIN_TILES = (Tile(16, 64, 16, 16, 4), Tile(16, 64, 16, 16, 4, 128), Tile(16, 64, 16, 16, 6, 128),
              Tile(16, 64, 16, 16, 4, 256))  # fmt: skip
LONG = ((1, 2048, 1024), (1, 16384, 1024), (1, 25088, 4096), (49, 2048, 512), (49, 4608, 512))
"""Rows, inner dimension and columns of products with few outputs and long sums: fully connected layers, and the last
stage of a ResNet at batch 1. Each as a whole, in the parts that tile.py chooses, and in four."""
PAIRS = ((64, 512, 64, 512), (8, 256, 1024, 256))
"""Batch, rows, inner dimension and columns of products of two activations."""
PAIR_ZEROS = 100, 130
CANDIDATES = (
    *TILES[:5],
    Tile(128, 256, 64, 64, 3),
    Tile(256, 128, 64, 64, 4),
    Tile(128, 256, 64, 64, 3, 128),
    Tile(128, 256, 64, 64, 4),
    Tile(128, 128, 64, 32, 4, 128),
    *GROUPS,
    Tile(256, 128, 128, 128, 4, 128, True),
    Tile(128, 256, 64, 256, 3, 128, True),
    Tile(192, 256, 64, 256, 3, 128, True),
)


def write_kernels(folder: Path, arch: str) -> dict[str, Any]:
    """kernels.cu, a cubin for the newest architecture of `arch`, and kernels.json."""
    from qcompiler.targets.cuda.emit import text_of

    entries: list[dict[str, Any]] = []
    functions: dict[str, Any] = {}
    for i, tile in enumerate(CANDIDATES):
        spec, entry = product_entry(tile)
        functions[f"qc_square_{i}"] = spec
        entries.append({"kernel": f"qc_square_{i}", **entry})
    for bits in (8, 4, 2):
        for i, tile in enumerate(THIN_TILES):
            spec, entry = product_entry(tile, THIN, WIDE, bits)
            functions[f"qc_thin_{bits}_{i}"] = spec
            entries.append({"kernel": f"qc_thin_{bits}_{i}", **entry})
    for bits in (4, 2):
        spec, entry = product_entry(Tile(128, 128, 64, 64, 4), bits=bits)
        functions[f"qc_square_w{bits}"] = spec
        entries.append({"kernel": f"qc_square_w{bits}", **entry, "label": f"weights of {bits} bits, {entry['label']}"})
    for i, (rows, inner, side) in enumerate(LONG):
        shape = Shape(rows, side, inner)
        whole = choose_tile("sm_90a", shape, split=False)
        for choice in dict.fromkeys((whole, choose_tile("sm_90a", shape), Choice(THIN_TILES[1], parts=4))):
            spec, entry = product_entry(choice.tile, rows, side, inner=inner, parts=choice.parts)
            name = f"qc_long_{i}_{choice.parts}_{choice.tile.pixels}"
            functions[name] = spec
            entries.append({"kernel": name, **entry})
    for i, (batch, rows, inner, columns) in enumerate(PAIRS):
        tile = choose_tile("sm_75", Shape(rows, columns, inner, batch), split=False).tile
        for keys in (True, False):
            pair, entry = pair_entry(tile, batch, rows, inner, columns, keys=keys)
            functions[f"qc_pair_{i}_{int(keys)}"] = pair
            entries.append({"kernel": f"qc_pair_{i}_{int(keys)}", **entry})
    newest = max(arch.split(","))
    newest = "sm_90a" if newest in ("sm_90", "90") else newest
    if not newest.startswith("sm_9"):  # which has no products of codes of 4 bits
        spec, entry = product_entry(Tile(128, 128, 64, 32, 4), bits=4, narrow=True)
        functions["qc_square_narrow"] = spec
        entries.append({"kernel": "qc_square_narrow", **entry, "label": f"codes of 4 bits, {entry['label']}"})
    text = text_of(functions, replace(THREAD, name="sm_90a"))
    peaks = [
        {"kernel": "qc_peak_mma", "kind": "peak", "label": "mma.m16n8k32 alone", "grid": [132 * 4, 1, 1],
         "threads": 256, "shared": 0, "numbers": [LOOPS], "macs": 132 * 4 * 8 * LOOPS * 8 * 16 * 8 * 32},
        {"kernel": "qc_peak_wgmma", "kind": "peak", "label": "wgmma.m64n256k32 alone", "grid": [132 * 2, 1, 1],
         "threads": 256, "shared": 98304, "numbers": [LOOPS], "macs": 132 * 2 * 2 * LOOPS * 4 * 64 * 256 * 32},
    ]  # fmt: skip
    text += _PEAK + _PEAK_GROUP
    header = (TEMPLATES / "qc_device.h").read_text()
    folder.mkdir(parents=True, exist_ok=True)
    made = compile_cubins(header, [(text, newest)])
    (folder / "kernels.cu").write_text(text)
    (folder / "qc_device.h").write_text(header)
    for cubin in made:
        (folder / f"{newest}.cubin").write_bytes(cubin.data)
    usage = made[0].usage if made else {}
    for entry in (*entries, *peaks):
        entry["usage"] = dict(usage.get(str(entry["kernel"]), {}))
    document = {"cubin": f"{newest}.cubin", "kernels": [*entries, *peaks]}
    (folder / "kernels.json").write_text(json.dumps(document, indent=1) + "\n")
    return {"name": "kernels", "usage": {entry["label"]: entry["usage"] for entry in (*entries, *peaks)}}
