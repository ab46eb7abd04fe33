"""A run that can be looked at in Python: its front as a figure and a table, its answers as sentences."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, fields
from html import escape
from typing import Any

from qdtune.analysis.answers import Answers
from qdtune.analysis.run import Run
from qdtune.messages import format_value, one_line, printable
from qdtune.report.tables import Table
from qdtune.store.front import front_cells, front_title, varying_axes
from qdtune.terminal import draw_text, text_table


@dataclass(frozen=True, repr=False)
class ReadableAnswers(Answers):
    """The answers of a run. They are shown as sentences, question by question, as `qdtune report` prints them.

    Attributes:
        run: the run that is asked.
    """

    run: Run = field(compare=False)

    def __repr__(self) -> str:
        parts = [[title, *(f"  {line}" for line in lines)] for title, lines in self._paragraphs()]
        return "\n\n".join("\n".join(lines) for lines in parts)

    def _repr_markdown_(self) -> str:
        parts = [[f"**{title}**", "", *(f"- {line}" for line in lines)] for title, lines in self._paragraphs()]
        return "\n\n".join("\n".join(lines) for lines in parts)

    def _paragraphs(self) -> list[tuple[str, list[str]]]:
        """Each question with its sentences."""
        from qdtune.report.words import questions  # words take longer to import than numbers

        found = []
        for question in questions(self.run):
            counts = [f"{question.counts}.", *question.advice] if question.counts else []
            counts += [question.correction] if question.correction else []
            lines = [*question.conclusions, *counts]
            found.append((question.title, [printable(line) for line in lines]))
        return found


@dataclass(frozen=True, repr=False)
class DrawnRun(Run):
    """A run that can draw itself. A notebook shows its front, as a figure and as a table."""

    def answers(self, budget: int | None = None) -> ReadableAnswers:
        """What the sweep decides, and what it does not, from configurations of at most `budget` bytes."""
        small = self.within(budget)
        found = Run.answers(small)
        return ReadableAnswers(**{one.name: getattr(found, one.name) for one in fields(found)}, run=small)

    def plot(self, name: str = "front") -> Any:
        """A figure of the report as an Altair chart with its data.

        Args:
            name: one of the figures that the page shows for this run, such as `front`, `bits` or `curves`.

        Raises:
            ValueError: the run has no such figure; the message names those that it has.
        """
        from qdtune.report.figure import whole  # drawing is not needed to compute
        from qdtune.report.figures import figures
        from qdtune.report.front_figure import front_figure
        from qdtune.report.plot_data import sheet

        if name == "front" and self.finished:
            return front_figure(self)
        drawn = sheet(self)
        charts = {figure.name: figure.chart for figure in figures(drawn)}
        if name not in charts:
            raise ValueError(
                f"the figures of {self.name} are {', '.join(charts) or 'none yet'}, got {format_value(name)}"
            )
        return whole(charts[name], drawn)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The front for a notebook: Vega-Lite, else an image and a table, else text."""
        title = front_title(self.pareto, self.spec.data.names[0], self.budget)
        heads, rows = front_cells(self.front(), varying_axes(self.pareto))
        shown = [title, printable(draw_text(text_table(heads, rows)))] if rows else ["nothing has finished"]
        bundle: dict[str, Any] = {"text/plain": "\n".join([f"{self} ({one_line(self.where)})", "", *shown])}
        if rows:
            import altair as alt

            from qdtune.report.page import html_table

            chart = self.plot().to_dict()
            said = f"<p>{escape(printable(str(self)))}</p>"
            bundle["text/html"] = said + _image(chart) + html_table(Table(title, heads, rows))
            bundle[f"application/vnd.vegalite.{alt.SCHEMA_VERSION.partition('.')[0]}+json"] = chart
        return bundle


def _image(chart: dict[str, Any]) -> str:
    """The chart as an image, for viewers without Vega-Lite; nothing if it has too many marks to be quick."""
    from qdtune.report.figure import MANY, NAME
    from qdtune.report.page import draw_svg

    if len(chart["datasets"][NAME]) > MANY:
        return ""
    data = base64.b64encode(draw_svg(json.dumps(chart)).encode()).decode()
    return f'<img alt="the front" src="data:image/svg+xml;base64,{data}">'
