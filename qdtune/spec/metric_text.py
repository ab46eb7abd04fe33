"""How values of a metric and their differences are printed, everywhere.

Fractions are printed in per cent and compared in percentage points. Other metrics are plain numbers, with as many
digits as tell them apart. Accuracy goes without its name; every other metric is named.
"""

from __future__ import annotations

import math

from qdtune.spec.tasks import ACCURACY, Metric

PLAIN_DIGITS = 4  # significant digits of a plain number
DIFFERENCE_DIGITS, INTERVAL_DIGITS = 3, 2  # significant digits of the largest difference, and of half an interval
MOST_DECIMALS = 9  # smaller numbers are written with a power of ten


def format_metric(metric: Metric, value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A value for a cell of a table, with half the width of its interval if it has one: `97.12% ± 0.30`."""
    if value is None:
        return "-"
    half = half_interval(metric, value, low, high)
    if metric.is_fraction:
        return f"{value:.2%}" if half is None else f"{value:.2%} ± {100 * half:.2f}"
    if not half or not math.isfinite(half):
        return format_plain(value)
    decimals = count_decimals(half, INTERVAL_DIGITS)
    return f"{_fixed(value, decimals)} ± {_fixed(half, decimals)}"


def half_interval(metric: Metric, mean: float, low: float | None, high: float | None) -> float | None:
    """Half the width of an interval, as it was before it was cut off at the bounds of its metric; None if unknown.

    Args:
        metric: with its bounds.
        mean: in the middle of the whole interval.
        low, high: its ends, at most one of them cut off; None if there is none.
    """
    lowest, highest = metric.bounds
    if low is None or high is None or (low <= lowest and high >= highest):
        return None
    return max(mean - low, high - mean, 0.0)


def format_briefly(metric: Metric, value: float) -> str:
    """A value in few characters: `97.1%`, `0.0213`."""
    return f"{value:.1%}" if metric.is_fraction else format_plain(value, DIFFERENCE_DIGITS)


def say_metric(metric: Metric, value: float) -> str:
    """A value in a sentence: `97.1 %`, `f1 97.1 %`, `mae 0.0213`."""
    return named(metric, value_text(metric, value))


def named(metric: Metric, text: str) -> str:
    """The text of a value with the name of its metric before it, unless that is accuracy."""
    return text if metric is ACCURACY else f"{metric.name} {text}"


def value_text(metric: Metric, value: float) -> str:
    """A value in a sentence that has named the metric: `97.1 %`, `0.02134`."""
    return f"{100 * value:.1f} %" if metric.is_fraction else format_plain(value)


def say_interval(metric: Metric, low: float, high: float) -> str:
    """The ends of an interval in a sentence: `96.9 to 97.3`, `0.0209 to 0.0217`."""
    if metric.is_fraction:
        return f"{100 * low:.1f} to {100 * high:.1f}"
    decimals = count_decimals((high - low) / 2, INTERVAL_DIGITS)
    return f"{_fixed(low, decimals)} to {_fixed(high, decimals)}"


def format_differences(metric: Metric, *differences: float) -> list[str]:
    """Signed differences without their unit, all with the same digits; zero has no sign: `+1.2`, `-0.013`.

    Percentage points have a second digit if one digit would show a zero.
    """
    if metric.is_fraction:
        digits = 1 if all(abs(x) >= 0.0005 or x == 0 for x in differences) else 2
        return [format_signed(100 * x, digits) for x in differences]
    decimals = count_decimals(max(map(abs, differences)), DIFFERENCE_DIGITS)
    return [format_signed(x, decimals) for x in differences]


def difference_cells(metric: Metric, *differences: float) -> list[str]:
    """As `format_differences`, for cells below one another: percentage points always have two digits."""
    if metric.is_fraction:
        return [format_signed(100 * x, 2) for x in differences]
    return format_differences(metric, *differences)


def say_difference(metric: Metric, text: str) -> str:
    """A signed difference as a text with its unit: `+1.2 points`, `mae -0.013`."""
    return f"{text} points" if metric.is_fraction else f"{metric.name} {text}"


def say_distance(metric: Metric, text: str) -> str:
    """A difference without its sign, or a range of them, as a text with its unit: `1.2 points`, `0.013 in mae`."""
    return f"{text} points" if metric.is_fraction else f"{text} in {metric.name}"


def difference_unit(metric: Metric) -> str:
    """The unit of differences, for heads of tables and axes: `points`, `mae`."""
    return "points" if metric.is_fraction else metric.name


def column_head(metric: Metric, split: str) -> str:
    """The head of a column of values: `validation`, `validation mae`."""
    return split if metric is ACCURACY else f"{split} {metric.name}"


def best_word(metric: Metric) -> str:
    """Which value is the best one: `highest` or `lowest`."""
    return "highest" if metric.sign > 0 else "lowest"


def format_signed(value: float, decimals: int) -> str:
    """The value with its sign, but zero without one: `+1.20`, `-0.40`, `0.00`."""
    text = _fixed(value, decimals)
    if not text.partition("e")[0].strip("-0.,"):
        return text.removeprefix("-")
    return text if value < 0 else f"+{text}"


def format_plain(value: float, digits: int = PLAIN_DIGITS) -> str:
    """A number with this many significant digits, and with all digits before the point: `0.02134`, `12,345`."""
    return _fixed(value, count_decimals(value, digits))


def count_decimals(value: float, digits: int) -> int:
    """The digits after the point with which a number shows so many significant ones."""
    if value == 0 or not math.isfinite(value):
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def _fixed(value: float, decimals: int) -> str:
    if decimals > MOST_DECIMALS and value:
        digits = decimals + math.floor(math.log10(abs(value)))
        return f"{value:.{max(0, digits)}e}"
    return f"{value:,.{min(decimals, MOST_DECIMALS)}f}"
