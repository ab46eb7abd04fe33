"""Learning curves: the figure of all of them, and below the front those of the configuration that is pointed at."""

from __future__ import annotations

from typing import Any

import altair as alt

from qdtune.report.figure import HEIGHT, NAME, WIDTH, Figure
from qdtune.report.plot_data import MOST_FAINT, Sheet
from qdtune.report.scales import (
    DASHES,
    OKABE_ITO,
    colours,
    epoch_axis,
    metric_axis,
    note_clipped,
    number_format,
    short_title,
    styled,
    with_error,
)
from qdtune.spec.objectives import SIZE_BYTES

BESIDE = 18  # characters of a name for which there is room beside a chart; a legend of longer ones stands below it


def draw_curves(drawn: Sheet) -> Figure | None:
    """Learning curves: those of the front in colour, the others faint; None if there are none."""
    if not drawn.epochs:
        return None
    base = _curve_rows(drawn).transform_filter("datum.drawn")
    base = base.encode(x=epoch_axis(drawn.epochs), y=_curve_axis(drawn), detail="id:N")
    faint = base.transform_filter("!datum.front").mark_line(color="#d0d0d0", strokeWidth=1)
    names = [row["name"] for row in drawn.front]
    dashes = alt.Scale(domain=names, range=[DASHES[k % len(DASHES)] for k in range(len(names))])
    first = drawn.costs[0]
    beside = max(map(len, names), default=0) <= BESIDE
    below = {} if beside else {"legend": alt.Legend(orient="bottom", columns=2)}
    said: dict[str, Any] = {"title": f"front, by {'size' if first is SIZE_BYTES else first.head}"} | below
    clear = base.transform_filter("datum.front").mark_line(strokeWidth=2)
    clear = clear.encode(
        color=alt.Color("name:N", scale=colours(names), **said),
        strokeDash=alt.StrokeDash("name:N", scale=dashes, **said),
        tooltip=[
            alt.Tooltip("name:N", title="configuration"),
            "epoch:Q",
            alt.Tooltip("curve:Q", format=number_format(drawn.metric)),
        ],
    )
    chart = alt.layer(faint, _qat_rule(drawn), *([clear] if names else [])).properties(width=WIDTH, height=HEIGHT)
    others = sum(1 for row in drawn.rows if row["curve"] and not row["front"])
    shown = sum(1 for row in drawn.rows if row["drawn"] and not row["front"])
    some = f" ({shown:,} of {others:,}, evenly chosen)" if others > MOST_FAINT else ""
    caption = f"Mean over seeds after each epoch. Grey: configurations that are not on the front{some}."
    caption += note_clipped(drawn.metric, _curve_values(drawn))
    return Figure("curves", "Learning curves", caption, styled(chart), has_curves=True)


def hovered_curves(drawn: Sheet) -> Any:
    """The learning curve of the configuration pointed at, and of the one that beat it."""
    layers = [_qat_rule(drawn)]
    for field, words, colour, dash, y in (("id", "", 0, [1, 0], 140), ("by_id", "beaten by ", 3, [5, 3], 122)):
        here = f"isArray(hover.{field}) && datum.id === hover.{field}[0]"
        base = _curve_rows(drawn).transform_filter(here).encode(x=epoch_axis(drawn.epochs))
        mark = alt.OverlayMarkDef(size=20, color=OKABE_ITO[colour])
        line = base.mark_line(color=OKABE_ITO[colour], strokeDash=dash, strokeWidth=2, point=mark)
        text = base.transform_filter("datum.epoch === datum.last").transform_calculate(text=f"'{words}' + datum.name")
        # A longer name would make room for itself left of the chart, and move that to the right.
        text = text.mark_text(align="right", dx=-8, color=OKABE_ITO[colour], fontSize=13, limit=WIDTH - 16)
        text = text.encode(text="text:N", x=alt.value("width"), y=alt.value(y))
        layers += [line.encode(y=_curve_axis(drawn)), text]
    return alt.layer(*layers).properties(width=WIDTH, height=150)


def _curve_rows(drawn: Sheet) -> Any:
    """One row per configuration and epoch, with the `error` there."""
    base = alt.Chart(alt.NamedData(NAME)).transform_flatten(["epoch", "curve"])
    return with_error(drawn.metric, base.transform_filter("isValid(datum.curve) && isValid(datum.epoch)"), "curve")


def _qat_rule(drawn: Sheet) -> Any:
    """A dashed line where the float warm-up ends."""
    rows = [{"epoch": drawn.warmup + 0.5, "text": "QAT"}] if drawn.warmup else []
    base = alt.Chart(alt.Data(values=rows)).encode(x=epoch_axis(drawn.epochs))
    rule = base.mark_rule(strokeDash=[3, 3], color="#666666")
    return rule + base.mark_text(align="left", dx=4, fontSize=11, color="#666666").encode(
        text="text:N", y=alt.value(8)
    )


def _curve_axis(drawn: Sheet) -> alt.Y:
    return metric_axis(drawn.metric, "", _curve_values(drawn)).title(short_title(drawn.metric, "validation"))


def _curve_values(drawn: Sheet) -> list[float]:
    return [value for row in drawn.rows for value in row["curve"] if value is not None]
