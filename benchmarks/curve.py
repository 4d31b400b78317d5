"""A curve with intervals as an SVG: small panels side by side, a logarithmic axis of sizes, a line for the start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from sightline.evaluate.statistics import Estimate

__all__ = ["Curve", "draw_curves"]

WIDTH, HEIGHT = 250, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 42
INK, LINE, BASE = "#444", "#0d9488", "#e0a100"


@dataclass(frozen=True)
class Curve:
    """One panel: an estimate at each size, and that of the start."""

    title: str
    sizes: Sequence[int]
    estimates: Sequence[Estimate]
    start: Estimate


def draw_curves(curves: Sequence[Curve], path: Path, axis: str) -> Path:
    """Writes the panels; `axis` names the sizes. The folder is made.

    The picture brings its own light ground, so that it can be read on a dark page too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width = WIDTH * len(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for number, curve in enumerate(curves):
        parts += [f'<g transform="translate({number * WIDTH} 0)">', *_panel(curve, axis), "</g>"]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    return path


def _panel(curve: Curve, axis: str) -> Iterator[str]:
    every = [curve.start, *curve.estimates]
    low, high = min(e.low for e in every), max(e.high for e in every)
    margin = 0.1 * max(high - low, 0.02)
    low, high = low - margin, high + margin
    first, last = math.log10(min(curve.sizes)), math.log10(max(curve.sizes))

    def x(size: float) -> float:
        share = (math.log10(size) - first) / (last - first) if last > first else 0.5
        return round(LEFT + 12 + share * (WIDTH - LEFT - RIGHT - 24), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    yield f'<text x="{LEFT}" y="18" fill="{INK}" font-weight="bold">{escape(curve.title)}</text>'
    for value in _ticks(low, high):
        yield f'<line x1="{LEFT}" x2="{right}" y1="{y(value)}" y2="{y(value)}" stroke="#e5e5e5"/>'
        yield f'<text x="{LEFT - 6}" y="{y(value) + 4}" fill="{INK}" text-anchor="end">{value:.3g}</text>'
    for size in curve.sizes:
        yield f'<text x="{x(size)}" y="{bottom + 16}" fill="{INK}" text-anchor="middle">{size:,}</text>'
    yield f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" fill="{INK}" text-anchor="middle">{escape(axis)}</text>'
    base = curve.start
    yield (
        f'<rect x="{LEFT}" width="{right - LEFT}" y="{y(base.high)}" height="{round(y(base.low) - y(base.high), 1)}" '
        f'fill="{BASE}" fill-opacity="0.15"/>'
    )
    yield (
        f'<line x1="{LEFT}" x2="{right}" y1="{y(base.mean)}" y2="{y(base.mean)}" stroke="{BASE}" '
        f'stroke-dasharray="5 4"><title>start: {base.describe()}</title></line>'
    )
    points = " ".join(f"{x(s)},{y(e.mean)}" for s, e in zip(curve.sizes, curve.estimates, strict=True))
    yield f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="1.5"/>'
    for size, e in zip(curve.sizes, curve.estimates, strict=True):
        yield f'<line x1="{x(size)}" x2="{x(size)}" y1="{y(e.high)}" y2="{y(e.low)}" stroke="{LINE}"/>'
        yield (
            f'<circle cx="{x(size)}" cy="{y(e.mean)}" r="3.5" fill="{LINE}">'
            f"<title>{size:,}: {e.describe()}</title></circle>"
        )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values between two numbers."""
    raw = (high - low) / 4
    unit = 10 ** math.floor(math.log10(raw))
    step = next(k * unit for k in (1, 2, 5, 10) if k * unit >= raw)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
