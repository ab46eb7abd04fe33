"""`qdtune report`: what is printed and drawn of the recorded sweep, and of a pruned one; how it follows a sweep."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timezone
from functools import partial
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qdtune
from qdtune.commands.report import main
from qdtune.commands.report_arguments import parse_size
from qdtune.report import page as page_module
from qdtune.report.assets import STYLE
from qdtune.report.figure import whole
from qdtune.report.figures import figures
from qdtune.report.follow import drawing, follow
from qdtune.report.marks import apart
from qdtune.report.page import page, provenance
from qdtune.report.plot_data import sheet
from qdtune.report.published import PUBLISHED
from qdtune.report.scales import error, size_ticks
from qdtune.report.words import beside, questions, trouble
from qdtune.spec.axes import AXES, AXIS_NAMES, SHIPPED, axis_of
from qdtune.spec.sweep_file import load
from qdtune.spec.tasks import ACCURACY
from qdtune.store.folder import StorageError
from qdtune.store.parquet import complete_table
from qdtune.store.store import PAGE, Store
from qdtune.terminal import console
from tests import fake
from tests.judged import make_spec, write_run
from tests.schemas import TRIALS
from tests.store.test_store import row as trial_row

DATA = Path(__file__).parents[1] / "data"
GRID = Path(__file__).parents[2] / "tests" / "data" / "recorded.yaml"
FIGURES = ("front", "forest_depth", "forest_activation", "bits", "activation", "heatmap", "curves")
REFUSED_FIGURES = tuple(name for name in FIGURES if not name.startswith("forest"))  # no comparison has an effect


def stored(folder, name, **changes):
    """The recorded sweep as a run folder, its sweep file changed."""
    spec = load(GRID, [f"data.dataset={name}"]).resolve(name).model_copy(update=changes)
    store = Store(folder)
    store.create(spec.to_yaml())
    trials, history = (pq.read_table(DATA / f"{name}_{kind}.parquet") for kind in ("trials", "history"))
    tables = [complete_table(trials, TRIALS).to_pylist(), history.to_pylist()]
    for trial_id in {row["trial_id"] for row in tables[0]}:
        rows, curves = ([entry for entry in table if entry["trial_id"] == trial_id] for table in tables)
        store.write(trial_id, rows, curves, {"qdtune.version.torch": "2.15.0"})
    return store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("runs") / "grid", "mnist")


@pytest.fixture(scope="module")
def drawn(run):
    return sheet(qdtune.load(run.root))


@pytest.fixture(scope="module")
def html(drawn):
    return page([drawn]).decode()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A sweep of which most is stopped early."""
    folder = tmp_path_factory.mktemp("runs") / "pruned"
    fake.launch(folder, load(GRID, ["name=pruned", "early_terminate={type: pareto, risk: null}"]).resolve("mnist"))
    return sheet(qdtune.load(folder))


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text of each script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.lasttag = ""


@pytest.mark.parametrize("options", [[], ["--watch"]])
def test_the_nearest_run_beside_a_wrong_name_is_suggested(run, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run.root.parent)
    assert main(["gird", *options]) == 2
    line = "error: gird is no run folder: it holds no sweep.yaml (did you mean grid?)\n"
    assert capsys.readouterr().err == line
    assert main([f"{run.root.parent}/gird/", *options]) == 2
    assert capsys.readouterr().err.endswith(f"(did you mean {run.root}?)\n")


@pytest.fixture
def only_printed(monkeypatch):
    """Reports that draw nothing, which takes seconds."""
    monkeypatch.setattr("qdtune.commands.report._write_files", lambda *given: ["report: nowhere"])


@pytest.fixture
def without_figures(monkeypatch):
    """Reports that draw a page, but no figures beside it."""
    monkeypatch.setattr("qdtune.commands.report.images", lambda *given: ())


def test_report_prints_what_it_draws(run, capsys):
    assert main([str(run.root)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "grid: finished: 35 ok"
    assert lines[2].split() == ["bytes", "depth", "bits", "between", "validation", "test", "n", "p", "front"]
    assert f"report: {run.root / PAGE}" in lines
    assert sorted(os.listdir(run.root)) == sorted(
        ["sweep.yaml", "trials", "history", PAGE, *(f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png"))]
    )
    assert all((run.root / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert all("<svg" in (run.root / f"{name}.svg").read_text() for name in FIGURES)
    html = (run.root / PAGE).read_text()
    front = lines[3 : lines.index("accuracy: mean of n seeds ± half of its 95 % interval (Student t)")]
    assert len(front) > 3
    for line in front:
        cells = re.split(r"  +", line.strip())
        row = "".join(f"<td>{re.escape(cell)}</td>" for cell in cells)
        assert re.search(f"<tr>{row}<td>[0-9a-f]{{12}}</td></tr>", html)
    assert "made with torch 2.15.0" in html.lower()


def test_comparisons_are_told_apart_by_what_differs_alone(run):
    """At one bit no choice of levels changes anything: a column that says so of a single choice tells nothing."""
    effect = ["against", "effect (points)", "n", "verdict"]
    first, second = (question.table.heads for question in questions(qdtune.load(run.root)))
    assert first == ["bits", "between", "depth", *effect]
    assert second == ["bits", "depth", "activation", *effect]


def test_page_holds_every_configuration_and_asks_nobody(drawn, html):
    found = Tags(html)
    data = json.loads(found.scripts[1])
    rows = [dict(zip(data["names"], row, strict=True)) for row in data["rows"]]
    table = {row["trial_id"]: row for row in drawn.run.pareto.to_pylist()}
    assert sorted(row["size"] for row in rows) == sorted(row["size_bytes"] for row in table.values())
    assert len({row["name"] for row in rows}) == len(table) == 35
    assert all(len(row["curve"]) == len(data["epoch"]) == 15 for row in rows)
    assert not [attrs for _, attrs in found.tags if attrs.keys() & {"src", "href", "srcset"}]
    assert "url(" not in STYLE
    assert "default-src 'none'" in html
    assert [attrs["data-reload"] for tag, attrs in found.tags if tag == "body"] == ["0"]


def test_page_starts_with_the_front_and_each_question_has_its_effects_above_its_folds(drawn, html):
    order = [
        "<h1>grid</h1>",
        '<p class="facts">finished: 35 ok · mnist · 3 seeds · ',
        "<h3>Accuracy against bytes</h3>",
        "<summary>The front as a table: ",
        "<h2>Which depth and bit width win at a given number of bytes?</h2>",
        "<li>The best configuration is ",
        "<h3>Effect of each depth against depth 1</h3>",
        "<summary>30 comparisons: 30 undecided</summary>",
        "<h2>Does an activation between the factors help?</h2>",
        "<li>None of 15 comparisons is significant with 3 seeds. The closest would need about ",
        "<h3>Effect of relu against identity</h3>",
        "<summary>15 comparisons: 15 undecided</summary>",
        "<h2>More figures</h2>",
        "<h2>How to read this page</h2>",
    ]
    places = [html.find(text) for text in order]
    assert -1 not in places
    assert places == sorted(places)
    tables = [
        html.rfind("<details", 0, place) > html.rfind("</details>", 0, place) for place in found_at(html, "<table")
    ]
    assert tables == [True] * 3  # each is folded


def found_at(html, text):
    return [match.start() for match in re.finditer(re.escape(text), html.partition("</main>")[0])]


def test_refusals_are_a_line_and_their_list_is_folded(tmp_path):
    refused = sheet(qdtune.load(Path(__file__).parents[1] / "golden" / "runs" / "eager"))
    html = page([refused]).decode()
    line = "<summary>11 refused because sizes differ by more than 5 %</summary><ul>"
    assert html.count(line) == 1
    folded = html[html.index(line) :].partition("</details>")[0]
    assert folded.count("is not compared with depth 1: sizes differ by more than 5 %.</li>") == 11
    assert "A grid over <code>activation</code> has comparable pairs" in html
    assert [figure.name for figure in figures(refused)][1] == "forest_activation"  # no depth has an effect


def test_terminal_is_a_summary_of_80_columns_unless_all_is_asked_for(run, capsys, only_printed):
    assert main([str(run.root)]) == 0
    short = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in short if not line.startswith("report: "))
    assert "30 comparisons: 30 undecided. Corrected for 30 tests (Holm)." in short
    assert "every comparison: the page, or `qdtune report --all`" in short
    assert not any("against" in line.split() for line in short)
    assert main([str(run.root), "--all"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert sum(bool(re.search(r"(\d|>100) +undecided( +[a-z ]+)?$", line)) for line in lines) == 45
    assert all(len(line.rstrip()) <= 80 for line in lines if not line.startswith("report: "))
    letters = {letter for line in lines if "undecided  " in line for letter in line.partition("undecided")[2].split()}
    assert letters
    assert letters == {line.partition(":")[0] for line in lines if re.match(r"[a-z]{1,2}: ", line)}
    assert "At 1 bit, depth " in out
    assert 'best depth "at N bits" and the best "within N bytes" are two questions' in " ".join(out.split())
    assert "qdtune report --all" not in out


def test_one_number_of_bits_can_be_asked_for_and_keeps_its_verdicts(run, capsys, only_printed):
    assert main([str(run.root), "--bits", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "At 2 bits, depth " in said
    assert "6 comparisons: 6 undecided. Corrected for 30 tests (Holm)." in said
    assert not re.search("At [^2]+ bits?[ ,]", said)
    assert len(re.findall(r"At 2 bits \(|At 2 bits and depth ", said)) == 9
    for given, told in (
        ("5", f"error: --bits 5: {run.root} has 1, 2, 3, 4, 8\n"),
        ("two", "error: --bits must be whole numbers with commas between, such as 2 or 1,2, got 'two'\n"),
    ):
        assert main([str(run.root), "--bits", given]) == 2
        assert capsys.readouterr().err == told
    assert main([str(run.root), "--bits", "2", "--watch"]) == 2
    told = "error: --bits limits the printed answers, and --watch prints none: leave out one of them\n"
    assert capsys.readouterr().err == told


def test_a_file_that_is_left_out_costs_the_page_nothing_else(tmp_path):
    root = tmp_path / "runs" / "eager"
    shutil.copytree(Path(__file__).parents[1] / "golden" / "runs" / "eager", root)
    last = max((root / "trials").iterdir())
    last.symlink_to(last.rename(tmp_path / "elsewhere"))
    html = page([sheet(qdtune.load(root))]).decode()
    assert "1 file left out, which are links or not ours" in html
    assert "<footer><p>Made with qdtune " in html


def test_page_tells_the_versions_of_the_newest_result(tmp_path):
    store = Store(tmp_path)
    for trial_id, minute in (("a", 1), ("b", 3), ("c", 2)):
        end = datetime(2030, 1, 1, 0, minute, tzinfo=timezone.utc)
        store.write(trial_id, [trial_row(trial_id, 0, finished_at=end)], [], {"qdtune.version.torch": trial_id})
    run = qdtune.load(Path(__file__).parents[1] / "golden" / "runs" / "eager")
    assert provenance(dataclasses.replace(run, where=str(tmp_path), trials=store.trials())) == {"torch": "b"}


def test_page_is_the_same_for_the_same_run(run, html):
    assert page([sheet(qdtune.load(run.root))]).decode() == html


def test_page_of_hostile_words_holds_them_as_words(tmp_path):
    evil = "</script><img src=x onerror=alert(1)> & \"' \x1b[31m <!--<script>"
    store = stored(tmp_path / "grid", "mnist", description=evil)
    rows = [row | {"state": "failed", "error": evil} for row in store.trials().to_pylist()[:3]]
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    (store.root / "trials" / f"{rows[0]['trial_id']}.parquet").unlink()
    store.write(rows[0]["trial_id"], rows, [], {"qdtune.version.<b>": evil})
    drawn = sheet(qdtune.load(store.root))
    drawn.rows[0]["name"] = drawn.rows[0]["by"] = evil
    html = page([drawn]).decode()
    found = Tags(html)
    figures_there = len(figures(drawn))
    assert len(found.scripts) == figures_there + 4  # the data, Vega, and two of ours
    assert {tag for tag, _ in found.tags}.isdisjoint({"img", "b"})
    assert json.loads(found.scripts[1])["rows"][0][json.loads(found.scripts[1])["names"].index("name")] == evil
    assert "\x1b" not in html
    assert html.count("&lt;img src=x") == 2 + html.count("Made with &lt;b&gt;")


def test_ten_thousand_configurations_fit_into_six_megabytes(drawn):
    many = dataclasses.replace(drawn, rows=[row | {"id": k} for k, row in enumerate(drawn.rows * 286)])
    assert len(many.rows) > 10_000
    assert len(page_module._json(page_module._columns(many))) + len(page_module.vega()) < 6_000_000


def test_marks_that_are_left_out_on_paper_lie_within_a_pixel_of_one_that_looks_alike(pruned):
    rng = random.Random(0)
    several = [row for row in pruned.rows for _ in range(20)]
    rng.shuffle(several)
    rows = [
        row | {"id": k, "size": row["size"] + rng.randrange(60), "val": row["val"] and row["val"] - rng.random() / 50}
        for k, row in enumerate(several)
    ]
    many = dataclasses.replace(pruned, rows=rows)
    kept = apart(many)
    assert len(kept) < 0.9 * len(rows)
    assert [row["id"] for row in kept] == sorted({row["id"] for row in kept})

    def near(a, b, key):
        return a == b if None in (a, b) else abs(math.log(key(a) / key(b))) <= 0.0101

    for row in rows:
        assert any(
            (row["state"] == "ok") == (one["state"] == "ok")
            and all(row[axis] == one[axis] for axis in many.varying)
            and near(row["size"], one["size"], float)
            and near(row["val"], one["val"], partial(error, ACCURACY))
            for one in kept
        )


def test_sheet_tells_what_was_stopped_and_by_what(pruned):
    rows = [row for row in pruned.rows if row["state"] == "pruned"]
    assert len(rows) > 5
    table = pruned.run.pareto.to_pylist()
    names = {entry["trial_id"]: row["name"] for entry, row in zip(table, pruned.rows, strict=True)}
    for row in rows:
        entry = table[row["id"]]
        assert row["by"] == names[entry["pruned_by"]] == pruned.rows[row["by_id"]]["name"]
        mine = [t for t in pruned.run.trials.to_pylist() if t["trial_id"] == entry["trial_id"]]
        assert row["val"] == pytest.approx(sum(t["val_accuracy"] for t in mine) / 3, abs=6e-5)
        assert (row["low"], row["n"], row["front"]) == (None, 3, False)
        curve = [e for e in pruned.run.history.to_pylist() if e["trial_id"] == entry["trial_id"]]
        assert len(row["curve"]) == row["last"] - pruned.warmup == max(e["epoch"] for e in curve)


def test_figures_are_those_that_have_something_to_show(pruned):
    assert [figure.name for figure in figures(pruned)] == list(REFUSED_FIGURES)
    alone = dataclasses.replace(pruned, varying=("depth",))
    assert [figure.name for figure in figures(alone)] == ["front", "heatmap", "curves"]
    assert figures(dataclasses.replace(pruned, rows=[row | {"val": None} for row in pruned.rows])) == []
    heat = next(figure for figure in figures(pruned) if figure.name == "heatmap").chart.to_dict()
    cells = {(c["depth"], c["bits"]): c["text"] for c in heat["data"]["values"]}
    table = pruned.run.pareto.to_pylist()
    for (depth, bits), text in cells.items():
        here = [row for row in table if (row["depth"], row["weight_bits"]) == (depth, bits)]
        best = max((row["val_accuracy"] for row in here if row["state"] == "ok"), default=None)
        assert text == ("pruned" if best is None else f"{best:.1%}")
    assert "pruned" in cells.values()


def test_long_names_stand_below_their_curves_not_beyond_the_page(drawn):
    for more, bottom in (("", False), (" qat_lr 0.008577", True)):
        named = dataclasses.replace(drawn, rows=[row | {"name": row["name"] + more} for row in drawn.rows])
        curves = next(figure for figure in figures(named) if figure.name == "curves")
        assert ('"orient": "bottom"' in json.dumps(curves.chart.to_dict())) == bottom


def test_published_networks_are_drawn_by_test_accuracy(drawn):
    front = figures(drawn, reference=True)[0]
    text = json.dumps(front.chart.to_dict())
    assert all((one.system in text) == (one.dataset == "mnist") for one in PUBLISHED)
    assert "chosen by their test accuracy" in front.caption
    assert "test accuracy (%" in text
    assert "validation accuracy (%, error" not in text


def configuration(act_bits, size, val, test, **axes):
    """A row of a Pareto table: two hidden layers of 64, split into two factors each, with weights of one bit."""
    found = {"act_bits": act_bits, "size_bytes": size, "val_accuracy": val, "test_accuracy": test}
    network = {"hidden": "64", "depth": 2, "weight_bits": 1}
    return dict.fromkeys(AXIS_NAMES) | found | {"pareto_rank": val and 1} | network | axes


def test_published_networks_stand_beside_the_smallest_of_the_front_that_is_as_accurate():
    """By act_bits, size, validation and test accuracy; the last two are no front, for validation chooses."""
    ours = [
        (1, 6_000, 0.93, 0.935),
        (1, 7_000, 0.95, 0.950),
        (2, 5_000, 0.94, 0.948),
        (None, 100, 0.90, 0.99),
        (1, 6_500, 0.92, 0.99),
        (2, 4_000, None, 0.99),
    ]
    random.Random(0).shuffle(ours)
    table = beside(pa.Table.from_pylist([configuration(*one) for one in ours]), "mnist")
    found = {row[0].removeprefix("Brevitas "): row[4:] for row in table.rows}
    assert found["TFC 1W1A"] == ["a1", "6,000", "93.50%", "81%"]
    assert found["TFC 1W2A"] == ["a2", "5,000", "94.80%", "68%"]
    assert "SFC 1W1A" not in found
    assert table.title.endswith(f"; of {54 - len(table.rows)} others none is")
    weights = [int(row[2].replace(",", "")) for row in table.rows]
    assert weights == sorted(weights)


@pytest.mark.parametrize(
    ("listed", "beats"),
    [("1-1", ["1W1A", "1W2A"]), ("2-1", ["1W2A"]), ("1-2", ["1W2A"]), ("1-8", []), ("32-1", [])],
)
def test_the_inputs_of_every_layer_have_at_most_the_bits_of_a_published_network(listed, beats):
    """`act_bits` says nothing then."""
    pareto = pa.Table.from_pylist([configuration(1, 6_000, 0.95, 0.95, layer_act_bits=listed)])
    found = {row[0].removeprefix("Brevitas TFC "): row[4] for row in beside(pareto, "mnist").rows}
    assert [name for name in ("1W1A", "1W2A") if name in found] == beats
    assert all(found[name].endswith(f" i{listed}") for name in beats)


@pytest.mark.parametrize("name", [axis.name for axis in AXES if axis.name in SHIPPED and axis.tag])
def test_ours_are_named_by_every_axis_that_decides_about_the_shipped_network(name):
    axis = axis_of(name)
    other = next((one for one in axis.names if one != axis.default), "2-1" if axis.column == "string" else 1)
    row = configuration(2, 6_000, 0.95, 0.95) | {"weight_bits": 2, "decompose": "all", name: other}
    (words,) = {row[4] for row in beside(pa.Table.from_pylist([row]), "mnist").rows}
    assert (other if name == "hidden" else axis.tag.format(other)) in words.split()


def test_plot_of_a_run_is_a_chart_with_its_data(run):
    assert len(qdtune.load(run.root).plot().to_dict()["datasets"]["configurations"]) == 35


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(300, 40_000, [512, 1024, 2048, 4096, 8192, 16384, 32768]), (2100, 6000, [2560, 3072, 3584, 4096, 5120])],
)
def test_ticks_are_round_numbers_of_bytes(low, high, ticks):
    assert size_ticks(low, high) == ticks


def test_several_runs_share_a_page(run, pruned, tmp_path, capsys):
    out = tmp_path / "both.html"
    assert main([str(run.root), pruned.run.where, "--out", str(out), "--budget", "8KiB"]) == 0
    assert f"report: {out}" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["both.html"]
    html = out.read_text()
    assert "within 8,192 bytes" in html
    assert "The fronts on mnist" in html
    assert len([1 for tag, _ in Tags(html).tags if tag == "article"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: no run folder given (usage: qdtune report RUN"),
        (["RUN", "RUN"], "2 runs have no page in common: say where it shall be, as --out FILE.html"),
        (["RUN", "--watch", "--out", "a.html"], "--watch draws RUN/report.html of one run"),
        (
            ["RUN", "--budget", "4 kilos"],
            "--budget must be bytes, KB or KiB, such as 4096, 4KB or 4KiB, got '4 kilos'",
        ),
        (["RUN", "--budget", "0"], "--budget must be bytes, KB or KiB"),
        (["RUN", "--out", "nowhere/a.html"], "--out must be a file in a folder that is there, got nowhere/a.html"),
        (["RUN", "--out", "."], "--out must be a file, got a folder: ."),
        (["RUN", "--out", "a.pdf"], "--out must be a page, FILE.html, got a.pdf"),
        (["RUN", "--budget", "10"], "holds nothing within 10 bytes: the smallest that has finished has 2,505"),
        (["RUN", "--budget", "1"], "holds nothing within 1 byte: the smallest that has finished has 2,505"),
        (["RUN", "--budgte", "3"], "unknown option '--budgte'; did you mean '--budget'?"),
        (["nowhere"], "error: nowhere is no run folder: it holds no sweep.yaml"),
        (["nowhere/gird"], "error: nowhere/gird is no run folder: it holds no sweep.yaml"),
        (["nowhere", "--watch"], "error: nowhere is no run folder: it holds no sweep.yaml"),
    ],
)
def test_report_says_what_is_wrong_in_one_line(run, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(run.root) if argument == "RUN" else argument for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_report_replaces_its_own_pages_alone(run, tmp_path, capsys):
    theirs, ours = tmp_path / "theirs.html", tmp_path / "ours.html"
    theirs.write_text("<!doctype html><title>mine</title>")
    for _ in range(2):
        assert main([str(run.root), "--out", str(ours)]) == 0
    capsys.readouterr()
    assert main([str(run.root), "--out", str(theirs)]) == 2
    assert capsys.readouterr().err == (
        f"error: --out must be a new file, or a report: {theirs} holds something else\n"
    )
    assert theirs.read_text() == "<!doctype html><title>mine</title>"


def test_what_has_started_at_chance_is_told(pruned, capsys):
    rows = pruned.run.trials.to_pylist()
    first = next(row for row in rows if row["state"] == "ok")
    first["error"] = "the warm-up ended at chance (9.8%)"
    trials = pa.Table.from_pylist(rows, schema=TRIALS)
    said = trouble(dataclasses.replace(pruned.run, trials=trials))
    assert said == [
        *trouble(pruned.run),
        "1 configuration started from a warm-up that ended at chance (see the column `error`)",
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4KiB", 4096),
        ("1.5 kib", 1536),
        ("1MiB", 1 << 20),
        ("4KB", 4000),
        ("1.5 kb", 1500),
        ("1MB", 10**6),
    ],
)
def test_budget_is_read_in_bytes(text, size):
    assert parse_size(text) == size


# --- following a sweep


def test_follow_draws_what_has_changed_and_once_more_in_the_end(run):
    drawn, waits = [], []

    def over(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            (run.root / "trials" / "new").touch()
            (run.root / "trials" / "new").unlink()
        return len(waits) == 4

    follow(str(run.root), lambda live: bool(drawn.append(live)), over)
    assert drawn == [True, True, False]
    assert min(waits) >= 3
    drawn.clear()
    follow(str(run.root), lambda live: drawn.append(live) is None, over)
    assert drawn == [True, False]


def test_follow_draws_again_what_a_full_disk_refused(run):
    drawn = []

    def draw(live):
        drawn.append(live)
        if len(drawn) == 2:
            raise StorageError("the disk must be writable, got No space left on device")

    def over(seconds):
        (run.root / "trials" / "new").touch()
        (run.root / "trials" / "new").unlink()
        return len(drawn) == 3

    follow(str(run.root), draw, over)
    assert drawn == [True, True, True, False]


def test_watch_of_a_finished_sweep_draws_it_and_ends(run, capsys):
    assert main([str(run.root), "--watch"]) == 0
    assert "finished: 35 ok" in capsys.readouterr().out
    assert 'data-reload="0"' in (run.root / PAGE).read_text()


def test_page_of_a_running_sweep_loads_itself_again(run, tmp_path, without_figures):
    root = Path(shutil.copytree(run.root, tmp_path / "grid"))
    next(iter(sorted((root / "trials").iterdir()))).unlink()
    html = page([sheet(qdtune.load(root))], reload_s=3).decode()
    assert 'data-reload="3"' in html
    assert '<p class="facts">running, 34 of 35 done' in html
    assert html.count("Provisional: 34 of 35") == 1
    with Store(root).lock():
        assert main([str(root)]) == 0  # by hand, while a launch has the folder
    assert 'data-reload="3"' in (root / PAGE).read_text()
    assert main([str(root)]) == 0
    assert 'data-reload="0"' in (root / PAGE).read_text()


def test_child_of_a_launch_ends_when_that_is_gone(run):
    (run.root / PAGE).unlink(missing_ok=True)
    command = [sys.executable, "-W", "error", "-m", "qdtune", "report", str(run.root), "--for-launch"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert 'data-reload="0"' in (run.root / PAGE).read_text()


def test_page_that_cannot_be_drawn_costs_a_launch_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qdtune.report.follow.LAST_S", 60)
    root = Path(shutil.copytree(run.root, tmp_path / "grid"))
    (root / PAGE).unlink(missing_ok=True)
    (root / PAGE).mkdir()
    with drawing(str(root), console()):
        pass
    out, err = capsys.readouterr()
    assert out.startswith("no report was drawn: ")
    assert (out.count("\n"), err) == (1, "")


def test_page_is_drawn_although_the_launch_and_all_its_children_are_stopped(run, tmp_path, monkeypatch, capsys):
    """As the job server of a cluster stops a job."""
    monkeypatch.setattr("qdtune.report.follow.LAST_S", 60)
    root = Path(shutil.copytree(run.root, tmp_path / "grid", ignore=shutil.ignore_patterns(PAGE)))
    children = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[-1])
    with drawing(str(root), console()):
        children[0].send_signal(signal.SIGINT)
        children[0].send_signal(signal.SIGTERM)
    assert tuple(capsys.readouterr()) == ("", "")
    assert (root / PAGE).is_file()


def test_last_page_is_drawn_before_the_launch_is_over_if_it_says_so(run, tmp_path, monkeypatch, capsys):
    root = Path(shutil.copytree(run.root, tmp_path / "grid", ignore=shutil.ignore_patterns(PAGE)))
    children = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[-1])
    with drawing(str(root), console()) as finish_page:
        finish_page()
        assert children[0].wait(60) == 0
        assert 'data-reload="0"' in (root / PAGE).read_text()
        finish_page()
    assert tuple(capsys.readouterr()) == ("", "")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
POINT = """
<script>Promise.all(drawn).then(() => {
  const marks = [...document.querySelectorAll("g.mark-symbol path")];
  const stopped = marks.find(path => path.__data__.datum.by_id > 0);
  stopped.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
});</script>"""


# Turns the page to each width in turn, as a phone is turned, and notes what does not fit into its chart there.
TURN = """
<script>
const cut = chart => {
  const svg = chart.querySelector("svg").getBoundingClientRect(), title = chart.closest("figure").querySelector("h3");
  const whole = title.textContent.startsWith("Effect");
  const texts = [...chart.querySelectorAll("text")].filter(one => {
    const box = one.getBoundingClientRect();
    const beyond = box.width && (box.left < svg.left - 1 || box.right > svg.right + 1);
    return beyond || (whole && one.textContent.includes("…"));
  });
  return [...texts, ...(chart.scrollWidth > chart.clientWidth ? [title] : [])].map(one => one.textContent);
};
const turn = async widths => {
  const found = [];
  for (const width of widths) {
    document.body.style.width = width + "px";
    dispatchEvent(new Event("resize"));
    await new Promise(done => setTimeout(done, 300));
    await Promise.all(drawn);
    const height = document.querySelector("svg").clientHeight;
    found.push({width, room: main.clientWidth, cut: charts.flatMap(cut), height});
  }
  document.body.innerHTML = "<pre>FOUND" + JSON.stringify(found) + "</pre>";
};
Promise.all(drawn).then(() => turn([400, 1280, 400]));
</script>"""


def browse(html, folder, extra=""):
    """The page as a browser has it in the end, without its scripts."""
    start, end = html.rsplit("</body>", 1)  # Vega holds the words, too
    (folder / "page.html").write_text(f"{start}{extra}</body>{end}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += ["--virtual-time-budget=20000", "--window-size=1280,900", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *options, f"file://{folder / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "CONSOLE" not in done.stderr
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_browser_draws_the_page_without_a_word_and_shows_the_curve_pointed_at(pruned, tmp_path):
    for extra in ("", POINT):
        seen = browse(page([pruned]).decode(), tmp_path, extra)
        assert seen.count("<svg") == len(REFUSED_FIGURES)
        assert ("beaten by d" in seen) == (extra == POINT)


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """A run whose configurations and comparisons have long names, and whose front is over two costs."""
    axes = {"hidden": "[[24], [64, 32]]", "scale": "[lsq, absmean]", "factor_init": "[orthogonal, isometry]"}
    changes = ["objectives=[val_auc, size_bytes, macs]", "parameters.granularity={values: [tensor, channel]}"]
    changes += [f"parameters.{name}={{values: {values}}}" for name, values in axes.items()]
    folder = tmp_path_factory.mktemp("runs") / "wordy"
    write_run(folder, make_spec("binary", "auc", changes), lambda skill: skill, dead=[(3, "pruned")])
    return sheet(qdtune.load(folder))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_charts_fit_a_phone_and_a_page_that_is_turned(wordy, drawn, tmp_path):
    for one in (wordy, drawn):
        seen = browse(page([one]).decode(), tmp_path, TURN)
        found = json.loads(unescape(seen.partition("FOUND")[2].partition("</pre>")[0]))
        assert [entry["width"] for entry in found] == [400, 1280, 400]
        assert [entry["room"] for entry in found] == [400, 852, 400]
        assert [entry["cut"] for entry in found] == [[], [], []]
        assert found[0]["height"] == found[2]["height"]


def test_saved_chart_is_whole(pruned):
    spec = whole(figures(pruned)[0].chart, pruned).to_dict()
    assert len(spec["datasets"]["configurations"]) == len(pruned.rows)
