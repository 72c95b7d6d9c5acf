"""Recipes: which passes run, with which options, as TOML.

    [recipe]
    name = "default"
    passes = ["canonicalize", "fold_batchnorm", "calibrate", "decide", "set_ranges", "insert_qdq", "integerize"]

    [quantize]                  # options of the pass `decide`
    precision = "w8a8"
    exclude = ["head"]

    [pass.set_ranges]           # options of any pass
    method = "percentile"

    [[rule]]                    # the last rule that matches a node wins
    match = "layer3"
    weight = "int4"

A recipe may start from another: `base = "default"`, `drop = ["bias_correction"]` and, in the table `[recipe.after]`,
`insert_qdq = ["solve_weights"]` (passes to run behind one of the base's).

Everything is checked before any work is done: names of passes and options, types of values, that each pass gets the
stage of graph that it wants, and what the passes say of each other: a pass may have `AFTER` (passes that must run
before it, if they run at all) and `EXCLUDES` (passes that cannot run with it), both name -> reason. `FITS = True` says
that a pass fits its samples so closely that quality must be measured on others.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from qcompiler.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).resolve().parent / "recipes"
DECIDE = "decide"
"""The pass whose options are the table `[quantize]`, and its `rules` the tables `[[rule]]`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe. `quantize` and `options` hold only what differs from the passes' defaults."""

    name: str
    passes: tuple[str, ...]
    quantize: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)

    def override(self, options: Mapping[str, Any]) -> Recipe:
        """A copy with other options: keys of `[quantize]`, `pass.key` for any pass, or `rules`.

        Values that are None are left as they were. Raises RecipeError.
        """
        quantize, passes, rules = dict(self.quantize), {k: dict(v) for k, v in self.options.items()}, self.rules
        for key, value in options.items():
            if value is None:
                continue
            name, dot, option = key.partition(".")
            if dot:
                passes.setdefault(name, {})[option] = value
            elif key == "rules":
                rules = (*rules, *value)
            else:
                quantize[key] = value
        return dataclasses.replace(self, quantize=quantize, options=passes, rules=rules)

    def only(self, passes: Sequence[str]) -> Recipe:
        """A copy with these passes alone, and the options of these."""
        kept = {name: given for name, given in self.options.items() if name in passes}
        return dataclasses.replace(self, passes=tuple(passes), options=kept)

    def until(self, name: str) -> Recipe:
        """A copy that ends with this pass. Raises RecipeError where it does not run it."""
        if name not in self.passes:
            raise RecipeError(f"it does not run {name}.", where=f"recipe `{self.name}`", hint="Add it behind decide.")
        return self.only(self.passes[: self.passes.index(name) + 1])

    def options_of(self, name: str, **extra: Any) -> Any:
        """The Options of a pass; `extra` are used where the pass has such a key and the recipe does not set it."""
        module = pass_module(name)
        known = {f.name for f in dataclasses.fields(module.Options)}
        given = dict(self.options.get(name, {}))
        if name == DECIDE:
            given = {**self.quantize, **given}
            if self.rules:
                given["rules"] = self.rules
        for key, value in extra.items():
            if key in known and value is not None:
                given.setdefault(key, value)
        return module.Options(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()})

    def to_toml(self) -> str:
        """TOML text that `parse_recipe` reads back to an equal recipe."""
        lines = ["[recipe]", f"name = {_toml(self.name)}", "passes = ["]
        lines += [f"    {_toml(name)}," for name in self.passes] + ["]"]
        tables = [("[quantize]", self.quantize)]
        tables += [(f"[pass.{name}]", table) for name, table in sorted(self.options.items())]
        tables += [("[[rule]]", rule) for rule in self.rules]
        for header, table in tables:
            if table:
                lines += ["", header] + [f"{key} = {_toml(value)}" for key, value in table.items()]
        return "\n".join(lines) + "\n"


def presets() -> list[str]:
    """Names of the recipes that come with qcompiler."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_recipe(source: str | Path | Recipe) -> Recipe:
    """A recipe by preset name or from a .toml file. Raises RecipeError."""
    if isinstance(source, Recipe):
        return source
    path = PRESETS / f"{source}.toml" if str(source) in presets() else Path(source)
    if not path.is_file():
        hint = _nearest(str(source), presets())
        raise RecipeError(
            f"there is no recipe `{source}`.", hint=f"{hint}Presets are {', '.join(presets())}; or give a .toml file."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"not readable ({error}).", where=str(path)) from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """A recipe from TOML text. Raises RecipeError with the line of a syntax error, or the name of a wrong key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"not TOML: {error}.", where=where) from error
    _known(document, ("recipe", "quantize", "pass", "rule"), "table", where)
    head = document.get("recipe", {})
    _known(head, ("name", "passes", "base", "drop", "after"), "key", f"{where} [recipe]")
    base = load_recipe(head["base"]) if "base" in head else None
    if "passes" not in head and base is None:
        raise RecipeError("it lists no passes.", where=where, hint='Give `passes = [...]` or `base = "default"`.')
    options = {**(base.options if base else {}), **document.get("pass", {})}
    for name, table in options.items():
        if not isinstance(table, Mapping):
            raise RecipeError(f"`{name}` must be a table.", where=f"{where} [pass]", hint=f"Write [pass.{name}].")
    return Recipe(
        name=str(head.get("name", Path(where).stem)),
        passes=_edited(head, base, where),
        quantize={**(base.quantize if base else {}), **document.get("quantize", {})},
        rules=(*(base.rules if base else ()), *document.get("rule", ())),
        options=options,
    )


def _edited(head: Mapping[str, Any], base: Recipe | None, where: str) -> tuple[str, ...]:
    """The passes that `[recipe]` lists, or those of its base without `drop` and with what `after` puts behind them."""
    passes = list(head.get("passes", base.passes if base else ()))
    for name in head.get("drop", ()):
        if name not in passes:
            raise RecipeError(f"`drop` names `{name}`, which does not run.", where=where, hint=_nearest(name, passes))
        passes.remove(name)
    for name, added in head.get("after", {}).items():
        if name not in passes or not isinstance(added, list):
            hint = f"{_nearest(name, passes)}Write `insert_qdq = [\"solve_weights\"]` under [recipe.after]."
            raise RecipeError(f"`after` cannot put passes behind `{name}`.", where=where, hint=hint)
        at = passes.index(name) + 1
        passes[at:at] = added
    return tuple(passes)


def pass_names() -> list[str]:
    """Names of all passes: the modules in `passes/`, less packages without a `run`, which are parts of passes."""
    package = import_module("qcompiler.passes")
    found = [module for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    return sorted(
        module.name
        for module in found
        if not module.ispkg or hasattr(import_module(f"qcompiler.passes.{module.name}"), "run")
    )


def pass_module(name: str) -> ModuleType:
    """The module of a pass. Raises RecipeError when there is none, with the nearest name."""
    names = pass_names()
    if name not in names:
        raise RecipeError(f"there is no pass `{name}`.", hint=f"{_nearest(name, names)}Passes are {', '.join(names)}.")
    return import_module(f"qcompiler.passes.{name}")


def check(recipe: Recipe) -> None:
    """Check names, types and the sequence of stages. Raises RecipeError."""
    where = f"recipe `{recipe.name}`"
    if not all(isinstance(name, str) for name in recipe.passes) or not recipe.passes:
        raise RecipeError("`passes` must be a list of names.", where=where)
    for name in (*recipe.passes, *recipe.options):
        pass_module(name)
    unused = sorted(set(recipe.options) - set(recipe.passes))
    if unused:
        raise RecipeError(f"it has options for `{unused[0]}`, which it does not run.", where=where)
    tables = [(f"pass.{name}", name, table) for name, table in recipe.options.items()]
    tables.append(("quantize", DECIDE, recipe.quantize))
    for title, name, table in tables:
        _check_options(table, pass_module(name).Options, f"{where} [{title}]", hidden=("rules",))
    stage = None
    for name in recipe.passes:
        wants, gives = pass_module(name).STAGE
        stage = type(wants).FLOAT if stage is None else stage
        if wants != stage:
            raise RecipeError(
                f"the pass `{name}` works on a {wants.name} graph, but gets a {stage.name} graph there.",
                where=where,
                hint="insert_qdq makes a QDQ graph of a FLOAT graph, integerize an INTEGER graph of a QDQ graph.",
            )
        stage = gives
    _check_company(recipe, where)


def _check_company(recipe: Recipe, where: str) -> None:
    """What passes say of each other."""
    for i, name in enumerate(recipe.passes):
        module = pass_module(name)
        for other, why in getattr(module, "AFTER", {}).items():
            if other in recipe.passes[i:]:
                raise RecipeError(f"`{name}` must run behind `{other}`: {why}.", where=where)
        for other, why in getattr(module, "EXCLUDES", {}).items():
            if other in recipe.passes:
                hint = "Drop one of them."
                raise RecipeError(f"`{name}` and `{other}` cannot both run: {why}.", where=where, hint=hint)


def _check_options(table: Mapping[str, Any], options: type, where: str, hidden: Iterable[str] = ()) -> None:
    fields = {f.name: f for f in dataclasses.fields(options) if f.name not in hidden}
    _known(table, tuple(fields), "option", where)
    for key, value in table.items():
        default = fields[key].default
        if default is dataclasses.MISSING or default is None:
            continue
        wanted: tuple[type, ...] = (type(default),)
        if isinstance(default, float):
            wanted = (float, int)
        elif isinstance(default, tuple):
            wanted = (list, tuple)
        good = isinstance(value, wanted) and (isinstance(default, bool) or not isinstance(value, bool))
        if not good:
            kind = {"tuple": "list", "str": "string"}.get(type(default).__name__, type(default).__name__)
            raise RecipeError(f"`{key}` must be a {kind}, not {value!r}.", where=where)


def _known(table: Any, names: tuple[str, ...], what: str, where: str) -> None:
    if not isinstance(table, Mapping):
        raise RecipeError("must be a table.", where=where)
    for key in table:
        if key not in names:
            listed = f"Known: {', '.join(names)}." if names else "It has none."
            raise RecipeError(f"there is no {what} `{key}`.", where=where, hint=f"{_nearest(key, names)}{listed}")


def _nearest(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"Did you mean `{found[0]}`? " if found else ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings take JSON's escapes, except that DEL must be escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ("nan" if math.isnan(value) else f"{value:f}")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    raise RecipeError(f"a recipe cannot hold {value!r}.")
