"""A run as figures: accuracy against bytes, effects with their intervals, small multiples, a heat map, curves.

All are Altair charts over data named `configurations`, the rows of a `Sheet` with its epochs, so that a page holds
these once. Shapes, dashes or text repeat what colours say, for print in grey.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import altair as alt
from altair.utils.schemapi import debug_mode

from qdtune.analysis.run import Run
from qdtune.report.forest import MAX_ROWS, forest_chart, select_comparisons
from qdtune.report.plot_data import MOST_FAINT, Recorded, Row, Sheet, sheet
from qdtune.report.published import CAVEAT, Published, published
from qdtune.report.scales import (
    DASHES,
    MARGIN,
    OKABE_ITO,
    SHAPES,
    accuracy_axis,
    colours,
    epoch_axis,
    error,
    lower,
    size_axis,
    styled,
    with_error,
)
from qdtune.spec.axes import AXIS_NAMES, title_of
from qdtune.store.columns import STATES

WIDTH, HEIGHT, SMALL = 620, 340, 175  # pixels; a page that is narrower shrinks the width
FOREST_WIDTH = 760  # pixels, labels included
BESIDE = 18  # characters of a name for which there is room beside a chart; a legend of longer ones stands below it
MANY = 1000  # configurations above which marks are small
NAME = "configurations"


class Figure(NamedTuple):
    """A chart with the name of its files, its heading, and the sentences that stand below it.

    `has_curves` if it draws learning curves: the rows in the files of other figures go without them.
    """

    name: str
    title: str
    caption: str
    chart: Any
    has_curves: bool = False


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
    others = published(drawn.run.spec.data.names[0]) if reference and any(row["test"] for row in drawn.rows) else []
    more = (draw(drawn) for draw in MORE_FIGURES)
    return [_front(drawn, others, still), *(figure for figure in more if figure)]


def apart(drawn: Sheet) -> list[Row]:
    """The rows of which no mark hides another's on paper: of those that look alike within a pixel, the first.

    Thousands of marks take seconds to draw, and most of them lie on others of their colour and shape.
    """
    axes = {"weight_bits", "activation", *_marks(drawn)}.intersection(drawn.varying)

    def look(row: Row) -> tuple[Any, ...]:
        places = [row["size"], *(None if row[split] is None else error(row[split]) for split in ("val", "test"))]
        near = (None if place is None else round(math.log(place), 2) for place in places)
        return (row["state"] == "ok", *near, *(row[axis] for axis in AXIS_NAMES if axis in axes))

    found: dict[tuple[Any, ...], Row] = {}
    for row in drawn.rows:
        found.setdefault(look(row), row)
    return list(found.values())


def whole(chart: Any, drawn: Sheet) -> Any:
    """The chart with its data in it, fit to be saved or shown in a notebook."""
    chart = chart.copy(deep=False)
    chart.datasets = {NAME: [row | {"epoch": drawn.epochs} for row in drawn.rows]}
    return chart


def front_figure(run: Recorded) -> Any:
    """Accuracy against bytes with the front, and the learning curve of what is pointed at, as an Altair chart."""
    drawn = sheet(run)
    return whole(_front(drawn, []).chart, drawn)


def overlay(sheets: Sequence[Sheet]) -> Any:
    """The fronts of several runs on one data set in one chart."""
    right = max(_right(s.drawable) for s in sheets)
    names = [s.run.name for s in sheets]  # runs of one name are told apart by where they are
    names = [s.run.where if names.count(name) > 1 else name for s, name in zip(sheets, names, strict=True)]
    rows = [row | {"run": name} for s, name in zip(sheets, names, strict=True) for row in _steps(s.front, right)]
    size, accuracy = size_axis([row["size"] for row in rows]), accuracy_axis("validation", [r["val"] for r in rows])
    base = alt.Chart(alt.Data(values=rows), width=WIDTH, height=HEIGHT).encode(x=size)
    colour, dash = alt.Scale(domain=names, range=list(OKABE_ITO)), alt.Scale(domain=names, range=list(DASHES))
    line = base.mark_line(interpolate="step-after", strokeWidth=2).encode(
        y=accuracy,
        stroke=alt.Stroke("run:N", scale=colour, legend=alt.Legend(orient="bottom", columns=1)),
        strokeDash=alt.StrokeDash("run:N", scale=dash),
    )
    band = base.mark_area(interpolate="step-after", opacity=0.2, color="#888888", clip=True)
    band = band.encode(y=lower(accuracy), y2="error_high:Q", detail="run:N")
    return styled(alt.layer(band, line))


def _front(drawn: Sheet, others: Sequence[Published], still: bool = False) -> Figure:
    """Everything as points over the front; with `others` by test accuracy, which is all that is published."""
    split = "test" if others else "val"
    rows = [row for row in drawn.drawable if row[split] is not None]
    size = size_axis([row["size"] for row in rows] + [one.size_bytes for one in others])
    accuracy = accuracy_axis(
        "test" if others else "validation", [row[split] for row in rows] + [one.test_accuracy for one in others]
    )
    right = max(_right(rows), *(one.size_bytes * MARGIN for one in others), 0)
    points = _points(drawn, size, accuracy, split)
    layers = _front_layers(_steps(drawn.front, right, split), size, accuracy)
    named = _published(others, size, accuracy)
    seeds = max((row["n"] for row in drawn.front), default=0)
    band = f", with its 95 % interval over {seeds} seeds" if seeds > 1 else ""
    hollow = "Hollow: stopped early or failed, with the last accuracy."
    text = f"Step line: the most accurate configuration up to a size{band}. {hollow}"
    if others:
        text = f"Step line: the front, chosen by validation accuracy{band}. {CAVEAT}"
    if still or not drawn.epochs:
        chart: Any = alt.layer(*layers, points, *named).properties(width=WIDTH, height=HEIGHT)
    else:
        first = (drawn.front or rows)[-1]
        chart = alt.layer(
            *layers, _ring(split, size, accuracy), points.add_params(_hover(first)).properties(name="points"), *named
        )
        chart = alt.vconcat(chart.properties(width=WIDTH, height=HEIGHT), _hovered(drawn), spacing=24)
        text += " Point at a mark: its learning curve is below, and dashed the curve of the one that beat it."
    title = "Test accuracy against bytes" if others else "Accuracy against bytes"
    return Figure("front", title, text, styled(chart))


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


def _ring(split: str, size: Any, accuracy: Any) -> Any:
    """A circle around what is pointed at."""
    here = f"isArray(hover.id) && datum.id === hover.id[0] && isValid(datum.{split})"
    ring = with_error(alt.Chart(alt.NamedData(NAME)).transform_filter(here), split)
    return ring.mark_point(size=230, filled=False, stroke="black", strokeWidth=1.5).encode(x=size, y=accuracy)


def _points(drawn: Sheet, size: Any, accuracy: Any, split: str) -> Any:
    """Every configuration as a mark with its facts as a tooltip: filled if trained to its end, else hollow."""
    tips = [alt.Tooltip(f"{axis}:N", title=title_of(axis)) for axis in drawn.varying]
    tips += [alt.Tooltip("size:Q", title="bytes", format=",")]
    tips += [alt.Tooltip("accuracy:N", title="validation"), alt.Tooltip("test_text:N", title="test")]
    tips += [alt.Tooltip("n:Q", title="seeds")]
    tips += [
        alt.Tooltip("p_front:N", title="p front"),
        alt.Tooltip("trial:N"),
        alt.Tooltip("state:N"),
        alt.Tooltip("by:N", title="beaten by"),
    ]
    colour, shape = _marks(drawn)
    encodings: dict[str, Any] = {"x": size, "y": accuracy, "tooltip": tips}
    encodings["fillOpacity"] = alt.condition("datum.state === 'ok'", alt.value(0.85), alt.value(0))
    if colour:
        for name, kind in (("stroke", alt.Stroke), ("fill", alt.Fill)):
            encodings[name] = kind(f"{colour}:O", title=title_of(colour), scale=colours(drawn.values(colour)))
    if shape:
        scale = alt.Scale(domain=drawn.values(shape), range=list(SHAPES[: len(drawn.values(shape))]))
        encodings["shape"] = alt.Shape(f"{shape}:N", title=title_of(shape), scale=scale)
    plain: dict[str, Any] = {} if colour else {"stroke": OKABE_ITO[0], "fill": OKABE_ITO[0]}
    marks = with_error(alt.Chart(alt.NamedData(NAME)).transform_filter(f"isValid(datum.{split})"), split)
    many = len(drawn.rows) > MANY
    return marks.mark_point(size=25 if many else 70, strokeWidth=1 if many else 1.5, **plain).encode(**encodings)


def _marks(drawn: Sheet) -> tuple[str | None, str | None]:
    """The axes that colour and shape stand for: bits and depth where they vary, else the next ones."""
    colour = next((a for a in ("weight_bits", "activation", *drawn.varying) if a in drawn.varying), None)
    rest = [a for a in ("depth", "activation", *drawn.varying) if a in drawn.varying and a != colour]
    return colour, next((axis for axis in rest if len(drawn.values(axis)) <= len(SHAPES)), None)


def _front_layers(steps: list[Row], size: Any, accuracy: Any, faint: bool = False) -> list[Any]:
    """The front as a step line with the band of its intervals; nothing where there is none."""
    base = alt.Chart(alt.Data(values=steps)).encode(x=size)
    band = base.mark_area(interpolate="step-after", opacity=0.5, color="#d0d0d0", clip=True)
    line = base.mark_line(interpolate="step-after", color="#999999" if faint else "#333333", strokeWidth=1.5)
    line = line.encode(y=accuracy)
    return [] if not steps else [line] if faint else [band.encode(y=lower(accuracy), y2="error_high:Q"), line]


def _steps(front: list[Row], right: float, split: str = "val") -> list[Row]:
    """The front's rows, and once more the last one at the right edge: what is the best stays the best."""
    low, high = ("low", "high") if split == "val" else ("test_low", "test_high")
    rows = []
    for row in front:
        if (middle := row[split]) is not None:
            ends = {"error_low": row[low], "error_high": row[high]}
            errors = {key: error(middle if end is None else end) for key, end in ends.items()}
            rows.append({"size": row["size"], "val": middle, "error": error(middle)} | errors)
    return [*rows, rows[-1] | {"size": right}] if rows else []


def _right(rows: Sequence[Row]) -> float:
    return float(max((row["size"] for row in rows), default=1) * MARGIN)


def _published(others: Sequence[Published], size: Any, accuracy: Any) -> list[Any]:
    """Published networks as named crosses."""
    rows = [{"size": o.size_bytes, "error": error(o.test_accuracy)} | o._asdict() for o in others]
    base = alt.Chart(alt.Data(values=rows)).encode(x=size, y=accuracy)
    tips = ["system:N", alt.Tooltip("test_accuracy:Q", title="test", format=".2%")]
    tips += [alt.Tooltip("size:Q", title="bytes", format=","), "source:N"]
    cross = base.mark_point(shape="cross", angle=45, size=60, filled=True, color="black").encode(tooltip=tips)
    text = base.mark_text(align="right", dx=-8, fontSize=10).encode(text="system:N")
    return [cross, text] if others else []


def _hovered(drawn: Sheet) -> Any:
    """The learning curve of the configuration pointed at, and of the one that beat it."""
    layers = [_qat_rule(drawn)]
    for field, words, colour, dash, y in (("id", "", 0, [1, 0], 140), ("by_id", "beaten by ", 3, [5, 3], 122)):
        here = f"isArray(hover.{field}) && datum.id === hover.{field}[0]"
        base = _flat().transform_filter(here).encode(x=epoch_axis(drawn.epochs))
        mark = alt.OverlayMarkDef(size=20, color=OKABE_ITO[colour])
        line = base.mark_line(color=OKABE_ITO[colour], strokeDash=dash, strokeWidth=2, point=mark)
        text = base.transform_filter("datum.epoch === datum.last").transform_calculate(text=f"'{words}' + datum.name")
        text = text.mark_text(align="right", dx=-8, color=OKABE_ITO[colour], fontSize=13)
        text = text.encode(text="text:N", x=alt.value("width"), y=alt.value(y))
        layers += [line.encode(y=_curve_axis(drawn)), text]
    return alt.layer(*layers).properties(width=WIDTH, height=150)


def _forest_depth(drawn: Sheet) -> Figure | None:
    return _forest(drawn, "depth")


def _forest_activation(drawn: Sheet) -> Figure | None:
    return _forest(drawn, "activation")


def _forest(drawn: Sheet, axis: str) -> Figure | None:
    """The effect of each comparison of a question; None if no comparison has an effect."""
    found = getattr(drawn.run.answers(), axis) if isinstance(drawn.run, Run) else ()
    shown = select_comparisons(found)
    if not shown:
        return None
    values, baselines = ({getattr(one, field) for one in shown} for field in ("value", "baseline"))
    what = shown[0].names[0] if len(values) == 1 else f"each {title_of(axis)}"
    title = f"Effect of {what}{f' against {shown[0].names[1]}' if len(baselines) == 1 else ''}"
    better = "the larger depth" if axis == "depth" else "the activation"
    tested = sum(one.effect is not None for one in found)
    some = f" Shown: {MAX_ROWS} of {tested:,} comparisons, those with the smallest p." if tested > MAX_ROWS else ""
    caption = (
        f"Mean difference and its interval, corrected for all comparisons. Right of zero {better} is better. "
        f"Filled, thick and bold: significant. Hollow: not significant.{some}"
    )
    return Figure(f"forest_{axis}", title, caption, styled(forest_chart(axis, shown, FOREST_WIDTH)))


def _bits(drawn: Sheet) -> Figure | None:
    return _multiples(drawn, "bits", "weight_bits")


def _activation(drawn: Sheet) -> Figure | None:
    return _multiples(drawn, "activation", "activation")


def _multiples(drawn: Sheet, name: str, axis: str) -> Figure | None:
    """One small chart for each value of an axis: its points over the front of all; None if it has one value."""
    if axis not in drawn.varying:
        return None
    rows = drawn.drawable
    size, accuracy = size_axis([row["size"] for row in rows]), accuracy_axis("", [row["val"] for row in rows])
    size, accuracy = size.title("size (bytes)"), accuracy.title("validation (%)")
    steps = _steps(drawn.front, _right(rows))
    charts = []
    for value in drawn.values(axis):
        points = _points(drawn, size, accuracy, "val").transform_filter(f"datum.{axis} === {json.dumps(value)}")
        chart = alt.layer(*_front_layers(steps, size, accuracy, faint=True), points)
        charts.append(chart.properties(width=SMALL, height=150, title=f"{title_of(axis)}: {value}"))
    caption = (
        "The grey line is the front of all configurations, the same in each panel. Hollow: stopped early or failed."
    )
    return Figure(name, f"By {title_of(axis)}", caption, styled(alt.concat(*charts, columns=3)))


def _heatmap(drawn: Sheet) -> Figure:
    """The best accuracy at each depth and number of bits; a cell without one says why."""
    cells: dict[tuple[int, int], list[Row]] = {}
    for row in drawn.run.pareto.select(["depth", "weight_bits", "state", "val_accuracy"]).to_pylist():
        cells.setdefault((row["depth"], row["weight_bits"]), []).append(row)
    depths, bits = sorted({depth for depth, _ in cells}), sorted({bits for _, bits in cells})
    values = [_cell(depth, b, cells.get((depth, b), [])) for depth in depths for b in bits]
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
        "The best mean validation accuracy of a cell, over all other axes; darker is better. If no configuration of "
        "a cell finished, a word says how they ended."
    )
    return Figure("heatmap", "Depth and bits", caption, styled(chart.properties(width=width, height=height)))


def _cell(depth: int, bits: int, rows: Sequence[Row]) -> Row:
    best = max((row["val_accuracy"] for row in rows if row["state"] == "ok"), default=None)
    states = sorted({row["state"] for row in rows}, key=STATES.index)
    text = f"{best:.1%}" if best is not None else states[0] if states else "not run"
    return {"depth": depth, "bits": bits, "error": None if best is None else error(best), "text": text}


def _curves(drawn: Sheet) -> Figure | None:
    """Learning curves: those of the front in colour, the others faint; None if there are none."""
    if not drawn.epochs:
        return None
    base = _flat().transform_filter("datum.drawn")
    base = base.encode(x=epoch_axis(drawn.epochs), y=_curve_axis(drawn), detail="id:N")
    faint = base.transform_filter("!datum.front").mark_line(color="#d0d0d0", strokeWidth=1)
    names = [row["name"] for row in drawn.front]
    dashes = alt.Scale(domain=names, range=[DASHES[k % len(DASHES)] for k in range(len(names))])
    beside = max(map(len, names), default=0) <= BESIDE
    below = {} if beside else {"legend": alt.Legend(orient="bottom", columns=2)}
    said: dict[str, Any] = {"title": "front, by size"} | below
    clear = base.transform_filter("datum.front").mark_line(strokeWidth=2)
    clear = clear.encode(
        color=alt.Color("name:N", scale=colours(names), **said),
        strokeDash=alt.StrokeDash("name:N", scale=dashes, **said),
        tooltip=[alt.Tooltip("name:N", title="configuration"), "epoch:Q", alt.Tooltip("curve:Q", format=".2%")],
    )
    chart = alt.layer(faint, _qat_rule(drawn), *([clear] if names else [])).properties(width=WIDTH, height=HEIGHT)
    others = sum(1 for row in drawn.rows if row["curve"] and not row["front"])
    shown = sum(1 for row in drawn.rows if row["drawn"] and not row["front"])
    some = f" ({shown:,} of {others:,}, evenly chosen)" if others > MOST_FAINT else ""
    caption = f"Mean over seeds after each epoch. Grey: configurations that are not on the front{some}."
    return Figure("curves", "Learning curves", caption, styled(chart), has_curves=True)


def _flat() -> Any:
    """One row per configuration and epoch, with the `error` there."""
    base = alt.Chart(alt.NamedData(NAME)).transform_flatten(["epoch", "curve"])
    return with_error(base.transform_filter("isValid(datum.curve) && isValid(datum.epoch)"), "curve")


def _qat_rule(drawn: Sheet) -> Any:
    """A dashed line where the float warm-up ends."""
    rows = [{"epoch": drawn.warmup + 0.5, "text": "QAT"}] if drawn.warmup else []
    base = alt.Chart(alt.Data(values=rows)).encode(x=epoch_axis(drawn.epochs))
    rule = base.mark_rule(strokeDash=[3, 3], color="#666666")
    return rule + base.mark_text(align="left", dx=4, fontSize=11, color="#666666").encode(
        text="text:N", y=alt.value(8)
    )


def _curve_axis(drawn: Sheet) -> alt.Y:
    known = [value for row in drawn.rows for value in row["curve"] if value is not None]
    return accuracy_axis("", known).title("validation accuracy (%)")


# What follows the front, in the order of the page; a function returns None if a run has nothing to show there.
MORE_FIGURES: tuple[Callable[[Sheet], Figure | None], ...] = (
    _forest_depth,
    _forest_activation,
    _bits,
    _activation,
    _heatmap,
    _curves,
)
