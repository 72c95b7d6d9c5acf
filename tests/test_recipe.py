"""Recipes: presets load, what is wrong is named, text and value are the same thing."""

from __future__ import annotations

import pytest

from qcompiler.errors import RecipeError
from qcompiler.recipe import Recipe, load_recipe, parse_recipe, pass_names, presets

SMALL = """
[recipe]
name = "small"
passes = ["calibrate", "decide", "set_ranges", "insert_qdq"]

[quantize]
precision = "w4a8"
exclude = ["head", 'back\\slash']

[pass.set_ranges]
percentile = 99.5

[[rule]]
match = "conv1"
weight = "int8"
"""


def test_presets_name_existing_passes_in_an_order_whose_stages_fit():
    published = {"gptq", "repq_vit", "adalog", "smoothquant", "awq"}
    assert {"default", "minmax", "mobile", "fast", "auto"} | published <= set(presets())
    if "integerize" not in pass_names():
        pytest.skip("passes/integerize.py is missing")
    for name in presets():
        assert load_recipe(name).name == name


def test_text_and_value_are_the_same_thing():
    recipe = parse_recipe(SMALL)
    again = parse_recipe(recipe.to_toml())
    assert again == recipe
    assert recipe.options_of("decide").exclude == ("head", "back\\slash")
    assert recipe.options_of("decide").rules[0]["weight"] == "int8"
    assert recipe.options_of("set_ranges").percentile == 99.5


def test_override_changes_a_copy():
    recipe = parse_recipe(SMALL)
    other = recipe.override({"precision": "w8a8", "set_ranges.method": "minmax", "exclude": None})
    assert (recipe.quantize["precision"], other.quantize["precision"]) == ("w4a8", "w8a8")
    assert other.options_of("set_ranges").method == "minmax"
    assert other.quantize["exclude"] == recipe.quantize["exclude"]


def test_extra_options_reach_passes_that_know_them_and_never_win():
    recipe = parse_recipe(SMALL)
    assert recipe.options_of("set_ranges", method="mse", arithmetic="fixed").method == "mse"
    assert recipe.options_of("set_ranges", percentile=1.0).percentile == 99.5


def test_base_recipe_is_extended(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    base = load_recipe(path)
    head = f'[recipe]\nname = "more"\nbase = {str(path)!r}\n'
    recipe = parse_recipe(head + '[quantize]\nprecision = "w8a8"\n[[rule]]\nop_type = "Gemm"\n')
    assert (recipe.passes, recipe.options) == (base.passes, base.options)
    assert recipe.quantize == {**base.quantize, "precision": "w8a8"}
    assert recipe.rules == (*base.rules, {"op_type": "Gemm"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SMALL.replace('"calibrate"', '"callibrate"'), "Did you mean `calibrate`"),
        (SMALL.replace("percentile", "percentle"), "Did you mean `percentile`"),
        (SMALL.replace("precision", "precison"), "Did you mean `precision`"),
        (SMALL.replace("99.5", '"99.5"'), "must be a float"),
        (SMALL.replace("[quantize]", "[quantise]"), "Did you mean `quantize`"),
        (SMALL.replace("pass.set_ranges", "pass.bias_correction"), "which it does not run"),
        (SMALL.replace('"calibrate", "decide", "set_ranges"', '"insert_qdq", "set_ranges"'), "gets a QDQ graph"),
        (SMALL.replace('passes = ["calibrate", "decide", "set_ranges", "insert_qdq"]', ""), "lists no passes"),
        ("[recipe\n", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, expected: str):
    with pytest.raises(RecipeError, match=expected):
        parse_recipe(text)


def test_unknown_preset():
    with pytest.raises(RecipeError, match="Did you mean `default`"):
        load_recipe("defalt")


def test_recipe_is_checked_when_made():
    with pytest.raises(RecipeError, match="there is no pass"):
        Recipe(name="x", passes=("nothing_like_it",))


def test_a_recipe_edits_its_base():
    recipe = parse_recipe(
        """
        [recipe]
        name = "mine"
        base = "default"
        drop = ["bias_correction"]
        [recipe.after]
        insert_qdq = ["solve_weights"]
        """
    )
    base = load_recipe("default").passes
    at = base.index("insert_qdq") + 1
    want = (*base[:at], "solve_weights", *base[at:])
    assert recipe.passes == tuple(name for name in want if name != "bias_correction")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('drop = ["bias_corection"]', "Did you mean `bias_correction`"),
        ('[recipe.after]\ninsert_qqq = ["solve_weights"]', "Did you mean `insert_qdq`"),
        ('[recipe.after]\ninsert_qdq = "solve_weights"', "cannot put passes"),
        ('[recipe.after]\nbias_correction = ["solve_weights"]', "must run behind `solve_weights`: new weights"),
        ('[recipe.after]\ncheck_support = ["smoothquant"]\nset_ranges = ["repq"]', "cannot both run: all channels"),
    ],
)
def test_wrong_edits_are_named(lines, said):
    with pytest.raises(RecipeError, match=said):
        parse_recipe(f'[recipe]\nname = "mine"\nbase = "default"\n{lines}\n')


def test_packages_that_are_parts_of_passes_are_no_passes():
    assert {"integerize", "spell_out"} <= set(pass_names()) and "mixed_precision" not in pass_names()
    with pytest.raises(RecipeError, match="no pass `mixed_precision`"):
        parse_recipe('[recipe]\npasses = ["mixed_precision"]')
