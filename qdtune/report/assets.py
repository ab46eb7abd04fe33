"""The style sheet and the scripts of a page."""

STYLE = """
:root { color-scheme: light; --soft: #555; --line: #888; --faint: #eee; --warn: #8a4b00 }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --soft: #aab; --line: #778; --faint: #334; --warn: #f0b060 }
  body { background: #16181d; color: #e4e6eb } .chart { background: #fff; color: #1a1a1a; color-scheme: light }
}
body { margin: 0; font: 16px/1.5 Helvetica, Arial, sans-serif }
main { max-width: 820px; margin: 0 auto; padding: 16px; overflow-wrap: anywhere }
h1 { margin: 0 0 .2em; font-size: 1.7em } h2 { margin: 1.6em 0 .4em; font-size: 1.25em }
h3 { margin: 1.2em 0 .3em; font-size: 1em }
header p { margin: .2em 0 } .facts { color: var(--soft); font-size: 14px } dd { margin: 0 }
dl.notes dt { font-weight: bold; margin-top: .5em }
details { margin: .6em 0 } summary { cursor: pointer; color: var(--soft) } li { margin: .25em 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); padding: .3em 0 } th, td { padding: .2em .7em; text-align: right }
th { border-bottom: 1px solid var(--line); white-space: nowrap } tr + tr td { border-top: 1px solid var(--faint) }
td { white-space: nowrap } table.text td:last-child { white-space: normal }
table.text :is(th, td):last-child { text-align: left; min-width: 15em }
figure { margin: 1.5em 0; break-inside: avoid } figcaption { color: var(--soft); font-size: 14px }
.chart, .chart.vega-embed { display: block; overflow-x: auto; min-height: 120px }
.warning { color: var(--warn) } footer { color: var(--soft); font-size: 13px }
@media print {
  main { max-width: none; padding: 0 } body { font-size: 11pt } .wide, .chart { overflow: visible }
  details::details-content { content-visibility: visible; block-size: auto } summary { list-style: none }
  details.twice > :not(summary) { display: none }
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
# Charts are drawn for the width of the page, and drawn anew when it changes, as when a phone is turned.
SCRIPT = """
const main = document.querySelector("main"), text = element => element.textContent;
let room = 0, narrow = false, drawn = [];
const fit = width => Math.min(width, room - (narrow ? 70 : 200));
const sized = spec => (key, value) =>
  key === "width" && value > 100 ? fit(value) :
  key === "limit" && value > 100 ? fit(value + 16) - 16 :
  /^label(Limit|Padding)$/.test(key) && value > 100 && spec.autosize ? Math.min(value, .48 * room) :
  key === "columns" && narrow ? Math.max(1, Math.floor(room / 260)) : value;
// The labels of a plot of effects, on two lines where there is no room for one.
const wrap = (spec, most) => {
  for (const {axis} of spec.layer.map(layer => layer.encoding.y || {})) if (axis) {
    const [list, index] = axis.labelExpr.split(/(?=\\[datum.value\\]$)/), labels = JSON.parse(list);
    const at = label => label.length > most ? [...label.matchAll(/, /g)].map(found => found.index)
      .sort((a, b) => Math.abs(a - label.length / 2) - Math.abs(b - label.length / 2))[0] || -1 : -1;
    if (!labels.some(label => at(label) > 0)) return;
    spec.height = 30 * labels.length;
    axis.labelExpr = JSON.stringify(labels.map(label => at(label) < 0 ? label :
      [label.slice(0, at(label) + 1), label.slice(0, 2) + label.slice(at(label) + 2)])) + index;
  }
};
const rows = ({names, rows, epoch}) =>
  rows.map(row => ({epoch, ...Object.fromEntries(names.map((name, i) => [name, row[i]]))}));
const every = +document.body.dataset.reload, charts = [...document.querySelectorAll(".chart")];
const folds = [...document.querySelectorAll("details")];
(kept.open || []).forEach((open, i) => { if (folds[i]) folds[i].open = open });
addEventListener("beforeprint", () => folds.forEach(fold => { fold.was = fold.open; fold.open = true }));
addEventListener("afterprint", () => folds.forEach(fold => { fold.open = fold.was }));
(kept.heights || []).forEach((height, i) => { if (charts[i]) charts[i].style.minHeight = height + "px" });
const chart = element => {
  const spec = JSON.parse(text(element), sized(JSON.parse(text(element)))), of = element.dataset.of;
  const data = of ? rows(JSON.parse(text(document.getElementById(of)))) : [];
  spec.datasets = {...spec.datasets, configurations: data};
  if (spec.autosize) spec.width = Math.min(760, room);
  if (spec.autosize && narrow) wrap(spec, .48 * room / 6);
  if (narrow) Object.assign(spec.config.legend, {orient: "bottom", columns: 2});
  if (narrow) Object.assign(spec.config.axis, {titleFontSize: 11, labelFontSize: 11});
  const options = {actions: false, mode: "vega-lite", renderer: data.length > 2000 ? "canvas" : "svg"};
  return vegaEmbed(element.previousElementSibling, spec, options);
};
const draw = () => {
  room = main.clientWidth - 32, narrow = room < 600;
  const before = drawn;
  drawn = [...document.querySelectorAll("script.chart-spec")].map(chart);
  Promise.allSettled(before).then(old => old.forEach(one => one.value?.finalize()));
  return Promise.allSettled(drawn).then(() => { document.body.style.minHeight = "" });
};
let turned;
addEventListener("resize", () => {
  clearTimeout(turned);
  if (main.clientWidth - 32 !== room) turned = setTimeout(() => {
    document.body.style.minHeight = document.body.clientHeight + "px";
    draw();
  }, 200);
});
draw();
const made = text(document.querySelector(".facts"));
if (kept.made) scrollTo(0, kept.y);
if (every) {
  const wait = kept.made === made ? Math.min(2 * kept.wait, 30) : every;
  const again = () => {
    if (document.querySelector(".chart:hover")) return setTimeout(again, 1000);
    const heights = charts.map(chart => chart.clientHeight);
    const whole = document.body.clientHeight, open = folds.map(fold => fold.open);
    sessionStorage.setItem(place, JSON.stringify({made, wait, heights, whole, open, y: scrollY}));
    location.reload();
  };
  Promise.allSettled(drawn).then(() => setTimeout(again, 1000 * wait));
}
"""
