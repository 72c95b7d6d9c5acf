"""Pictures of mixed precision as inline SVG: bits by layer, sensitivities, interactions, the curve of loss over cost.

All are drawn from the entry `assign_bits` of a report's facts (passes/mixed_precision/facts.py), so they can be drawn
anew from report.json. Every mark has a tooltip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Any

WIDTH = 1040
INK, SOFT, LINE, FREE, PINNED, CHOSEN, UNIFORM = (
    "#1b2430", "#5b6776", "#dfe4ea", "#3b6fb6", "#aab4c0", "#b42318", "#b7791f",
)  # fmt: skip
WIDEST = 8
"""Bits at the top of the bars; wider ones are cut off there and say so."""


def bits_bars(facts: Mapping[str, Any]) -> str:
    """One bar an item: weights upwards, and where any is chosen, what products read downwards."""
    weights = [item for item in facts["items"] if item["kind"] == "weight"]
    operands = [item for item in facts["items"] if item["kind"] == "activation"]
    rows = [("weights", weights)]
    if any(not item["pinned"] for item in operands):
        rows.append(("operands", operands))
    step, left, body = 12, 70, ""
    for r, (what, items) in enumerate(rows):
        base = 130 * (r + 1) - 15
        pitch = (WIDTH - left) / max(len(items), 1)
        for bits in (2, 4, 6, 8):
            y = base - step * bits
            body += _line(left, y, WIDTH, y) + _text(left - 6, y + 4, str(bits), "end")
        body += _text(0, base - 4 * step, what)
        for i, item in enumerate(items):
            bits, colour = item["chosen"], PINNED if item["pinned"] else FREE
            height = step * min(bits, WIDEST)
            told = f"{item['name']}: {bits} bits" + (", fixed" if item["pinned"] else "")
            body += _rect(left + i * pitch + 1, base - height, max(pitch - 2, 1), height, colour, told)
    return _svg(130 * len(rows), body)


def heat_map(facts: Mapping[str, Any]) -> str:
    """Sensitivity of every free item at every width, on a logarithmic scale; the chosen width has a frame."""
    rows = [(item, score) for item, score in zip(facts["items"], facts["scores"], strict=True) if not item["pinned"]]
    if not rows:
        return ""
    widths = sorted({bits for item, _ in rows for bits in item["bits"]})
    values = [value for _, score in rows for value in score if value > 0]
    low, high = (log10(min(values)), log10(max(values))) if values else (0.0, 1.0)
    low = max(low, high - 6)
    left, top, pitch, row = 90, 30, (WIDTH - 90) / len(rows), 24
    body = "".join(
        _text(left - 8, top + row * k + 16, f"{bits} bits", "end") for k, bits in enumerate(reversed(widths))
    )
    frames = ""
    for i, (item, score) in enumerate(rows):
        for bits, value in zip(item["bits"], score, strict=True):
            y = top + row * (len(widths) - 1 - widths.index(bits))
            share = 0.0 if value <= 0 else min(1.0, max(0.0, (log10(value) - low) / max(high - low, 1e-9)))
            told = f"{item['name']} at {bits} bits: {value:.3g}"
            body += _rect(left + i * pitch, y, pitch, row, _warm(share), told)
            if bits == item["chosen"]:
                frames += (
                    f"<rect x='{left + i * pitch + 1:.1f}' y='{y + 1}' width='{max(pitch - 2, 1):.1f}' "
                    f"height='{row - 2}' fill='none' stroke='{INK}' stroke-width='1.6' pointer-events='none'/>"
                )
    scale = f"log scale from {10**low:.1g} (pale) to {10**high:.2g} (dark)" + ("; frames: chosen" if frames else "")
    legend = _text(left, 16, scale)
    return _svg(top + row * len(widths) + 8, legend + body + frames)


def interactions(facts: Mapping[str, Any]) -> str:
    """What pairs of items lose together beyond the sum of both, at the widths chosen: red more, blue less."""
    if not facts.get("pairs"):
        return ""
    chosen = [item["bits"].index(item["chosen"]) for item in facts["items"]]
    values = {(i, j): matrix[chosen[i]][chosen[j]] for i, j, matrix in facts["pairs"]}
    used = sorted({i for key in values for i in key if not facts["items"][i]["pinned"]})
    place = {i: k for k, i in enumerate(used)}
    shown = {key: v for key, v in values.items() if key[0] in place and key[1] in place}
    largest = max((abs(v) for v in shown.values()), default=0.0)
    if not largest:
        return ""
    side = min(22.0, 520 / len(used))
    body = _rect(0, 0, side * len(used), side * len(used), "#f4f6f9", "not measured, or nothing")
    for (i, j), value in shown.items():
        share = value / largest
        told = f"{facts['items'][i]['name']} with {facts['items'][j]['name']}: {value:+.3g}"
        for a, b in ((i, j), (j, i)):
            body += _rect(place[a] * side, place[b] * side, side, side, _diverging(share), told)
    if side >= 12:
        body += "".join(
            _text(side * (len(used) + 0.4), side * (k + 0.75), facts["items"][i]["name"]) for i, k in place.items()
        )
    return _svg(side * len(used) + 4, body)


def pareto(
    curve: Sequence[tuple[float, float, str]],
    chosen: tuple[float, float] | None,
    uniform: Sequence[tuple[float, float, str]],
    x_title: str,
    y_title: str,
    *,
    log: bool = True,
) -> str:
    """Loss (or quality) over cost. curve, uniform: (cost, value, what the tooltip says). log: of the values."""
    points = [*curve, *uniform, *([(*chosen, "")] if chosen else [])]
    points = [point for point in points if not log or point[1] > 0]
    if len(points) < 2:
        return ""
    xs, ys = [p[0] for p in points], [log10(p[1]) if log else p[1] for p in points]
    left, top, right, bottom = 80, 14, WIDTH - 30, 300
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _log_ticks(min(ys), max(ys)) if log else _ticks(min(ys), max(ys))
    x0, x1, y0, y1 = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def at(x: float, value: float) -> tuple[float, float]:
        y = log10(value) if log else value
        return left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top)

    body = ""
    for tick in x_ticks:
        x, _ = at(tick, 10**y0 if log else y0)
        body += _line(x, top, x, bottom) + _text(x, bottom + 18, _short(tick), "middle")
    for tick in y_ticks:
        _, y = at(x0, 10**tick if log else tick)
        body += _line(left, y, right, y) + _text(left - 8, y + 4, _short(10**tick if log else tick), "end")
    body += _text((left + right) / 2, bottom + 38, x_title, "middle") + _text(left, top - 2, y_title, colour=SOFT)
    drawn = [(at(x, y), told) for x, y, told in curve if not log or y > 0]
    path = " ".join(f"{x:.1f},{y:.1f}" for (x, y), _ in drawn)
    body += f"<polyline points='{path}' fill='none' stroke='{FREE}' stroke-width='2'/>"
    body += "".join(_dot(x, y, 4, FREE, told) for (x, y), told in drawn)
    for x, y, told in uniform:
        if not log or y > 0:
            px, py = at(x, y)
            body += _rect(px - 4, py - 4, 8, 8, UNIFORM, told) + _text(px + 8, py + 4, told, colour=UNIFORM)
    if chosen and (not log or chosen[1] > 0):
        x, y = at(*chosen)
        body += f"<circle cx='{x:.1f}' cy='{y:.1f}' r='8' fill='none' stroke='{CHOSEN}' stroke-width='2.5'/>"
        body += _text(x + 12, y - 8, "chosen", colour=CHOSEN)
    return _svg(bottom + 46, body)


def facts_pareto(facts: Mapping[str, Any]) -> str:
    """The curve of a solved assignment."""
    name = facts["curve_over"]
    items = facts["items"]
    curve = [(p["total"][name], p["score"], _counts(items, p["bits"])) for p in facts["curve"]]
    uniform = [(p["total"][name], p["score"], f"all {p['bits']} bits") for p in facts["uniform"]]
    return pareto(curve, (facts["total"][name], facts["score"]), uniform, AXES.get(name, name), "sum of sensitivities")


AXES = {
    "size": "bytes of weights", "bops": "bit operations", "latency": "predicted latency, ms", "flash": "bytes of flash",
    "ram": "bytes of RAM", "instructions": "instructions of an inference", "energy": "energy of an inference",
    "lut": "look-up tables",
}  # fmt: skip


def _counts(items: Sequence[Mapping[str, Any]], bits: Sequence[int]) -> str:
    free = [b for item, b in zip(items, bits, strict=True) if not item["pinned"]]
    return ", ".join(f"{free.count(b)} of {b} bits" for b in sorted(set(free)))


def _svg(height: float, body: str, width: float = WIDTH) -> str:
    return (
        f"<svg viewBox='0 0 {width:.0f} {height:.0f}' style='width:100%;max-width:{width:.0f}px;height:auto' "
        f"font-family='system-ui, sans-serif' font-size='12'>{body}</svg>"
    )


def _rect(x: float, y: float, width: float, height: float, colour: str, told: str) -> str:
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' fill='{colour}'>"
        f"<title>{escape(told)}</title></rect>"
    )


def _dot(x: float, y: float, radius: float, colour: str, told: str) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' fill='{colour}'><title>{escape(told)}</title></circle>"


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f"<line x1='{x:.1f}' y1='{y:.1f}' x2='{to_x:.1f}' y2='{to_y:.1f}' stroke='{LINE}'/>"


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = SOFT) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' text-anchor='{anchor}'>{escape(text)}</text>"


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> str:
    return "#" + "".join(f"{round(p + (q - p) * share):02x}" for p, q in zip(a, b, strict=True))


def _warm(share: float) -> str:
    """Pale yellow to dark red."""
    if share < 0.5:
        return _mix((255, 250, 235), (240, 160, 70), 2 * share)
    return _mix((240, 160, 70), (120, 10, 20), 2 * share - 1)


def _diverging(share: float) -> str:
    """Blue (-1) over white to red (1)."""
    return _mix((255, 255, 255), (180, 35, 24) if share > 0 else (40, 90, 170), min(1.0, abs(share) ** 0.5))


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers around a range."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** floor(log10(span / 4))
    step = next(unit * m for m in (1, 2, 5, 10) if span / (unit * m) <= 7)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [step * k for k in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Whole powers of ten around a range of logarithms."""
    first, last = floor(low + 1e-9), ceil(high - 1e-9)
    step = max(1, ceil((last - first) / 7))
    count = max(1, ceil((last - first) / step))
    return [float(first + step * k) for k in range(count + 1)]


def _short(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:.3g}"
