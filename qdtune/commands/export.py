"""`qdtune export RUN`: trained models of a run folder as files to ship, each with a card, and checked once written.

Of a configuration the seed with the best validation accuracy is taken. Files that are there and hold something else
are never overwritten.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdtune import reader
from qdtune.commands.parser import Parser, print_error, run_command
from qdtune.messages import format_count, format_percent, format_value, one_line, user_error
from qdtune.model.formats import onnx
from qdtune.model.formats.packed import one_seed
from qdtune.model.signed_file import find_fault, split_file
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.configuration import Configuration
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import StorageError, is_url
from qdtune.store.opened import open_run
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.store.store import FAULTS, Store
from qdtune.terminal import console, text_table

USAGE = "qdtune export RUN (--front | --trial ID) --out DIR [--format packed|onnx] [--seed N]"
FEW = 5  # trials that a message names
SUFFIXES = {"packed": ".safetensors", "onnx": ".onnx"}
CARDS = {"packed": ".json", "onnx": ".onnx.json"}  # so that both formats can lie side by side
READ = {
    "packed": "reader.py beside this file, with NumPy: load(file).logits(x), x uint8 (batch, inputs)",
    "onnx": f"any ONNX runtime of opset {onnx.OPSET}; {onnx.INPUT}",
}


@dataclass(frozen=True)
class Chosen:
    """A configuration and the seed of it that is exported.

    Attributes:
        entry: its row of the Pareto table.
        row: of that seed, of the table `trials`.
        trial: the configuration, as it was trained.
        blob: the packed model of that seed, one replica.
        model: the same, read.
        metadata: of the file of the row.
    """

    entry: dict[str, Any]
    row: dict[str, Any]
    trial: Configuration
    blob: bytes
    model: reader.Model
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        return str(self.entry["trial_id"])


def main(argv: Sequence[str] | None = None) -> int:
    """Exports models of a run folder; the exit code: 0 if all were written and read back, else as of `launch`.

    Args:
        argv: the arguments after `export`; those of the process if None.
    """
    return run_command(lambda: _export(_arguments(argv)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("export", USAGE, "Writes trained models as files to ship, and checks each against its size.")
    parser.add_argument("run", metavar="RUN", nargs="?", help="its run folder: a path or a URL")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--front", action="store_true", help="every configuration on the Pareto front")
    which.add_argument("--trial", metavar="ID", help="the configuration of this trial: its id, or how that begins")
    parser.add_argument("--out", metavar="DIR", help="where the files go: a folder on this machine")
    parser.add_argument("--format", choices=SUFFIXES, default="packed", help="packed (default) or onnx")
    parser.add_argument("--seed", metavar="N", type=int, help="this seed and not the one of best validation accuracy")
    arguments = parser.read(argv)
    if arguments.run is None:
        parser.error("no run folder given")
    if not (arguments.front or arguments.trial):
        parser.error("say which models: --front or --trial ID")
    if not arguments.out:
        parser.error("no --out given")
    if is_url(arguments.out) or (os.path.lexists(arguments.out) and not os.path.isdir(arguments.out)):
        raise user_error(f"--out must be a folder on this machine, got {one_line(arguments.out)}")
    return arguments


def _export(arguments: argparse.Namespace) -> int:
    try:
        chosen, damaged = _chosen(arguments)
        folder, files = DiskFolder(Path(arguments.out)), _files(chosen, arguments.format)
        found = {name: folder.read_file(name) for name in files}
        for name, data in found.items():
            if data not in (None, files[name]):
                what = f"{folder.full_name(name)} holds something else, and nothing is overwritten"
                raise user_error(one_line(f"{what}: choose another --out, or move it away"))
        for name, data in files.items():
            if found[name] is None:
                folder.write_file(name, data)
        for one in chosen:
            _check(folder, one, arguments.format)
    except tuple(FAULTS) as error:
        return print_error(error, FAULTS)
    _print(arguments, chosen, files, damaged)
    return 0


def _chosen(arguments: argparse.Namespace) -> tuple[list[Chosen], tuple[str, ...]]:
    """What was asked for, every file of it read and found whole; and a line for each file of rows that was not."""
    run = one_line(arguments.run)
    if os.path.isfile(arguments.run):
        raise user_error(f"{run} must be a run folder, such as runs/NAME, got a file")
    opened = open_run(arguments.run)
    read = opened.read(with_history=False)
    store, damaged, ours = opened.store, read.damaged, read.members
    rows = read.of_members().trials
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        groups.setdefault(_key(row), []).append(row)
    table = aggregate(rows)
    entries = table_front(table).to_pylist()
    if arguments.trial is not None:
        member = _known(arguments.trial, ours, run)
        entries = [e for e in table.to_pylist() if any(r["trial_id"] == member for r in groups[_key(e)])]
    elif not entries and damaged:
        raise user_error(f"{run} has no front that can be read: {one_line(damaged[0])}")
    elif not entries:
        raise user_error(f"{run} has no front yet: no configuration has come to its end (run the sweep on)")
    chosen = []
    for entry in entries:
        row = _best(entry, groups[_key(entry)], arguments.seed)
        blob, model = _packed(store, row, run)
        trial = ours[entry["trial_id"]]
        chosen.append(Chosen(entry, row, trial, blob, model, store.metadata(row["trial_id"])))
    return chosen, damaged


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in (*AXIS_NAMES, "dataset"))


def _known(given: str, ours: Mapping[str, Configuration], run: str) -> str:
    """The trial whose id this is, or begins with."""
    found = [given] if given in ours else sorted(trial_id for trial_id in ours if trial_id.startswith(given))
    if len(found) > 1:
        more = f" and {len(found) - FEW} more" if len(found) > FEW else ""
        raise user_error(
            f"--trial must name one trial of {run}, got {format_value(given)}: {', '.join(found[:FEW])}{more}"
        )
    if not found:
        near = difflib.get_close_matches(given[:64], ours, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise user_error(f"{run} holds no trial {format_value(given)} of its sweep{hint}")
    return found[0]


def _best(entry: Mapping[str, Any], rows: Sequence[dict[str, Any]], seed: int | None) -> dict[str, Any]:
    """The row that is exported: of the seeds that ended `ok` the best by validation, of equal ones the lowest."""
    ended = sorted(
        (row for row in rows if row["state"] == "ok" and row["val_accuracy"] is not None),
        key=lambda r: (-r["val_accuracy"], r["seed"]),
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
    raise user_error(f"--seed must be one of {seeds} for trial {entry['trial_id']}, got {seed}")


def _packed(store: Store, row: Mapping[str, Any], run: str) -> tuple[bytes, reader.Model]:
    """The packed model of a row, its payload as long as the row says."""
    trial_id = row["trial_id"]
    whole = store.weights(trial_id)
    if whole is None:
        what = "by an older version of qdtune, or they were damaged and set aside"
        raise user_error(
            f"no weights are kept of trial {trial_id}: it was trained {what} (train it again, with --fresh)"
        )
    why = find_fault(whole, older=False)
    try:
        if why is None:
            blob = one_seed(whole, row["seed"])
            model, (header, data) = reader.load(blob), split_file(blob)
            if header["__metadata__"].get("qdtune.trial_id") == trial_id and len(data) == row["size_bytes"]:
                return blob, model
            why = f"they must be of this trial and hold {row['size_bytes']} bytes, got {len(data)}"
    except reader.ReaderError as error:
        why = str(error)
    raise user_error(one_line(f"the weights of trial {trial_id} are damaged: {why} (see `qdtune verify {run}`)"))


def _files(chosen: Sequence[Chosen], kind: str) -> dict[str, bytes]:
    """Name -> content of all that is written."""
    files = {"reader.py": Path(reader.__file__).read_bytes()} if kind == "packed" else {}
    for one in chosen:
        file = f"{one.name}{SUFFIXES[kind]}"
        files[file] = one.blob if kind == "packed" else onnx.to_onnx(one.model, one.name)
        files[one.name + CARDS[kind]] = _card(one, kind, file, len(files[file]))
    return files


def _card(one: Chosen, kind: str, file: str, file_bytes: int) -> bytes:
    """What there is to say of an exported model, as JSON."""
    entry, row = one.entry, one.row
    splits = {"validation": "val_accuracy", "test": "test_accuracy"}
    spread = {
        split: {"mean": entry[name], "low": entry[f"{name}_low"], "high": entry[f"{name}_high"]}
        for split, name in splits.items()
    }
    kept = ("qdtune.version.", "qdtune.git_commit")
    trial = one.trial
    training = {"batch_size": trial.batch_size, "warmup": trial.warmup.model_dump(), "qat": trial.qat.model_dump()}
    card = {
        "trial_id": entry["trial_id"],
        "configuration": {axis: entry[axis] for axis in AXIS_NAMES},
        "model": entry["model"],
        "batch_norm": trial.batch_norm,
        "training": training,
        "dataset": entry["dataset"],
        "seed": row["seed"],
        "trained_by": row["trial_id"],
        "accuracy": {split: row[name] for split, name in splits.items()},
        "accuracy_of_the_configuration": {"seeds": entry["n_seeds"], "interval": 0.95, **spread},
        "size_bytes": entry["size_bytes"],
        "file": file,
        "file_bytes": file_bytes,
        "format": kind,
        "read_with": READ[kind],
        "made_with": {k.removeprefix("qdtune."): v for k, v in sorted(one.metadata.items()) if k.startswith(kept)},
    }
    return (json.dumps(card, indent=2, allow_nan=False) + "\n").encode()


def _check(folder: DiskFolder, one: Chosen, kind: str) -> None:
    """Raises StorageError where a file does not read back as what was to be written."""
    path = folder.root / f"{one.name}{SUFFIXES[kind]}"
    if kind == "onnx":
        onnx.checked(path.read_bytes())
        return
    same = reader.load(path).tensors.keys() == one.model.tensors.keys()
    if not same or len(split_file(path.read_bytes())[1]) != one.entry["size_bytes"]:
        raise StorageError(f"{path} must read back as it was written, got something else: see the disk")


def _print(
    arguments: argparse.Namespace, chosen: Sequence[Chosen], files: Mapping[str, bytes], damaged: Sequence[str]
) -> None:
    suffix, rows = SUFFIXES[arguments.format], []
    for one in chosen:
        sizes = (f"{one.row['size_bytes']:,}", f"{len(files[one.name + suffix]):,}")
        accuracies = (format_percent(one.row["val_accuracy"]), format_percent(one.row["test_accuracy"]))
        rows.append([one.name, one.trial.label, *sizes, str(one.row["seed"]), *accuracies])
    out = console()
    for line in damaged:
        out.print(f"damaged, left out: {line}", style="yellow")
    heads = ["trial", "configuration", "bytes", "file", "seed", "validation", "test"]
    out.print(text_table(heads, rows, left=heads[:2]))
    read, card = "; reader.py reads them" if arguments.format == "packed" else "", CARDS[arguments.format]
    out.print(
        f"{format_count(len(chosen), 'model')} in {arguments.out}: TRIAL{suffix}, with a card TRIAL{card}{read}"
    )
    if poor := [one.name for one in chosen if one.row["error"]]:  # of a row that ended `ok`: its note
        what = f"{format_count(len(poor), 'model')} started from a warm-up that ended at chance and may know nothing"
        out.print(f"warning: {what}: {', '.join(poor)}", style="yellow")
