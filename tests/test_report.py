"""The report: the same content for programs and for people, and nothing that flatters."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

import qcompiler
from qcompiler.report import render_html
from qcompiler.report.build import verdict


@pytest.fixture(scope="module")
def report(digits_bundle: Path) -> dict:
    return json.loads((digits_bundle / "report.json").read_text())


class Page(HTMLParser):
    """Text, tags and addresses of a page; complains about tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_json_has_the_keys_that_others_rely_on(report: dict, digits_bundle: Path):
    assert list(report)[0] == "verdict" and report["bundle"] == str(digits_bundle)
    assert {"bundle", "quality", "size", "seconds"} <= report.keys()
    assert {"float_bytes", "weight_bytes", "arena_bytes", "arena_lower_bound"} <= report["size"].keys()
    assert report["size"]["arena_bytes"] >= report["size"]["arena_lower_bound"] > 0
    assert report["size"]["float_bytes"] > 2 * report["size"]["weight_bytes"]
    assert {"load", "calibrate", "integerize", "lower", "evaluate"} <= report["seconds"].keys()
    assert all(isinstance(s, float) for s in report["seconds"].values())
    assert report["quality"]["samples"] == 32 and report["quality"]["sqnr_db"] > 25
    assert report["verification"]["bit_exact"] is True
    assert report["calibration"]["samples"] == 64
    assert report["macs"] == 361344


def test_worst_layers_are_the_worst(report: dict):
    figures = [row["sqnr_db"] for row in report["worst_layers"]]
    assert figures == sorted(row["sqnr_db"] for row in report["layers"])[:10]
    assert all(row["name"] and row["operator"] and row["format"] for row in report["layers"])


def test_the_page_is_whole_stands_alone_and_begins_with_the_verdict(report: dict, digits_bundle: Path):
    text = (digits_bundle / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and page.addresses == []
    assert "http" not in text and "script" not in page.seen and "@import" not in text
    body = text.split("<body>")[1]
    assert body.index(report["verdict"]) < body.index("<h2>") and body.index(report["verdict"]) < 200
    words = " ".join(page.text)
    for row in report["layers"]:
        assert row["name"] in words
    assert max(report["seconds"], key=report["seconds"].get) in words


def test_the_page_escapes_what_models_bring(report: dict):
    bad = "<script>alert('&')</script>"
    layers = [{**report["layers"][0], "name": bad}]
    notes = [{"pass": "p", "where": bad, "text": bad}]
    page = Page(render_html({**report, "model": bad, "layers": layers, "notes": notes}))
    assert "script" not in page.seen and page.text.count(bad) == 3 and bad in page.text[0]


def test_the_verdict_says_what_is_bad(report: dict):
    assert "bit-exact with the oracle" in verdict(report)
    wrong = {**report, "verification": {"bit_exact": False, "samples": 2, "mismatches": 1}}
    assert "NOT BIT-EXACT: do not ship" in verdict(wrong)
    assert "class='verdict bad'" in render_html({**wrong, "verdict": verdict(wrong)})
    unchecked = {**report, "verification": None}
    assert "oracle" not in verdict(unchecked)
    for source, said in (("random", True), ("random:uniform", True), ("random.npz", False), ("my.npz", False)):
        assert ("RANDOM" in verdict({**report, "calibration": {"source": source, "samples": 1}})) is said


def test_the_verdict_compares_with_onnxruntime_when_measured(report: dict):
    rows = [
        {"runtime": "qcompiler", "precision": "w8a8", "median_ms": 2.0, "min_ms": 1.0},
        {"runtime": "onnxruntime", "precision": "float32", "median_ms": 5.0, "min_ms": 4.0},
    ]
    assert "2.5x the speed of onnxruntime float32" in verdict({**report, "latency": rows})
    assert "Latency" in render_html({**report, "latency": rows}) and "Latency" not in render_html(report)


def test_images_have_no_decisions(tmp_path: Path):
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }"""
    model = qcompiler.Graph.parse(text).model
    bundle = qcompiler.compile(model, "cpu", "random", output=tmp_path / "out", samples=2)
    report = bundle.report()
    assert "top1_agreement" not in report["quality"] and report["quality"]["samples"] == 2
    assert report["precision"] == "a8" and "smaller" not in report["verdict"]
    assert report["calibration"]["source"] == "random" and "RANDOM" in report["verdict"]
    Page((tmp_path / "out" / "report.html").read_text())
