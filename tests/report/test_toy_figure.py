"""A figure added through its one place, a function in `report/figures.py`: page, SVG and PNG follow."""

import shutil

import pytest

from tests.toy import ROOT, copy_package, evaluate, run

IMPORT = "from qdtune.report.figure import "
START = "MORE_FIGURES: tuple[Callable[[Sheet], Figure | None], ...] = ("
TOY = """def _toy(drawn: Sheet) -> Figure | None:
    if not drawn.epochs:
        return None
    rows = alt.Chart(alt.NamedData(NAME)).transform_flatten(["epoch", "curve"])
    chart = rows.mark_line(stroke="#123456").encode(x="epoch:Q", y="curve:Q", detail="id:N")
    return Figure("toy", "A toy & its curves", "Drawn for a test.", styled(chart), has_curves=True)


"""
SCRIPT = """
import json
from dataclasses import replace
from qdtune.analysis.run import load_run
from qdtune.report.figures import figures
from qdtune.report.plot_data import sheet

drawn = sheet(load_run("run"))
print(json.dumps([[one.name for one in figures(each)] for each in (drawn, replace(drawn, epochs=[]))]))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package with one function more, named in `MORE_FIGURES`; no other file differs."""
    edits = {"report/figures.py": {IMPORT: f"{IMPORT}NAME, ", START: f"{TOY}{START}_toy, "}}
    folder = copy_package(tmp_path_factory.mktemp("tree"), edits=edits)
    shutil.copytree(ROOT / "tests" / "golden" / "runs" / "eager", folder / "run")
    return folder


def test_it_is_on_the_page_and_in_files_of_its_own(tree):
    told = run(tree, "-m", "qdtune", "report", "run").stdout
    assert (
        "figures: front, toy, forest_activation, bits, activation, heatmap, curves (.svg, .png) beside it"
        in " ".join(told.split())
    )
    page = (tree / "run" / "report.html").read_text()
    assert page.count("<h3>A toy &amp; its curves</h3>") == 1
    assert page.count("<figcaption>Drawn for a test.</figcaption>") == 1
    assert '"#123456"' in page
    assert (tree / "run" / "toy.png").read_bytes().startswith(b"\x89PNG")
    svg = (tree / "run" / "toy.svg").read_text()
    lines = [line for line in svg.split("<path ") if 'stroke="#123456"' in line]
    assert len(lines) > 1
    assert all(line.count("L") > 1 for line in lines)  # every learning curve has its epochs


def test_it_is_left_out_where_it_shows_nothing(tree):
    assert evaluate(tree, SCRIPT) == [
        ["front", "toy", "forest_activation", "bits", "activation", "heatmap", "curves"],
        ["front", "forest_activation", "bits", "activation", "heatmap"],
    ]
