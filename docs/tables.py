"""The tables of the docs that are made from the code.

    python docs/tables.py           # names the pages that are out of date; exit code 1 if there are any
    python docs/tables.py --write   # writes the tables into their pages

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. The words in it come from the place where an axis, a
key, a column, an option, a pruner or a data set is declared. To add a table, add an entry to `TABLES`.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin
from unittest.mock import patch

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from qdtune.__main__ import main as run_qdtune
from qdtune.commands.parser import Parser
from qdtune.datasets.known import DATASETS
from qdtune.spec.axes import AXES
from qdtune.spec.loggers import LOGGERS
from qdtune.spec.objectives import OBJECTIVES
from qdtune.spec.pruners import pruner_table
from qdtune.spec.sweep_file import Spec
from qdtune.store.columns import HISTORY_COLUMNS, PARETO_COLUMNS, TRIAL_COLUMNS, Column

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
        [[f"`{axis.name}`", values_of(axis.rule), _value(axis.default), axis.stage, axis.text] for axis in AXES],
    )


def objective_table() -> str:
    """Returns the objectives: name, which way is better, unit, when it is known, words."""
    better = {"maximize": "more", "minimize": "less"}
    return markdown(
        ["objective", "better", "unit", "in constraints", "meaning"],
        [
            [f"`{one.name}`", better[one.direction], one.unit, "yes" if one.value else "no", one.text]
            for one in OBJECTIVES
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
        [
            [
                f"`{one.name}`",
                " or ".join(
                    filter(
                        None,
                        [
                            one.file and f"`{one.file}` in the run folder",
                            one.server_variable and f"the server in `{one.server_variable}`",
                        ],
                    )
                )
                or "the place that its own environment names",
                f"`pip install {one.package}`",
                one.text,
            ]
            for one in LOGGERS
        ],
    )


# --- Keys of the sweep file.


def key_table() -> str:
    """Returns the keys of a sweep file: key, values, default, words."""
    return markdown(["key", "values", "default", "meaning"], list(_key_rows(Spec)))


def _key_rows(group: type[BaseModel], path: str = "") -> Iterator[list[str]]:
    words = attribute_words(group)
    for name, field in group.model_fields.items():
        if name in getattr(group, "_found", ()):  # which qdtune fills in
            continue
        inner = None if name in ELSEWHERE else _group_in(field)
        if not inner or name in words:
            values = ELSEWHERE.get(name) or ("a group" if inner else values_of(_type_of(field)))
            yield [f"`{path}{name}`", values, _default_of(field), words[name]]
        if inner:
            yield from _key_rows(inner, f"{path}{name}.")


# The keys that have a table or a page of their own.
ELSEWHERE = {
    "parameters": "see [Axes](#axes)",
    "exclude": "see [Axes](#axes)",
    "early_terminate": "see [Pruning](pruning.md)",
}


def _group_in(field: FieldInfo) -> type[BaseModel] | None:
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _type_of(field: FieldInfo) -> Any:
    kind: Any = field.annotation
    for check in field.metadata:
        kind = Annotated[kind, check]
    return kind


def _default_of(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return f"`{default.model_dump(exclude_none=True)}`".replace("'", "")
    return _value(default)


def attribute_words(kind: type) -> dict[str, str]:
    """The words for each attribute in the sections `Attributes:` of a class and its bases, by name."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        section = (one.__doc__ or "").partition("Attributes:\n")[2]
        found |= dict(re.findall(r"^ +(\w+): (.+)$", section, re.MULTILINE))
    return found


def values_of(kind: Any) -> str:
    """What a type of a sweep file accepts, in the words of its own message."""
    adapter = TypeAdapter(kind)
    said = _said_of(adapter, ...) or _said_of(adapter, [...])  # an ellipsis is never accepted
    words = re.sub(r"^a whole number, (\d+) to \1$", r"\1", said.removeprefix("in quotes: "))
    if _holds_several(kind):
        words = f"{'one or ' if _said_of(adapter, ...) else ''}a list of: {words}"
    return f"null or {words}" if not _said_of(adapter, None) and _takes(adapter, None) else words


def _said_of(adapter: TypeAdapter[Any], value: object) -> str:
    """The words in brackets at the end of the message about a value: what would be right."""
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        messages = [one["msg"] for one in error.errors()]
        return next((re.sub(r"^[^(]*\(", "", text)[:-1] for text in messages if text.endswith(")")), "")
    return ""


def _takes(adapter: TypeAdapter[Any], value: object) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _holds_several(kind: Any) -> bool:
    return get_origin(kind) is tuple or any(_holds_several(one) for one in get_args(kind))


def _value(value: Any) -> str:
    if value == "":
        return "empty"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


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
    Table("loggers", logger_table),
    Table("keys", key_table),
    Table("commands", command_table),
    Table("options", option_tables),
    Table("trials", lambda: column_table(TRIAL_COLUMNS)),
    Table("history", lambda: column_table(HISTORY_COLUMNS)),
    Table("pareto", lambda: column_table(PARETO_COLUMNS)),
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
            print(f"{path.name}: {'written' if is_writing else 'out of date: run python docs/tables.py --write'}")
            if is_writing:
                path.write_text(new, encoding="utf-8")
            else:
                stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
