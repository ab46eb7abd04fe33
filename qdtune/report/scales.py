"""The axes of a figure: bytes and errors, both logarithmic, epochs; and how figures look.

Colours are those of Okabe and Ito (2008, "Color Universal Design"), told apart by the colour-blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 1])
MARGIN = 1.15  # free space at both ends of an axis of bytes, as a factor
LEAST = 0.0005  # error below which an axis does not reach
_MANTISSAS: tuple[tuple[float, ...], ...] = (
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    tuple(k / 10 for k in range(10, 100)),
)
_BYTES = "datum.value < 1024 ? datum.value + ' B' : format(datum.value / 1024, '.4~g') + ' KiB'"
_CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "titlePadding": 9}
    | {"gridColor": "#e8e8e8"},
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 260},
    "title": {"fontSize": 13, "fontWeight": "normal", "anchor": "start"},
    "view": {"stroke": "#bbbbbb"},
}


def styled(chart: Any) -> Any:
    """The chart with our fonts and colours."""
    return chart.configure(**_CONFIG)


def colours(values: Sequence[Any]) -> alt.Scale:
    """A colour for each value; where there are more than colours that can be told apart, shades."""
    if len(values) <= len(OKABE_ITO):
        return alt.Scale(domain=list(values), range=list(OKABE_ITO[: len(values)]))
    return alt.Scale(domain=list(values), scheme="cividis")


def size_axis(sizes: Sequence[float]) -> alt.X:
    """A logarithmic axis of bytes from the least to the most of them, with round numbers as its ticks."""
    low, high = min(sizes) / MARGIN, max(sizes) * MARGIN
    scale = alt.Scale(type="log", base=2, domain=[low, high], nice=False)
    axis = alt.Axis(values=size_ticks(low, high), labelExpr=_BYTES, labelOverlap=True)
    return alt.X("size:Q", title="size shipped (bytes, log scale)", scale=scale, axis=axis)


def size_ticks(low: float, high: float) -> list[float]:
    """Round numbers of bytes within [low, high], ascending: powers of two, with steps between where these are few."""
    for parts in ((1,), (1, 1.5), (1, 1.25, 1.5, 1.75)):
        found = sorted(part * 2.0**k for k in range(64) for part in parts if low <= part * 2.0**k <= high)
        if len(found) >= 4:
            break
    return found[:: 1 + len(found) // 12]


def accuracy_axis(of: str, accuracies: Sequence[float]) -> alt.Y:
    """An axis of the field `error`, logarithmic and upside down, labelled as accuracy: so 95 and 96 % lie apart."""
    low, high = max(LEAST, error(max(accuracies)) / 1.2), min(1.0, error(min(accuracies)) * 1.1)
    for mantissas in _MANTISSAS:
        ticks = sorted(m / 10**k for k in range(5) for m in mantissas if low <= m / 10**k <= high)
        if len(ticks) >= 5:
            break
    ticks = ticks[:: 1 + len(ticks) // 12]
    scale = alt.Scale(type="log", domain=[high, low], nice=False)
    axis = alt.Axis(values=ticks, labelExpr="format(100 * (1 - datum.value), '.4~g')", labelOverlap=True)
    return alt.Y("error:Q", title=f"{of} accuracy (%, error on a log scale)", scale=scale, axis=axis)


def lower(axis: alt.Y) -> alt.Y:
    """The same axis for the field `error_low`, the far end of an interval."""
    other = axis.copy()
    other.shorthand = "error_low:Q"
    return other


def error(accuracy: float) -> float:
    """What is wrong at an accuracy (0..1), as it stands on the axis."""
    return round(max(1 - accuracy, LEAST), 6)


def with_error(chart: Any, field: str) -> Any:
    """The chart with the field `error`, made of an accuracy."""
    return chart.transform_calculate(error=f"max(1 - datum.{field}, {LEAST})")


def epoch_axis(epochs: Sequence[int]) -> alt.X:
    """An axis of epochs from 1, those of the warm-up first."""
    scale = alt.Scale(domain=[1, max(epochs, default=2)], nice=False)
    axis = alt.Axis(tickMinStep=1, format="d")
    return alt.X("epoch:Q", title="epoch (warm-up, then QAT)", scale=scale, axis=axis)
