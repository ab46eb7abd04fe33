"""A forest plot: a row for each comparison with an effect, its verdict readable without colour."""

import json
from dataclasses import replace

import pytest

from qdtune.report.forest import MAX_ROWS, forest_chart, select_comparisons
from qdtune.report.scales import styled
from tests.report.test_conclusions import BASE, HELPS, HURTS, UNDECIDED, at


def rows(chart):
    return chart["layer"][1]["data"]["values"]


def labels(chart):
    text = chart["layer"][1]["encoding"]["y"]["axis"]["labelExpr"]
    return [label.strip("\u200b\u2003") for label in json.loads(text.removesuffix("[datum.value]"))]


def chart_of(axis, found):
    return styled(forest_chart(axis, select_comparisons(found), 760)).to_dict()


def test_each_comparison_is_a_row_under_the_heading_of_its_bits():
    found = [*at(HELPS, 1, depth=2), *at(UNDECIDED, 1, depth=3), *at(HURTS, 32), *at(BASE, 4)]
    chart = chart_of("activation", found)
    assert labels(chart) == ["1 bit", "depth 2", "depth 3", "with float weights", "depth 2"]
    assert [(row["row"], row["effect"], row["low"]) for row in rows(chart)] == [(1, 2, 1), (2, 1, -1), (4, -2, -3)]
    assert rows(chart)[1]["needed"] == "about 9 seeds"


def test_a_label_names_what_differs_between_comparisons():
    depths = [replace(HELPS, axis="depth", value=d, baseline=1, depth=d, activation=a) for d, a in ((2, "relu"),)]
    assert labels(chart_of("depth", depths)) == ["2 bits", "depth 2"]
    depths.append(replace(depths[0], activation="identity", scale="minmax"))
    assert labels(chart_of("depth", depths)) == ["2 bits", "depth 2, relu, lsq", "depth 2, identity, minmax"]
    both = [HELPS, replace(HELPS, value="gelu")]
    assert labels(chart_of("activation", both)) == ["2 bits", "depth 2, relu", "depth 2, gelu"]


def test_verdicts_are_readable_without_colour():
    chart = chart_of("activation", [*at(HELPS, 1), *at(UNDECIDED, 2)])
    line, point = chart["layer"][1:]
    fills = dict(zip(*(point["encoding"]["fill"]["scale"][key] for key in ("domain", "range")), strict=True))
    assert fills["undecided"] == "white"
    assert "white" not in (fills["helps"], fills["hurts"])
    assert line["encoding"]["strokeWidth"]["condition"]["value"] > line["encoding"]["strokeWidth"]["value"]
    bold = line["encoding"]["y"]["axis"]["labelFontWeight"]["condition"]["test"]
    assert bold == "indexof([0, 2, 1], datum.value) >= 0"  # headings, then the significant one; not the last


def test_the_same_is_a_square_between_the_lines_of_the_margin():
    same = replace(UNDECIDED, verdict="same", same_within=0.004, effect=0, low=-0.003, high=0.003, look=2)
    chart = chart_of("activation", [*at(same, 1), *at(HELPS, 2, same_within=0.004, look=1)])
    margins = chart["layer"][1]["data"]["values"]
    assert margins == [{"margin": -0.4}, {"margin": 0.4}]
    shape = chart["layer"][-1]["encoding"]["shape"]["scale"]
    assert dict(zip(shape["domain"], shape["range"], strict=True))["same"] == "square"
    found = chart["layer"][-1]["data"]["values"]
    assert [(row["verdict"], row["look"]) for row in found] == [("same", 2), ("helps", 1)]


def test_a_comparison_without_an_interval_is_a_point():
    (row,) = rows(chart_of("activation", [replace(UNDECIDED, n_seeds=1, low=None, high=None)]))
    assert (row["effect"], row["low"], row["high"]) == (1, None, None)


def test_an_interval_that_says_nothing_is_no_line_and_does_not_stretch_the_plot():
    useless = replace(UNDECIDED, n_seeds=2, low=-1, high=1)
    (row, other) = rows(chart_of("activation", [useless, *at(UNDECIDED, 4)]))
    assert (row["effect"], row["low"], row["high"]) == (1, None, None)
    assert (other["low"], other["high"]) == (-1, 3)


def test_of_many_comparisons_those_with_the_smallest_p_are_shown():
    many = [replace(UNDECIDED, weight_bits=n % 8 + 1, p=1 / (n + 1)) for n in range(MAX_ROWS + 20)]
    assert select_comparisons(many) == many[20:]
    assert select_comparisons([BASE, *many[:3], BASE]) == many[:3]


@pytest.mark.parametrize("axis", ["depth", "activation"])
def test_nothing_is_shown_of_comparisons_without_an_effect(axis):
    assert select_comparisons([BASE, replace(BASE, axis=axis)]) == []
