"""A run in words and small tables, the same for the terminal and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow.compute as pc

from qdtune.answers import Answers
from qdtune.comparisons import VERDICTS, Comparison
from qdtune.names import AXES
from qdtune.progress import counted
from qdtune.rules import one_line
from qdtune.run import Run

DEPTH = "Which depth and bit width win at a given number of bytes?"
EFFECT = "effect (points)"
ACTIVATION = "Does an activation between the factors help?"


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


def varying(run: Run) -> set[str]:
    """The axes of more than one value."""
    return {axis for axis in AXES if len(run.pareto[axis].unique()) > 1}


def state(run: Run) -> str:
    """How far the sweep is: `finished, 9 ok, 26 pruned`, or `12 of 35 done, ...`."""
    counts = ", ".join(f"{n:,} {name}" for name, n in sorted(run.states.items()))
    done = "finished" if not run.left else f"{run.planned - run.left:,} of {run.planned:,} done"
    return f"{done}: {counts}"


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """What the sweep was, as (name, text)."""
    seeds = run.spec.seeds
    yield "state", state(run)
    yield "data set", run.spec.data.names[0]
    yield "seeds", f"{len(seeds)} per configuration: {', '.join(map(str, seeds))}"
    phases = run.spec.train
    yield "epochs", f"{phases.warmup.epochs} of float warm-up, {phases.qat.epochs} of QAT"
    yield "stopped early by", run.spec.early_terminate.type
    newest = pc.max(run.trials["finished_at"]).as_py()
    if newest is not None:
        yield "newest result", f"{newest:%Y-%m-%d %H:%M} UTC"
    if run.damaged:
        yield "left out", f"{counted(len(run.damaged), 'damaged file')}: see `qdtune verify`"


def front_title(run: Run, budget: int | None = None) -> str:
    """The line above the front."""
    within = "" if budget is None else f", within {budget:,} bytes"
    return f"Pareto front of {counted(run.pareto.num_rows, 'configuration')} on {run.spec.data.names[0]}{within}"


def questions(answers: Answers) -> list[Question]:
    """The two questions of a sweep, the conclusions first; one that was not asked is left out."""
    said = answers.sentences
    best = [sentence for name in ("best", "by_bits", "by_size") for sentence in said[name] if sentence]
    asked = []
    for title, conclusions, name in ((DEPTH, best, "depth"), (ACTIVATION, [], "activation")):
        found: tuple[Comparison, ...] = getattr(answers, name)
        if conclusions or found:
            asked.append(Question(title, conclusions, _verdicts(found), list(said[name]), compared(name, found)))
    return asked


def _verdicts(found: Sequence[Comparison]) -> str:
    """How comparisons came out: `15 comparisons: 2 helps, 13 refused`."""
    counts = Counter(one.verdict for one in found)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{counted(len(found), 'comparison')}: {verdicts}" if found else ""


def compared(axis: str, found: Sequence[Comparison]) -> Table | None:
    """Comparisons as a table, one per row: what, against what, at which bits, the effect and the verdict."""
    if not found:
        return None
    names = {
        "weight_bits": "bits",
        "depth": "depth",
        "activation": "between",
        "scale": "scale",
        "factor_init": "init",
        "granularity": "granularity",
        "levels": "levels",
        "decompose": "split",
    }
    shared = [
        field
        for field in names
        if field == "weight_bits" or (field != axis and len({getattr(one, field) for one in found}) > 1)
    ]
    heads = [*(names[field] for field in shared), axis, "against", EFFECT, "n", "verdict"]
    rows = []
    for one in found:
        verdict = "; ".join([one.verdict, *filter(None, [one.reason]), *one.flags])
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
        rows = run.trials.filter(pc.equal(run.trials["state"], name))
        errors = rows["error"].drop_null()
        why = f", such as: {one_line(errors[0].as_py())}" if len(errors) else ""
        lines.append(f"{counted(run.states[name], 'configuration')} ended as {name}: see the column `error`{why}")
    return lines
