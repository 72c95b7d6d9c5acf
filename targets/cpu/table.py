"""Measured times of kernels, as data: loading, and interpolation between what was measured.

A file holds `device`, `date`, `level` (instruction set), `threads`, `inference_ns` (what one call of the runtime takes
beside its kernels), `memory` (`near_bytes`, of a core's own cache, and `far_ns`, what a byte from beyond it adds) and
`kernels`: key -> [[size..., ns], ...] with all operands near, sizes as in loads.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompilerError, RecipeError, UnsupportedError
from qcompiler.targets.cpu.loads import Load

SCHEMA = 1
FLOOR = 2.0
"""Nanoseconds that the call of a kernel takes at least."""


class Surface:
    """log(time) over log(size): a plane and linear radial functions that pass through all samples.

    samples: [n, d + 1], sizes and ns. Outside of what was measured it goes on nearly as the plane does, whose slopes
    lie in 0..1: no time falls with size, or grows faster; and nothing is done faster than the sample of the best rate
    (product of sizes over time).
    """

    def __init__(self, samples: NDArray[np.float64]) -> None:
        points, times = np.log(samples[:, :-1]), np.log(samples[:, -1])
        points, times = _merged(points, times)
        self.points = points
        self.least = (times - points.sum(axis=1)).min()
        design = np.column_stack([points, np.ones(len(points))])
        # A little weight on slope 1 decides where samples do not vary.
        d = points.shape[1]
        ridge = np.column_stack([np.eye(d), np.zeros(d)]) * 1e-2
        fit = np.linalg.lstsq(np.vstack([design, ridge]), np.concatenate([times, np.full(d, 1e-2)]), rcond=None)[0]
        slopes = np.clip(fit[:-1], 0.0, 1.0)
        self.plane = np.append(slopes, (times - points @ slopes).mean())
        rest = times - design @ self.plane
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        # exp(-distance / REACH): far from all samples nothing but the plane is left.
        self.weights = np.linalg.solve(np.exp(-distances / REACH) + NOISE * np.eye(len(points)), rest)

    def at(self, size: Sequence[float]) -> float:
        """Nanoseconds."""
        point = np.log(np.maximum(np.asarray(size, np.float64), 1.0))
        near = np.exp(-np.linalg.norm(self.points - point, axis=1) / REACH)
        found = point @ self.plane[:-1] + self.plane[-1] + near @ self.weights
        return float(np.exp(max(found, point.sum() + self.least)))


REACH = 3.0
"""How far in log(size) a sample's deviation from the plane is felt."""
NOISE = 0.02
"""Smoothing: samples are measurements."""


def _merged(points: NDArray, times: NDArray) -> tuple[NDArray, NDArray]:
    """Samples of one size as their mean."""
    unique, place = np.unique(points, axis=0, return_inverse=True)
    place = place.reshape(-1)
    return unique, np.bincount(place, times) / np.bincount(place)


@dataclass(frozen=True, eq=False)
class Table:
    """Measurements of one machine."""

    device: str
    date: str
    level: str
    threads: int
    inference_ns: float
    kernels: Mapping[str, Sequence[Sequence[float]]]
    path: str = ""
    near_bytes: int = 0
    """Of the caches of all threads' cores; 0 where it was not measured."""
    far_ns: float = 0.0
    """Nanoseconds for a byte from beyond."""
    _surfaces: dict[str, Surface] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path) -> Table:
        """From a file. Raises RecipeError when it is missing or damaged."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["schema"] != SCHEMA or stored["target"] != "cpu":
                raise ValueError(f"schema {stored['schema']} of target {stored['target']}")
            kernels = {
                str(key): [[float(n) for n in row] for row in rows] for key, rows in dict(stored["kernels"]).items()
            }
            if any(len({len(row) for row in rows}) != 1 or min(map(min, rows)) <= 0 for rows in kernels.values()):
                raise ValueError("rows of different lengths, or numbers that are not positive")
            facts = (str(stored["device"]), str(stored["date"]), str(stored["level"]), int(stored["threads"]))
            memory = dict(stored.get("memory", {}))
            far = (int(memory.get("near_bytes", 0)), float(memory.get("far_ns", 0)))
            return cls(*facts, float(stored["inference_ns"]), kernels, str(path), *far)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            text = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise RecipeError(
                f"it is no table of kernel times ({text}).",
                where=str(path),
                hint="Make one with `qcompile calibrate-costs`.",
            ) from error

    def document(self) -> dict[str, Any]:
        """For JSON."""
        facts = {"device": self.device, "date": self.date, "level": self.level, "threads": self.threads}
        kernels = {key: [[*map(int, row[:-1]), row[-1]] for row in rows] for key, rows in sorted(self.kernels.items())}
        memory = {"near_bytes": self.near_bytes, "far_ns": self.far_ns}
        rest = {"inference_ns": self.inference_ns, "memory": memory, "kernels": kernels}
        return {"schema": SCHEMA, "target": "cpu", **facts, **rest}

    def text(self) -> str:
        """The file: one line a kernel."""
        document = self.document()
        kernels = document.pop("kernels")
        rows = {key: json.dumps(found, separators=(",", ":")) for key, found in kernels.items()}
        lines = ",\n".join(f"  {json.dumps(key)}: {found}" for key, found in rows.items())
        head = "".join(f' "{key}": {json.dumps(value)},\n' for key, value in document.items())
        return f'{{\n{head} "kernels": {{\n{lines}\n }}\n}}\n'

    @cached_property
    def origin(self) -> str:
        """Where the numbers are from."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.device}, {self.level}, {threads}, {self.date}"

    def _key(self, load: Load) -> str:
        """Its kernel, or the one most like it that was measured: fixed requantization as float, strided as not, codes
        of two widths as those of the wider."""
        plain = load.kernel.removesuffix("/fixed").removesuffix("/strided")
        kind, _, widths = plain.partition("/")
        names = (load.kernel, plain, f"{kind}/{max(widths.split('-'))}")
        return next((name for name in names if name in self.kernels), load.kernel)

    def knows(self, load: Load) -> bool:
        """Whether the load's kernel was measured."""
        return self._key(load) in self.kernels

    def nanoseconds(self, load: Load, node: str = "") -> float:
        """Time of a load. Raises UnsupportedError for kernels that were not measured."""
        key = self._key(load)
        if key not in self.kernels:
            where = f" (node `{node}`)" if node else ""
            raise UnsupportedError(
                f"the table has no kernel `{load.kernel}`{where}.",
                where=self.path or self.origin,
                hint="Measure it with `qcompile calibrate-costs`, without --classes.",
            )
        if key not in self._surfaces:
            self._surfaces[key] = Surface(np.asarray(self.kernels[key], np.float64))
        surface = self._surfaces[key]
        if surface.points.shape[1] != len(load.size):
            raise QCompilerError(f"kernel `{key}` has sizes of another rank.", where=self.path or self.origin)
        return load.count * max(FLOOR, surface.at(load.size))
