"""The tables of the docs that are made from the code.

    python -m docs.tables           # names the pages that are out of date; exit code 1 if there are any
    python -m docs.tables --write   # writes the tables into their pages

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. The words in it come from the place where an axis, a
key, a column, an option, a pruner or a data set is declared. To add a table, add an entry to `TABLES`.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from docs.sweep_keys import key_rows, value_text, values_of
from qdtune.__main__ import main as run_qdtune
from qdtune.commands.parser import Parser
from qdtune.datasets.known import DATASETS
from qdtune.spec.axes import AXES
from qdtune.spec.loggers import LOGGERS, Logger
from qdtune.spec.objectives import OBJECTIVES
from qdtune.spec.pruners import PRUNERS
from qdtune.spec.tasks import METRICS, TASKS
from qdtune.spec.values import cell_text
from qdtune.store.columns import Column, history_columns, pareto_columns, trial_columns

DOCS = Path(__file__).parent
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """A table of the docs.

    Attributes:
        name: in its marker.
        make: returns it as Markdown.
    """

    name: str
    make: Callable[[], str]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a `|` in a cell is escaped."""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- Axes, objectives, pruners, data sets.


def axis_table() -> str:
    """Returns the axes: name, values, default, stage, words."""
    return markdown(
        ["axis", "values", "default", "stage", "meaning"],
        [[f"`{axis.name}`", values_of(axis.rule), value_text(axis.default), axis.stage, axis.text] for axis in AXES],
    )


def objective_table() -> str:
    """Returns the objectives: name, which way is better, unit, where a sweep file may name it, words."""
    better = {"maximize": "more", "minimize": "less"}
    return markdown(
        ["number", "better", "unit", "in `constraints`", "in `objectives`", "meaning"],
        [
            [
                f"`{one.name}`",
                better[one.direction],
                one.unit,
                "yes" if one.value else "no",
                "as a cost" if one.is_cost else "no" if one.value else "first",
                one.text,
            ]
            for one in OBJECTIVES
        ],
    )


def task_table() -> str:
    """Returns the tasks: name, targets and loss, metrics."""
    return markdown(
        ["`task`", "targets and loss", "`metric`", "measured on the test set, too"],
        [
            [
                f"`{task.name}`",
                task.text,
                ", ".join(f"`{one.name}`" for one in task.metrics),
                ", ".join(f"`{one.name}`" for one in task.tested),
            ]
            for task in TASKS
        ],
    )


def metric_table() -> str:
    """Returns the metrics: name, words, which way is better."""
    better = {"maximize": "up", "minimize": "down"}
    return markdown(
        ["`metric`", "what it is", "better"],
        [[f"`{one.name}`", one.text, better[one.direction]] for one in METRICS],
    )


def pruner_table() -> str:
    """Returns the pruners: type, keys with defaults, what each stops."""
    return markdown(
        ["type", "keys", "what it stops"],
        [
            [
                f"`{pruner.name}`",
                ", ".join(f"`{key}: {cell_text(default)}`" for key, default in pruner.defaults().items()),
                pruner.text,
            ]
            for pruner in PRUNERS
        ],
    )


def dataset_table() -> str:
    """Returns the data sets: name, samples, inputs, classes, origin, words."""
    return markdown(
        ["data set", "training", "test", "inputs", "classes", "from", "meaning"],
        [
            [
                f"`{one.name}`",
                f"{one.train:,}",
                f"{one.test:,}",
                f"{one.inputs:,}",
                str(one.classes),
                f"torchvision's `{one.source}`" if one.source else "no download",
                one.text,
            ]
            for one in DATASETS
        ],
    )


def logger_table() -> str:
    """Returns the trackers: name, place, installation, words."""
    return markdown(
        ["tracker", "writes to", "install", "meaning"],
        [[f"`{one.name}`", _place_of(one), f"`pip install {one.package}`", one.text] for one in LOGGERS],
    )


def _place_of(logger: Logger) -> str:
    places = [f"`{logger.file}` in the run folder"] if logger.file else []
    places += [f"the server in `{logger.server_variable}`"] if logger.server_variable else []
    return " or ".join(places) or "the place set in its own environment variables"


def key_table() -> str:
    """Returns the keys of a sweep file: key, values, default, words."""
    return markdown(["key", "values", "default", "meaning"], list(key_rows()))


# --- Commands.


def commands() -> dict[str, str]:
    """The commands with their words, as `qdtune --help` lists them."""
    with redirect_stdout(io.StringIO()) as said:
        run_qdtune(["--help"])
    return dict(re.findall(r"^  (\w+) +(.+)$", said.getvalue(), re.MULTILINE))


class _Found(Exception):  # noqa: N818  # not an error: it ends a command once its parser is complete
    pass


def parser_of(command: str) -> Parser:
    """The parser of a command with all its options, taken when the command is about to read its arguments."""
    found: list[Parser] = []

    def read(parser: Parser, argv: Sequence[str] | None) -> None:
        found.append(parser)
        raise _Found

    with patch.object(Parser, "read", read):
        try:
            run_qdtune([command])
        except _Found:
            return found[0]
    raise TypeError(f"{command} must read its arguments with Parser.read")


def command_table() -> str:
    """Returns the commands: name, words."""
    return markdown(["command", "what it does"], [[f"`qdtune {name}`", text] for name, text in commands().items()])


def option_tables() -> str:
    """Returns one table per command: its arguments and options with their help."""
    parts = []
    for name in commands():
        rows = [
            [_spelling(action), str(action.help)]
            for action in parser_of(name)._actions
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
        ]
        parts.append(f"### {name}\n\n" + markdown([f"`qdtune {name}`", "meaning"], rows))
    return "\n\n".join(parts)


def _spelling(action: argparse.Action) -> str:
    what = action.metavar or (action.choices and "|".join(map(str, action.choices))) or action.dest.upper()
    if not action.option_strings:
        return f"`{what} ...`" if action.nargs == "*" else f"`{what}`"
    return f"`{action.option_strings[-1]}`" if action.nargs == 0 else f"`{action.option_strings[-1]} {what}`"


# --- Columns.


def column_table(columns: Sequence[Column]) -> str:
    """Returns the columns of a table: name, type, words."""
    return markdown(["column", "type", "meaning"], [[f"`{one.name}`", str(one.kind), one.text] for one in columns])


TABLES = (
    Table("axes", axis_table),
    Table("objectives", objective_table),
    Table("pruners", pruner_table),
    Table("datasets", dataset_table),
    Table("tasks", task_table),
    Table("metrics", metric_table),
    Table("loggers", logger_table),
    Table("keys", key_table),
    Table("commands", command_table),
    Table("options", option_tables),
    Table("trials", lambda: column_table(trial_columns())),
    Table("history", lambda: column_table(history_columns())),
    Table("pareto", lambda: column_table(pareto_columns())),
)


def filled_in(page: str) -> str:
    """The text of a page with every marked table as the code has it now.

    Raises:
        KeyError: a marker names no table.
    """
    makers = {table.name: table.make for table in TABLES}
    return MARKED.sub(lambda found: f"{found[1]}\n{makers[found[2]]()}\n\n{found[3]}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Names the pages whose tables are out of date, or writes them; the exit code."""
    parser = argparse.ArgumentParser(description="Tables of the docs that are made from the code.")
    parser.add_argument("--write", action="store_true", help="write the tables into their pages")
    is_writing = parser.parse_args(argv).write
    stale = 0
    for path in (*DOCS.parent.glob("README.md"), *sorted(DOCS.glob("*.md"))):
        page = path.read_text(encoding="utf-8")
        new = filled_in(page)
        if new != page:
            print(f"{path.name}: {'written' if is_writing else 'out of date: run python -m docs.tables --write'}")
            if is_writing:
                path.write_text(new, encoding="utf-8")
            else:
                stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
