"""Rules of a recipe: tables that match nodes and give them formats or range methods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qcompiler.calibrate.ranges import METHODS, WEIGHTED_METHODS
from qcompiler.errors import RecipeError
from qcompiler.formats import Blocks, Int, Log, Minifloat, parse_format

RULE_KEYS = ("match", "op_type", "weight", "activation", "method")


def checked_rule(rule: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A rule with its pattern compiled. Raises RecipeError for an unknown key, format, method or pattern."""
    where = f"rule {index + 1}"
    unknown = sorted(set(rule) - set(RULE_KEYS))
    if unknown:
        raise RecipeError(f"no key `{unknown[0]}`.", where=where, hint=f"Keys are {', '.join(RULE_KEYS)}.")
    if not {"match", "op_type"} & set(rule):
        raise RecipeError("it matches nothing.", where=where, hint="Give `match` or `op_type`.")
    for key in ("weight", "activation"):
        fmt = parse_format(rule[key]) if key in rule else Int(8)
        unsigned = isinstance(fmt, Minifloat) and not fmt.signed
        if isinstance(fmt, Log) or (unsigned if key == "weight" else isinstance(fmt, Blocks)):
            raise RecipeError(f"`{rule[key]}` is no format of `{key}`.", where=where, hint="Take int8 or e2m1, say.")
    methods = (*METHODS, *WEIGHTED_METHODS)
    if rule.get("method", "minmax") not in methods:
        raise RecipeError(f"`{rule['method']}` is no range method.", where=where, hint=f"Known: {', '.join(methods)}.")
    checked = dict(rule)
    checked["match"] = compiled(rule.get("match", ""), where)
    return checked


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A regular expression. Raises RecipeError."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"`{pattern}` is not a regular expression ({error}).", where=where) from error
