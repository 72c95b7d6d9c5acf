"""Packed minifloats: every code comes back as its level, and firmware keeps 4 bits a weight."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qcompiler.context import Context
from qcompiler.formats import parse_format
from qcompiler.passes import integerize
from qcompiler.passes.integerize import Options
from qcompiler.targets.c.build import build
from qcompiler.targets.shared.pack import pack_bits
from qcompiler.targets.shared.tir.columns import PACKINGS
from tests import quantized
from tests.quantized import float_graph

TEMPLATES = Path(__file__).parents[2] / "targets" / "c" / "templates"


@pytest.mark.parametrize("token", ["e2m1", "e3m0"])
def test_every_code_beside_every_other(tmp_path: Path, token: str) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "four.c", tmp_path / "four.so"
    source.write_text(
        f'#include <stdint.h>\n#include "qc_dot.h"\n'
        f"uint32_t four(const uint8_t *w, int32_t step) {{ return qc_four_w{token}(w, step); }}\n"
    )
    flags = ["-std=c99", "-O2", "-shared", "-fPIC", "-I", str(TEMPLATES)]
    subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True)
    function = ctypes.CDLL(str(library)).four
    function.restype, function.argtypes = ctypes.c_uint32, (ctypes.c_char_p, ctypes.c_int32)
    fmt = parse_format(token)
    levels = fmt.decode(fmt.codes())
    # all pairs in the lower two places of a step, and each beside the next in the upper two
    pairs = np.stack(np.meshgrid(levels, levels), -1).reshape(-1, 2)
    rows = np.concatenate([pairs, np.roll(pairs, 1, 0)], 1)
    packed = pack_bits(rows.reshape(1, -1).astype(np.int8), token)
    assert packed.size == -(-rows.shape[0] // 2) * 4
    got = [function(packed.tobytes(), step) for step in range(len(rows))]
    unpacked = np.array(got, "<u4").view(np.int8).reshape(-1, 4)
    np.testing.assert_array_equal(unpacked, rows << PACKINGS[token].lift)


def test_firmware_keeps_four_bits_a_weight() -> None:
    rng = np.random.default_rng(0)
    graph = float_graph(
        "float[1,16,6,6] x => float[1,32,6,6] y", "h = Conv(x, w)  y = Conv(h, v)",
        w=rng.normal(0, 0.3, (32, 16, 1, 1)).astype(np.float32),
        v=rng.normal(0, 0.3, (32, 32, 1, 1)).astype(np.float32),
    )  # fmt: skip
    sizes = {}
    for precision in ("w4a8", "e2m1w-int8a", "e2m3w-int8a"):
        qdq = quantized.quantize(graph, precision=precision, keep_first_last=False)
        integers = integerize.run(qdq, Options(arithmetic="fixed"), Context())
        for pack in (False, True):
            lowered = build(integers, {"prefix": "n", "pack": pack}, lambda stage, done, total: None)
            sizes[precision, pack] = lowered.sizes["weight_bytes"]
    assert sizes["w4a8", True] == sizes["e2m1w-int8a", True] < sizes["e2m1w-int8a", False]
    assert sizes["e2m1w-int8a", False] - sizes["e2m1w-int8a", True] == (32 * 16 + 32 * 32) // 2
    assert sizes["e2m3w-int8a", True] == sizes["e2m3w-int8a", False]
