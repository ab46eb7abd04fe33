"""The marks of figures: one for each configuration, and what its colour, its shape and its hole say."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from qdtune.report.figure import MANY, NAME
from qdtune.report.plot_data import Row, Sheet, field_of
from qdtune.report.scales import HOLED_SHAPES, OKABE_ITO, SHAPES, colours, error, with_error
from qdtune.spec.axes import AXIS_NAMES, axis_of, title_of
from qdtune.spec.metric_text import column_head
from qdtune.spec.objectives import SIZE_BYTES
from qdtune.spec.tasks import Metric

FAINT = 0.3  # opacity of marks that are not on a front over several costs
NO_ACTIVATION = axis_of("activation").default


def point_layer(drawn: Sheet, size: Any, height: Any, split: str) -> Any:
    """Every configuration as a mark with its facts as a tooltip: filled if trained to its end, else hollow.

    Args:
        drawn: the run.
        size, height: the channels x and y.
        split: `val` or `test`, which is drawn.
    """
    tips = [alt.Tooltip(f"{axis}:N", title=title_of(axis)) for axis in drawn.varying]
    costs = drawn.costs if SIZE_BYTES in drawn.costs else (SIZE_BYTES, *drawn.costs)
    tips += [alt.Tooltip(f"{field_of(cost)}:Q", title=cost.head, format=",") for cost in costs]
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
    if len(drawn.costs) > 1:
        encodings["opacity"] = alt.condition("datum.front", alt.value(1), alt.value(FAINT))
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


def note_holes(drawn: Sheet) -> str:
    """A sentence for a caption if some marks have a hole, with a space before it; else empty."""
    return " With a hole: an activation between the factors." if _has_holes(drawn) else ""


def apart(drawn: Sheet) -> list[Row]:
    """The rows of which no mark hides another's on paper: of those that look alike within a pixel, the first.

    Thousands of marks take seconds to draw, and most of them lie on others of their colour and shape.
    """
    axes = {"weight_bits", "activation", *_marked_axes(drawn)}.intersection(drawn.varying)

    def look(row: Row) -> tuple[Any, ...]:
        values = (row[split] for split in ("val", "test"))
        spent = (max(row[field_of(cost)], 1) for cost in (SIZE_BYTES, *drawn.costs))
        places = [*spent, *(None if value is None else error(drawn.metric, value) for value in values)]
        near = (None if place is None else round(math.log(place), 2) for place in places)
        return (row["state"] == "ok", *near, *(row[axis] for axis in AXIS_NAMES if axis in axes))

    found: dict[tuple[Any, ...], Row] = {}
    for row in drawn.rows:
        found.setdefault(look(row), row)
    return list(found.values())
