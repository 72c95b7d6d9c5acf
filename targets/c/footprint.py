"""Flash and RAM that a model takes in firmware: measured where the cross compiler is, else estimated.

Flash is code and constants of the linked model with what it pulls in (64-bit division, memset); RAM is the arena and
the deepest stack of qc_NAME_run, both on a Cortex-M4 at -Os.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from qcompiler.targets.c.mcus import Mcu

CORE = "cortex-m4"
COMPILER = "arm-none-eabi-gcc"
_SIZE = ("-Os", "-std=c99", "-ffunction-sections", "-fdata-sections", "-fstack-usage")
FLAGS = (f"-mcpu={CORE}", "-mthumb", *_SIZE)
_SECONDS = 120
LIBRARY = 16
"""Bytes of stack of a function of libgcc or libc, which has few registers to save and no variables in memory."""
RATES = Path(__file__).with_name("rates.json")


@dataclass(frozen=True)
class Footprint:
    """Bytes, and how they were found: `measured` or `estimated`."""

    code: int
    constants: int
    arena: int
    stack: int
    how: str
    core: str = CORE
    state: int = 0
    """What is kept between two runs."""

    @property
    def flash(self) -> int:
        """Code and constants."""
        return self.code + self.constants

    @property
    def ram(self) -> int:
        """Arena, states and stack."""
        return self.arena + self.state + self.stack


# -- estimate ----------------------------------------------------------------------------------------------------------

_WORDS: Mapping[str, str] = {
    "statement": r";",
    "access": r"\[",
    "loop": r"\bfor \(",
    "branch": r"\bif \(|\?",
    "wide": r"int64_t",
    "helper": r"\bqc_\w+\(\(",
    "product": r" \* ",
    "division": r" / |%",
}
"""What the size of a kernel's code follows from: how often its text has each."""


@dataclass(frozen=True)
class Rates:
    """Bytes by feature, as benchmarks/mcu_rates.py fitted them to the figures of a compiler."""

    origin: str
    """Compiler, options, date."""
    code: Mapping[str, float]
    stack: Mapping[str, float]
    call: float
    """Code of one call in qc_NAME_run."""
    argument: float
    """Code of one argument there."""
    run: float
    """Stack of qc_NAME_run."""
    helpers: Mapping[str, int]
    """Code that the compiler pulls in by itself for a kind of kernel: 64-bit division, memset."""
    functions: Mapping[str, int]
    """Code of each function of templates/."""

    @classmethod
    def read(cls, path: Path = RATES) -> Rates:
        """From a JSON file."""
        stored = json.loads(path.read_text())
        return cls(**{one.name: stored[one.name] for one in fields(cls)})


def features(kernel: str) -> dict[str, int]:
    """Counts in the text of one kernel, and `one`."""
    return {"one": 1, **{name: len(re.findall(pattern, kernel)) for name, pattern in _WORDS.items()}}


def split_kernels(source: str) -> dict[str, str]:
    """Name -> text of every function."""
    parts = re.split(r"(?m)^(?=void )", source)
    return {match[1]: part for part in parts if (match := re.match(r"void (\w+)", part))}


def estimate(
    kernels: str, arguments: Sequence[int], arena: int, constants: int, rates: Rates, state: int = 0
) -> Footprint:
    """From the text of the kernels and how many arguments each call of qc_NAME_run passes."""
    texts = split_kernels(kernels)
    counted = [features(text) for text in texts.values()]
    code = sum(_weighted(counts, rates.code) for counts in counted)
    code += sum(rates.call + rates.argument * count for count in arguments)
    for kind, size in rates.helpers.items():
        if any(f"_{kind}_" in name for name in texts):
            code += size
    code += sum(size for name, size in rates.functions.items() if re.search(rf"\b{name}\(", kernels))
    stack = rates.run + max((_weighted(counts, rates.stack) for counts in counted), default=0.0)
    return Footprint(round(code), constants, arena, round(stack), "estimated", state=state)


def _weighted(counts: Mapping[str, int], rates: Mapping[str, float]) -> float:
    return sum(count * rates.get(name, 0.0) for name, count in counts.items())


# -- measurement -------------------------------------------------------------------------------------------------------


def measure(
    folder: Path, files: Sequence[str], name: str, arena: int, constants: int, mcu: Mcu | None = None, state: int = 0
) -> Footprint | None:
    """With the cross compiler, or None where there is none (or it fails). files: under folder/src. mcu: in place of a
    Cortex-M4. state: bytes kept between two runs."""
    name_of, flags, link = (mcu.compiler, (*mcu.flags, *_SIZE), mcu.link) if mcu else (COMPILER, FLAGS, ())
    compiler = shutil.which(name_of)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as work:
        objects = []
        calls = CallGraph()
        for file in files:
            output = Path(work) / f"{file}.o"
            source = folder / "src" / file
            command = [compiler, *flags, *link, "-fcallgraph-info=su", "-I", str(source.parent), "-c", str(source)]
            if not _works([*command, "-o", str(output)]):
                return None
            objects.append(str(output))
            if output.with_suffix(".ci").exists():  # an assembler file has none
                calls.read(output.with_suffix(".ci"))
        image = Path(work) / "image"
        run, init = f"qc_{name}_run", f"qc_{name}_init"
        roots = f"-Wl,-e,{run},-u,{run},-u,{init}{f',-u,qc_{name}_reset' if state else ''}"
        keep = ["-nostartfiles", "-Wl,--gc-sections", roots, "-Wl,--no-warn-rwx-segments"]
        # -nostartfiles: no start-up code, yet libgcc and libc for what the compiler itself calls.
        if not _works([compiler, *flags, *link, *objects, *keep, "-o", str(image)]):
            return None
        listing = subprocess.run([f"{compiler.removesuffix('gcc')}size", str(image)], capture_output=True, text=True)
        text, data, _ = map(int, listing.stdout.splitlines()[1].split()[:3])
    stack = calls.deepest(run)
    return Footprint(text + data - constants, constants, arena, stack, "measured", mcu.name if mcu else CORE, state)


@dataclass
class CallGraph:
    """Who calls whom, and the frame of each, as -fcallgraph-info=su writes them."""

    frames: dict[str, int] = field(default_factory=dict)
    calls: dict[str, set[str]] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        """Add a file of one compilation."""
        text = path.read_text()
        for title, size in re.findall(r'node: \{ title: "([^"]+)" label: "[^"]*?(\d+) bytes', text):
            self.frames[title] = int(size)
        for source, target in re.findall(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', text):
            self.calls.setdefault(source, set()).add(target)

    def deepest(self, name: str) -> int:
        """Bytes of the deepest chain of frames that begins at a function; there is no recursion. What a compiler
        brings along (division of 64 bits, memset) is not known and taken for LIBRARY."""
        own = self.frames.get(name, LIBRARY)
        return own + max(map(self.deepest, self.calls.get(name, ())), default=0)


def frames(path: Path) -> dict[str, int]:
    """Function -> bytes of its frame, from what -fstack-usage writes."""
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return {place.rpartition(":")[2]: int(size) for place, size, _ in rows}


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
