"""`qdtune export RUN`: trained models of a run folder as files to ship, each with a card, and checked once written.

Of a configuration the seed that is best on the validation split is taken. An existing file that holds something else
is never overwritten. Everything that is special about a format stands in its file in `model/formats/`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import Parser, print_error, run_command
from qdtune.commands.verb import Verb
from qdtune.messages import (
    Problem,
    SpecError,
    format_count,
    format_value,
    list_first,
    name_option,
    one_line,
    user_error,
)
from qdtune.model.formats.card import make_card
from qdtune.model.formats.format import Format, TrainedModel
from qdtune.model.formats.known import FORMAT_NAMES, FORMAT_OPTIONS, format_of
from qdtune.model.formats.packed import read_seed
from qdtune.reader import Model, ReaderError
from qdtune.spec.axes import AXIS_NAMES, find_varying, short_label
from qdtune.spec.configuration import Configuration
from qdtune.spec.metric_text import column_head, format_metric
from qdtune.spec.tasks import ACCURACY, Metric, metric_of
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import StorageError, UnreadableError, is_url, storage_errors
from qdtune.store.opened import open_run
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.store.store import FAULTS, Store
from qdtune.terminal import console, text_table

VERB = Verb(place=4, text="write trained models as files to ship")
USAGE = "qdtune export RUN (--front | --trial ID) --out DIR"
USAGE += f" [--format {'|'.join(FORMAT_NAMES)}] [--seed N]" + "".join(f" [{one.flag} X]" for one in FORMAT_OPTIONS)
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
    names = " or ".join([f"{default} (default)", *others])
    parser.add_argument("--format", choices=FORMAT_NAMES, default=default, help=names)
    parser.add_argument(
        "--seed", metavar="N", type=int, help="seed to export (default: the best on the validation split)"
    )
    for option in FORMAT_OPTIONS:
        parser.add_argument(option.flag, dest=option.flag, choices=option.choices or None, help=option.help)
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
    """

    models: list[TrainedModel]
    files: dict[str, bytes]
    left_out: tuple[str, ...]
    without_weights: tuple[str, ...]
    varying: frozenset[str]


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
    models, left_out, without_weights, varying = _find_models(run, trials, seed)
    folder, files = DiskFolder(Path(out)), _make_files(models, form, options)
    _write_files(folder, files)
    for model in models:
        path = folder.root / f"{model.name}{form.suffix}"
        with storage_errors(path):
            fault = form.find_fault(path, model, options)
        if fault is not None:
            raise StorageError(f"{path} {fault}")
    return Exported(models, files, left_out, without_weights, varying)


def _make_files(models: Sequence[TrainedModel], form: Format, options: Mapping[str, str]) -> dict[str, bytes]:
    """Name -> content of all files of the export."""
    files = form.shared_files()
    for model in models:
        file = f"{model.name}{form.suffix}"
        try:
            files[file] = form.write(model, options)
        except ImportError:
            if form.package is None:
                raise
            needed = f"the package {form.package.name}: {form.package.install}"
            raise user_error(f"{name_option('--format', form.name)} needs {needed}") from None
        files[model.name + form.card_suffix] = make_card(model, form, file, len(files[file]))
    return files


def _write_files(folder: DiskFolder, files: Mapping[str, bytes]) -> None:
    """Writes what is not there yet; none of it if a file is there that holds something else."""
    try:
        found = {name: folder.read_file(name) for name in files}
    except UnreadableError as error:  # the output is at fault, not the run
        raise StorageError(str(error)) from None
    for name, data in found.items():
        if data not in (None, files[name]):
            what = f"{folder.full_name(name)} holds something else, and nothing is overwritten"
            raise user_error(one_line(f"{what}: choose another {name_option('--out')}, or move it away"))
    for name, data in files.items():
        if found[name] is None:
            folder.write_file(name, data)


def _find_models(
    where: str, trials: Sequence[str] | None, seed: int | None
) -> tuple[list[TrainedModel], tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """The models that were asked for, their files read and checked; the other three are as in `Exported`."""
    run = one_line(where)
    opened = open_run(where)
    read = opened.read_rows(with_history=False)
    store, ours, skipped = opened.store, read.members, (*read.damaged, *read.left_out)
    rows = read.of_members().trials
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        groups.setdefault(_key_of(row), []).append(row)
    table = aggregate(rows)
    entries = table_front(table).to_pylist()
    if trials is not None:
        members = [_find_trial(given, ours, run) for given in trials]
        by_trial = {row["trial_id"]: entry for entry in table.to_pylist() for row in groups[_key_of(entry)]}
        entries = [by_trial[member] for member in members if member in by_trial]
    elif not entries and skipped:
        raise user_error(f"{run} has no front that can be read: {one_line(skipped[0])}")
    elif not entries:
        raise user_error(f"{run} has no front yet: no configuration has come to its end (run the sweep on)")
    models, faults = [], []
    for entry in entries:
        row = _best_row(entry, groups[_key_of(entry)], seed, read.spec.metric)
        try:
            blob, model = _read_packed(store, row, run, row["trial_id"] in read.lost_weights)
        except _WeightsError as error:
            faults.append(one_line(str(error)))
            continue
        metadata = store.metadata(row["trial_id"])
        models.append(TrainedModel(entry, row, ours[entry["trial_id"]], blob, model, metadata))
    lines = [f"damaged, left out: {line}" for line in read.damaged] + [f"left out: {line}" for line in read.left_out]
    if faults and not models:
        raise SpecError([Problem(None, (), fault) for fault in faults])
    return models, tuple(lines), tuple(faults), find_varying(one.cells for one in ours.values())


class _WeightsError(ValueError):
    """A trial has no weights that can be exported; the message says what to do."""


def _key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What rows of one configuration have in common, in the tables of trials and of the front."""
    return tuple(row[name] for name in (*AXIS_NAMES, "dataset"))


def _find_trial(given: str, ours: Mapping[str, Configuration], run: str) -> str:
    """The trial whose id this is, or begins with."""
    found = [given] if given in ours else sorted(trial_id for trial_id in ours if trial_id.startswith(given))
    if len(found) > 1:
        what = f"{name_option('--trial')} must name one trial of {run}, got {format_value(given)}"
        raise user_error(f"{what}: {list_first(found)}")
    if not found:
        near = difflib.get_close_matches(given[:64], ours, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise user_error(f"{run} holds no trial {format_value(given)} of its sweep{hint}")
    return found[0]


def _best_row(
    entry: Mapping[str, Any], rows: Sequence[dict[str, Any]], seed: int | None, metric: Metric
) -> dict[str, Any]:
    """The row that is exported: of the seeds that ended `ok` the best by validation, of equal ones the lowest."""
    ended = sorted(
        (row for row in rows if row["state"] == "ok" and row[metric.val] is not None),
        key=lambda r: (-metric.sign * r[metric.val], r["seed"]),
    )
    if not ended:
        why = "was stopped early" if entry["state"] == "pruned" else f"ended as {entry['state']}"
        raise user_error(f"trial {entry['trial_id']} {why}: what is exported has come to its end")
    if seed is None:
        return ended[0]
    for row in ended:
        if row["seed"] == seed:
            return row
    seeds = ", ".join(str(s) for s in sorted(row["seed"] for row in ended))
    raise user_error(f"{name_option('--seed')} must be one of {seeds} for trial {entry['trial_id']}, got {seed}")


def _read_packed(store: Store, row: Mapping[str, Any], run: str, is_lost: bool) -> tuple[bytes, Model]:
    """The packed model of a row, as it lies in the run folder and read.

    Args:
        store: the run folder.
        row: in the table `trials`.
        run: the name of the folder.
        is_lost: whether the trial had weights.

    Raises:
        _WeightsError: the weights are damaged or missing.
    """
    trial_id = row["trial_id"]
    try:
        blob = store.weights(trial_id)
    except UnreadableError as error:
        raise _WeightsError(str(error)) from None
    if blob is None and is_lost:
        raise _WeightsError(f"the weights of trial {trial_id} are lost: launch its sweep, which trains it again")
    if blob is None:
        what = f"no weights are kept of trial {trial_id}: it was trained by an older version of qdtune"
        raise _WeightsError(f"{what} (launch its sweep again with {name_option('--fresh')})")
    try:
        return read_seed(blob, row)
    except ReaderError as error:
        how = f"run `qdtune verify {shlex.quote(run)}`, then launch its sweep, which trains it again"
        raise _WeightsError(f"the weights of trial {trial_id} are damaged: {error} ({how})") from None


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
    closing = f"; {form.closing}" if form.closing else ""
    names = f"TRIAL{form.suffix}, with a card TRIAL{form.card_suffix}"
    printed.print(f"{format_count(len(models), 'model')} in {one_line(out)}: {names}{closing}")
    if poor := [model.name for model in models if model.row["error"]]:  # a row that ended `ok` has a note there
        what = f"{format_count(len(poor), 'model')} started from a warm-up that ended at chance and may know nothing"
        printed.print(f"warning: {what}: {', '.join(poor)}", style="yellow")
