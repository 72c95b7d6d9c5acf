"""Kernels by themselves, for `benchmarks.gpu`: products of 4096^3 by every tile, and what the instructions can do.

A kernel of the list has pointers by role (x, y, w, bias, scale, table, line, or a size in bytes) and numbers, so that
the card's side needs no compiler: it fills x and w at random, and knows what y has to be.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from qcompiler.formats import parse_integers
from qcompiler.targets.cuda.cubin import compile_cubins
from qcompiler.targets.cuda.emit import TEMPLATES
from qcompiler.targets.cuda.machine import THREAD
from qcompiler.targets.cuda.tile import GROUPS, TILES
from qcompiler.targets.cuda.tir.epilogue import Codes, code_numbers
from qcompiler.targets.cuda.tir.product import Product
from qcompiler.targets.cuda.tir.staging import NUMBERS
from qcompiler.targets.cuda.tir.tile import Tile
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


def product_entry(tile: Tile, rows: int = SIDE, side: int = SIDE, bits: int = 8) -> tuple[Product, dict[str, Any]]:
    """A product of [rows, side] by [side, side] by one tile, and how it is launched. bits: of a weight in memory."""
    spec = Product("uint8", Codes("float", "uint8"), tile, 16, 16, True, bits=bits)
    launch = spec.launch(1, rows, side)
    values = dict.fromkeys(NUMBERS, 0) | {
        "pixels": rows, "channels": side, "tiles": side // tile.step, "y_pixel": side, "columns": rows,
        "positions": rows, "stride_y": 1, "stride_x": 1, "height": 1, "width": rows, "x_image": 0, "x_row": 0,
        "x_pixel": side, "x_group": side, "y_group": side, "w_group": side * side * bits // 8, "p_group": side,
    }  # fmt: skip
    codes = code_numbers(Requantize("float", parse_integers("uint8"), 0))
    kind = "wgmma" if tile.wgmma else "mma"
    label = (
        f"{kind} {tile.pixels}x{tile.channels}x{tile.step} by {tile.warp_pixels}x{tile.warp_channels}, {tile.stages}"
    )
    if rows != side:
        label = f"{rows} rows by {side}^2 weights of {bits} bits, {label}"
    return spec, {
        "kind": "product", "label": label, "rows": rows, "side": side, "bits": bits, "channels": tile.channels,
        "step": tile.step, "grid": list(launch.grid), "threads": launch.threads,
        "shared": launch.shared, "pointers": ["x", "y", "w", "bias", "scale", "table", "line"],
        "numbers": [*(values[name] for name in NUMBERS), *codes],
    }  # fmt: skip


THIN, WIDE = 16, 16384
"""Rows and weights [WIDE, WIDE] of products that wait for weights, which are more than the caches hold."""
THIN_TILES = (Tile(16, 64, 16, 16, 4), Tile(16, 64, 16, 16, 4, 128), Tile(16, 64, 16, 16, 6, 128),
              Tile(16, 64, 16, 16, 4, 256))  # fmt: skip
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

    entries, functions = [], {}
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
    newest = max(arch.split(","))
    newest = "sm_90a" if newest in ("sm_90", "90") else newest
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
