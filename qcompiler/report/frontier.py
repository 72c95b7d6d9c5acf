"""The page of several bundles along a curve."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from qcompiler.report import pictures
from qcompiler.report.html import page


def render_frontier(document: Mapping[str, Any]) -> str:
    """HTML of pareto.json (qcompiler/frontier.py): what was measured of every bundle, over its cost."""
    name, rows = document["cost"], document["rows"]
    title = pictures.AXES.get(name, name)
    marks = [
        (row["cost"][name], row["quality"]["sqnr_db"], f"{row['bundle']}: {row['quality']['sqnr_db']:.1f} dB")
        for row in rows
    ]
    drops = [(row["cost"][name], row["drop"], f"{row['bundle']}: {row['drop']:.3g}") for row in rows if "drop" in row]
    facts = document["assign_bits"]
    measured = {"SQNR, dB": lambda row: f"{row['quality']['sqnr_db']:.1f}"}
    if all("top1_agreement" in row["quality"] for row in rows):
        measured["decisions kept"] = lambda row: f"{row['quality']['top1_agreement']:.1%}"
    if drops:
        measured["drop"] = lambda row: f"{row['drop']:.3g}"
    body = ""
    for row in rows:
        link = f"<a href='{escape(row['bundle'])}/report.html'>{escape(row['bundle'])}</a>"
        cost = row["cost"][name]
        cells = [f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}", *(tell(row) for tell in measured.values())]
        body += f"<tr><td>{link}</td>" + "".join(f"<td class='n'>{cell}</td>" for cell in cells)
        body += f"<td>{escape(row['precision'])}</td></tr>"
    head = "".join(f"<th class='n'>{escape(text)}</th>" for text in (title, *measured))
    table = f"<table><tr><th>bundle</th>{head}<th>bits</th></tr>{body}</table>"
    parts = [
        "<h1>Bundles along the curve</h1>",
        table,
        "<h2>Measured: output SQNR on calibration samples that no pass saw</h2>",
        pictures.pareto(marks, None, (), title, "dB", log=False),
        "<h2>Measured: how much the metric falls</h2>" if len(drops) > 1 else "",
        pictures.pareto(drops, None, (), title, "drop", log=False) if len(drops) > 1 else "",
        "<h2>Predicted: the best sum of sensitivities, and uniform widths</h2>",
        pictures.facts_pareto({**facts, "score": 0.0}),
        "<h2>Sensitivity of each layer by width</h2>",
        pictures.heat_map({**facts, "items": [{**item, "chosen": None} for item in facts["items"]]}),
    ]
    return page("qcompiler: bundles along the curve", parts)
