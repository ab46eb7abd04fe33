"""A forest plot of a question: the effect of each comparison with its interval, and a line at zero.

Significant comparisons are filled, thick and named in bold, so that a verdict is readable without colour.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt

from qdtune.analysis.comparison import TOO_FEW_SEEDS, Comparison
from qdtune.analysis.run import Run
from qdtune.report.conclusions import varying_settings
from qdtune.report.figure import Figure
from qdtune.report.groups import describe_bits_list
from qdtune.report.plot_data import Sheet
from qdtune.report.scales import OKABE_ITO, styled
from qdtune.report.tables import effect_head, format_effect
from qdtune.spec.axes import axis_of, title_of
from qdtune.spec.tasks import Metric

FOREST_WIDTH = 760  # pixels, labels included
ROW_HEIGHT = 19  # pixels of a comparison
MAX_ROWS = 60  # comparisons of a plot; of more, those with the smallest p
TICKS = 7  # about so many on the axis of effects
CHARACTER_WIDTH = 6.4  # pixels of a character of a label, on average
MAX_LABEL = 380  # pixels; a longer label is cut, and the tooltip has it whole; a phone has room for less
INDENT = "\u200b\u2003"  # before the comparisons of a group; Vega removes spaces at the start of a label
COLOURS = {
    "helps": OKABE_ITO[0],
    "hurts": OKABE_ITO[3],
    "same": OKABE_ITO[2],
    "undecided": "#777777",
    "behind": OKABE_ITO[1],
}
VERDICT_SHAPES = dict.fromkeys(COLOURS, "circle") | {"same": "square", "behind": "triangle-down"}
HOLLOW = {"undecided": "white", "behind": "white"}


def draw_forest(drawn: Sheet, axis: str) -> Figure | None:
    """The figure of a question with the effect of each comparison; None if no comparison has an effect.

    Args:
        drawn: the run.
        axis: of the question: `depth` or `activation`.
    """
    found = getattr(drawn.run.answers(), axis) if isinstance(drawn.run, Run) else ()
    shown = select_comparisons(found)
    if not shown:
        return None
    values, baselines = ({getattr(one, field) for one in shown} for field in ("value", "baseline"))
    what = shown[0].names[0] if len(values) == 1 else f"each {title_of(axis)}"
    title = f"Effect of {what}{f' against {shown[0].names[1]}' if len(baselines) == 1 else ''}"
    better = "the larger depth" if axis == "depth" else "the activation"
    tested = sum(_difference(one) is not None for one in found)
    gone = any(one.verdict == "behind" for one in shown)
    behind = " Triangle: a side was stopped early and is behind, drawn where it was stopped." if gone else ""
    margin = next((one.margin_text for one in shown if one.same_within is not None), "")
    same = f" Dotted: the margin, {margin.removeprefix('within ')}." if margin else ""
    same += " Square: the same within it." if any(one.verdict == "same" for one in shown) else ""
    few = f" Without a line: {TOO_FEW_SEEDS}." if any(one.is_interval_useless for one in shown) else ""
    some = f" Shown: {MAX_ROWS} of {tested:,} comparisons, those with the smallest p." if tested > MAX_ROWS else ""
    caption = (
        f"Mean difference and its interval, corrected for all comparisons. Right of zero {better} is better. "
        f"Filled, thick and bold: significant. Hollow: not significant.{same}{behind}{few}{some}"
    )
    return Figure(f"forest_{axis}", title, caption, styled(forest_chart(axis, shown, FOREST_WIDTH)))


def select_comparisons(found: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons that a plot shows, in their order: those with a difference, at most `MAX_ROWS`."""
    tested = [one for one in found if _difference(one) is not None]
    if len(tested) <= MAX_ROWS:
        return tested
    places = sorted(range(len(tested)), key=lambda i: (1.0 if tested[i].p is None else tested[i].p, i))
    return [tested[i] for i in sorted(places[:MAX_ROWS])]


def forest_chart(axis: str, shown: Sequence[Comparison], width: int) -> Any:
    """The plot of comparisons, one row for each under a heading for each number of bits.

    Args:
        axis: of the question: `depth` or `activation`.
        shown: as `select_comparisons` gives them; at least one.
        width: pixels, labels included.
    """
    labels, rows = _lay_out(axis, shown)
    heads = [k for k in range(len(labels)) if k not in {row["row"] for row in rows}]
    base = alt.Chart(alt.Data(values=rows)).encode(y=_row_axis(labels, heads, rows))
    metric = shown[0].metric
    head = effect_head(metric)
    title = f"← worse\u2003{head}\u2003better →"
    # Right is better, whichever way the metric goes.
    ends: dict[str, Any] = {} if metric.sign > 0 else {"reverse": True}
    # So few ticks that every label fits, that of zero among them.
    x = alt.X("effect:Q", title=title, scale=alt.Scale(nice=True, zero=True, **ends), axis=alt.Axis(tickCount=TICKS))
    scale = alt.Scale(domain=[*COLOURS], range=[*COLOURS.values()])
    look = ["look"] if any(one.look for one in shown) else []
    tips = [alt.Tooltip(f"{name}:N") for name in ("comparison", head, "seeds", *look, "verdict", "needed")]
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color="#333333", strokeWidth=1).encode(x="zero:Q")
    chosen = "datum.verdict !== 'undecided'"  # a side that is behind has no line
    line = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule()
        .encode(
            x=alt.X("low:Q", title=title, axis=alt.Axis(tickCount=TICKS)),
            x2="high:Q",
            color=alt.Color("verdict:N", legend=None, scale=scale),
            strokeWidth=alt.condition(chosen, alt.value(3), alt.value(1.2)),
            tooltip=tips,
        )
    )
    point = _mark_effects(base).encode(x=x, stroke=alt.Stroke("verdict:N", legend=None, scale=scale), tooltip=tips)
    margins = [_place(metric, sign * one.same_within) for one in shown[:1] if one.same_within for sign in (-1, 1)]
    dots = [_mark_margins(margins)] if margins else []
    chart = alt.layer(zero, *dots, line, point)
    return chart.properties(
        width=width,
        height=ROW_HEIGHT * len(labels),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )


def _mark_effects(base: Any) -> Any:
    """A mark for each comparison, whose shape and filling tell the verdict."""
    fill = alt.Scale(domain=[*COLOURS], range=[*(COLOURS | HOLLOW).values()])
    shapes = alt.Scale(domain=[*VERDICT_SHAPES], range=[*VERDICT_SHAPES.values()])
    return base.mark_point(size=55, opacity=1, strokeWidth=1.5).encode(
        fill=alt.Fill("verdict:N", legend=None, scale=fill),
        shape=alt.Shape("verdict:N", legend=None, scale=shapes),
    )


def _mark_margins(places: Sequence[float | None]) -> Any:
    """Dotted lines at both ends of the margin within which a difference is none."""
    data = alt.Data(values=[{"margin": place} for place in places])
    return alt.Chart(data).mark_rule(color="#777777", strokeWidth=1, strokeDash=[2, 3]).encode(x="margin:Q")


def _lay_out(axis: str, shown: Sequence[Comparison]) -> tuple[list[str], list[dict[str, Any]]]:
    """The labels of all lines from the top, headings among them, and a row for each comparison."""
    settings = varying_settings(shown)
    labels: list[str] = []
    rows = []
    group = ""
    for one in shown:
        heading = describe_bits_list([one.weight_bits]).removeprefix("at ")
        if heading != group:
            group = heading
            labels.append(heading)
        name = _name_row(axis, one, settings, shown)
        needed = f"{one.hint} seeds" if one.hint else "-"
        row = {"row": len(labels), "comparison": f"{group}: {name}", "verdict": one.verdict}
        low, high = (None, None) if one.is_interval_useless else (one.low, one.high)
        numbers = {"effect": _difference(one), "low": low, "high": high}
        row |= {name: _place(one.metric, value) for name, value in numbers.items()}
        row |= {effect_head(one.metric): format_effect(one), "seeds": one.n_seeds, "needed": needed}
        row |= {"look": one.look} if one.look else {}
        rows.append(row)
        labels.append(f"{INDENT}{name}")
    return labels, rows


def _difference(one: Comparison) -> float | None:
    """The effect; with a side that is behind, the difference at the epoch at which that was stopped."""
    return one.curve_effect if one.verdict == "behind" else one.effect


def _name_row(axis: str, one: Comparison, settings: Sequence[str], shown: Sequence[Comparison]) -> str:
    """What tells a comparison from the others at its bits: `depth 2, relu`."""
    baselines = {other.baseline for other in shown}
    value, baseline = one.names
    parts = [value if len(baselines) == 1 else f"{value} - {baseline}"]
    if axis == "depth" and len({other.activation for other in shown}) > 1:
        parts.append(str(one.activation))
    if axis == "activation":
        parts.insert(0, f"depth {one.depth}")
        if len({other.value for other in shown} | baselines) == 2:
            parts = parts[:1]
    values = [(name, getattr(one, name)) for name in settings]
    parts += [str(axis_of(name).asked).format(value) for name, value in values if value is not None]
    return ", ".join(parts)


def _place(metric: Metric, difference: float | None) -> float | None:
    """A difference on the axis, in its unit."""
    if difference is None:
        return None
    return round(100 * difference, 4) if metric.is_fraction else float(f"{difference:.5g}")


def _row_axis(labels: Sequence[str], heads: Sequence[int], rows: Sequence[dict[str, Any]]) -> alt.Y:
    bold = [*heads, *(row["row"] for row in rows if row["verdict"] not in HOLLOW)]
    padding = min(MAX_LABEL, CHARACTER_WIDTH * max(map(len, labels)) + 12)
    axis = alt.Axis(
        labelExpr=f"{json.dumps(labels)}[datum.value]",
        labelAlign="left",
        labelPadding=padding,
        labelLimit=padding,
        labelFontWeight={"condition": {"test": f"indexof({bold}, datum.value) >= 0", "value": "bold"}, "value": 400},
        ticks=False,
        domain=False,
        grid=False,
    )
    return alt.Y("row:O", title=None, scale=alt.Scale(domain=list(range(len(labels))), padding=0.3), axis=axis)
