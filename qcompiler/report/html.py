"""One self-contained page: no script, no font, no image from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qcompiler.report import pictures
from qcompiler.report.build import passed

_STYLE = """
:root {
  --ink: #1b2430; --soft: #5b6776; --line: #dfe4ea; --bar: #3b6fb6;
  --good: #16794c; --fair: #b7791f; --bad: #b42318;
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; color: var(--soft); }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--good); padding: .6rem 1rem; background: #f4f8f6; }
.verdict.fair { border-color: var(--fair); background: #fdf8ee; }
.verdict.bad { border-color: var(--bad); background: #fdf3f2; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .6rem 1rem; min-width: 150px; }
.card b { display: block; font-size: 1.25rem; } .card span { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
td { border-bottom: 1px solid var(--line); } th, td { padding: .3rem .5rem; }
td.b { width: 190px; } .n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #eef2f6; border-radius: 3px; height: 10px; width: 160px; }
.bar { display: inline-block; vertical-align: middle; }
.bar i { display: block; height: 10px; border-radius: 3px; background: var(--bar); }
.bar.fair i { background: var(--fair); } .bar.bad i { background: var(--bad); }
code { font-size: .85em; word-break: break-all; } .soft { color: var(--soft); }
"""

FULL_DB, FAIR_DB, BAD_DB = 50.0, 25.0, 12.0
"""Bars are full at 50 dB, and change colour below 25 and 12 dB."""
SHOWN_SHARE = 0.01
"""Stages that take less of the time are summed up."""


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report (see report/build.py)."""
    checked = report.get("verification")
    mood = " fair" if report["calibration"]["source"].startswith("random") else ""
    if checked is not None and not passed(checked):
        mood = " bad"
    sections = [
        f"<h1>{escape(str(report['model']).rsplit('/', 1)[-1])} &rarr; {escape(report['target'])}</h1>",
        f"<p class='verdict{mood}'>{escape(report['verdict'])}</p>",
        _cards(report),
        _fit(report.get("fit")),
        _circuit(report.get("circuit")),
        _latency(report.get("latency") or []),
        _islands(report.get("islands") or []),
        _mixed(report["facts"].get("assign_bits")),
        _passes(report["passes"]),
        "<h2>Worst layers</h2>",
        "<p class='soft'>Signal to quantization noise of a value against the float model; every layer inherits the "
        "noise of those before it.</p>",
        _layers(report["worst_layers"]),
        "<h2>All layers</h2>",
        _layers(report["layers"]),
        _notes(report["notes"]),
        _seconds(report["seconds"]),
        "<h2>Made with</h2><p>" + ", ".join(f"{escape(k)} {escape(v)}" for k, v in report["versions"].items()) + "</p>",
    ]
    return page(f"qcompiler report: {report['model']}", sections)


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page in the style of reports."""
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head><body>"
        + "\n".join(section for section in sections if section)
        + "</body></html>\n"
    )


def _cards(report: Mapping[str, Any]) -> str:
    sizes, quality = report["size"], report["quality"]
    held = "held-out " if quality.get("held_out") else ""
    cards = [
        (f"{quality['sqnr_db']:.1f} dB", f"output SQNR on {quality['samples']} {held}samples"),
        (report["precision"], f"{report['arithmetic']} requantization"),
        (
            _bytes(sizes["weight_bytes"]),
            f"weights, {_bytes(sizes['stored_bytes'])} with biases and scales as stored, float "
            f"{_bytes(sizes['float_bytes'])}",
        ),
        (_bytes(sizes["arena_bytes"]), f"arena, lower bound {_bytes(sizes.get('arena_lower_bound', 0))}"),
        (f"{report['macs'] / 1e6:.2f} M", "multiply-accumulates"),
    ]
    if "top1_agreement" in quality:
        cards.insert(1, (f"{quality['top1_agreement']:.1%}", "decisions as in float"))
    if report.get("verification"):
        checked = report["verification"]
        word = "bit-exact" if checked["bit_exact"] else "within tolerance" if passed(checked) else "MISMATCH"
        cards.append(
            (word, f"target against oracle, {report['verification']['samples']} samples")
        )
    items = "".join(f"<div class='card'><b>{escape(str(b))}</b><span>{escape(s)}</span></div>" for b, s in cards)
    source = escape(f"{report['calibration']['samples']} samples from {report['calibration']['source']}")
    recipe = escape(report["recipe"])
    return f"<div class='cards'>{items}</div><p class='soft'>Recipe {recipe}, calibrated on {source}.</p>"


def _islands(islands: Sequence[Mapping[str, Any]]) -> str:
    """Every float island: its nodes and why."""
    if not islands:
        return ""
    rows = "".join(
        f"<tr><td class='n'>{i}</td><td><code>{escape(node['name'])}</code></td><td>{escape(node['operator'])}</td>"
        f"<td>{escape(node['reason'])}</td></tr>"
        for i, island in enumerate(islands, 1)
        for node in island["nodes"]
    )
    head = "<tr><th class='n'>island</th><th>node</th><th>operator</th><th>why it is float</th></tr>"
    return f"<h2>Float islands</h2><table>{head}{rows}</table>"


def _fit(fit: Mapping[str, Any] | None) -> str:
    """Flash and RAM of firmware beside their limits."""
    if not fit:
        return ""
    rows = ""
    for name, parts in (("flash", "code constant"), ("ram", "arena stack")):
        used, limit = fit[f"{name}_bytes"], fit["limits"].get(name)
        of = " + ".join(f"{part} {_bytes(fit[f'{part}_bytes'])}" for part in parts.split())
        share = used / limit if limit else 0.0
        colour = "bad" if share > 1 else "fair" if share > 0.9 else ""
        rows += (
            f"<tr><td>{name}</td><td class='n'>{_bytes(used)}</td><td>{escape(of)}</td>"
            f"<td class='n'>{_bytes(limit) if limit else ''}</td>"
            f"<td class='b'>{_bar(share, colour) if limit else ''}</td></tr>"
        )
    head = "<tr><th></th><th class='n'>used</th><th>of which</th><th class='n'>limit</th><th></th></tr>"
    largest, peak = fit["largest_layer"], fit["peak"]
    alive = ", ".join(f"<code>{escape(one['name'])}</code> {_bytes(one['bytes'])}" for one in peak["alive"])
    text = (
        f"Largest layer: <code>{escape(largest['node'])}</code>, {_bytes(largest['constant_bytes'])} of constants. "
        f"Most of the arena is alive at <code>{escape(peak['node'])}</code>: {alive}. "
        f"About {fit['instructions'] / 1e6:.2f} M instructions an inference."
    )
    advice = "".join(f"<p>{escape(line)}</p>" for line in fit["advice"])
    title = f"Firmware: {fit['verdict']}" if fit["verdict"] else "Firmware"
    how = escape(f"{fit['how']} for {fit['core']} at -Os")
    return f"<h2>{title}</h2><p class='soft'>{how}. {text}</p><table>{head}{rows}</table>{advice}"


def _circuit(circuit: Mapping[str, Any] | None) -> str:
    """What a circuit takes of its part, and every layer's share."""
    if not circuit:
        return ""
    names = {"lut": "LUTs", "ff": "registers", "bram": "block RAMs of 18 Kbit", "dsp": "multiplier blocks"}
    counted: Mapping[str, int] = circuit.get("counted") or {}
    used = "".join(
        f"<tr><td>{name}</td><td class='n'>{circuit[key]}</td>"
        + (f"<td class='n'>{counted[key]}</td>" if counted else "")
        + f"<td class='n'>{circuit['limits'][key]}</td>"
        f"<td class='b'>{_bar(share, 'bad' if share > 1 else 'fair' if share > 0.9 else '')}</td></tr>"
        for key, name in names.items()
        for share in [counted.get(key, circuit[key]) / max(1, circuit["limits"][key])]
    )
    columns = ("bits", "weights", "pe", "simd", "cycles", "busy", "lut", "ff", "bram", "dsp")
    rows = "".join(
        f"<tr><td><code>{escape(row['node'])}</code></td><td>{row['kind']}</td>"
        + "".join(f"<td class='n'>{row.get(key, '')}</td>" for key in columns)
        + "</tr>"
        for row in circuit["layers"]
    )
    text = (
        f"{circuit['how']} for {circuit['part']}. {circuit['cycles']} cycles an image: {circuit['fps']:.0f} images a "
        f"second at {circuit['clock_mhz']:.0f} MHz, latency {circuit['latency_ms']:.3f} ms."
    )
    advice = "".join(f"<p>{escape(line)}</p>" for line in circuit["advice"])
    columns_of = ("estimate", "yosys", "limit") if counted else ("used", "limit")
    top = "<tr><th></th>" + "".join(f"<th class='n'>{name}</th>" for name in columns_of) + "<th></th></tr>"
    head = "<tr><th>node</th><th>engine</th>" + "".join(f"<th class='n'>{key}</th>" for key in columns) + "</tr>"
    return (
        f"<h2>Circuit: {circuit['verdict']}</h2><p class='soft'>{escape(text)}</p><table>{top}{used}</table>{advice}"
        f"<table>{head}{rows}</table>"
    )


def _latency(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    slowest = max(row["median_ms"] for row in rows)
    body = "".join(
        f"<tr><td>{escape(row['runtime'])}</td><td>{escape(row['precision'])}</td>"
        f"<td class='n'>{row['median_ms']:.3f}</td><td class='n'>{row['min_ms']:.3f}</td>"
        f"<td class='b'>{_bar(row['median_ms'] / slowest, '')}</td></tr>"
        for row in rows
    )
    head = "<tr><th>runtime</th><th>precision</th><th class='n'>median ms</th><th class='n'>min ms</th><th></th></tr>"
    return f"<h2>Latency, one thread, interleaved</h2><table>{head}{body}</table>"


def _mixed(facts: Mapping[str, Any] | None) -> str:
    """How the bits were chosen, in pictures."""
    if not facts:
        return ""
    held = "; ".join(
        f"{name} {_amount(name, facts['total'][name])} of {_amount(name, limit)}"
        for name, limit in facts["budgets"].items()
    )
    gap = facts["gap"]
    proof = f"{facts['status']}, at most {gap:.2%} from the least sum" if gap is not None else facts["status"]
    measured = facts.get("measured")
    told = ""
    if measured:
        whole = {**measured["choices"], **{f"all {bits} bits": v for bits, v in measured["uniform"].items()}}
        told = ". Whole choices measured, loss against float: " + ", ".join(f"{k} {v:.3g}" for k, v in whole.items())
    text = f"Score {facts['score_name']} on {facts['samples']} samples, {held}. Solver: {proof}{told}."
    parts = [
        ("Bits by layer, in order", pictures.bits_bars(facts)),
        ("Sensitivity of each layer by width", pictures.heat_map(facts)),
        ("What pairs of layers lose together", pictures.interactions(facts)),
        ("The best sum of sensitivities over the budget", pictures.facts_pareto(facts)),
    ]
    shown = "".join(f"<h3>{title}</h3>{picture}" for title, picture in parts if picture)
    return f"<h2>Mixed precision</h2><p class='soft'>{escape(text)}</p>{shown}"


def _amount(name: str, value: float) -> str:
    if name in ("size", "flash", "ram"):
        return _bytes(int(value))
    return f"{value:.4g} ms" if name == "latency" else f"{value:.4g}"


def _passes(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each refining pass cost and won."""
    if len(rows) < 2:
        return ""
    body = "".join(
        f"<tr><td>{escape(row['pass'])}</td><td class='n'>{row['seconds']:.2f}</td>"
        f"<td class='n'>{_db(row['mean_sqnr_db'])}</td><td class='n'>{_db(row['output_sqnr_db'])}</td>"
        f"<td class='b'>{_bar((row['output_sqnr_db'] or 0.0) / FULL_DB, '')}</td></tr>"
        for row in rows
    )
    head = (
        "<tr><th>behind</th><th class='n'>seconds</th><th class='n'>mean of values, dB</th>"
        "<th class='n'>outputs, dB</th><th></th></tr>"
    )
    return f"<h2>What the passes won</h2><table>{head}{body}</table>"


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _layers(rows: Sequence[Mapping[str, Any]]) -> str:
    body = ""
    for row in rows:
        db = row["sqnr_db"]
        colour = "bad" if db < BAD_DB else "fair" if db < FAIR_DB else ""
        body += (
            f"<tr><td><code>{escape(row['name'])}</code></td><td>{escape(row['operator'])}</td>"
            f"<td>{escape(row['weight_format'])}</td><td>{escape(row['format'])}</td>"
            f"<td class='n'>{_db(row.get('sqnr_db_rounded'))}</td>"
            f"<td class='n'>{db:.1f}</td><td class='b'>{_bar(db / FULL_DB, colour)}</td></tr>"
        )
    head = (
        "<tr><th>value</th><th>operator</th><th>weights</th><th>codes</th><th class='n'>rounded, dB</th>"
        "<th class='n'>SQNR dB</th><th></th></tr>"
    )
    return f"<table>{head}{body}</table>"


def _bar(share: float, colour: str) -> str:
    width = 100 * min(1.0, max(0.0, share))
    return f"<span class='bar {colour}'><i style='width:{width:.0f}%'></i></span>"


def _notes(notes: Sequence[Mapping[str, str]]) -> str:
    if not notes:
        return ""
    rows = "".join(
        f"<tr><td>{escape(n['pass'])}</td><td><code>{escape(n['where'])}</code></td><td>{escape(n['text'])}</td></tr>"
        for n in notes
    )
    return f"<h2>What the passes noted</h2><table><tr><th>pass</th><th>where</th><th>note</th></tr>{rows}</table>"


def _seconds(seconds: Mapping[str, float]) -> str:
    total = max(sum(seconds.values()), 1e-9)
    shown = {stage: s for stage, s in seconds.items() if s >= SHOWN_SHARE * total}
    rest = total - sum(shown.values())
    if len(shown) < len(seconds):
        shown[f"{len(seconds) - len(shown)} others"] = rest
    rows = "".join(
        f"<tr><td>{escape(stage)}</td><td class='n'>{s:.2f}</td><td class='b'>{_bar(s / total, '')}</td></tr>"
        for stage, s in shown.items()
    )
    head = "<tr><th>stage</th><th class='n'>seconds</th><th></th></tr>"
    return f"<h2>Where the time went: {total:.1f} s</h2><table>{head}{rows}</table>"


def _bytes(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.2f} MiB"
