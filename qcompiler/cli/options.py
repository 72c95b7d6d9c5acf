"""Groups of options that several commands share, and how their texts are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from qcompiler.errors import RecipeError

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Texts = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]


@Parameter(name="*", group="Output")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    json: Flag = False
    "Print one JSON document on stdout and nothing else."
    quiet: Flag = False
    "No progress on stderr."
    debug: Flag = False
    "Show tracebacks."


@Parameter(name="*", group="Shapes")
@dataclass(frozen=True, kw_only=True)
class Shapes:
    """How dynamic dimensions are fixed."""

    shape: Texts = ()
    "Full shape of an input, as x=1,3,48,192; repeatable."
    dim: Texts = ()
    "Value of a named dimension, as batch=1; repeatable."

    constant: Texts = ()
    "Value that an input always has, as sr=16000; it is no input of the bundle; repeatable."

    def constants(self) -> dict[str, float]:
        """Input name -> value. Raises RecipeError."""
        found = {}
        for name, value in pairs(self.constant, "--constant sr=16000"):
            numbers = floats(value, f"--constant {name}")
            if len(numbers) != 1:
                raise RecipeError(f"`{value}` is not one number.", where=f"--constant {name}")
            found[name] = numbers[0]
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name -> shape. Raises RecipeError."""
        return {name: ints(value, f"--shape {name}") for name, value in pairs(self.shape, "--shape x=1,3,48,192")}

    def dims(self) -> dict[str, int]:
        """Dimension name -> value. Raises RecipeError."""
        found = {}
        for name, value in pairs(self.dim, "--dim batch=1"):
            sizes = ints(value, f"--dim {name}")
            if len(sizes) != 1:
                raise RecipeError(f"`{value}` is not one number.", where=f"--dim {name}", hint="Whole shapes: --shape.")
            found[name] = sizes[0]
        return found


@Parameter(name="*", group="State")
@dataclass(frozen=True, kw_only=True)
class State:
    """Outputs of one step that are inputs of the next: caches of attention, states of recurrent layers."""

    state: Texts = ()
    "OUTPUT=INPUT, or auto for pairs by naming (present_0 and past_0); kept inside the bundle; repeatable."
    position: str | None = None
    "Integer input that counts steps; default: one of one element that is named like it."

    def pairs(self) -> dict[str, str] | str | None:
        """Output name -> input name, "auto", or None. Raises RecipeError."""
        if self.state == ("auto",):
            return "auto"
        return dict(pairs(self.state, "--state present_0=past_0")) or None


@Parameter(name="*", group="Images")
@dataclass(frozen=True, kw_only=True)
class Images:
    """Preprocessing of images (folders, and arrays that hold images)."""

    resize: str | None = None
    "Short side, or height,width."
    crop: str | None = None
    "Centre crop: size, or height,width."
    scale: float | None = None
    "Factor on stored values, 0.00392157 for 0..255 to 0..1."
    mean: str | None = None
    "Per-channel mean after scaling, as 0.485,0.456,0.406."
    std: str | None = None
    "Per-channel standard deviation."
    layout: str | None = None
    "NCHW, NHWC or none."
    colour: str | None = None
    "RGB or BGR."

    def table(self) -> dict[str, Any] | None:
        """Keys that were given, or None."""
        found: dict[str, Any] = {}
        for key in ("resize", "crop"):
            if (text := getattr(self, key)) is not None:
                sizes = ints(text, f"--{key}")
                found[key] = sizes[0] if len(sizes) == 1 else sizes
        for key in ("mean", "std"):
            if (text := getattr(self, key)) is not None:
                found[key] = floats(text, f"--{key}")
        found |= {key: getattr(self, key) for key in ("scale", "layout", "colour") if getattr(self, key) is not None}
        return found or None


@Parameter(name="*", group="Firmware (target c)")
@dataclass(frozen=True, kw_only=True)
class Firmware:
    """What the sources for microcontrollers look like, and what they have to fit."""

    prefix: str | None = None
    "Name of the model in the sources: qc_PREFIX_run; default: model."
    arena: str | None = None
    "Working memory: static (default) or caller, who passes it to qc_PREFIX_run."
    states: str | None = None
    "What --state keeps: inside the sources (inside, the default) or inputs and outputs of qc_PREFIX_run (shown)."
    weights: str | None = None
    "Weights as C arrays (header, the default) or as a file of bytes in a section of its own (bin)."
    mcu: str | None = None
    "Core of project files and measured sizes: cortex-m0, -m4, -m7, -m33, -m55, rv32imac; default: generic."
    object: str | None = None
    "Kernels as an object file in place of C text: cortex-m4, -m7, -m33, -m55 (with vectors) or rv32imac."
    optimize_for: str | None = None
    "latency (the default), or memory: chains of convolutions are done in bands, for a smaller arena."
    pack: bool = False
    "Weights of 2 to 4 bits stay packed in flash."
    flash: str | None = None
    "Flash that the model may take, as 256KiB: code and constants."
    ram: str | None = None
    "RAM that the model may take, as 64KiB: arena and stack."

    def table(self) -> dict[str, str]:
        """Options that were given."""
        return {key: value for key, value in vars(self).items() if value}


@Parameter(name="*", group="Circuit (target fpga)")
@dataclass(frozen=True, kw_only=True)
class Circuit:
    """What the circuit has to fit, and how fast it has to be."""

    part: str | None = None
    "FPGA: xc7a35t, xc7a100t, xc7a200t, xc7z010, xc7z020 (the default), xc7z045, ecp5-25k, ecp5-45k, ecp5-85k."
    lut: int | None = None
    "LUTs that the circuit may take; default: all of the part's."
    bram: int | None = None
    "Block RAMs of 18 Kbit that it may take; default: all."
    dsp: int | None = None
    "Multiplier blocks that it may take; default: all; 0 puts products into LUTs."
    fps: float | None = None
    "Images a second at 100 MHz; default: as many as fit."
    exact_cost: bool = False
    "Count what yosys makes of the circuit, too: minutes."

    def table(self) -> dict[str, int | float | str]:
        """Options that were given."""
        return {key: value for key, value in vars(self).items() if value is not None and value is not False}


def pairs(items: tuple[str, ...], example: str) -> list[tuple[str, str]]:
    """NAME=VALUE texts, parted. Raises RecipeError that shows `example`."""
    pairs = []
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise RecipeError(f"`{item}` is not NAME=VALUE.", where=example.split()[0], hint=f"For example {example}.")
        pairs.append((name, value))
    return pairs


def ints(text: str, where: str) -> tuple[int, ...]:
    """Whole numbers separated by commas or x. Raises RecipeError."""
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise RecipeError(f"`{text}` is not a list of whole numbers.", where=where) from error


def floats(text: str, where: str) -> tuple[float, ...]:
    """Numbers separated by commas. Raises RecipeError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RecipeError(f"`{text}` is not a list of numbers.", where=where) from error
