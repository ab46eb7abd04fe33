"""A run in words and small tables, the same for the terminal and for the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qdtune.analysis.comparison import VERDICTS, Comparison
from qdtune.analysis.run import Run
from qdtune.messages import format_count, one_line
from qdtune.pareto import front
from qdtune.report.published import Published, published
from qdtune.spec.axes import ASKED_AT, AXIS_NAMES, head_of
from qdtune.store.tables import Table as Arrow
from qdtune.store.tables import rows_among, rows_equal, rows_known

DEPTH = "Which depth and bit width win at a given number of bytes?"
EFFECT = "effect (points)"
ACTIVATION = "Does an activation between the factors help?"
LIVE = ("ok", "pruned")  # states in which an error is a remark on the warm-up
BESIDE = (
    "Ours: with inputs of no more bits than theirs, and on the front of these, which validation draws; all bytes. "
    "Theirs: the bytes of the weights alone."
)
FEW_REFUSED = 2  # comparisons without a pair that are told one by one; more are one sentence


class Table(NamedTuple):
    """A table of text: its title, the heads of its columns, its rows."""

    title: str
    heads: list[str]
    rows: list[list[str]]


class Question(NamedTuple):
    """A question: its conclusions, how its comparisons came out, each of these in a sentence, and all as a table."""

    title: str
    conclusions: list[str]
    verdicts: str
    sentences: list[str]
    table: Table | None


def state(run: Run) -> str:
    """How far the sweep is: `finished: 9 ok, 26 pruned`, or `12 of 35 done: ...`."""
    return str(run).removeprefix(f"{run.name}: ")


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """What the sweep was, as (name, text)."""
    seeds = run.spec.seeds
    yield "state", state(run)
    yield "data set", run.spec.data.names[0]
    yield "seeds", f"{len(seeds)} per configuration: {', '.join(map(str, seeds))}"
    phases = run.spec.train
    yield "epochs", f"{phases.warmup.epochs} of float warm-up, {phases.qat.epochs} of QAT"
    yield "stopped early by", run.spec.early_terminate.type
    if run.budget is not None:
        yield "shown", f"what has at most {run.budget:,} bytes"
    newest = max(run.trials["finished_at"].drop_null().to_pylist(), default=None)
    if newest is not None:
        yield "newest result", f"{newest:%Y-%m-%d %H:%M} UTC"
    if run.damaged:
        yield "left out", f"{format_count(len(run.damaged), 'damaged file')}: see `qdtune verify`"


def beside(pareto: Arrow, dataset: str) -> Table | None:
    """Published networks, and for each the smallest of ours that is as accurate on the test set; None without any.

    Args:
        pareto: one row per configuration, as `columns.PARETO`; what is chosen from it is in `BESIDE`.
        dataset: on which all are judged.
    """
    others = published(dataset)
    ours = rows_known(pareto, "pareto_rank").to_pylist()
    rows = []
    for other in others:
        bits = math.inf if other.act_bits is None else other.act_bits
        mine = [row for row in ours if (math.inf if row["act_bits"] is None else row["act_bits"]) <= bits]
        costs = np.array([[-row["val_accuracy"], row["size_bytes"]] for row in mine]).reshape(-1, 2)
        best = [row for row, first in zip(mine, front(costs), strict=True) if first]
        as_good = [row for row in best if (row["test_accuracy"] or 0) >= other.test_accuracy]
        rows.append(
            [other.system, f"{other.weight_bytes:,}", f"{other.test_accuracy:.2%}", *_matched(other, as_good)]
        )
    heads = ["published", "bytes", "test", "ours", "bytes", "test", "share"]
    return Table("The smallest of ours that is at least as accurate", heads, rows) if rows else None


def _matched(other: Published, as_good: list[dict[str, Any]]) -> list[str]:
    if not as_good:
        return ["none", "-", "-", "-"]
    row = min(as_good, key=lambda row: row["size_bytes"])
    inputs = "" if row["act_bits"] is None else f" a{row['act_bits']}"
    depth = "" if row["depth"] == 1 else f" d{row['depth']}"
    name = f"{row['hidden']}{depth} w{row['weight_bits']}{inputs}"
    share = row["size_bytes"] / other.weight_bytes
    return [name, f"{row['size_bytes']:,}", f"{row['test_accuracy']:.2%}", f"{share:.0%}"]


def questions(run: Run) -> list[Question]:
    """The two questions of a sweep, the conclusions first; one that was not asked is left out."""
    answers = run.answers()
    said = answers.sentences
    best = [sentence for name in ("best", "by_bits", "by_size") for sentence in said[name] if sentence]
    asked = []
    for title, conclusions, name in ((DEPTH, best, "depth"), (ACTIVATION, [], "activation")):
        found: tuple[Comparison, ...] = getattr(answers, name)
        if not (conclusions or found):
            continue
        alone, told = _folded(name, found)
        sentences = [sentence for one, sentence in zip(found, said[name], strict=True) if one in told]
        conclusions = [*_provisional(run), *conclusions, *alone, *_stopped(found)]
        asked.append(Question(title, conclusions, _verdicts(found), sentences, compared(name, told)))
    return asked


def _provisional(run: Run) -> Iterator[str]:
    if run.left:
        yield (
            f"Provisional: {run.planned - run.left:,} of {run.planned:,} configurations are done, and verdicts are "
            "corrected for as many comparisons as can be made by now. What looks decided may not be in the end."
        )


def _stopped(found: Sequence[Comparison]) -> Iterator[str]:
    if count := sum(one.stopped for one in found):
        yield (
            f"{format_count(count, 'comparison')} {'is' if count == 1 else 'are'} refused because a side was stopped "
            "early: with `early_terminate: {type: none}` both are trained to their end, and it can be asked."
        )


def _folded(axis: str, found: Sequence[Comparison]) -> tuple[list[str], Sequence[Comparison]]:
    """One sentence for the comparisons that have no pair, if there are several; and the others.

    A search that draws a learning rate for each configuration leaves none of them a pair.
    """
    alone = [one for one in found if one.confounders]
    if len(alone) <= FEW_REFUSED:
        return [], found
    counts = Counter(name for one in alone for name in one.confounders)
    differ = ", ".join(f"{name} in {'all' if n == len(alone) else n}" for name, n in counts.most_common())
    sentence = f"No answer in {len(alone)} comparisons: in none of them do two configurations differ in {axis} alone"
    end = f"the nearest differ in other axes too ({differ}). A grid over {axis} with these held fixed has such pairs."
    return [f"{sentence}; {end}"], [one for one in found if not one.confounders]


def _verdicts(found: Sequence[Comparison]) -> str:
    """How comparisons came out: `15 comparisons: 2 helps, 13 refused`."""
    counts = Counter(one.verdict for one in found)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{format_count(len(found), 'comparison')}: {verdicts}" if found else ""


def compared(axis: str, found: Sequence[Comparison]) -> Table | None:
    """Comparisons as a table, one per row: what, against what, at which bits, the effect and the verdict."""
    if not found:
        return None
    names = {name: head_of(name) for name in ("weight_bits", "depth", "activation", *ASKED_AT)}
    values = {field: {getattr(one, field) for one in found} - {None} for field in names}
    shared = [name for name in names if name == "weight_bits" or (name != axis and len(values[name]) > 1)]
    heads = [*(names[field] for field in shared), axis, "against", EFFECT, "n", "verdict"]
    rows = []
    for one in found:
        verdict = "; ".join([one.verdict, *filter(None, [one.reason, one.hint]), *one.flags])
        sides = [str(one.value), str(one.baseline)]
        rows.append([*(_text(getattr(one, f)) for f in shared), *sides, _effect(one), str(one.n_seeds), verdict])
    return Table(_verdicts(found), heads, rows)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _effect(one: Comparison) -> str:
    """The effect in points with its interval: `+1.20 [+0.40, +2.00]`."""
    if one.effect is None:
        return "-"
    interval = "" if one.low is None or one.high is None else f" [{100 * one.low:+.2f}, {100 * one.high:+.2f}]"
    return f"{100 * one.effect:+.2f}{interval}"


def trouble(run: Run) -> list[str]:
    """A line for each state in which configurations ended badly, with one of their errors."""
    lines = []
    for name in sorted(set(run.states) - {"ok", "pruned"}):
        rows = rows_equal(run.trials, "state", name)
        errors = rows["error"].drop_null()
        why = f", such as: {one_line(errors[0].as_py())}" if len(errors) else ""
        lines.append(
            f"{format_count(run.states[name], 'configuration')} ended as {name}: see the column `error`{why}"
        )
    chance = rows_known(rows_among(run.trials, "state", LIVE), "error")
    if dead := len(set(zip(*(chance[axis].to_pylist() for axis in AXIS_NAMES), strict=True))):
        lines.append(
            f"{format_count(dead, 'configuration')} started from a warm-up that ended at chance: see `error`"
        )
    return lines
