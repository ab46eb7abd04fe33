"""The figure of the front: what a mark says by its colour, its shape and its hole; and the captions of files."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from qdtune.analysis.run import load_run
from qdtune.report.figures import figures
from qdtune.report.page import images, page
from qdtune.report.plot_data import field_of, label, sheet
from qdtune.report.words import beside, explain_nothing_beside, questions
from qdtune.spec.objectives import MACS
from qdtune.store.columns import costs_in
from tests.judged import make_spec, write_run
from tests.schemas import PARETO

FIRST_ROW = [{"pareto_rank": 0, "size_bytes": 900, "depth": 1, "weight_bits": 1, "hidden": "24"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "auc"
    write_run(folder, make_spec("binary", "auc"), lambda skill: skill, dead=[(3, "pruned")])
    return load_run(folder)


def find_points(drawn):
    (front,) = [one for one in figures(drawn, still=True) if one.name == "front"]
    layers = front.chart.to_dict(validate=False)["layer"]
    return front, next(layer for layer in layers if "shape" in layer.get("encoding", {}))


def test_an_activation_between_the_factors_is_a_hole_if_bits_and_depth_are_colour_and_shape(run):
    front, points = find_points(sheet(run))
    assert points["encoding"]["stroke"]["field"] == "weight_bits"
    shape = points["encoding"]["shape"]
    assert (shape["field"], shape["title"]) == ("mark", "depth, activation")
    names, outlines = shape["scale"]["domain"], shape["scale"]["range"]
    assert names == ["1", "2", "2, relu"]  # depth 1 has no activation
    assert outlines[:2] == ["circle", "square"]
    assert outlines[2].count("M") == 2  # a square, and its hole
    assert "With a hole: an activation between the factors." in front.caption


def test_an_axis_with_the_numbers_of_another_one_has_a_legend_of_its_own(run):
    """Vega merges legends whose values are equal."""
    drawn = sheet(run)
    rows = [row | {"activation": "identity", "weight_bits": row["depth"]} for row in drawn.rows]
    _, points = find_points(replace(drawn, rows=rows))
    assert all(isinstance(name, str) for name in points["encoding"]["shape"]["scale"]["domain"])
    assert all(isinstance(n, int) for n in points["encoding"]["stroke"]["scale"]["domain"])


def test_a_file_of_a_figure_has_its_caption(run):
    for name, data in images(sheet(run)):
        if name == "front.svg":
            text = data.decode()
            assert "Auc against bytes" in text
            assert "Hollow: stopped early" in text
            return
    raise AssertionError("no front.svg")


def test_a_figure_of_effects_names_zero(run):
    forest = next(one for one in figures(sheet(run), still=True) if one.name == "forest_depth")
    axes = [layer["encoding"]["x"]["axis"] for layer in forest.chart.to_dict(validate=False)["layer"][1:]]
    assert {json.dumps(axis) for axis in axes} == {'{"tickCount": 7}'}  # few enough that no label is left out


@pytest.mark.parametrize(
    ("act_bits", "accuracy", "told"),
    [
        (1, 0.5, "None of our networks is as accurate as a published one whose inputs have as many bits or more."),
        (1, 0.99, None),
        (None, 0.99, None),
    ],
)
def test_nothing_beside_published_networks_is_explained(run, act_bits, accuracy, told):
    rows = [row | {"act_bits": act_bits, "val_accuracy": accuracy, "test_accuracy": accuracy} for row in FIRST_ROW]
    pareto = PARETO.empty_table().from_pylist(rows, schema=PARETO)
    if told is None:
        assert beside(pareto, "mnist").rows
    else:
        assert beside(pareto, "mnist") is None
        assert explain_nothing_beside(pareto, "mnist").endswith(told)
    assert explain_nothing_beside(pareto, "toy") == "No published networks are known here for toy."


def test_a_mark_is_named_by_a_later_axis_only_if_it_is_not_null():
    cells = [{"act_bits": bits, "layer_act_bits": listed} for bits, listed in ((None, None), (2, None), (2, "8-2"))]
    assert [label(row, tuple(row)) for row in cells] == ["afloat", "a2", "a2 layer_act_bits 8-2"]


# --- over several costs

COSTS = ["size", "macs", "activation_bytes"]


@pytest.fixture(scope="module")
def costly(tmp_path_factory):
    """A run whose front is over three costs; `act_bits` decides nothing but activation bytes."""
    more = ["objectives=[val_auc, size_bytes, macs, activation_bytes]", "parameters.act_bits={values: [4, 8]}"]
    folder = tmp_path_factory.mktemp("runs") / "costly"
    write_run(folder, make_spec("binary", "auc", more), lambda skill: skill, dead=[(3, "pruned")])
    return load_run(folder)


def test_there_is_a_panel_for_each_cost_with_the_front_over_it_alone(costly):
    drawn = sheet(costly)
    front = next(one for one in figures(drawn, still=True) if one.name == "front")
    assert front.title == "Auc against bytes, MACs and activation bytes"
    assert "up to each value of this cost, whatever the others are" in front.caption
    panels = front.chart.to_dict(validate=False)["concat"]
    assert [panel["layer"][-1]["encoding"]["x"]["field"] for panel in panels] == COSTS
    assert [panel["layer"][-1]["encoding"]["y"].get("title") is None for panel in panels] == [False, True, True]
    table = costly.pareto.to_pylist()
    for panel, cost in zip(panels, drawn.costs, strict=True):
        steps = panel["layer"][0]["data"]["values"]
        ranked = [(row[cost.name], row["val_auc"]) for row in table if row["pareto_rank"]]
        best = [(x, y) for x, y in ranked if not any((a <= x and b > y) or (a < x and b >= y) for a, b in ranked)]
        assert [step[field_of(cost)] for step in steps[:-1]] == [x for x, _ in sorted(best)]
        assert all(a["val"] <= b["val"] for a, b in pairwise(steps))
    rows = {row["trial"]: row for row in drawn.rows}
    assert all(rows[row["trial_id"]]["macs"] == row["macs"] for row in table)


def test_a_mark_is_faint_if_it_is_not_on_the_front_over_all_costs(costly, run):
    _, points = find_points(sheet(run))
    assert "opacity" not in points["encoding"]
    front = next(one for one in figures(sheet(costly), still=True) if one.name == "front")
    points = front.chart.to_dict(validate=False)["concat"][1]["layer"][-1]
    assert points["encoding"]["opacity"] == {"condition": {"test": "datum.front", "value": 1}, "value": 0.3}
    tips = [tip["title"] for tip in points["encoding"]["tooltip"] if "format" in tip]
    assert tips == ["bytes", "MACs", "activation bytes"]


def test_all_panels_answer_the_pointer_and_nobody_warns_of_it(costly, recwarn):
    front = next(one for one in figures(sheet(costly)) if one.name == "front")
    chart = front.chart.to_dict(validate=False)
    named = [panel["layer"][-1]["name"] for panel in chart["vconcat"][0]["concat"]]
    (hover,) = chart["params"]
    assert len(set(named)) == 3
    assert set(named) <= set(hover["views"])
    assert not list(recwarn)


def test_a_page_of_several_costs_says_what_they_are_and_draws_files(costly, run):
    html = page([sheet(costly)]).decode()
    assert "front over auc, bytes, MACs and activation bytes" in html
    assert not re.findall(r"\b(?:val_auc|activation_bytes)\b", re.sub("(?s)<script.*?</script>", "", html)), "no code"
    assert "<dt>MACs</dt><dd>Multiply-accumulates for one sample" in html
    assert "because another configuration with no more bytes, MACs and activation bytes is ahead" in html
    assert "because another configuration of equal or smaller size is ahead" in page([sheet(run)]).decode()
    files = dict(images(sheet(costly)))
    assert "activation bytes (log scale)" in files["front.svg"].decode()
    both = page([sheet(costly), sheet(run)]).decode()  # their fronts are compared over bytes
    assert "The fronts on houses:data" in both


def test_a_front_over_one_other_cost_has_one_panel(tmp_path):
    spec = make_spec("binary", "auc", ["objectives=[val_auc, macs]"])
    write_run(tmp_path / "a", spec, lambda skill: skill)
    drawn = sheet(load_run(tmp_path / "a"))
    front, points = find_points(drawn)
    assert points["encoding"]["x"]["field"] == "macs"
    assert points["encoding"]["x"]["title"] == "MACs (log scale)"
    assert "up to a number of MACs" in front.caption
    assert front.title == "Auc against MACs"


def test_a_budget_draws_a_front_anew_that_is_not_over_bytes(tmp_path):
    spec = make_spec("binary", "auc", ["objectives=[val_auc, macs]"])
    write_run(tmp_path / "a", spec, lambda skill: skill)
    run = load_run(tmp_path / "a")
    sizes = sorted(run.pareto["size_bytes"].to_pylist())
    assert min(run.front()["size_bytes"].to_pylist()) > sizes[0]  # a part of this front would be empty
    small = run.within(sizes[0])
    assert small.front().num_rows == 1
    assert costs_in(small.front()) == (MACS,)
    assert small.answers().best.row["size_bytes"] == sizes[0]
    assert f"configuration within {sizes[0]:,} bytes is " in small.answers().best.sentence


def test_conclusions_of_a_page_are_about_the_costs_of_the_front(costly, tmp_path):
    spec = make_spec("binary", "auc", ["objectives=[val_auc, macs]"])
    write_run(tmp_path / "a", spec, lambda skill: skill)
    alone = load_run(tmp_path / "a")
    depth, *_ = questions(alone)
    assert depth.title == "Which depth and bit width win at a given number of MACs?"
    text = " ".join([*depth.conclusions, *depth.best, depth.best_title])
    assert "bytes" not in text
    assert re.search(r"is depth \d, .*\([\d,]+ MACs\)\. It has", depth.conclusions[0])
    assert any(re.match(r"Within [\d,]+ MACs, depth \d", line) for line in depth.best)
    best = questions(costly)[0].conclusions[0]
    assert re.search(r"\([\d,]+ bytes, [\d,]+ MACs, [\d,]+ activation bytes\)\. It has", best)
