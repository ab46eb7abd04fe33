"""A report as files: one self-contained page for one or more runs, and its figures as SVG and PNG.

A page asks the network for nothing, which its content security policy holds it to: Vega's JavaScript is in it, once.
The same run gives the same bytes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import version
from typing import Any

import altair as alt
import vl_convert

from qdtune.analysis.run import Run
from qdtune.machine import cache_dir
from qdtune.messages import printable
from qdtune.report.figures import MANY, NAME, Figure, apart, figures, overlay
from qdtune.report.plot_data import Sheet
from qdtune.report.words import BESIDE, Table, beside, facts, questions, trouble
from qdtune.store.columns import TRIALS
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import StorageError
from qdtune.store.front import front_cells, front_title, varying_axes
from qdtune.store.parquet import DamagedError, parse_table
from qdtune.store.store import Store
from qdtune.store.tables import Table as Arrow

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
PIXELS = 2.0  # of a PNG per pixel of a figure
MARK = '<meta name="generator" content="qdtune">'  # by which a page of ours is known
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
NOTES = {
    "Accuracy": "of the validation split unless test is written: mean of n seeds ± half of its 95 % interval "
    "(Student t). Few seeds make it wide. The test set was read once, at the end, and nothing was chosen by it.",
    "Bytes": "what has to be shipped: codes at their bits, step sizes, biases, normalisation.",
    "p front": "how sure the place on the front is: the bootstrap probability, over the seeds, of being on it.",
    "pruned": "stopped early, since another configuration of no more bytes was ahead of it: without a final figure.",
    "Effects": "differences in percentage points between configurations that differ in one axis alone, paired by "
    "seed, with an interval corrected for the number of comparisons (Holm). Undecided is an answer: the data do not "
    "tell.",
}
STYLE = """
:root { color-scheme: light }
body { margin: 0; background: #fff; color: #1a1a1a; font: 16px/1.5 Helvetica, Arial, sans-serif }
main { max-width: 820px; margin: 0 auto; padding: 16px; overflow-wrap: anywhere }
h1 { margin: 0 0 .2em; font-size: 1.7em } h2 { margin: 1.6em 0 .4em; font-size: 1.25em }
h3 { margin: 1.2em 0 .3em; font-size: 1em }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em } dt { color: #555 } dd { margin: 0 }
dl.notes dt { font-weight: bold; color: inherit; margin-top: .5em }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
caption { text-align: left; color: #555; padding: .3em 0 } th, td { padding: .2em .7em; text-align: right }
th { border-bottom: 1px solid #888; white-space: nowrap } tr + tr td { border-top: 1px solid #eee }
td { white-space: nowrap } table.text td:last-child { white-space: normal }
table.text :is(th, td):last-child { text-align: left; min-width: 15em }
figure { margin: 1.5em 0; break-inside: avoid } figcaption { color: #444; font-size: 14px }
.chart, .chart.vega-embed { display: block; overflow-x: auto; min-height: 120px }
.warning { color: #8a4b00 } footer { color: #555; font-size: 13px }
@media print {
  main { max-width: none; padding: 0 } body { font-size: 11pt } .wide, .chart { overflow: visible }
  table { font-size: 8.5pt } tr, li { break-inside: avoid } h2, h3 { break-after: avoid }
  .chart svg, .chart canvas { max-width: 100%; height: auto !important }
}
"""
# A page that has loaded itself again is as long as it was before anything is drawn, so that it does not jump.
EARLY = """
const place = "qdtune " + location.pathname, kept = JSON.parse(sessionStorage.getItem(place) || "{}");
sessionStorage.removeItem(place);
if (kept.whole) document.body.style.minHeight = kept.whole + "px";
"""
SCRIPT = """
const room = document.querySelector("main").clientWidth - 32, narrow = room < 600;
const sized = (key, value) => key === "width" && value > 100 ? Math.min(value, room - (narrow ? 70 : 200)) :
  key === "columns" && narrow ? Math.max(1, Math.floor(room / 260)) : value;
const rows = ({names, rows, epoch}) =>
  rows.map(row => ({epoch, ...Object.fromEntries(names.map((name, i) => [name, row[i]]))}));
const text = element => element.textContent;
const every = +document.body.dataset.reload, charts = [...document.querySelectorAll(".chart")];
(kept.heights || []).forEach((height, i) => { if (charts[i]) charts[i].style.minHeight = height + "px" });
const drawn = [...document.querySelectorAll("script.chart-spec")].map(element => {
  const spec = JSON.parse(text(element), sized), of = element.dataset.of;
  const data = of ? rows(JSON.parse(text(document.getElementById(of)))) : [];
  spec.datasets = {...spec.datasets, configurations: data};
  if (narrow) Object.assign(spec.config.legend, {orient: "bottom", columns: 2});
  const options = {actions: false, mode: "vega-lite", renderer: data.length > 2000 ? "canvas" : "svg"};
  return vegaEmbed(element.previousElementSibling, spec, options);
});
const made = text(document.querySelector(".facts"));
if (kept.made) scrollTo(0, kept.y);
Promise.allSettled(drawn).then(() => { document.body.style.minHeight = "" });
if (every) {
  const wait = kept.made === made ? Math.min(2 * kept.wait, 30) : every;
  const again = () => {
    if (document.querySelector(".chart:hover")) return setTimeout(again, 1000);
    const heights = charts.map(chart => chart.clientHeight);
    const whole = document.body.clientHeight;
    sessionStorage.setItem(place, JSON.stringify({made, wait, heights, whole, y: scrollY}));
    location.reload();
  };
  Promise.allSettled(drawn).then(() => setTimeout(again, 1000 * wait));
}
"""


def page(sheets: Sequence[Sheet], reference: bool = False, reload_s: int = 0) -> bytes:
    """The page of one or more runs, as UTF-8.

    Args:
        sheets: the runs, in the order in which they are shown.
        reference: whether published networks are drawn where there are any.
        reload_s: seconds after which the page loads itself again, for a sweep that is running; 0: never.
    """
    title = ", ".join(s.run.name for s in sheets)
    single = len(sheets) == 1
    parts = [] if single else [f"<h1>{_text(title)}</h1>", *_overlays(sheets)]
    for k, drawn in enumerate(sheets):
        parts += [f'<script type="application/json" id="run-{k}">{_json(_columns(drawn))}</script>']
        parts += _run(drawn, f"run-{k}", reference, reload_s > 0)
    notes = "".join(f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in NOTES.items())
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
<section><h2>How to read it</h2><dl class="notes">{notes}</dl></section>
<noscript><p>The figures need JavaScript; <code>qdtune report</code> also writes them as SVG and PNG.</p></noscript>
</main>
<script>{vega()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
    return html.encode(errors="backslashreplace")


def images(drawn: Sheet, reference: bool = False) -> Iterator[tuple[str, bytes]]:
    """The figures as (file name, bytes): an SVG and a PNG of each."""
    marks = [{key: value for key, value in row.items() if key != "curve"} for row in apart(drawn)]
    curves = [row | {"epoch": drawn.epochs} for row in drawn.rows if row["drawn"]]
    for figure in figures(drawn, reference, still=True):
        rows = curves if figure.has_curves else marks
        spec = figure.chart.to_dict(validate=False) | {"datasets": {NAME: rows}}
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
    """One run: what it was, its front, what it answers, its figures, and what made it."""
    run = drawn.run
    assert isinstance(run, Run)
    yield f"<article><header><h1>{_text(run.name)}</h1>"
    if run.spec.description:
        yield f"<p>{_text(run.spec.description)}</p>"
    told = [(name, f"running, {text}" if live and name == "state" else text) for name, text in facts(run)]
    yield f'<dl class="facts">{"".join(f"<dt>{_text(n)}</dt><dd>{_text(t)}</dd>" for n, t in told)}</dl>'
    yield "".join(f'<p class="warning">{_text(line)}</p>' for line in trouble(run))
    yield "</header>"
    yield "<section><h2>The front</h2>"
    front = run.front()
    heads, rows = front_cells(front, varying_axes(run.pareto))
    trials = front["trial_id"].to_pylist()
    rows = [[*cells, trial_id] for cells, trial_id in zip(rows, trials, strict=True)]
    yield _table(Table(front_title(run.pareto, run.spec.data.names[0], run.budget), [*heads, "trial"], rows))
    yield "</section>"
    for question in questions(run):
        yield f"<section><h2>{_text(question.title)}</h2>"
        yield (
            f"<ul>{''.join(f'<li>{_text(s)}</li>' for s in question.conclusions)}</ul>"
            if question.conclusions
            else ""
        )
        yield _table(question.table, "text") if question.table else ""
        yield "</section>"
    yield "<section><h2>Figures</h2>"
    yield from (_figure(figure, data) for figure in figures(drawn, reference))
    if reference and (table := beside(run.pareto, run.spec.data.names[0])):
        yield _table(table)
        yield f"<p>{_text(BESIDE)}</p>"
    elif reference:
        yield f"<p>{_text(f'No published networks are known here for {run.spec.data.names[0]}.')}</p>"
    yield "</section>"
    made = ", ".join(f"{name} {text}" for name, text in provenance(run).items())
    yield f"<footer><p>{_text(f'Made with {made}') if made else ''}</p></footer></article>"


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


def _table(table: Table, kind: str = "") -> str:
    heads = "".join(f"<th>{_text(head)}</th>" for head in table.heads)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows)
    return (
        f'<div class="wide"><table class="{kind}"><caption>{_text(table.title)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
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
    """Versions and commit that the newest file of results was made with, as far as it can be read."""
    folder = Store(run.where).folder
    for file in reversed(
        [file for file in folder.list_files("trials") if file.endswith(".parquet") and file[0] != "."]
    ):
        try:
            table = parse_table(folder.read_file(f"trials/{file}") or b"", file, TRIALS, whole=True)
        except DamagedError:
            continue
        return _versions(table)
    return {}


def _versions(table: Arrow) -> dict[str, str]:
    found = {key.decode(): value.decode(errors="replace") for key, value in (table.schema.metadata or {}).items()}
    named = {key.removeprefix("qdtune.version."): v for key, v in found.items() if key.startswith("qdtune.version.")}
    commit = found.get("qdtune.git_commit")
    return named | ({"commit": commit} if commit else {})
