"""A run as figures: the metric against costs, effects with their intervals, small multiples, a heat map, curves.

All are Altair charts over data named `configurations`, the rows of a `Sheet` with its epochs, so that a page holds
these once. Shapes, dashes or text repeat what colours say, for print in grey.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import altair as alt
from altair.utils.schemapi import debug_mode

from qdtune.report.curves import draw_curves
from qdtune.report.figure import WIDTH, Figure
from qdtune.report.forest import draw_forest
from qdtune.report.front_figure import draw_front, front_layers, front_steps, right_edge
from qdtune.report.marks import note_holes, point_layer
from qdtune.report.plot_data import Row, Sheet, field_of
from qdtune.report.published import published
from qdtune.report.scales import error, metric_axis, note_clipped, short_title, size_axis, styled
from qdtune.spec.axes import title_of
from qdtune.spec.metric_text import format_briefly
from qdtune.spec.objectives import SIZE_BYTES
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.columns import STATES

PANEL_WIDTH = 165  # pixels of a small multiple: three fit on a page, with a legend beside them


def figures(drawn: Sheet, reference: bool = False, still: bool = False) -> list[Figure]:
    """The figures of a run: its front, then those of `MORE_FIGURES` that have something to show.

    Args:
        drawn: the run.
        reference: whether published networks are drawn beside it, where there are any for its data set.
        still: for paper: nothing that answers the pointer.
    """
    with debug_mode(False):  # that a chart fits its schema is a matter of tests: to ask each time doubles the time
        return _figures(drawn, reference, still) if drawn.drawable else []


def _figures(drawn: Sheet, reference: bool, still: bool) -> list[Figure]:
    is_tested = any(row["test"] for row in drawn.rows)
    others = published(drawn.run.spec.data.names[0], drawn.metric) if reference and is_tested else []
    more = (draw(drawn) for draw in MORE_FIGURES)
    return [draw_front(drawn, others, still), *(figure for figure in more if figure)]


def _forest_depth(drawn: Sheet) -> Figure | None:
    return draw_forest(drawn, "depth")


def _forest_activation(drawn: Sheet) -> Figure | None:
    return draw_forest(drawn, "activation")


def _bits(drawn: Sheet) -> Figure | None:
    return _multiples(drawn, "bits", "weight_bits")


def _activation(drawn: Sheet) -> Figure | None:
    return _multiples(drawn, "activation", "activation")


def _multiples(drawn: Sheet, name: str, axis: str) -> Figure | None:
    """One small chart for each value of an axis: its points over the front of all; None if it has one value."""
    if axis not in drawn.varying:
        return None
    rows, metric, cost = drawn.drawable, drawn.metric, drawn.costs[0]
    values = [row["val"] for row in rows]
    title = "validation (%)" if metric is ACCURACY else short_title(metric, "validation")
    short = "size (bytes)" if cost is SIZE_BYTES else cost.head
    size = size_axis([row[field_of(cost)] for row in rows], cost).title(short)
    height = metric_axis(metric, "", values).title(title)
    steps = front_steps(drawn, right_edge(rows, field_of(cost)), cost=cost)
    charts = []
    for value in drawn.values(axis):
        points = point_layer(drawn, size, height, "val").transform_filter(f"datum.{axis} === {json.dumps(value)}")
        chart = alt.layer(*front_layers(steps, size, height, faint=True), points)
        charts.append(chart.properties(width=PANEL_WIDTH, height=150, title=f"{title_of(axis)}: {value}"))
    line = "front of all configurations" if drawn.costs == (cost,) else f"best up to a number of {cost.head}"
    caption = (
        f"The grey line is the {line}, the same in each panel. Hollow: stopped early or failed."
        f"{note_holes(drawn)}{note_clipped(metric, values)}"
    )
    return Figure(name, f"By {title_of(axis)}", caption, styled(alt.concat(*charts, columns=3)))


def _heatmap(drawn: Sheet) -> Figure:
    """The best value at each depth and number of bits; a cell without one says why."""
    metric = drawn.metric
    cells: dict[tuple[int, int], list[Row]] = {}
    for row in drawn.run.pareto.select(["depth", "weight_bits", "state", metric.val]).to_pylist():
        cells.setdefault((row["depth"], row["weight_bits"]), []).append(row)
    depths, bits = sorted({depth for depth, _ in cells}), sorted({bits for _, bits in cells})
    values = [_cell(metric, depth, b, cells.get((depth, b), [])) for depth in depths for b in bits]
    known = [cell["error"] for cell in values if cell["error"] is not None] or [1.0]
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("bits:O", title="weight bits (32: float)", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("depth:O", title="depth (factors per layer)"),
    )
    scale = alt.Scale(type="log", scheme="blues", domain=[max(known), min(known)])
    boxes = base.transform_filter("isValid(datum.error)").mark_rect(stroke="white")
    middle = (max(known) * min(known)) ** 0.5
    dark = alt.condition(f"isValid(datum.error) && datum.error < {middle}", alt.value("white"), alt.value("#333333"))
    text = base.mark_text(fontSize=13).encode(text="text:N", color=dark)
    chart = alt.layer(boxes.encode(color=alt.Color("error:Q", scale=scale, legend=None)), text)
    width, height = max(200, min(WIDTH, 80 * len(bits))), max(60, 42 * len(depths))
    caption = (
        f"The best mean validation {metric.name} of a cell, over all other axes; darker is better. If no "
        "configuration of a cell finished, a word says how they ended."
    )
    return Figure("heatmap", "Depth and bits", caption, styled(chart.properties(width=width, height=height)))


def _cell(metric: Metric, depth: int, bits: int, rows: Sequence[Row]) -> Row:
    finished = [row[metric.val] for row in rows if row["state"] == "ok"]
    best = max(finished, key=lambda value: metric.sign * value, default=None)
    states = sorted({row["state"] for row in rows}, key=STATES.index)
    text = format_briefly(metric, best) if best is not None else states[0] if states else "not run"
    return {"depth": depth, "bits": bits, "error": None if best is None else error(metric, best), "text": text}


# What follows the front, in the order of the page; a function returns None if a run has nothing to show there.
MORE_FIGURES: tuple[Callable[[Sheet], Figure | None], ...] = (
    _forest_depth,
    _forest_activation,
    _bits,
    _activation,
    _heatmap,
    draw_curves,
)
