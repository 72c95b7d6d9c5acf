"""What a precision says: `w4a8` in bits, `e2m1w-int8a` in formats."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qcompiler.errors import RecipeError, UnsupportedError
from qcompiler.formats import Blocks, Int, Minifloat, NumberFormat, parse_format
from qcompiler.graph.minifloats import carrier, no_carrier
from qcompiler.target import Capabilities

BITS = (2, 3, 4, 5, 6, 7, 8, 16)


def parse_formats(text: str) -> tuple[NumberFormat, NumberFormat]:
    """Formats of weights and of what products read: signed integers (whose sign `decide` settles) or minifloats.

    'w4a8' is 'int4w-int8a'. Weights may have block scales, or be integers without the lowest code (int4n). Raises
    RecipeError.
    """
    if match := re.fullmatch(r"w(\d+)a(\d+)", text.lower()):
        return _integers(match[1], text), _integers(match[2], text)
    match = re.fullmatch(r"([a-z\d]+)w-([a-z\d]+)a", text.lower())
    if match is None:
        raise _unknown(text)
    found: list[NumberFormat] = []
    for token in match.groups():
        bits = re.fullmatch(r"int(\d+)", token)
        try:
            fmt = _integers(bits[1], text) if bits else parse_format(token)
        except RecipeError as error:
            raise _unknown(text) from error
        known = isinstance(fmt, Minifloat) and fmt.signed or isinstance(fmt, Blocks) and not found
        known = known or isinstance(fmt, Int) and fmt.narrow and not found
        if not bits and not known:
            raise _unknown(text)
        found.append(fmt)
    return found[0], found[1]


def parse_precision(text: str) -> tuple[int, int]:
    """Bits of weights and activations: 'w4a8' -> (4, 8). Raises RecipeError."""
    weight, activation = parse_formats(text)
    return weight.bits, activation.bits


def weight_token(bits: int) -> str:
    """Format of weights of so many bits: narrow at 8, so that the accumulator of two products cannot saturate."""
    return "int8n" if bits == 8 else f"int{bits}"


def activation_token(bits: int, symmetric: bool = False) -> str:
    """Format of activations of so many bits."""
    return f"int{bits}" if symmetric else f"uint{bits}"


def without_sign(fmt: Minifloat) -> Minifloat:
    """The format for values that are never negative: the sign's bit goes to the mantissa. OCP's stay as they are."""
    return fmt if fmt.special != "none" or not fmt.signed else Minifloat(fmt.exponent, fmt.mantissa + 1, signed=False)


def check_minifloats(
    can: Capabilities | None, what: str, formats: Iterable[tuple[str, NumberFormat]], where: str
) -> None:
    """Raise UnsupportedError for a minifloat that the target, if there is one, lacks, and for weights in one that no
    file holds. what: weights or activations; formats: with the names of the values that have them."""
    for name, fmt in formats:
        if not isinstance(fmt, Minifloat | Blocks):
            continue
        if what == "weights" and isinstance(fmt, Minifloat) and carrier(fmt) is None:
            raise no_carrier(fmt, name or where)
        if can is None:
            continue
        offered = can.weight_minifloats if what == "weights" else can.activation_minifloats
        if fmt.token not in offered:
            of = f" (`{name}`)" if name else ""
            hint = f"It has {', '.join(offered)}." if offered else "It has integers alone."
            raise UnsupportedError(f"the target has no {what} in {fmt.token}{of}.", where=where, hint=hint)


def _integers(bits: str, text: str) -> Int:
    if int(bits) not in BITS:
        raise _unknown(text)
    return Int(int(bits))


def _unknown(text: str) -> RecipeError:
    return RecipeError(
        f"`{text}` is not a precision.",
        where="precision",
        hint="It looks like w8a8, with 2 to 8 or 16 bits each, or like e2m1w-int8a, with integers or minifloats.",
    )
