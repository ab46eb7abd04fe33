"""The axes of a figure: bytes or another cost and errors, both logarithmic, epochs; and how figures look.

The error of a metric that goes up to 1 is its distance to 1; a metric that goes down is an error itself.

Colours are those of Okabe and Ito (2008, "Color Universal Design"), told apart by the colour-blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from qdtune.report.plot_data import field_of
from qdtune.spec.objectives import SIZE_BYTES, Objective
from qdtune.spec.tasks import Metric

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
# The same with a hole, as paths of Vega: 1 is half the side of the square above. A little larger, so that it shows.
_HOLE = "M.7,{0}A.7,.7,0,1,0,-.7,{0}A.7,.7,0,1,0,.7,{0}Z"
HOLED_SHAPES = (
    "M1.2,0A1.2,1.2,0,1,1,-1.2,0A1.2,1.2,0,1,1,1.2,0Z" + _HOLE.format(0),
    "M-1.15,-1.15H1.15V1.15H-1.15Z" + _HOLE.format(0),
    "M0,-1.5L1.6,1.3L-1.6,1.3Z" + _HOLE.format(0.4),
    "M0,-1.6L1.6,0L0,1.6L-1.6,0Z" + _HOLE.format(0),
    "M-.8,-1.5H.8V-.8H1.5V.8H.8V1.5H-.8V.8H-1.5V-.8H-.8Z" + _HOLE.format(0),
    "M0,1.5L-1.6,-1.3L1.6,-1.3Z" + _HOLE.format(-0.4),
)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 1])
MARGIN = 1.15  # free space at both ends of an axis of bytes, as a factor
_MANTISSAS: tuple[tuple[float, ...], ...] = (
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    tuple(k / 10 for k in range(10, 100)),
)
_POWERS = range(-60, 101)  # of ten, in ticks of a metric
_PLAIN = "format(datum.value, '.4~s')"
_BYTES = "datum.value < 1024 ? datum.value + ' B' : format(datum.value / 1024, '.4~g') + ' KiB'"
_CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "titlePadding": 9}
    | {"gridColor": "#e8e8e8"},
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 260},
    "title": {"fontSize": 13, "fontWeight": "normal", "anchor": "start"}
    | {"subtitleFontSize": 11, "subtitleColor": "#555555", "subtitlePadding": 4, "offset": 10},
    "view": {"stroke": "#bbbbbb"},
}


def styled(chart: Any, legend_below: bool = False) -> Any:
    """The chart with our fonts and colours; legends stand below it if there is no room beside it."""
    legend = _CONFIG["legend"] | ({"orient": "bottom"} if legend_below else {})
    return chart.configure(**_CONFIG | {"legend": legend})


def colours(values: Sequence[Any]) -> alt.Scale:
    """A colour for each value; where there are more than colours that can be told apart, shades."""
    if len(values) <= len(OKABE_ITO):
        return alt.Scale(domain=list(values), range=list(OKABE_ITO[: len(values)]))
    return alt.Scale(domain=list(values), scheme="cividis")


def size_axis(sizes: Sequence[float], cost: Objective = SIZE_BYTES) -> alt.X:
    """A logarithmic axis of a cost from the least to the most of its values, with round numbers as its ticks."""
    has_zero = min(sizes) < 1  # it has no place on a logarithmic axis
    low, high = max(min(sizes), 1) / MARGIN, max(*sizes, 1) * MARGIN
    is_bytes = cost.unit == SIZE_BYTES.unit
    scale = alt.Scale(
        type="log", base=2 if is_bytes else 10, domain=[low, high], nice=False, clamp=has_zero or alt.Undefined
    )
    ticks = size_ticks(low, high) if is_bytes else _round_ticks(low, high)
    axis = alt.Axis(values=ticks, labelExpr=_BYTES if is_bytes else _PLAIN, labelOverlap=True)
    return alt.X(f"{field_of(cost)}:Q", title=cost.axis_title, scale=scale, axis=axis)


def size_ticks(low: float, high: float) -> list[float]:
    """Round numbers of bytes within [low, high], ascending: powers of two, with steps between where these are few."""
    for parts in ((1,), (1, 1.5), (1, 1.25, 1.5, 1.75)):
        found = sorted(part * 2.0**k for k in range(64) for part in parts if low <= part * 2.0**k <= high)
        if len(found) >= 4:
            break
    return found[:: 1 + len(found) // 12]


def _round_ticks(low: float, high: float) -> list[float]:
    """Round decimal numbers within [low, high], ascending."""
    for mantissas in _MANTISSAS:
        ticks = sorted(m / 10.0**k for k in _POWERS for m in mantissas if low <= m / 10.0**k <= high)
        if len(ticks) >= 5:
            break
    return ticks[:: 1 + len(ticks) // 12]


def metric_axis(metric: Metric, split: str, values: Sequence[float]) -> alt.Y:
    """An axis of the field `error`, logarithmic and upside down, labelled as the metric: so 95 and 96 % lie apart.

    Better is higher, whichever way the metric goes.

    Args:
        metric: that is drawn.
        split: `validation` or `test`, for the title.
        values: of the metric; at least one.
    """
    errors = [error(metric, value) for value in values]
    has_zero = not _is_share(metric) and min(errors) <= _least(metric)  # it has no place on a logarithmic axis
    above = [one for one in errors if one > _least(metric)] or [1.0] if has_zero else errors
    low, high = min(above) / 1.2, max(above) * 1.1
    labels, title = "format(datum.value, '.4~g')", f"{metric.name} (log scale, better is up)"
    if _is_share(metric):
        low, high = max(_least(metric), low), min(1.0, high)
        factor, unit = ("100 * (1 - datum.value)", "%, ") if metric.is_fraction else ("1 - datum.value", "")
        digits = 4 if low >= 1e-4 else 7
        labels, title = f"format({factor}, '.{digits}~g')", f"{metric.name} ({unit}error on a log scale)"
    ticks = _round_ticks(low, high)
    scale = alt.Scale(type="log", domain=[high, low], nice=False, clamp=has_zero or alt.Undefined)
    axis = alt.Axis(values=ticks, labelExpr=labels, labelOverlap=True)
    return alt.Y("error:Q", title=f"{split} {title}", scale=scale, axis=axis)


def short_title(metric: Metric, split: str) -> str:
    """The title of an axis that has no room for more: `validation accuracy (%)`, `validation mae`."""
    return f"{split} {metric.name}{' (%)' if metric.is_fraction else ''}"


def note_clipped(metric: Metric, values: Sequence[float | None]) -> str:
    """A sentence for a caption if some values lie beyond the axis, with a space before it; else empty."""
    known, text = [value for value in values if value is not None], ""
    if not _is_share(metric):
        return f" Marks with {metric.name} 0 are drawn at the upper edge." if 0 in known else ""
    if metric.bounds[0] < 0 and any(value < 0 for value in known):
        text += f" Marks with a negative {metric.name} are drawn at 0."
    if any(1 - value < _least(metric) for value in known):
        most = f"{100 * (1 - _least(metric)):.6g} %" if metric.is_fraction else f"{1 - _least(metric):.7g}"
        text += f" Marks above {most} are drawn there."
    return text


def number_format(metric: Metric) -> str:
    """How Vega writes a value of a metric."""
    return ".2%" if metric.is_fraction else ".4~g"


def _is_share(metric: Metric) -> bool:
    """Whether a metric goes up to 1."""
    return metric.bounds[1] == 1


def _least(metric: Metric) -> float:
    """The error below which an axis does not reach."""
    return metric.least_error / 2 if _is_share(metric) else metric.least_error


def lower(axis: alt.Y) -> alt.Y:
    """The same axis for the field `error_low`, the far end of an interval."""
    other = axis.copy()
    other.shorthand = "error_low:Q"
    return other


def error(metric: Metric, value: float) -> float:
    """The error at a value of a metric, as it stands on the axis."""
    if not _is_share(metric):
        return max(value, _least(metric))
    return round(min(max(1 - value, _least(metric)), 1.0), 6 if _least(metric) > 1e-4 else 9)


def with_error(metric: Metric, chart: Any, field: str) -> Any:
    """The chart with the field `error`, made of a field with a metric."""
    if not _is_share(metric):
        return chart.transform_calculate(error=f"max(datum.{field}, {_least(metric)})")
    formula = f"max(1 - datum.{field}, {_least(metric)})"
    return chart.transform_calculate(error=formula if metric.is_fraction else f"min({formula}, 1)")


def epoch_axis(epochs: Sequence[int]) -> alt.X:
    """An axis of epochs from 1, those of the warm-up first."""
    scale = alt.Scale(domain=[1, max(epochs, default=2)], nice=False)
    axis = alt.Axis(tickMinStep=1, format="d")
    return alt.X("epoch:Q", title="epoch (warm-up, then QAT)", scale=scale, axis=axis)
