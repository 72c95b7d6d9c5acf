"""Budgets of energy: tables of devices, prices of nodes and of whole networks, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcompiler.cost import BytesAndBops, Cost, Widths, Work, additive
from qcompiler.driver import quantize
from qcompiler.energy import EnergyCost, EnergyTable
from qcompiler.errors import RecipeError
from tests.conftest import Digits

TABLE = {"origin": "a board", "product": {"8x8": 2.0, "4x8": 1.0}, "weight_byte": 4.0, "value_byte": 0.5}


def written(folder: Path, table: object) -> Path:
    path = folder / "energy.json"
    path.write_text(json.dumps(table))
    return path


def test_a_node_costs_its_products_and_bytes(tmp_path: Path) -> None:
    model = EnergyCost(None, EnergyTable.read(written(tmp_path, TABLE)))
    work = Work("dense", "MatMul", ((1, 16),), (1, 8), (16, 8), (), 128)

    def energy(weight: int) -> float:
        return model.cost(work, Widths(weight, (8,), 8)).resources["energy"]

    biases = 4 * 8
    assert energy(8) == pytest.approx((128 * 2.0 + (128 + biases) * 4.0 + 24 * 0.5) / 1e3)
    assert energy(4) == pytest.approx((128 * 1.0 + (64 + biases) * 4.0 + 24 * 0.5) / 1e3)
    # 3 bits are not in the table: the cheapest pair that is as wide.
    assert energy(3) == pytest.approx((128 * 1.0 + (48 + biases) * 4.0 + 24 * 0.5) / 1e3)


def test_instructions_cost_where_the_target_counts_them(tmp_path: Path) -> None:
    class Counts(BytesAndBops):
        def cost(self, work: Work, widths: Widths) -> Cost:
            return Cost(resources={"instructions": 1000})

    model = EnergyCost(Counts(), EnergyTable.read(written(tmp_path, {"instruction": 30})))
    assert model.cost(Work("move", "Concat", (), ()), Widths(None, (), 8)).resources["energy"] == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ([], "neither"),
        ({"weight_byte": 1}, "neither"),
        ({"product": {"8": 1}}, "`8` is no pair"),
        ({"product": {"8x8": -1}}, "`8x8` is -1"),
        ({"product": {"8x8": 1}, "weigth_byte": 1}, "`weigth_byte` is no entry"),
        ({"product": 3}, "`product` is no table"),
    ],
)
def test_wrong_tables_are_refused_by_entry(table: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        EnergyTable.read(written(tmp_path, table))


def test_no_file_and_widths_without_a_price(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        EnergyTable.read(tmp_path / "none.json")
    table = EnergyTable.read(written(tmp_path, {"product": {"4x8": 1}}))
    with pytest.raises(RecipeError, match="8x8"):
        table.of_product(8, 8)


def test_a_budget_of_energy_holds_for_what_is_built(digits: Digits, tmp_path: Path) -> None:
    path, calib = written(tmp_path, TABLE), {"x": digits.data["x_calib"][:16]}
    result = quantize(digits.cnn, calib, budget={"energy": "0.8x"}, energy_table=path, dims={"N": 1})
    facts = result.context.facts["assign_bits"]
    assert result.integer_graph is not None and result.context.float_graph is not None
    model = EnergyCost(None, EnergyTable.read(path))
    built = model.whole(result.integer_graph).resources["energy"]
    assert built == pytest.approx(facts["built"]["energy"])
    assert 0.6 * facts["budgets"]["energy"] < built <= facts["budgets"]["energy"]
    assert any("a board" in note.text for note in result.context.notes)
    # What a search adds up is near what the whole costs.
    assert result.context.assignment is not None
    parts = additive(model, result.context.float_graph, result.context.assignment).resources["energy"]
    assert parts == pytest.approx(built, rel=0.1)


def test_without_a_table_it_says_how_to_give_one(digits: Digits) -> None:
    with pytest.raises(RecipeError, match="--energy-table"):
        quantize(digits.cnn, "random", budget={"energy": "0.8x"}, dims={"N": 1})
