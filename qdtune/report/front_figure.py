"""The front as a figure, with all configurations as points and published networks, and the fronts of several runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import altair as alt

from qdtune.messages import one_line
from qdtune.pareto import front
from qdtune.report.curves import hovered_curves
from qdtune.report.figure import HEIGHT, NAME, WIDTH, Figure, whole
from qdtune.report.marks import note_holes, point_layer
from qdtune.report.plot_data import Recorded, Row, Sheet, field_of, sheet
from qdtune.report.published import CAVEAT, Published
from qdtune.report.scales import (
    DASHES,
    MARGIN,
    OKABE_ITO,
    error,
    lower,
    metric_axis,
    note_clipped,
    number_format,
    size_axis,
    styled,
    with_error,
)
from qdtune.spec.metric_text import best_word
from qdtune.spec.objectives import SIZE_BYTES, Objective, say_amount, say_list
from qdtune.spec.tasks import ACCURACY, Metric

PANEL_HEIGHT, PANELS_WIDTH = 260, 560  # pixels; the width is that of all panels together


def draw_front(drawn: Sheet, others: Sequence[Published], still: bool = False) -> Figure:
    """The figure of the front: every configuration as a point, and a step line; a panel for each cost of the front.

    Args:
        drawn: the run.
        others: published networks. With them all is drawn by the test set, because no other number is published.
        still: for paper: nothing that answers the pointer.
    """
    split = "test" if others else "val"
    rows = [row for row in drawn.drawable if row[split] is not None]
    values = [row[split] for row in rows] + [one.test_accuracy for one in others]
    height = metric_axis(drawn.metric, "test" if others else "validation", values)
    is_live = not still and bool(drawn.epochs)
    hover = _hover((drawn.front or rows)[-1]) if is_live else None
    panels = [_draw_panel(drawn, rows, others, height, cost, hover) for cost in drawn.costs]
    text = f"{_explain_line(drawn, bool(others))}{note_clipped(drawn.metric, values)}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Automatically deduplicated")  # what is pointed at is shared on purpose
        chart: Any = panels[0] if len(panels) == 1 else alt.concat(*panels, columns=len(panels))
        if is_live:
            chart = alt.vconcat(chart, hovered_curves(drawn), spacing=24)
    if is_live:
        text += " Point at a mark: its learning curve is below, and dashed the curve of the one that beat it."
    heads = say_list([cost.head for cost in drawn.costs])
    name = drawn.metric.name
    title = f"Test {name} against {heads}" if others else f"{name.capitalize()} against {heads}"
    return Figure("front", title, text, styled(chart, legend_below=len(panels) > 1))


def _draw_panel(
    drawn: Sheet, rows: Sequence[Row], others: Sequence[Published], height: Any, cost: Objective, hover: Any
) -> Any:
    """The metric against one cost; published networks, of which only bytes are known, stand in that panel alone.

    Args:
        drawn, others: as for `draw_front`.
        rows: those that are drawn.
        height: the channel y.
        cost: of the front.
        hover: what is pointed at; None on paper.
    """
    split, field, count = "test" if others else "val", field_of(cost), len(drawn.costs)
    others = others if cost is SIZE_BYTES else ()
    spent = [row[field] for row in rows] + [one.size_bytes for one in others]
    width = size_axis(spent, cost)
    if count > 1 and cost is not drawn.costs[0]:
        height = height.copy().title(None)
    right = max(right_edge(rows, field), *(one.size_bytes * MARGIN for one in others), 0)
    points = point_layer(drawn, width, height, split)
    layers = front_layers(front_steps(drawn, right, split, cost), width, height)
    if hover is not None:
        layers.append(_ring(drawn, split, width, height))
        points = points.add_params(hover).properties(name="points" if count == 1 else f"points_{field}")
    chart = alt.layer(*layers, points, *_published_layers(drawn.metric, others, width, height))
    if count == 1:
        return chart.properties(width=WIDTH, height=HEIGHT)
    return chart.properties(width=PANELS_WIDTH // count, height=PANEL_HEIGHT)


def _explain_line(drawn: Sheet, is_tested: bool) -> str:
    """The caption of the front: what the step lines and the marks are.

    Args:
        drawn: the run.
        is_tested: whether all is drawn by the test set.
    """
    seeds = max((row["n"] for row in drawn.front), default=0)
    band = f", with its 95 % interval over {seeds} seeds" if seeds > 1 else ""
    name, first = drawn.metric.name, drawn.costs[0]
    best = "most accurate configuration" if drawn.metric is ACCURACY else f"configuration of {_best(drawn)}"
    up_to = f"a {say_amount(first)}"
    several = ""
    if len(drawn.costs) > 1:
        up_to = "each value of this cost, whatever the others are"
        several = " Faint: not on the front over all costs."
    if is_tested:
        line = "the front, chosen by" if len(drawn.costs) == 1 else f"the {best} up to {up_to}, chosen by"
        crosses = f"Crosses: published networks, some of them named. {CAVEAT}"
        return f"Step line: {line} validation {name}{band}.{several}{note_holes(drawn)} {crosses}"
    hollow = f" Hollow: stopped early or failed, with the last {name}.{note_holes(drawn)}"
    return f"Step line: the {best} up to {up_to}{band}.{several}{hollow}"


def _best(drawn: Sheet) -> str:
    return f"{best_word(drawn.metric)} {drawn.metric.name}"


def front_figure(run: Recorded) -> Any:
    """The metric against each cost, and the learning curve of what is pointed at, as an Altair chart."""
    drawn = sheet(run)
    return whole(draw_front(drawn, []).chart, drawn)


def overlay(sheets: Sequence[Sheet]) -> Any:
    """The fronts of several runs on one data set in one chart; all are judged by one metric.

    Each is drawn over the first cost of all runs; over bytes if they have different costs.
    """
    metric = sheets[0].metric
    cost = sheets[0].costs[0] if len({s.costs for s in sheets}) == 1 else SIZE_BYTES
    right = max(right_edge(s.drawable, field_of(cost)) for s in sheets)
    names = [s.run.name for s in sheets]  # runs of one name are told apart by where they are
    names = [one_line(s.run.where) if names.count(name) > 1 else name for s, name in zip(sheets, names, strict=True)]
    steps = [front_steps(s, right, cost=cost) for s in sheets]
    rows = [row | {"run": name} for rows, name in zip(steps, names, strict=True) for row in rows]
    size = size_axis([row[field_of(cost)] for row in rows], cost)
    height = metric_axis(metric, "validation", [row["val"] for row in rows])
    base = alt.Chart(alt.Data(values=rows), width=WIDTH, height=HEIGHT).encode(x=size)
    colour, dash = alt.Scale(domain=names, range=list(OKABE_ITO)), alt.Scale(domain=names, range=list(DASHES))
    line = base.mark_line(interpolate="step-after", strokeWidth=2).encode(
        y=height,
        stroke=alt.Stroke("run:N", scale=colour, legend=alt.Legend(orient="bottom", columns=1)),
        strokeDash=alt.StrokeDash("run:N", scale=dash),
    )
    band = base.mark_area(interpolate="step-after", opacity=0.2, color="#888888", clip=True)
    band = band.encode(y=lower(height), y2="error_high:Q", detail="run:N")
    return styled(alt.layer(band, line))


def _hover(first: Row) -> alt.Parameter:
    """What is pointed at, with what beat it; `first` before anything was."""
    return alt.selection_point(
        name="hover",
        on="symbol:pointerover",  # not the ground between the marks: what was pointed at last stays
        fields=["id", "by_id"],
        empty=False,
        clear=False,
        value=[{"id": first["id"], "by_id": first["by_id"]}],
    )


def _ring(drawn: Sheet, split: str, size: Any, height: Any) -> Any:
    """A circle around what is pointed at."""
    here = f"isArray(hover.id) && datum.id === hover.id[0] && isValid(datum.{split})"
    ring = with_error(drawn.metric, alt.Chart(alt.NamedData(NAME)).transform_filter(here), split)
    return ring.mark_point(size=230, filled=False, stroke="black", strokeWidth=1.5).encode(x=size, y=height)


def front_layers(steps: list[Row], size: Any, height: Any, faint: bool = False) -> list[Any]:
    """The front as a step line with the band of its intervals; nothing where there is none.

    Args:
        steps: see `front_steps`.
        size, height: the channels x and y.
        faint: whether it is a grey line without its band.
    """
    base = alt.Chart(alt.Data(values=steps)).encode(x=size)
    band = base.mark_area(interpolate="step-after", opacity=0.5, color="#d0d0d0", clip=True)
    line = base.mark_line(interpolate="step-after", color="#999999" if faint else "#333333", strokeWidth=1.5)
    line = line.encode(y=height)
    return [] if not steps else [line] if faint else [band.encode(y=lower(height), y2="error_high:Q"), line]


def front_steps(drawn: Sheet, right: float, split: str = "val", cost: Objective = SIZE_BYTES) -> list[Row]:
    """The rows of the front over a cost, and once more the last one at the right edge: what is best stays best.

    Args:
        drawn: the run.
        right: of the cost, see `right_edge`.
        split: `val` or `test`, which is drawn.
        cost: of the x axis.
    """
    metric, field = drawn.metric, field_of(cost)
    low, high = ("low", "high") if split == "val" else ("test_low", "test_high")
    rows = []
    for row in drawn.best_up_to(cost):
        if (middle := row[split]) is not None:
            ends = {"error_low": row[low], "error_high": row[high]}
            errors = {key: error(metric, middle if end is None else end) for key, end in ends.items()}
            rows.append({field: row[field], "val": middle, "error": error(metric, middle)} | errors)
    return [*rows, rows[-1] | {field: right}] if rows else []


def right_edge(rows: Sequence[Row], field: str = "size") -> float:
    """The cost at the right edge of a figure of these rows; `field` is its name."""
    return float(max((row[field] for row in rows), default=1) * MARGIN)


def _published_layers(metric: Metric, others: Sequence[Published], size: Any, height: Any) -> list[Any]:
    """Published networks as named crosses."""
    costs = [[other.size_bytes, error(metric, other.test_accuracy)] for other in others]
    best = front(costs).tolist() if costs else []
    rows: list[Row] = []
    for other, (bytes_, missed), is_best in zip(others, costs, best, strict=True):
        # There is no room for all names: those ahead of all others have one, once for each system.
        name = other.system if is_best and all(row["name"] != other.system for row in rows) else ""
        rows.append({"size": bytes_, "error": missed, "name": name} | other._asdict())
    base = alt.Chart(alt.Data(values=rows)).encode(x=size, y=height)
    tips = ["system:N", alt.Tooltip("test_accuracy:Q", title="test", format=number_format(metric))]
    tips += [alt.Tooltip("size:Q", title="bytes", format=","), "source:N"]
    cross = base.mark_point(shape="cross", angle=45, size=40, filled=True, color="#777").encode(tooltip=tips)
    # A name stands on the side where the axis has room for it.
    middle = max((other.size_bytes for other in others), default=0) / 8
    left = base.transform_filter(f"datum.size < {middle}").mark_text(align="left", dx=8, fontSize=10)
    right = base.transform_filter(f"datum.size >= {middle}").mark_text(align="right", dx=-8, fontSize=10)
    names = [text.encode(text="name:N") for text in (left, right)]
    return [cross, *names] if others else []
