"""`qdtune export RUN`: trained models of a run folder as files to ship, each with a card, and checked once written.

Of a configuration the seed that is best on the validation split is taken. An existing file that holds something else
is never overwritten. Everything that is special about a format stands in its file in `model/formats/`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import Parser, print_error, run_command
from qdtune.commands.trained_models import find_models
from qdtune.commands.verb import Verb
from qdtune.messages import (
    format_count,
    name_option,
    one_line,
    user_error,
)
from qdtune.model.formats.card import add_measured, is_measured, make_card
from qdtune.model.formats.format import GIVEN, Format, TrainedModel
from qdtune.model.formats.known import FORMAT_NAMES, FORMAT_OPTIONS, format_of
from qdtune.spec.axes import short_label
from qdtune.spec.metric_text import column_head, format_metric
from qdtune.spec.tasks import ACCURACY, metric_of
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import StorageError, UnreadableError, is_url, storage_errors
from qdtune.store.store import FAULTS
from qdtune.terminal import console, text_table

VERB = Verb(place=4, text="write trained models as files to ship: packed, ONNX or C")
USAGE = "qdtune export RUN (--front | --trial ID) --out DIR"
USAGE += f" [--format {'|'.join(FORMAT_NAMES)}] [--seed N]" + "".join(
    f" [{one.flag}]" if one.is_switch else f" [{one.flag} X]" for one in FORMAT_OPTIONS
)
EXIT_LEFT_OUT = 3  # weights are damaged or lost


def main(argv: Sequence[str] | None = None) -> int:
    """Exports models of a run folder; the exit code: 0 if all were written and read back, else as of `launch`.

    It is 3 if the weights of some configurations are damaged or lost, and the others were written.

    Args:
        argv: the arguments after `export`; those of the process if None.
    """
    return run_command(lambda: _export(_read_arguments(argv)))


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("export", USAGE, "Writes trained models as files to ship, and checks each against its size.")
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder: a path or a URL")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--front", action="store_true", help="every configuration on the Pareto front")
    which.add_argument(
        "--trial", metavar="ID", help="one configuration: the id of its trial, or its first characters"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the files, on this machine")
    default, *others = FORMAT_NAMES
    names = " or ".join([", ".join([f"{default} (default)", *others[:-1]]), others[-1]])
    parser.add_argument("--format", choices=FORMAT_NAMES, default=default, help=names)
    parser.add_argument(
        "--seed", metavar="N", type=int, help="seed to export (default: the best on the validation split)"
    )
    for option in FORMAT_OPTIONS:
        how: dict[str, Any] = {"action": "store_const", "const": GIVEN}
        if not option.is_switch:
            word = None if option.choices else option.flag.rpartition("-")[2].upper()
            how = {"choices": option.choices or None, "metavar": word}
        parser.add_argument(option.flag, dest=option.flag, help=option.help, **how)
    arguments = parser.read(argv)
    if arguments.run is None:
        parser.error("no run folder given")
    if not (arguments.front or arguments.trial):
        parser.error("say which models: --front or --trial ID")
    if not arguments.out:
        parser.error("no --out given")
    for option in FORMAT_OPTIONS:
        if vars(arguments)[option.flag] is not None and option not in format_of(arguments.format).options:
            parser.error(f"{option.flag} does not go with --format {arguments.format}")
    return arguments


def _export(arguments: argparse.Namespace) -> int:
    form = format_of(arguments.format)
    options = {one.flag: vars(arguments)[one.flag] or one.default for one in form.options}
    trials = None if arguments.trial is None else [arguments.trial]
    try:
        exported = export_models(arguments.run, trials, arguments.out, form, options, arguments.seed)
    except tuple(FAULTS) as error:
        return print_error(error, FAULTS)
    _print(arguments.out, form, exported)
    for line in exported.without_weights:
        print_wrapped(f"error: {line}", sys.stderr)
    return EXIT_LEFT_OUT if exported.without_weights else 0


@dataclass(frozen=True)
class Exported:
    """What an export has written, and what it has not.

    Attributes:
        models: the models, at least one.
        files: name -> content of all files.
        left_out: a line for each file of rows that was left out.
        without_weights: a line for each configuration whose weights are damaged or lost, and what to do.
        varying: the names of the axes that have several values in the sweep.
        notes: name of a model -> what its check has found, if the format says something.
    """

    models: list[TrainedModel]
    files: dict[str, bytes]
    left_out: tuple[str, ...]
    without_weights: tuple[str, ...]
    varying: frozenset[str]
    notes: dict[str, str]


def export_models(
    run: str, trials: Sequence[str] | None, out: str, form: Format, options: Mapping[str, str], seed: int | None
) -> Exported:
    """Writes and checks the models that were asked for.

    Args:
        run: the run folder, a path or a URL.
        trials: the configurations of these trials: ids, or how these begin; None: every configuration on the front.
        out: the folder for the files, on this machine.
        form: the format of the files.
        options: flag -> value, for each of the format's `options`.
        seed: this seed; None: the best one on the validation split.

    Raises:
        SpecError: a mistake of the user's; or none of the models has weights.
        StorageError, LocationError, NewerSchemaError: the run cannot be read, or the files cannot be written.
    """
    if is_url(out) or (os.path.lexists(out) and not os.path.isdir(out)):
        raise user_error(f"{name_option('--out')} must be a folder on this machine, got {one_line(out)}")
    models, left_out, without_weights, varying = find_models(run, trials, seed)
    folder, files = DiskFolder(Path(out)), _make_files(models, form, options)
    _write_files(folder, files, form.card_suffix)
    notes: dict[str, str] = {}
    for model in models:
        path = folder.root / f"{model.name}{form.suffix}"
        with storage_errors(path):
            checked = form.check(path, model, options)
        if checked.fault is not None:
            raise StorageError(f"{path} {checked.fault}")
        notes |= {model.name: checked.note} if checked.note else {}
        if checked.measured:
            _add_to_card(folder, f"{model.name}{form.card_suffix}", checked.measured)
    return Exported(models, files, left_out, without_weights, varying, notes)


def _make_files(models: Sequence[TrainedModel], form: Format, options: Mapping[str, str]) -> dict[str, bytes]:
    """Name -> content of all files of the export."""
    files = form.shared_files()
    for model in models:
        file = f"{model.name}{form.suffix}"
        try:
            files |= {model.name + suffix: content for suffix, content in form.files(model, options).items()}
        except ImportError:
            if form.package is None:
                raise
            needed = f"the package {form.package.name}: {form.package.install}"
            raise user_error(f"{name_option('--format', form.name)} needs {needed}") from None
        files[model.name + form.card_suffix] = make_card(model, form, file, len(files[file]))
    return files


def _add_to_card(folder: DiskFolder, name: str, measured: Mapping[str, Any]) -> None:
    """Adds measured figures to a written card, or replaces those of the same target."""
    card = folder.read_file(name)
    assert card is not None, "it was written, or found, before the check"
    if (found := add_measured(card, measured)) != card:
        folder.write_file(name, found)


def _write_files(folder: DiskFolder, files: Mapping[str, bytes], card_suffix: str) -> None:
    """Writes what is not there yet; none of it if a file is there that holds something else.

    A card with figures that an earlier export added is left as it is.
    """
    try:
        found = {name: folder.read_file(name) for name in files}
    except UnreadableError as error:  # the output is at fault, not the run
        raise StorageError(str(error)) from None
    for name, data in found.items():
        if data not in (None, files[name]) and not (name.endswith(card_suffix) and is_measured(data, files[name])):
            what = f"{folder.full_name(name)} holds something else, and nothing is overwritten"
            raise user_error(one_line(f"{what}: choose another {name_option('--out')}, or move it away"))
    for name, data in files.items():
        if found[name] is None:
            folder.write_file(name, data)


def _print(out: str, form: Format, exported: Exported) -> None:
    models, files = exported.models, exported.files
    rows = []
    metric = metric_of(models[0].trial.metric) if models else ACCURACY
    for model in models:
        row = model.row
        sizes = (f"{row['size_bytes']:,}", f"{len(files[model.name + form.suffix]):,}")
        measured = (format_metric(metric, row[metric.val]), format_metric(metric, row[metric.test]))
        rows.append(
            [model.name, short_label(model.trial.cells, exported.varying), *sizes, str(row["seed"]), *measured]
        )
    printed = console()
    for line in exported.left_out:
        printed.print(line, style="yellow")
    heads = [
        "trial",
        "configuration",
        "bytes",
        "file",
        "seed",
        *(column_head(metric, split) for split in ("validation", "test")),
    ]
    printed.print(text_table(heads, rows, left=heads[:1], folded=heads[1:2]))
    for subject, note in group_notes(exported.notes, len(models)):
        printed.print(f"{subject}: {note}")
    closing = f"; {form.closing}" if form.closing else ""
    names = f"TRIAL{form.suffix}, with a card TRIAL{form.card_suffix}"
    printed.print(f"{format_count(len(models), 'model')} in {one_line(out)}: {names}{closing}")
    if poor := [model.name for model in models if model.row["error"]]:  # a row that ended `ok` has a note there
        what = f"{format_count(len(poor), 'model')} started from a warm-up that ended at chance and may know nothing"
        printed.print(f"warning: {what}: {', '.join(poor)}", style="yellow")


def group_notes(notes: Mapping[str, str], count: int) -> Iterator[tuple[str, str]]:
    """Each note once, behind the models that it is about.

    Args:
        notes: name of a model -> what is said of it.
        count: of all models.
    """
    for note in dict.fromkeys(notes.values()):
        names = [name for name, other in notes.items() if other == note]
        yield f"each of {count} models" if len(names) == count > 1 else ", ".join(names), note
