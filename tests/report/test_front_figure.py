"""The figure of the front: what a mark says by its colour, its shape and its hole; and the captions of files."""

import json
from dataclasses import replace

import pytest

from qdtune.analysis.run import load_run
from qdtune.report.figures import figures
from qdtune.report.page import images
from qdtune.report.plot_data import sheet
from qdtune.report.words import beside, explain_nothing_beside
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
        (None, 0.99, "their inputs have at most 2 bits, ours more (`act_bits`)."),
        (4, 0.99, "their inputs have at most 2 bits, ours more (`act_bits`)."),
        (1, 0.5, "None of our networks with inputs of as few bits is as accurate as a published one."),
        (1, 0.99, None),
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
