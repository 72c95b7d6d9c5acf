"""Which register tile a product gets: a small analytic rule, no tuning."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.tir.matrix import Matrix

_LATENCY = 10
"""Independent accumulations that keep two multiply units busy."""
_EPILOGUE = 5
"""Work of requantizing one vector, in accumulation steps."""


def choose_tile(spec: Matrix, machine: Machine) -> Matrix:
    """The tile (pixels x vectors) with the least estimated work that spills no register.

    A step costs its multiplies or its loads, whichever is more, and at least the latency of one multiply.
    """
    if spec.dot.kind == "across":  # eight sums fill the scalar registers
        return _split_rows(replace(spec, tile=min(2, spec.pixels), vectors=1))
    vectors_needed = -(-spec.channels // machine.lanes)
    steps = spec.steps
    for extent, _ in spec.taps:
        steps *= extent
    best: tuple[float, int, int] | None = None
    for vectors in range(1, min(vectors_needed, 12) + 1):
        for tile in range(1, min(spec.pixels, 16) + 1):
            if _registers(spec, tile, vectors) > machine.registers:
                continue
            cost = 0.0
            for v, blocks in ((vectors, vectors_needed // vectors), (vectors_needed % vectors, 1)):
                for t, tiles in ((tile, spec.pixels // tile), (spec.pixels % tile, 1)):
                    if v and t:
                        step = max(t * v * _work(spec), t + v, _LATENCY if spec.dot.kind == "vnni" else 6)
                        cost += blocks * tiles * (steps * step + t * v * _EPILOGUE + 12)
            if best is None or cost < best[0]:
                best = cost, tile, vectors
    assert best is not None
    spec = replace(spec, tile=best[1], vectors=best[2])
    return _split_rows(spec)


def _work(spec: Matrix) -> float:
    """Instructions of one accumulation."""
    return {"vnni": 1.0, "madd_u8s8": 1.0 + 2.0 / spec.dot.chain, "madd_s16": 2.0}.get(spec.dot.kind, 3.0)


def _registers(spec: Matrix, tile: int, vectors: int) -> int:
    """Vectors alive in the inner loop."""
    chained = spec.dot.kind == "madd_u8s8"
    weights = vectors * (spec.dot.chain if chained else 1) if tile > 1 else 1
    wide = 2 if spec.dot.kind == "wide" else 1
    return (
        tile * vectors * wide
        + min(weights, 6)
        + (3 if chained else 1)
        + (2 if spec.dot.kind in ("plain", "wide") else 0)
    )


def _split_rows(spec: Matrix) -> Matrix:
    """Cut one long row into rows of whole tiles, so that threads have something to share."""
    if spec.rows or spec.pixels < 4 * spec.tile:
        return spec
    tiles = spec.pixels // spec.tile
    if spec.pixels % spec.tile:
        return spec
    for count in (4, 3, 2, 1):
        if tiles % count == 0 and tiles // count > 1:
            pixels = spec.tile * count
            row = (tiles // count, pixels * spec.pixel_x, pixels * spec.pixel_y)
            return replace(spec, rows=(row,), pixels=pixels)
    return spec


def choose_depthwise_tile(pixels: int, width: int, machine: Machine) -> int:
    """Output pixels of a depthwise tile: as many as registers hold beside the weights, few left over."""
    most = min(pixels, 8 if machine.registers > 16 else 4)
    return min(range(max(1, most - 3), most + 1), key=lambda t: (-(-pixels // t) + (pixels % t > 0), -t))
