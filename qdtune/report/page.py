"""A report as files: one self-contained page for one or more runs, and its figures as SVG and PNG.

A page requests nothing from the network, and its content security policy forbids it: Vega's JavaScript is in the
page, once. The same run gives the same bytes. Tables and lists are folded; on paper they are open. In dark mode the
charts stay on a light card, because their colours are chosen for white.
"""

from __future__ import annotations

import functools
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import version
from typing import Any

import altair as alt
import vl_convert

from qdtune.analysis.run import Run
from qdtune.machine import cache_dir
from qdtune.messages import format_count, printable
from qdtune.report.assets import EARLY, SCRIPT, STYLE
from qdtune.report.figure import MANY, NAME, Figure
from qdtune.report.figures import figures
from qdtune.report.front_figure import overlay
from qdtune.report.marks import apart
from qdtune.report.plot_data import Sheet
from qdtune.report.tables import Table
from qdtune.report.words import (
    BESIDE,
    Question,
    beside,
    explain_nothing_beside,
    facts,
    provisional,
    questions,
    trouble,
)
from qdtune.spec.metric_text import best_word
from qdtune.spec.objectives import DEFAULT_COSTS, SIZE_BYTES, Objective, say_cheaper
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import StorageError
from qdtune.store.front import front_cells, front_title, varying_axes
from qdtune.store.store import Store
from qdtune.store.tables import rows_known

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_CODE = re.compile("`(.+?)`")  # in a sentence
CAPTION_WIDTH = 115  # characters of a line of the caption in a file
PIXELS = 2.0  # of a PNG per pixel of a figure
MARK = '<meta name="generator" content="qdtune">'  # by which a page of ours is known
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
SEEDS_NOTE = (
    "It is the mean of n seeds ± half of its 95 % interval (Student t). Few seeds make the interval wide. The test "
    "set is read once, at the end; nothing is chosen by it."
)
NOTES = {
    "Bytes": "What has to be shipped: codes at their bits, step sizes, biases, normalisation.",
    "p front": "The bootstrap probability, over the seeds, that the configuration is on the front.",
    "pruned": "Stopped early, because another configuration {cheaper} is ahead. There is no final {name}.",
    "Effect": "The difference in {unit} between configurations that differ in one axis alone. The "
    "difference is taken seed by seed. Its interval is corrected for the number of comparisons (Holm).",
    "Verdict": "An effect helps or hurts if it is significant: its interval excludes zero. Otherwise it is "
    "undecided. In a sweep with a margin (`replicate.same_within`) it is the same if two one-sided tests show that "
    "the difference is smaller. The number of seeds that would be needed assumes that the effect stays as large. A "
    "comparison is refused if the two sides cannot be compared. A side is behind if it was stopped early and none of "
    "the 9 finished trainings most like it gained as much as it would need: no test, no interval, no correction.",
}


def page(sheets: Sequence[Sheet], reference: bool = False, reload_s: int = 0) -> bytes:
    """The page of one or more runs, as UTF-8.

    Args:
        sheets: the runs, in the order in which they are shown; all are judged by one metric.
        reference: whether published networks are drawn where there are any.
        reload_s: seconds after which the page loads itself again, for a sweep that is running; 0: never.
    """
    title = ", ".join(s.run.name for s in sheets)
    single = len(sheets) == 1
    parts = [] if single else [f"<h1>{_text(title)}</h1>", *_overlays(sheets)]
    for k, drawn in enumerate(sheets):
        parts += [f'<script type="application/json" id="run-{k}">{_json(_columns(drawn))}</script>']
        parts += _run(drawn, f"run-{k}", reference, reload_s > 0)
    explained = _notes(sheets[0].metric, tuple(dict.fromkeys(cost for s in sheets for cost in s.costs))).items()
    notes = "".join(f"<dt>{_text(name)}</dt><dd>{_sentence(text)}</dd>" for name, text in explained)
    body = "\n".join(parts)
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{MARK}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_text(title)} - qdtune</title>
<style>{STYLE}</style>
</head>
<body data-reload="{reload_s}">
<script>{EARLY}</script>
<main>
{body}
<section><h2>How to read this page</h2><dl class="notes">{notes}</dl></section>
<noscript><p>The figures need JavaScript; <code>qdtune report</code> also writes them as SVG and PNG.</p></noscript>
</main>
<script>{vega()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
    return html.encode(errors="backslashreplace")


def _notes(metric: Metric, costs: tuple[Objective, ...] = DEFAULT_COSTS) -> dict[str, str]:
    """What the words on a page mean, for runs that are judged by a metric and have fronts over these costs."""
    name = metric.name.capitalize()
    unit = "percentage points" if metric.is_fraction else metric.name
    said = "" if metric is ACCURACY else f" {name}: {metric.text}. The {best_word(metric)} is best."
    first = {name: f"Validation {metric.name}, unless a text says test.{said} {SEEDS_NOTE}"}
    words = {"name": metric.name, "unit": unit, "cheaper": say_cheaper(costs)}
    found = first | {head: text.format(**words) for head, text in NOTES.items()}
    others = [(cost.head, f"{cost.text}.") for cost in costs if cost is not SIZE_BYTES]
    return found | {head[0].upper() + head[1:]: text[0].upper() + text[1:] for head, text in others}


def images(drawn: Sheet, reference: bool = False) -> Iterator[tuple[str, bytes]]:
    """The figures as (file name, bytes): an SVG and a PNG of each, with its caption."""
    marks = [{key: value for key, value in row.items() if key != "curve"} for row in apart(drawn)]
    curves = [row | {"epoch": drawn.epochs} for row in drawn.rows if row["drawn"]]
    for figure in figures(drawn, reference, still=True):
        rows = curves if figure.has_curves else marks
        spec = figure.chart.to_dict(validate=False) | {"datasets": {NAME: rows}}
        spec["title"] = {"text": figure.title, "subtitle": textwrap.wrap(figure.caption, CAPTION_WIDTH)}
        spec["config"]["aria"] = len(drawn.rows) <= MANY  # a label for each mark would be most of the file
        svg = draw_svg(json.dumps(spec))
        yield f"{figure.name}.svg", svg.encode()
        yield f"{figure.name}.png", vl_convert.svg_to_png(svg, scale=PIXELS)


def draw_svg(chart: str) -> str:
    """The SVG of a chart that is given as JSON."""
    return str(vl_convert.vegalite_to_svg(chart, vl_version=VEGA_LITE))


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, kept in the cache folder: to bundle them takes two seconds."""
    file = f"vega-{version('vl-convert-python')}-{VEGA_LITE}.js"
    cached = cache_dir() / "report" / file
    try:
        return cached.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        bundle = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=VEGA_LITE)).replace(
            "</script", "<\\/script"
        )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        DiskFolder(cached.parent).write_file(file, bundle.encode())
    except (OSError, StorageError):  # it is made again the next time
        pass
    return bundle


def _run(drawn: Sheet, data: str, reference: bool, live: bool) -> Iterator[str]:
    """One run: its front, its questions, each with its figure, then the other figures and what made it."""
    run = drawn.run
    assert isinstance(run, Run)
    found = {figure.name: figure for figure in figures(drawn, reference)}
    yield f"<article><header><h1>{_text(run.name)}</h1>"
    if run.spec.description:
        yield f"<p>{_text(run.spec.description)}</p>"
    line = f"{'running, ' if live else ''}{' · '.join(facts(run))}"
    yield f'<p class="facts">{_text(line)}</p>'
    yield "".join(f'<p class="warning">{_text(line)}</p>' for line in trouble(run))
    yield "</header>"
    yield from _front(run, found.pop("front", None), data)
    if warning := provisional(run):
        yield f'<p class="warning">{_text(warning)}</p>'
    for question in questions(run):
        yield from _question(question, found.pop(f"forest_{question.axis}", None), data)
    yield "<section><h2>More figures</h2>" if found else "<section>"
    yield from (_figure(figure, data) for figure in found.values())
    if reference and (table := beside(run.pareto, run.spec.data.names[0])):
        yield _fold("Published networks and ours", f"{_wide(table)}<p>{_text(BESIDE)}</p>")
    elif reference:
        yield f"<p>{_text(explain_nothing_beside(run.pareto, run.spec.data.names[0]))}</p>"
    yield "</section>"
    made = ", ".join(f"{name} {text}" for name, text in provenance(run).items())
    yield f"<footer><p>{_text(f'Made with {made}') if made else ''}</p></footer></article>"


def _front(run: Run, figure: Figure | None, data: str) -> Iterator[str]:
    """The figure of the front, and its table, folded."""
    front = run.front()
    heads, rows = front_cells(front, varying_axes(run.pareto))
    trials = front["trial_id"].to_pylist()
    rows = [[*cells, trial_id] for cells, trial_id in zip(rows, trials, strict=True)]
    title = front_title(run.pareto, run.spec.data.names[0], run.budget)
    yield "<section>"
    yield _figure(figure, data) if figure else ""
    count = format_count(len(rows), "configuration")
    yield _fold(f"The front as a table: {count}", _wide(Table(title, [*heads, "trial"], rows)))
    yield "</section>"


def _question(question: Question, figure: Figure | None, data: str) -> Iterator[str]:
    """The conclusions, the figure with the effects, and the details, folded."""
    yield f"<section><h2>{_text(question.title)}</h2>"
    yield _list([*question.conclusions, *([question.correction] if question.correction else [])])
    yield _figure(figure, data) if figure else ""
    if question.refused:
        yield _fold(question.refusals, _list([*question.advice, *question.refused]), "twice")
    if question.best:
        yield _fold(question.best_title, _list(question.best))
    if question.table:
        yield _fold(question.verdicts, _wide(question.table, "text"))
    yield "</section>"


def _fold(summary: str, content: str, kind: str = "") -> str:
    """A part that opens with a click. Paper leaves out the content of the kind `twice`, which a table has as well."""
    return f'<details class="{kind}"><summary>{_text(summary)}</summary>{content}</details>'


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{_sentence(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _sentence(sentence: str) -> str:
    return _CODE.sub(r"<code>\1</code>", _text(sentence))


def _overlays(sheets: Sequence[Sheet]) -> Iterator[str]:
    """The fronts of the runs in one figure for each data set of which there are several."""
    for dataset in sorted({s.run.spec.data.names[0] for s in sheets}):
        same = [s for s in sheets if s.run.spec.data.names[0] == dataset and s.front]
        if len(same) > 1:
            caption = "Each step line is the front of one run, with its 95 % interval over seeds."
            yield _figure(Figure("overlay", f"The fronts on {dataset}", caption, overlay(same)), "")


def _figure(figure: Figure, data: str) -> str:
    spec = _json(figure.chart.to_dict(validate=False))
    return (
        f'<figure><h3>{_text(figure.title)}</h3><div class="chart"></div>'
        f'<script type="application/json" class="chart-spec" data-of="{data}">{spec}</script>'
        f"<figcaption>{_text(figure.caption)}</figcaption></figure>"
    )


def _wide(table: Table, kind: str = "") -> str:
    """A table that scrolls by itself if it is wider than the page."""
    return f'<div class="wide">{html_table(table, kind)}</div>'


def html_table(table: Table, kind: str = "") -> str:
    """The table as HTML.

    Args:
        table: its texts, which are escaped.
        kind: its class; empty for none.
    """
    attribute = f' class="{kind}"' if kind else ""
    heads = "".join(f"<th>{_text(head)}</th>" for head in table.heads)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows)
    return (
        f"<table{attribute}><caption>{_text(table.title)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _columns(drawn: Sheet) -> dict[str, Any]:
    """The rows without their keys, which would make up most of a page."""
    names = list(drawn.rows[0]) if drawn.rows else []
    return {"names": names, "rows": [[row[name] for name in names] for row in drawn.rows], "epoch": drawn.epochs}


def _json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end that, whatever a file holds."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _text(text: str) -> str:
    return escape(printable(text))


def provenance(run: Run) -> dict[str, str]:
    """Versions and commit that the newest result was made with."""
    ends = rows_known(run.trials, "finished_at").select(["finished_at", "trial_id"]).to_pylist()
    newest = max(ends, key=lambda row: (row["finished_at"], row["trial_id"]), default=None)
    found = Store(run.where).metadata(newest["trial_id"]) if newest else {}
    named = {key.removeprefix("qdtune.version."): v for key, v in found.items() if key.startswith("qdtune.version.")}
    commit = found.get("qdtune.git_commit")
    return named | ({"commit": commit} if commit else {})
