"""A run in words and small tables, the same for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

from qdtune.analysis.comparison import Comparison, named_settings
from qdtune.analysis.run import Run
from qdtune.messages import format_count, one_line
from qdtune.pareto import front
from qdtune.report.conclusions import (
    advise_refusals,
    conclude,
    describe_best_depths,
    describe_correction,
    describe_counts,
    describe_refusals,
    describe_verdicts,
)
from qdtune.report.published import Published, published
from qdtune.report.tables import Table, full_table
from qdtune.spec.axes import (
    AXIS_NAMES,
    HIDDEN,
    SHIPPED,
    decisive_axes,
    find_varying,
    label,
    most_input_bits,
)
from qdtune.spec.choices import FLOAT_BITS, FRONT_QUESTION
from qdtune.spec.metric_text import format_metric
from qdtune.spec.objectives import say_amount, say_front
from qdtune.spec.tasks import Metric
from qdtune.spec.values import NO_WIDTHS
from qdtune.store.columns import metric_in
from qdtune.store.releases import describe_releases
from qdtune.store.tables import Table as Arrow
from qdtune.store.tables import rows_among, rows_equal, rows_known

TITLES = {  # of the questions, by axis
    "depth": "Which depth and bit width win at a given number of {}?",  # of the first cost
    "activation": "Does an activation between the factors help?",
}
FRONT_TITLE = "Which neighbours on the front differ?"
LIVE_STATES = ("ok", "pruned")  # states in which an error is a remark on the warm-up
BESIDE = (
    "Ours: no layer has inputs of more bits than theirs; on the front by validation accuracy; all bytes count. "
    "Theirs: only the bytes of the weights count."
)


class Question(NamedTuple):
    """A question and its answers.

    Attributes:
        axis, title: what is asked.
        conclusions: a few sentences, the significant ones first.
        verdicts: how the comparisons came out, in one line; empty without any.
        refusals: how many are refused for which reason, in one line; empty if none is.
        counts: both in one line.
        correction: for how many tests the verdicts are corrected, in a sentence; empty without any.
        advice: what a sweep needs so that refused comparisons can be made.
        refused: a sentence for each refused comparison.
        best: a sentence for the best depth at each number of bits and within each size; empty for other questions.
        best_title: what these are about.
        table: all comparisons; None without any.
        found: the comparisons themselves.
    """

    axis: str
    title: str
    conclusions: list[str]
    verdicts: str
    refusals: str
    counts: str
    correction: str
    advice: list[str]
    refused: list[str]
    best: list[str]
    best_title: str
    table: Table | None
    found: tuple[Comparison, ...]


def state(run: Run) -> str:
    """How far the sweep is: `finished: 9 ok, 26 pruned`, or `12 of 35 done: ...`, and what is within a budget."""
    return str(run).removeprefix(f"{run.name}: ")


def facts(run: Run) -> Iterator[str]:
    """What the sweep was, as short phrases for one line, its state first."""
    yield state(run)
    yield run.spec.data.names[0]
    yield format_count(len(run.spec.seeds), "seed")
    phases = run.spec.train
    yield f"{phases.warmup.epochs} epochs of float warm-up and {phases.qat.epochs} of QAT"
    rule = run.spec.early_terminate.type
    yield "no early stopping" if rule == "none" else f"early stopping: {rule}"
    if run.spec.objectives is not None:
        yield f"front over {say_front(run.spec.metric, run.spec.costs)}"
    if releases := describe_releases(run.pareto):
        yield releases
    newest = max(run.trials["finished_at"].drop_null().to_pylist(), default=None)
    if newest is not None:
        yield f"last result {newest:%Y-%m-%d %H:%M} UTC"
    if run.damaged:
        yield f"{format_count(len(run.damaged), 'damaged file')} left out, see `qdtune verify`"
    if run.left_out:
        yield f"{format_count(len(run.left_out), 'file')} left out, which are links or not ours, see `qdtune verify`"


def provisional(run: Run) -> str:
    """A warning while a sweep is unfinished; else empty. It counts all configurations, whatever the budget."""
    if not run.left:
        return ""
    whole = run.whole or run
    done = f"{whole.planned - whole.left:,} of {whole.planned:,} configurations are done"
    return f"Provisional: {done}. Verdicts can change, because more comparisons need a stricter correction."


def beside(pareto: Arrow, dataset: str) -> Table | None:
    """Published networks, and for each the smallest of ours that is as accurate on the test set.

    None if there is no such pair; `explain_nothing_beside` says why.

    Args:
        pareto: one row per configuration, as `columns.pareto_schema`; what is chosen from it is in `BESIDE`.
        dataset: on which all are judged.
    """
    metric = metric_in(pareto)
    pairs = match_published(pareto, dataset)
    rows, names = [], find_varying(row for _, row in pairs if row) & {*SHIPPED} or SHIPPED
    for other, row in pairs:
        if row is None:
            continue
        theirs = [other.system, f"{other.kind}, {other.pixels} px", f"{other.weight_bytes:,}"]
        tested = format_metric(metric, other.test_accuracy)
        rows.append([*theirs, tested, *_describe_match(other, row, metric, names)])
    heads = ["published", "kind", "bytes", "test", "ours", "bytes", "test", "share"]
    lost = f"; of {len(pairs) - len(rows)} others none is" if len(rows) < len(pairs) else ""
    title = f"The smallest of our networks that is at least as accurate{lost}"
    return Table(title, heads, rows) if rows else None


def match_published(pareto: Arrow, dataset: str) -> list[tuple[Published, dict[str, Any] | None]]:
    """Published networks by their own count of bytes, each with our row as of `beside`, if any is so accurate."""
    metric = metric_in(pareto)
    ours = rows_known(pareto, "pareto_rank").to_pylist()
    fronts: dict[int, list[dict[str, Any]]] = {}
    pairs = []
    for other in sorted(published(dataset, metric), key=lambda one: one.weight_bytes):
        most = other.act_bits or FLOAT_BITS
        if most not in fronts:
            mine = [row for row in ours if most_input_bits(row) <= most]
            costs = np.array([[-metric.sign * row[metric.val], row["size_bytes"]] for row in mine]).reshape(-1, 2)
            fronts[most] = [row for row, is_first in zip(mine, front(costs), strict=True) if is_first]
        as_good = [row for row in fronts[most] if (row[metric.test] or 0) >= other.test_accuracy]
        pairs.append((other, min(as_good, key=lambda row: row["size_bytes"], default=None)))
    return pairs


def explain_nothing_beside(pareto: Arrow, dataset: str) -> str:
    """Why `beside` has no table for these two, in a sentence."""
    if not published(dataset, metric_in(pareto)):
        return f"No published networks are known here for {dataset}."
    return "None of our networks is as accurate as a published one whose inputs have as many bits or more."


def _describe_match(other: Published, row: dict[str, Any], metric: Metric, names: Collection[str]) -> list[str]:
    share = row["size_bytes"] / other.weight_bytes
    size = f"{row['size_bytes']:,}"
    return [name_network(row, names), size, format_metric(metric, row[metric.test]), f"{share:.0%}"]


def name_network(row: dict[str, Any], names: Collection[str] = SHIPPED) -> str:
    """A row of a Pareto table by these of the axes that decide about the network that is shipped."""
    widths = "" if row["hidden"] == NO_WIDTHS or HIDDEN.name not in names else f"{row['hidden']} "
    return f"{widths}{label(decisive_axes(row), [name for name in names if name != HIDDEN.name])}".strip()


def questions(run: Run) -> list[Question]:
    """The questions that the sweep can answer, with their answers."""
    answers = run.answers()
    asked = []
    for axis, title in TITLES.items():
        found: tuple[Comparison, ...] = getattr(answers, axis)
        best = describe_best_depths(answers) if axis == "depth" else []
        conclusions = conclude(axis, answers)
        if not (conclusions or found):
            continue
        settings = named_settings(found)
        asked.append(
            Question(
                axis,
                title.format(run.spec.costs[0].head),
                conclusions,
                describe_verdicts(found),
                describe_refusals(axis, found),
                describe_counts(axis, found),
                describe_correction(found, run.budget),
                advise_refusals(axis, found),
                [one.describe(settings) for one in found if one.verdict == "refused"],
                best,
                f"The best depth at each bit width and within each {say_amount(run.spec.costs[0])}",
                full_table(axis, found),
                found,
            )
        )
    if ties := [one.sentence for one in answers.front]:
        asked.append(Question(FRONT_QUESTION, FRONT_TITLE, ties, "", "", "", "", [], [], [], "", None, ()))
    return asked


def questions_at(run: Run, bits: Collection[int]) -> list[Question]:
    """The questions at some numbers of bits: each comparison in full, with the verdict that it has among all.

    Args:
        run: the run.
        bits: the numbers of bits.
    """
    limited, answers = [], run.answers()
    for question in questions(run):
        found = tuple(one for one in question.found if one.weight_bits in bits)
        depths = answers.by_bits if question.axis == "depth" else ()
        best = [one.sentence for one in depths if one.weight_bits in bits]
        if not (found or best):
            continue
        settings = named_settings(question.found)
        limited.append(
            question._replace(
                conclusions=[*best, *(one.describe(settings) for one in found if one.verdict != "refused")],
                verdicts=describe_verdicts(found),
                refusals=describe_refusals(question.axis, found),
                counts=describe_counts(question.axis, found),
                advice=advise_refusals(question.axis, found),
                refused=[one.describe(settings) for one in found if one.verdict == "refused"],
                best=[],
                table=full_table(question.axis, found),
                found=found,
            )
        )
    return limited


def trouble(run: Run) -> list[str]:
    """A line for each state in which configurations ended badly, with one of their errors."""
    lines = []
    for name in sorted({*run.states, *run.trials["state"].unique().to_pylist()} - {"ok", "pruned"}):
        rows = rows_equal(run.trials, "state", name)
        errors = rows["error"].drop_null()
        why = f": {one_line(errors[0].as_py())}" if len(errors) else ""
        whose = format_count(run.states.get(name, 0), "configuration")
        if name not in run.states:
            whose = f"further seeds of {format_count(_count_configurations(rows), 'configuration')}"
        lines.append(f"{whose} ended as {name} (see the column `error`){why}")
    chance = rows_known(rows_among(run.trials, "state", LIVE_STATES), "error")
    if dead := _count_configurations(chance):
        what = "started from a warm-up that ended at chance (see the column `error`)"
        lines.append(f"{format_count(dead, 'configuration')} {what}")
    return lines


def _count_configurations(rows: Arrow) -> int:
    """How many configurations have rows here."""
    return len(set(zip(*(rows[axis].to_pylist() for axis in AXIS_NAMES), strict=True)))
