"""The measurement behind `qcompile calibrate-costs`: kernels of every class, at several sizes and widths.

Sizes are drawn once, from a fixed seed, out of those that networks have; a batch of them is one program, so all its
kernels are interleaved, and small enough to be about as warm in the caches as a network's neighbours are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from math import prod
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from qcompiler.bundle import Bundle, manifest_of, write_bundle
from qcompiler.cost import Widths, Work, stored_bytes, value_bytes
from qcompiler.errors import RecipeError
from qcompiler.targets.cpu.build import build
from qcompiler.targets.cpu.isa import LEVELS
from qcompiler.targets.cpu.loads import load_of
from qcompiler.targets.cpu.locality import far_bytes
from qcompiler.targets.cpu.profile import profile
from qcompiler.targets.cpu.table import Table
from qcompiler.targets.shared.lower import lower
from qcompiler.targets.shared.machine import Machine
from qcompiler.targets.shared.sample import Sample

ROUNDS = 101
MACS, ELEMENTS, WEIGHTS = 30_000_000, 500_000, 1_000_000
"""Bounds of one sample, except for the first few of each convolution."""
LARGE, LARGER = 10, 24
"""How many of these are larger than MACS, and by what factor at most."""
BATCH = 600_000
"""Bytes of weights and values of a batch, about."""
_SIDES = (1, 2, 4, 7, 8, 12, 14, 16, 28, 32, 56, 96, 112, 128, 224)
_CHANNELS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 1280)


def _attributes(**values: object) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(values.items()))


def _conv(rng: np.random.Generator, kernel: int) -> Work:
    side, stride = int(rng.choice(_SIDES[3 if kernel > 1 else 0 :])), 1 if kernel == 1 or rng.random() < 0.7 else 2
    c, m = int(rng.choice((1, 3, *_CHANNELS) if kernel > 1 else _CHANNELS)), int(rng.choice(_CHANNELS))
    out = (side - 1) // stride + 1
    more = _attributes(pads=(kernel // 2,) * 4, strides=(stride, stride))
    shape = (m, c, kernel, kernel)
    return Work("conv", "Conv", ((1, c, side, side),), (1, m, out, out), shape, more, m * c * (out * kernel) ** 2)


def _boundary(rng: np.random.Generator) -> Work:
    """A first layer: its input, a picture of one or three channels, is turned into codes with channels last."""
    c, side, m = (int(rng.choice(a)) for a in ((1, 3, 3), (28, 32, 48, 96, 112, 128, 160, 192, 224, 256), (8, 16, 32)))
    out = (side - 1) // 2 + 1
    more, shape = _attributes(pads=(1, 1, 1, 1), strides=(2, 2)), (m, c, 3, 3)
    return Work("conv", "Conv", ((1, c, side, side),), (1, m, out, out), shape, more, m * c * (out * 3) ** 2)


def _depthwise(rng: np.random.Generator) -> Work:
    side, c, stride = int(rng.choice(_SIDES[2:])), int(rng.choice(_CHANNELS)), int(rng.integers(1, 3))
    kernel = 3 if rng.random() < 0.75 else 5
    out = (side - 1) // stride + 1
    more = _attributes(pads=(kernel // 2,) * 4, strides=(stride, stride), group=c)
    shape = (c, 1, kernel, kernel)
    return Work("conv", "Conv", ((1, c, side, side),), (1, c, out, out), shape, more, c * (out * kernel) ** 2)


def _dense(rng: np.random.Generator) -> Work:
    rows, k, n = (int(rng.choice(a)) for a in ((1, 1, 4, 17, 64, 197), _CHANNELS, (10, *_CHANNELS)))
    return Work("dense", "MatMul", ((rows, k),), (rows, n), (k, n), (), rows * k * n)


def _matmul(rng: np.random.Generator) -> Work:
    batch, t, d = (int(rng.choice(a)) for a in ((1, 2, 4, 8, 12), (8, 17, 50, 65, 128, 197), (8, 16, 32, 64)))
    k, n = (d, t) if rng.random() < 0.5 else (t, d)
    return Work("matmul", "MatMul", ((batch, t, k), (batch, k, n)), (batch, t, n), (), (), batch * t * k * n)


def _image(rng: np.random.Generator) -> tuple[int, ...]:
    side, c = int(rng.choice(_SIDES[1:])), int(rng.choice(_CHANNELS))
    return 1, c, side, side


def _pointwise(rng: np.random.Generator) -> Work:
    x, kind = _image(rng), str(rng.choice(["add", "mul", "gate", "activation"]))
    if kind == "activation":
        return Work(kind, "Sigmoid", (x,), x)
    other = (1, x[1], 1, 1) if kind == "gate" else x
    return Work("add" if kind == "add" else "mul", kind, (x, other), x)


def _rows(rng: np.random.Generator, kind: str, op_type: str) -> Work:
    x = int(rng.choice((1, 8, 17, 65, 197, 768, 2048))), int(rng.choice((10, 17, 32, 48, 64, 128, 197, 256, 384, 768)))
    return Work(kind, op_type, (x,), x)


def _pool(rng: np.random.Generator) -> Work:
    (_, c, side, _), kernel = _image(rng), int(rng.integers(2, 4))
    pads = ((kernel - 1) // 2,) * 2 + (kernel // 2,) * 2
    more = _attributes(kernel_shape=(kernel, kernel), strides=(2, 2), pads=pads)
    kind = str(rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool"]))
    if kind == "GlobalAveragePool":
        return Work("mean", kind, ((1, c, side, side),), (1, c, 1, 1))
    out = (side + (kernel - 1) // 2 + kernel // 2 - kernel) // 2 + 1
    return Work("pool", kind, ((1, c, side, side),), (1, c, out, out), (), more)


def _layout(rng: np.random.Generator) -> Work:
    """Heads of attention, and every other order of a tensor's dimensions that networks have."""
    t, heads, d = (int(rng.choice(a)) for a in ((8, 17, 50, 65, 128, 197), (1, 2, 4, 8, 12), (8, 16, 32, 64)))
    perm = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 1, 3, 2))[int(rng.integers(3))]
    x = (1, t, heads, d)
    more = _attributes(perm=perm)
    return Work("move", "Transpose", (x,), tuple(x[p] for p in perm), (), more)


def _move(rng: np.random.Generator) -> Work:
    x, twice = _image(rng), rng.random() < 0.5
    if twice:
        return Work("move", "Resize", (x,), (*x[:2], 2 * x[2], 2 * x[3]))
    return Work("move", "Concat", (x,), x)


CLASSES: dict[str, tuple[Callable[[np.random.Generator], Work], int]] = {
    "boundary": (_boundary, 16),
    "conv3x3": (lambda rng: _conv(rng, 3), 40),
    "conv1x1": (lambda rng: _conv(rng, 1), 48),
    "depthwise": (_depthwise, 40),
    "dense": (_dense, 48),
    "matmul": (_matmul, 24),
    "pointwise": (_pointwise, 60),
    "softmax": (lambda rng: _rows(rng, "softmax", "Softmax"), 24),
    "norm": (lambda rng: _rows(rng, "norm", "LayerNormalization"), 16),
    "pool": (_pool, 24),
    "movement": (_move, 20),
    "layout": (_layout, 24),
}
"""Name -> (what draws a work, how many at each width)."""


def widths_of(level: str, name: str) -> list[tuple[int, int, int]]:
    """Bits of weights, of what is read and of what is written that have kernels of their own, and of each a
    representative."""
    if name == "boundary":
        return [(8, 8, 8), (8, 16, 16)]
    if name in ("softmax", "norm"):
        return [(8, 8, 8), (8, 16, 16), (8, 16, 8)]
    if name not in ("conv3x3", "conv1x1", "dense") or LEVELS[level].vnni:
        return [(8, 8, 8), (4, 16, 16)]
    # Chains of 16-bit sums by the reach of weights.
    return [(bits, 8, 8) for bits in (8, 7, 6, 5, 4)] + [(4, 16, 16)]


def works(level: str, classes: Sequence[str], scale: float) -> list[tuple[str, Work, Widths, bool]]:
    """(class, work, widths, whether 16-bit codes are centred). scale: share of the samples."""
    found = []
    for name in classes:
        draw, count = CLASSES[name]
        for weight, activation, output in widths_of(level, name):
            rng = np.random.default_rng(abs(hash_of(name)) + activation)
            slow = activation > 8 and name in ("boundary", "conv3x3", "conv1x1", "dense", "matmul", "depthwise")
            kept = 0
            while kept < max(2, round(count * scale * (0.5 if slow else 1))):
                work = draw(rng)
                larger = LARGER if name in ("conv3x3", "conv1x1") and kept < LARGE and not slow else 1
                if not _small(work, slow, larger):
                    continue
                widths = Widths(weight if work.weight else None, (activation,) * len(work.inputs), output)
                found.append((name, work, widths, True))
                if slow and name != "matmul":
                    found.append((name, work, widths, False))
                kept += 1
    return found


def hash_of(name: str) -> int:
    """A seed from a name."""
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31


def _small(work: Work, slow: bool, larger: int) -> bool:
    elements = sum(map(prod, work.inputs)) + prod(work.output)
    least = MACS if larger > 1 else 0
    fits = least <= work.macs <= larger * MACS // (4 if slow else 1)
    return fits and elements <= min(larger, 6) * ELEMENTS and prod(work.weight or (0,)) <= WEIGHTS


def _batches(found: Sequence[tuple[str, Work, Widths, bool]]) -> Iterator[list[tuple[Work, Widths, bool]]]:
    """Of about equal memory, and of one kind of zero points."""
    batch: list[tuple[Work, Widths, bool]] = []
    size = 0
    for _, work, widths, centred in sorted(found, key=lambda entry: entry[3]):
        more = value_bytes(work, widths) + prod(work.weight or (0,)) * stored_bytes(widths.weight or 8)
        if batch and (size + more > BATCH or batch[-1][2] != centred):
            yield batch
            batch, size = [], 0
        batch.append((work, widths, centred))
        size += more
    if batch:
        yield batch


def calibrate(
    level: str,
    threads: int = 1,
    classes: Sequence[str] = (),
    *,
    device: str,
    scale: float = 1.0,
    rounds: int = ROUNDS,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Table:
    """Measure this machine. classes: of CLASSES, by default all; scale: share of the samples.

    Raises RecipeError for unknown classes, levels and thread counts, UnsupportedError without a C compiler.
    """
    if unknown := [name for name in classes if name not in CLASSES]:
        raise RecipeError(f"`{unknown[0]}` is no class.", where="--classes", hint=f"Known: {', '.join(CLASSES)}.")
    if threads < 1:
        raise RecipeError(f"{threads} threads cannot run anything.", where="--threads", hint="Give 1 or more.")
    machine = LEVELS[level]
    batches = list(_batches(works(level, classes or tuple(CLASSES), scale)))
    near = threads * near_bytes()
    far_ns = _far_ns(machine, threads, rounds, near)
    kernels: dict[str, dict[tuple[int, ...], list[float]]] = {}
    for done, batch in enumerate(batches):
        progress("measure", done, len(batches))
        sample = Sample(centred=batch[0][2])
        for work, widths, _ in batch:
            sample.add(work, widths)
        program = lower(sample.graph, machine)
        times = profile(program, threads, rounds)
        for call, ns, far in zip(program.calls, times, far_bytes(program, near), strict=True):
            load = load_of(call, machine)
            ns = max(ns - far * far_ns, ns / 2)  # as if all were near
            kernels.setdefault(load.kernel, {}).setdefault(load.size, []).append(ns / load.count)
    rows = {
        key: [[*size, round(median(times), 2)] for size, times in sorted(found.items())]
        for key, found in kernels.items()
    }
    progress("measure", len(batches), len(batches))
    today = date.today().isoformat()
    return Table(device, today, level, threads, _inference(level, threads), rows, "", near, far_ns)


def near_bytes() -> int:
    """Bytes of a core's own second-level cache; 0 where the system does not tell."""
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (cache / "level").read_text().strip() == "2":
                return int((cache / "size").read_text().strip().removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return 0


def _far_ns(machine: Machine, threads: int, rounds: int, near: int) -> float:
    """Nanoseconds that a byte from beyond the near cache adds: products whose weights fill it four times, against one
    whose weights stay."""
    if not near:
        return 0.0
    side = 1 << (near.bit_length() // 2 - 1)  # a matrix of a quarter of it
    work = Work("dense", "MatMul", ((1, side),), (1, side), (side, side), (), side * side)
    times = []
    for count in (1, 16):
        sample = Sample()
        for _ in range(count):
            sample.add(work, Widths(8, (8,), 8))
        program = lower(sample.graph, machine)
        found = [
            ns for call, ns in zip(program.calls, profile(program, threads, rounds), strict=True)
            if type(call.spec).__name__ == "Matrix"
        ]  # fmt: skip
        times.append(median(found))
    return round(max(0.0, float(times[1] - times[0])) / (side * side), 6)


def _inference(level: str, threads: int) -> float:
    """Nanoseconds of one call of the runtime beside its kernels: of a bundle that does next to nothing."""
    sample = Sample()
    sample.add(Work("activation", "Sigmoid", ((1, 16),), (1, 16)), Widths(None, (8,), 8))
    lowered = build(sample.graph, {"cpu": level}, lambda stage, done, total: None)
    files = {**lowered.files}
    manifest = manifest_of("cpu", "float", sample.graph, files, lowered.manifest, lowered.sizes)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        bundle: Bundle = write_bundle(Path(folder) / "bundle", files, manifest, overwrite=True)
        with bundle.load(threads=threads) as session:
            given = {str(v.name): np.zeros(sample.graph.shape(v), np.float32) for v in sample.graph.inputs}
            times = []
            for _ in range(500):
                start = perf_counter()
                session.run(given)
                times.append(perf_counter() - start)
    return round(1e9 * median(times), 1)
