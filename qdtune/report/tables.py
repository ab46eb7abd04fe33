"""Comparisons as tables of text: wide ones for the page, and narrow ones with notes below them for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qdtune.analysis.comparison import TOO_FEW_SEEDS, Comparison
from qdtune.report.conclusions import varying_settings
from qdtune.spec.axes import head_of
from qdtune.spec.metric_text import difference_cells, difference_unit
from qdtune.spec.tasks import Metric
from qdtune.store.seed_tests import MAX_SEEDS
from qdtune.terminal import table_width

NEEDED = "needed: the seeds that would be significant if the effect stays as large."
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Table(NamedTuple):
    """A table of text: its title, the heads of its columns, its rows."""

    title: str
    heads: list[str]
    rows: list[list[str]]

    @property
    def width(self) -> int:
        """The characters that it takes on a terminal."""
        return table_width(self.heads, self.rows)


class ShortTables(NamedTuple):
    """Comparisons in tables that are narrow enough for a terminal.

    Attributes:
        tables: all comparisons, once; one without a title, or one for each setting, which is its title.
        notes: the lines below them: how to read an effect, and what the letters in the column `notes` stand for.
    """

    tables: list[Table]
    notes: list[str]


def full_table(axis: str, found: Sequence[Comparison]) -> Table | None:
    """Comparisons as a table, one per row: the setting, the two values, the effect and the verdict; None without any.

    Args:
        axis: of the question.
        found: its comparisons.
    """
    if not found:
        return None
    shared = [*_shared_columns(axis, found), *varying_settings(found)]
    metric = found[0].metric
    look = ["look"] if any(one.look for one in found) else []
    heads = [*map(head_of, shared), axis, "against", effect_head(metric), "n", *look, "verdict"]
    rows = []
    for one in found:
        needed = [f"{one.hint} seeds would be needed"] if one.hint else []
        verdict = "; ".join([one.verdict_cell, *_reasons(one), *needed, *one.flags])
        sides = [str(one.value), str(one.baseline)]
        rows.append(
            [*_cells(one, shared), *sides, format_effect(one), str(one.n_seeds), *_look_cell(one, look), verdict]
        )
    title = f"A {favouring(metric)} effect favours the value in the column {axis}."
    return Table(" ".join([title, *_describe_levels(found)]), heads, rows)


def short_tables(axis: str, found: Sequence[Comparison], width: int) -> ShortTables:
    """The comparisons without long texts: notes are letters.

    Args:
        axis: of the question.
        found: its comparisons.
        width: characters; if one table with a column for each setting takes more, each setting has a table.
    """
    letters = _name_notes(found)
    settings = varying_settings(found)
    tables = [_short_table("", axis, found, found, settings, letters)] if found else []
    if tables and settings and tables[0].width > width:
        groups: dict[str, list[Comparison]] = {}
        for one in found:
            values = [f"{head_of(name)} {cell}" for name, cell in zip(settings, _cells(one, settings), strict=True)]
            groups.setdefault(", ".join(values), []).append(one)
        tables = [_short_table(title, axis, found, group, [], letters) for title, group in groups.items()]
    needed = [NEEDED] if any(one.hint for one in found) else []
    others = " and ".join(dict.fromkeys(one.names[1] for one in found))
    what = f"effect favours the value in the column {axis} over {others}."
    favours = [f"A {favouring(found[0].metric)} {what}"] if found else []
    favours += _describe_levels(found)
    return ShortTables(tables, [*favours, *needed, *(f"{letter}: {note}." for note, letter in letters.items())])


def _short_table(
    title: str,
    axis: str,
    found: Sequence[Comparison],
    shown: Sequence[Comparison],
    settings: Sequence[str],
    letters: dict[str, str],
) -> Table:
    """Some comparisons of a question as one table; which columns it has depends on all that were found."""
    shared = [*_shared_columns(axis, found), *settings]
    baselines = {one.baseline for one in found}
    has_needed = any(one.hint for one in found)
    look = ["look"] if any(one.look for one in found) else []
    more = [*look, *(["needed"] if has_needed else [])]
    heads = [*map(head_of, shared), axis, effect_head(found[0].metric), "n", *more, "verdict"]
    rows = []
    for one in shown:
        value = str(one.value) if len(baselines) == 1 else f"{one.value} - {one.baseline}"
        needed = "-" if not one.seeds_needed else str(one.seeds_needed)
        if one.seeds_needed and one.seeds_needed > MAX_SEEDS:
            needed = f">{MAX_SEEDS}"
        cells = [*_cells(one, shared), value, format_effect(one), str(one.n_seeds), *_look_cell(one, look)]
        cells += [needed] if has_needed else []
        notes = [" ".join(letters[note] for note in _notes(one))] if letters else []
        rows.append([*cells, one.verdict_cell, *notes])
    return Table(title, [*heads, *(["notes"] if letters else [])], rows)


def _look_cell(one: Comparison, head: Sequence[str]) -> list[str]:
    """The look of a comparison, if the table has a column for it."""
    return ["-" if one.look is None else str(one.look)] if head else []


def _name_notes(found: Sequence[Comparison]) -> dict[str, str]:
    """note -> its letter, in the order in which notes occur: a to z, then aa, ab and so on."""
    notes = list(dict.fromkeys(note for one in found for note in _notes(one)))
    names = (first + last for first in ("", *LETTERS) for last in LETTERS)
    return dict(zip(notes, names, strict=False))


def _notes(one: Comparison) -> list[str]:
    return [*_reasons(one), *one.flags]


def _reasons(one: Comparison) -> Iterator[str]:
    """Why there is no interval."""
    if one.reason:
        yield one.reason
    if one.is_interval_useless:
        yield TOO_FEW_SEEDS


def _shared_columns(axis: str, found: Sequence[Comparison]) -> list[str]:
    """The axes beside `axes.ASKED_AT` that tell the comparisons apart."""
    others = [name for name in ("depth", "activation") if name != axis]
    return ["weight_bits", *(name for name in others if len({getattr(one, name) for one in found} - {None}) > 1)]


def _cells(one: Comparison, names: Sequence[str]) -> list[str]:
    values = [getattr(one, name) for name in names]
    return ["-" if value is None else str(value) for value in values]


def format_effect(one: Comparison) -> str:
    """The effect in its unit with its interval: `+1.20 [+0.40, +2.00]`."""
    if one.effect is None:
        return "-"
    if one.low is None or one.high is None or one.is_interval_useless:
        return difference_cells(one.metric, one.effect)[0]
    effect, low, high = difference_cells(one.metric, one.effect, one.low, one.high)
    return f"{effect} [{low}, {high}]"


def _describe_levels(found: Sequence[Comparison]) -> list[str]:
    """A sentence about the intervals in brackets; none without any."""
    levels = sorted({one.level for one in found if one.level and one.low is not None and not one.is_interval_useless})
    if not levels:
        return []
    low, high = f"{100 * levels[0]:.4g}", f"{100 * levels[-1]:.4g}"
    which, test = (low, "the test") if low == high else (f"{low} to {high}", "each test")
    margin = next((one.margin_text for one in found if one.same_within is not None), "")
    if not margin:
        return [f"In brackets: the {which} % interval, at the level of {test} (Holm's correction)."]
    same = [f"same: the interval lies {margin} of zero (two one-sided tests)."]
    brackets = f"In brackets: the {which} % interval, at the level of {test} (Bonferroni's correction)."
    return [brackets, *(same if any(one.verdict == "same" for one in found) else [])]


def effect_head(metric: Metric) -> str:
    """The head of a column of effects: `effect (points)`, `effect (mae)`."""
    return f"effect ({difference_unit(metric)})"


def favouring(metric: Metric) -> str:
    """The sign of an effect that favours the value: `positive`, or `negative` if the metric goes down."""
    return "positive" if metric.sign > 0 else "negative"
