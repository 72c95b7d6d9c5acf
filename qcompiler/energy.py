"""Energy of an inference, for budgets: a cost model that prices products, bytes and instructions by a device's table.

The table is the user's, JSON in picojoules, since energy is known by measuring a board or from its data sheet:

    {"origin": "board X at 80 MHz, 1.8 V", "product": {"8x8": 1.9, "4x8": 1.1}, "weight_byte": 5.0, "value_byte": 2.5,
     "instruction": 0}

product: of one multiply-accumulate by weight and activation bits; a pair that it lacks costs what the cheapest pair
that is as wide in both does. weight_byte: of a byte of packed weights, read once an inference; value_byte: of a byte of
activations that a node reads or writes; instruction: of each, where the target counts them. What is left out is 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qcompiler.cost import BytesAndBops, Cost, CostModel, Products, Widths, Work, products_of, value_bytes
from qcompiler.errors import RecipeError
from qcompiler.graph.model import Graph

_KEYS = ("weight_byte", "value_byte", "instruction")


@dataclass(frozen=True)
class EnergyTable:
    """See above. product: (weight bits, activation bits) -> picojoules."""

    origin: str
    product: Mapping[tuple[int, int], float]
    weight_byte: float = 0.0
    value_byte: float = 0.0
    instruction: float = 0.0

    @classmethod
    def read(cls, path: str | Path) -> EnergyTable:
        """Raises RecipeError that names the file and the entry."""
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(f"the table of energy cannot be read: {error}.", where=str(path)) from error
        if not isinstance(given, dict) or not given.keys() & {"product", "instruction"}:
            hint = 'For example {"origin": "my board", "product": {"8x8": 1.9, "4x8": 1.1}, "weight_byte": 5.0}.'
            raise RecipeError("it has neither `product` nor `instruction`.", where=str(path), hint=hint)
        if not isinstance(pairs := given.get("product", {}), dict):
            raise RecipeError("`product` is no table.", where=str(path), hint='Write {"8x8": 1.9, "4x8": 1.1}.')
        if unknown := given.keys() - {"origin", "product", *_KEYS}:
            known = ", ".join(("origin", "product", *_KEYS))
            raise RecipeError(f"`{sorted(unknown)[0]}` is no entry.", where=str(path), hint=f"Known: {known}.")
        numbers = {**pairs, **{key: given.get(key, 0.0) for key in _KEYS}}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
                raise RecipeError(f"`{name}` is {value!r}.", where=str(path), hint="Give picojoules, 0 or more.")
        product = {}
        for name, value in pairs.items():
            if (match := re.fullmatch(r"(\d+)x(\d+)", name)) is None:
                hint = "Write bits of the weight, x, and of the activation: 4x8."
                raise RecipeError(f"`{name}` is no pair of widths.", where=str(path), hint=hint)
            product[int(match[1]), int(match[2])] = float(value)
        return cls(str(given.get("origin", path)), product, *(float(numbers[key]) for key in _KEYS))

    def of_product(self, weight: int, activation: int) -> float:
        """Picojoules. Raises RecipeError where no pair is as wide."""
        if (weight, activation) in self.product or not self.product:
            return self.product.get((weight, activation), 0.0)
        wide = [pj for (w, a), pj in self.product.items() if w >= weight and a >= activation]
        if not wide:
            hint = "Add it, or a wider one, to `product`."
            raise RecipeError(f"no price for {weight}x{activation}.", where="energy table", hint=hint)
        return min(wide)

    def of_node(self, products: Products, weight_bytes: int, value_bytes: int) -> float:
        """Picojoules of products and bytes. Raises RecipeError."""
        found = products.count * self.of_product(products.weight, products.activation) if products.count else 0.0
        return found + weight_bytes * self.weight_byte + value_bytes * self.value_byte


class EnergyCost:
    """A target's cost model that tells `energy` (nanojoules), too."""

    def __init__(self, model: CostModel | None, table: EnergyTable) -> None:
        self.model, self.table = model or BytesAndBops(), table

    @property
    def origin(self) -> str:
        """Of the target's figures, and of the table."""
        return "; ".join(text for text in (self.model.origin, f"energy: {self.table.origin}") if text)

    def cost(self, work: Work, widths: Widths) -> Cost:
        """Of one node."""
        other = widths.weight if widths.weight is not None else widths.inputs[-1] if widths.inputs else 8
        activation = widths.inputs[0] if widths.inputs else 8
        moved = value_bytes(work, widths) if work.kind not in ("free", "other") else 0
        packed = BytesAndBops().cost(work, widths).weight_bytes
        return self._with(self.model.cost(work, widths), [(Products(work.macs, other, activation), packed, moved)])

    def whole(self, graph: Graph) -> Cost:
        """Of an INTEGER graph."""
        return self._with(self.model.whole(graph), products_of(graph))

    def _with(self, found: Cost, parts: list[tuple[Products, int, int]]) -> Cost:
        energy = sum(self.table.of_node(*part) for part in parts)
        energy += found.resources.get("instructions", 0) * self.table.instruction
        return replace(found, resources={**found.resources, "energy": energy / 1e3})
