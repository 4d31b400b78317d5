"""Numbers as a person reads them, the same in the console and on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from sightline.report.compare import Interval
from sightline.report.metrics import Measure

__all__ = ["alarm_kind", "change_text", "clock", "interval_text", "number", "range_text", "sparkline", "value_text"]

_BARS = "▁▂▃▄▅▆▇█"


def alarm_kind(text: str) -> str:
    """An alarm without its numbers, by which the alarms of consecutive steps are known to be the same.

    Example:
        >>> alarm_kind("box rate of grounded 0.02 below 0.1")
        'box rate of grounded # below #'
    """
    return re.sub(r"[-−]?\d[\d.]*(e[-+]?\d+)?", "#", text)


def number(value: float) -> str:
    """Four significant digits at most.

    Example:
        >>> number(0.123456), number(1234.5), number(3.0), number(1.5e-5), number(float("nan"))
        ('0.1235', '1234', '3', '1.5e-05', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def value_text(value: float, measure: Measure) -> str:
    """A value of an evaluation measure: shares as per cent."""
    if measure.is_share:
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def interval_text(interval: Interval, measure: Measure) -> str:
    """Mean and interval, the interval left out where none was computed.

    Example:
        >>> interval_text(Interval(0.57, 0.55, 0.59), Measure("accuracy", "Accuracy", ""))
        '57.0 [55.0, 59.0]'
    """
    return f"{value_text(interval.mean, measure)} {range_text(interval, measure)}".rstrip()


def range_text(interval: Interval, measure: Measure) -> str:
    """The interval alone, empty where none was computed."""
    if interval.low == interval.high:
        return ""
    return f"[{value_text(interval.low, measure)}, {value_text(interval.high, measure)}]"


def change_text(change: float, measure: Measure) -> str:
    """A signed difference, minus as a real minus sign."""
    text = value_text(abs(change), measure)
    return ("+" if change >= 0 else "−") + text


def clock(seconds: float) -> str:
    """A duration.

    Example:
        >>> clock(75), clock(3700), clock(4)
        ('1:15', '1:01:40', '0:04')
    """
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of a metric in `width` characters at most; gaps where it was not finite.

    Example:
        >>> sparkline([0, 1, 2, 3], 4), sparkline([1, 1], 4), sparkline([], 4)
        ('▁▃▆█', '▁▁', '')
    """
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [_mean(values[a:b]) for a, b in pairwise(edges)]
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return " " * len(values)
    low, span = min(finite), max(finite) - min(finite)
    top = len(_BARS) - 1
    return "".join(_BARS[round((v - low) / span * top) if span else 0] if math.isfinite(v) else " " for v in values)


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan
