"""Pictures of mixed precision: every item, option and point is drawn, well-formed, and where it belongs."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.report import pictures

FACTS = {
    "items": [
        {"name": "w<0>", "kind": "weight", "bits": [8], "pinned": True, "chosen": 8},
        {"name": "w1", "kind": "weight", "bits": [2, 4, 8], "pinned": False, "chosen": 4},
        {"name": "a", "kind": "activation", "bits": [4, 8], "pinned": False, "chosen": 8},
    ],
    "scores": [[0.1], [3.0, 0.2, 0.0], [0.5, 0.01]],
    "pairs": [[1, 2, [[1.0, 0.5], [0.25, -0.5], [0.0, 0.0]]]],
    "budgets": {"size": 100.0}, "curve_over": "size", "total": {"size": 90.0}, "score": 0.3,
    "curve": [{"total": {"size": 50.0}, "score": 3.1, "bits": [8, 2, 4]},
              {"total": {"size": 90.0}, "score": 0.3, "bits": [8, 4, 8]}],
    "uniform": [{"bits": 4, "total": {"size": 80.0}, "score": 0.9}],
}  # fmt: skip


def marks(svg: str, tag: str) -> list[ET.Element]:
    return [one for one in ET.fromstring(svg).iter() if one.tag.rpartition("}")[2] == tag]


def titles(svg: str) -> list[str]:
    return [one.text or "" for one in marks(svg, "title")]


def test_a_bar_an_item_as_high_as_its_bits() -> None:
    svg = pictures.bits_bars(FACTS)
    assert titles(svg) == ["w<0>: 8 bits, fixed", "w1: 4 bits", "a: 8 bits"]
    heights = [float(one.attrib["height"]) for one in marks(svg, "rect")]
    assert heights[0] == 2 * heights[1] == heights[2]
    fixed = {**FACTS, "items": [{**item, "pinned": True} for item in FACTS["items"]]}
    assert len(titles(pictures.bits_bars(fixed))) == 2  # operands that nobody chose are not shown


def test_a_cell_an_option_and_a_frame_a_choice() -> None:
    svg = pictures.heat_map(FACTS)
    assert "w1 at 2 bits: 3" in titles(svg) and len(titles(svg)) == 5
    frames = [one for one in marks(svg, "rect") if one.attrib["fill"] == "none"]
    assert len(frames) == 2
    cells = {text: one for one, text in zip(marks(svg, "rect"), titles(svg), strict=False)}
    assert cells["w1 at 2 bits: 3"].attrib["fill"] == pictures._warm(1.0)
    assert pictures.heat_map({**FACTS, "items": [{**i, "pinned": True} for i in FACTS["items"]]}) == ""


def test_pairs_at_the_chosen_options() -> None:
    told = [text for text in titles(pictures.interactions(FACTS)) if "with" in text]
    assert told == ["w1 with a: -0.5"] * 2
    assert pictures.interactions({**FACTS, "pairs": []}) == ""


def test_the_curve_the_choice_and_uniform_points() -> None:
    svg = pictures.facts_pareto(FACTS)
    assert titles(svg) == ["1 of 2 bits, 1 of 4 bits", "1 of 4 bits, 1 of 8 bits", "all 4 bits"]
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in marks(svg, "circle")]
    assert dots[0][0] < dots[1][0] and dots[0][1] < dots[1][1]  # dearer and lower
    assert dots[2] == dots[1]  # the choice lies on the curve
    assert pictures.facts_pareto({**FACTS, "curve": [], "uniform": []}) == ""


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9))
def test_ticks_surround_the_range(low: float, span: float) -> None:
    ticks = pictures._ticks(low, low + span)
    slack = 1e-6 * max(abs(low), span)
    assert ticks == sorted(ticks) and 2 <= len(ticks) <= 10
    assert ticks[0] <= low + slack and ticks[-1] >= low + span - slack


@pytest.mark.parametrize(("low", "high"), [(-3.0, -3.0), (-8.2, 4.5), (0.1, 0.2)])
def test_ticks_of_logarithms(low: float, high: float) -> None:
    ticks = pictures._log_ticks(low, high)
    assert len(ticks) >= 2 and ticks[0] <= low and ticks[-1] >= high and len(ticks) <= 9
