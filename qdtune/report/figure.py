"""One figure of a run, and what all figures share: their sizes and the name of their data."""

from __future__ import annotations

from typing import Any, NamedTuple

from qdtune.report.plot_data import Sheet

WIDTH, HEIGHT = 620, 340  # pixels; a page that is narrower shrinks the width
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


def whole(chart: Any, drawn: Sheet) -> Any:
    """The chart with its data in it, fit to be saved or shown in a notebook."""
    chart = chart.copy(deep=False)
    chart.datasets = {NAME: [row | {"epoch": drawn.epochs} for row in drawn.rows]}
    return chart
