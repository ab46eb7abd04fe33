"""The front as a figure, with all configurations as points and published networks, and the fronts of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from qdtune.messages import one_line
from qdtune.report.curves import hovered_curves
from qdtune.report.figure import HEIGHT, MANY, NAME, WIDTH, Figure, whole
from qdtune.report.plot_data import Recorded, Row, Sheet, sheet
from qdtune.report.published import CAVEAT, Published
from qdtune.report.scales import (
    DASHES,
    HOLED_SHAPES,
    MARGIN,
    OKABE_ITO,
    SHAPES,
    colours,
    error,
    lower,
    metric_axis,
    note_clipped,
    number_format,
    size_axis,
    styled,
    with_error,
)
from qdtune.spec.axes import AXIS_NAMES, axis_of, title_of
from qdtune.spec.metric_text import best_word, column_head
from qdtune.spec.tasks import ACCURACY, Metric

NO_ACTIVATION = axis_of("activation").default


def draw_front(drawn: Sheet, others: Sequence[Published], still: bool = False) -> Figure:
    """The figure of the front: every configuration as a point, and the front as a step line.

    Args:
        drawn: the run.
        others: published networks. With them all is drawn by the test set, because no other number is published.
        still: for paper: nothing that answers the pointer.
    """
    split = "test" if others else "val"
    rows = [row for row in drawn.drawable if row[split] is not None]
    size = size_axis([row["size"] for row in rows] + [one.size_bytes for one in others])
    values = [row[split] for row in rows] + [one.test_accuracy for one in others]
    height = metric_axis(drawn.metric, "test" if others else "validation", values)
    right = max(right_edge(rows), *(one.size_bytes * MARGIN for one in others), 0)
    points = point_layer(drawn, size, height, split)
    layers = front_layers(front_steps(drawn, right, split), size, height)
    named = _published_layers(drawn.metric, others, size, height)
    seeds = max((row["n"] for row in drawn.front), default=0)
    band = f", with its 95 % interval over {seeds} seeds" if seeds > 1 else ""
    name = drawn.metric.name
    best = "most accurate configuration" if drawn.metric is ACCURACY else f"configuration of {_best(drawn)}"
    hollow = f"Hollow: stopped early or failed, with the last {name}.{note_holes(drawn)}"
    text = f"Step line: the {best} up to a size{band}. {hollow}"
    if others:
        text = f"Step line: the front, chosen by validation {name}{band}.{note_holes(drawn)} {CAVEAT}"
    text += note_clipped(drawn.metric, values)
    if still or not drawn.epochs:
        chart: Any = alt.layer(*layers, points, *named).properties(width=WIDTH, height=HEIGHT)
    else:
        first = (drawn.front or rows)[-1]
        chart = alt.layer(
            *layers,
            _ring(drawn, split, size, height),
            points.add_params(_hover(first)).properties(name="points"),
            *named,
        )
        chart = alt.vconcat(chart.properties(width=WIDTH, height=HEIGHT), hovered_curves(drawn), spacing=24)
        text += " Point at a mark: its learning curve is below, and dashed the curve of the one that beat it."
    title = f"Test {name} against bytes" if others else f"{name.capitalize()} against bytes"
    return Figure("front", title, text, styled(chart))


def _best(drawn: Sheet) -> str:
    return f"{best_word(drawn.metric)} {drawn.metric.name}"


def note_holes(drawn: Sheet) -> str:
    """A sentence for a caption if some marks have a hole, with a space before it; else empty."""
    return " With a hole: an activation between the factors." if _has_holes(drawn) else ""


def front_figure(run: Recorded) -> Any:
    """The metric against bytes with the front, and the learning curve of what is pointed at, as an Altair chart."""
    drawn = sheet(run)
    return whole(draw_front(drawn, []).chart, drawn)


def overlay(sheets: Sequence[Sheet]) -> Any:
    """The fronts of several runs on one data set in one chart; all are judged by one metric."""
    metric = sheets[0].metric
    right = max(right_edge(s.drawable) for s in sheets)
    names = [s.run.name for s in sheets]  # runs of one name are told apart by where they are
    names = [one_line(s.run.where) if names.count(name) > 1 else name for s, name in zip(sheets, names, strict=True)]
    rows = [row | {"run": name} for s, name in zip(sheets, names, strict=True) for row in front_steps(s, right)]
    size = size_axis([row["size"] for row in rows])
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


def apart(drawn: Sheet) -> list[Row]:
    """The rows of which no mark hides another's on paper: of those that look alike within a pixel, the first.

    Thousands of marks take seconds to draw, and most of them lie on others of their colour and shape.
    """
    axes = {"weight_bits", "activation", *_marked_axes(drawn)}.intersection(drawn.varying)

    def look(row: Row) -> tuple[Any, ...]:
        values = (row[split] for split in ("val", "test"))
        places = [row["size"], *(None if value is None else error(drawn.metric, value) for value in values)]
        near = (None if place is None else round(math.log(place), 2) for place in places)
        return (row["state"] == "ok", *near, *(row[axis] for axis in AXIS_NAMES if axis in axes))

    found: dict[tuple[Any, ...], Row] = {}
    for row in drawn.rows:
        found.setdefault(look(row), row)
    return list(found.values())


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


def point_layer(drawn: Sheet, size: Any, height: Any, split: str) -> Any:
    """Every configuration as a mark with its facts as a tooltip: filled if trained to its end, else hollow.

    Args:
        drawn: the run.
        size, height: the channels x and y.
        split: `val` or `test`, which is drawn.
    """
    tips = [alt.Tooltip(f"{axis}:N", title=title_of(axis)) for axis in drawn.varying]
    tips += [alt.Tooltip("size:Q", title="bytes", format=",")]
    tips += [alt.Tooltip(f"{name}_text:N", title=head) for name, head in _heads(drawn.metric)]
    tips += [alt.Tooltip("n:Q", title="seeds")]
    tips += [
        alt.Tooltip("p_front:N", title="p front"),
        alt.Tooltip("trial:N"),
        alt.Tooltip("state:N"),
        alt.Tooltip("by:N", title="beaten by"),
    ]
    colour, shape = _marked_axes(drawn)
    encodings: dict[str, Any] = {"x": size, "y": height, "tooltip": tips}
    encodings["fillOpacity"] = alt.condition("datum.state === 'ok'", alt.value(0.85), alt.value(0))
    if colour:
        for name, kind in (("stroke", alt.Stroke), ("fill", alt.Fill)):
            encodings[name] = kind(f"{colour}:O", title=title_of(colour), scale=colours(drawn.values(colour)))
    if shape:
        encodings["shape"] = _shape_channel(drawn, shape, _has_holes(drawn))
    plain: dict[str, Any] = {} if colour else {"stroke": OKABE_ITO[0], "fill": OKABE_ITO[0]}
    marks = with_error(
        drawn.metric, alt.Chart(alt.NamedData(NAME)).transform_filter(f"isValid(datum.{split})"), split
    )
    if shape:
        marks = marks.transform_calculate(mark=_mark_formula(shape, _has_holes(drawn)))
    many = len(drawn.rows) > MANY
    return marks.mark_point(size=25 if many else 70, strokeWidth=1 if many else 1.5, **plain).encode(**encodings)


def _heads(metric: Metric) -> list[tuple[str, str]]:
    """The rows of a tooltip with a value: the name of the split, and the words before it."""
    return [("val", column_head(metric, "validation")), ("test", column_head(metric, "test"))]


def _marked_axes(drawn: Sheet) -> tuple[str | None, str | None]:
    """The axes that colour and shape stand for: bits and depth where they vary, else the next ones."""
    colour = next((a for a in ("weight_bits", "activation", *drawn.varying) if a in drawn.varying), None)
    rest = [a for a in ("depth", "activation", *drawn.varying) if a in drawn.varying and a != colour]
    return colour, next((axis for axis in rest if len(drawn.values(axis)) <= len(SHAPES)), None)


def _has_holes(drawn: Sheet) -> bool:
    """Whether marks with an activation between the factors have a hole, because colour and shape say other axes."""
    colour, shape = _marked_axes(drawn)
    return shape is not None and "activation" in drawn.varying and "activation" not in (colour, shape)


def _mark_formula(shape: str, has_holes: bool) -> str:
    """What tells the shapes apart: the value of their axis, with holes the activation too."""
    activation = f"datum.activation === '{NO_ACTIVATION}' ? '' : ', ' + datum.activation"
    return f"toString(datum.{shape})" + (f" + ({activation})" if has_holes else "")


def _shape_channel(drawn: Sheet, shape: str, has_holes: bool) -> alt.Shape:
    """A shape for each value of an axis; with holes another one for each activation between the factors.

    Its field is text, because Vega would merge the legends of two axes with the same numbers.
    """
    values = drawn.values(shape)
    outlines = {str(value): outline for value, outline in zip(values, SHAPES, strict=False)}
    title = title_of(shape)
    if has_holes:
        title += f", {title_of('activation')}"
        found = {(row[shape], row["activation"]) for row in drawn.rows}
        outlines = {
            str(value) if name == NO_ACTIVATION else f"{value}, {name}": solid if name == NO_ACTIVATION else holed
            for value, solid, holed in zip(values, SHAPES, HOLED_SHAPES, strict=False)
            for name in (NO_ACTIVATION, *(one for one in drawn.values("activation") if one != NO_ACTIVATION))
            if (value, name) in found
        }
    scale = alt.Scale(domain=[*outlines], range=[*outlines.values()])
    return alt.Shape("mark:N", title=title, scale=scale)


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


def front_steps(drawn: Sheet, right: float, split: str = "val") -> list[Row]:
    """The front's rows, and once more the last one at the right edge: what is the best stays the best.

    Args:
        drawn: the run.
        right: bytes, see `right_edge`.
        split: `val` or `test`, which is drawn.
    """
    metric = drawn.metric
    low, high = ("low", "high") if split == "val" else ("test_low", "test_high")
    rows = []
    for row in drawn.front:
        if (middle := row[split]) is not None:
            ends = {"error_low": row[low], "error_high": row[high]}
            errors = {key: error(metric, middle if end is None else end) for key, end in ends.items()}
            rows.append({"size": row["size"], "val": middle, "error": error(metric, middle)} | errors)
    return [*rows, rows[-1] | {"size": right}] if rows else []


def right_edge(rows: Sequence[Row]) -> float:
    """The bytes at the right edge of a figure of these rows."""
    return float(max((row["size"] for row in rows), default=1) * MARGIN)


def _published_layers(metric: Metric, others: Sequence[Published], size: Any, height: Any) -> list[Any]:
    """Published networks as named crosses."""
    rows = [{"size": o.size_bytes, "error": error(metric, o.test_accuracy)} | o._asdict() for o in others]
    base = alt.Chart(alt.Data(values=rows)).encode(x=size, y=height)
    tips = ["system:N", alt.Tooltip("test_accuracy:Q", title="test", format=number_format(metric))]
    tips += [alt.Tooltip("size:Q", title="bytes", format=","), "source:N"]
    cross = base.mark_point(shape="cross", angle=45, size=60, filled=True, color="black").encode(tooltip=tips)
    text = base.mark_text(align="right", dx=-8, fontSize=10).encode(text="system:N")
    return [cross, text] if others else []
