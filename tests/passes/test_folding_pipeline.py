"""All passes that fold or search, together: the integer graph still means what the QDQ graph says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qcompiler.driver import quantize
from qcompiler.graph.stages import Stage, check
from qcompiler.recipe import load_recipe, parse_recipe
from tests.quantized import differences


def combined(*more: str):
    """The default recipe with passes put where they belong."""
    base = load_recipe("default")
    passes = [name for name in base.passes if name != "decide"]
    at = passes.index("calibrate")
    passes[at:at] = [*(["smoothquant"] if "smoothquant" in more else []), "decide"]
    passes[passes.index("calibrate"):passes.index("calibrate")] = ["awq"] if "awq" in more else []
    if "smoothquant" not in more:  # these two exclude each other
        passes.insert(passes.index("insert_qdq"), "repq")
    passes.insert(passes.index("bias_correction"), "search_ranges")
    options = {"search_ranges": {"samples": 4}, "bias_correction": {"groups": 8}}
    return dataclasses.replace(base, passes=tuple(passes), options=options)


@pytest.mark.parametrize("more", [("smoothquant",), ("awq",)])
def test_integer_and_qdq_agree(digits, more):
    recipe = combined(*more)
    assert parse_recipe(recipe.to_toml()).passes == recipe.passes
    x = digits.data["x_calib"][:12]
    result = quantize(digits.vit, {"x": x}, recipe, dims={"N": 1}, options={"precision": "w4a4"})
    check(result.qdq_graph, Stage.QDQ)
    check(result.integer_graph, Stage.INTEGER)
    facts = result.context.facts
    assert more[0] in facts and ("repq" not in facts or facts["repq"]["normalizations"] > 0)
    assert facts["search_ranges"]["error_after"] <= facts["search_ranges"]["error_before"]
    largest, share = differences(result.qdq_graph, result.integer_graph, samples=2)
    assert largest <= 2 and share < 0.2  # codes of the head have 8 bits; ties inside move them
    want, got = (np.concatenate([g.run(x=one[None]) for one in x]) for g in (result.float_graph, result.qdq_graph))
    assert (want.argmax(1) == got.argmax(1)).mean() > 0.6
