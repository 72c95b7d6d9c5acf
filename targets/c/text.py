"""From TVM's C text to ours: `const` and `restrict` in signatures, no prototypes, nothing unused."""

from __future__ import annotations

import re
from collections import Counter

_SIGNATURE = re.compile(r"(?m)^void (\w+)\(([^)]*)\)( \{|;)\n")
_PROTOTYPE = re.compile(r"(?m)^[a-z]\w* \w+\([^{}\n]*\);\n")
_DECLARED = re.compile(r"(?m)^ *(?:u?int\d+_t|bool) (v\d+|v_\w*) = [^;\n]*;\n")

WRITTEN = ("y", "places", "columns", "planes")
"""Pointer parameters that kernels write; they only read the others."""


_IN_PLACE = re.compile(r"_(add|multiply|lookup|rescale|planedepthwise)_\d+$")
"""Kernels whose output may lie on an input."""


def signature(name: str, parameters: str) -> str:
    """`void name(int32_t lo, int32_t hi, const uint8_t *restrict x, ...)`."""
    spelled = []
    alias = ("x", "a", "b", "y") if _IN_PLACE.search(name) else ()
    for parameter in parameters.split(", "):
        kind, _, variable = parameter.rpartition(" ")
        if not kind.endswith("*"):
            spelled.append(parameter)
            continue
        constant = "" if variable in WRITTEN else "const "
        restrict = "" if variable in alias else "restrict "
        spelled.append(f"{constant}{kind[:-1]} *{restrict}{variable}")
    return f"void {name}({', '.join(spelled)})"


def clean(source: str) -> tuple[str, list[str]]:
    """(definitions, prototypes) of TVM's text."""
    source = _PROTOTYPE.sub("", source)
    prototypes: list[str] = []

    def spell(match: re.Match[str]) -> str:
        line = signature(match[1], match[2])
        prototypes.append(f"{line};")
        return f"{line}{match[3]}\n"

    source = _SIGNATURE.sub(spell, source)
    functions = re.split(r"(?m)^(?=void )", source)
    return "".join(_without_unused(function) for function in functions).strip() + "\n", prototypes


def _without_unused(function: str) -> str:
    """Drop declarations that nothing reads, until none is left."""
    while True:
        counts = Counter(re.findall(r"\bv\d+\b|\bv_\w*", function))
        once = {word for word, count in counts.items() if count == 1}
        kept = "".join(
            line
            for line in function.splitlines(keepends=True)
            if (match := _DECLARED.fullmatch(line)) is None or match[1] not in once
        )
        if kept == function:
            return _use_bounds(function)
        function = kept


def _use_bounds(function: str) -> str:
    """Kernels with a single unit may not read `hi`."""
    body = function.partition("{\n")[2]
    unused = [name for name in ("lo", "hi") if body and not re.search(rf"\b{name}\b", body)]
    if not unused:
        return function
    head, brace, rest = function.partition("{\n")
    return head + brace + "".join(f"  (void){name};\n" for name in unused) + rest


def array(name: str, kind: str, values: list[int], attributes: str = "") -> str:
    """A `static const` array, 16 numbers a line. attributes: a macro in front."""
    lines = [", ".join(str(v) for v in values[i : i + 16]) for i in range(0, len(values), 16)]
    opening = f"{attributes} static const" if attributes else "static const"
    return f"{opening} {kind} {name}[{len(values)}] = {{\n  " + ",\n  ".join(lines) + "\n};\n"
