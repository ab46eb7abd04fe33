"""`qdtune verify RUN`: looks at every file of a run folder; what is damaged is set aside, and runs again.

Nothing is deleted: a damaged file is renamed to `NAME.damaged`, and `pareto.parquet` is written anew from the rows.
In a run folder that is read-only nothing is changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from qdtune.commands.parser import Parser, print_error, run_command
from qdtune.commands.verb import Verb
from qdtune.messages import format_count, one_line
from qdtune.model.signed_file import find_fault
from qdtune.store.disk_folder import IS_LINK
from qdtune.store.folder import ReadOnlyError
from qdtune.store.opened import OpenedRun, open_run
from qdtune.store.pareto_table import aggregate
from qdtune.store.parquet import DamagedError, parse_table
from qdtune.store.results import Result
from qdtune.store.store import FAULTS, Store

VERB = Verb(place=3, text="check a run folder and set damaged files aside")
USAGE = "qdtune verify RUN"
EXIT_WHOLE, EXIT_DAMAGED = 0, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Checks a run folder; the exit code: 0 if all is whole, 3 if something was damaged, else as of `launch`.

    Args:
        argv: the arguments after `verify`; those of the process if None.
    """
    return run_command(lambda: _verify(_read_arguments(argv)))


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("verify", USAGE, "Checks every file of a run folder, and sets aside what is damaged.")
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder: a path or a URL")
    arguments = parser.read(argv)
    if arguments.run is None:
        parser.error("no run folder given")
    return arguments


def _verify(arguments: argparse.Namespace) -> int:
    try:
        opened = open_run(arguments.run)  # before the lock, which would make the folder
        with ExitStack() as stack:
            try:
                stack.enter_context(opened.store.lock())
            except ReadOnlyError:
                return check_run(opened, is_read_only=True)
            return check_run(opened)
    except tuple(FAULTS) as error:
        return print_error(error, FAULTS)


def check_run(opened: OpenedRun, is_read_only: bool = False) -> int:
    """Sets aside what is damaged and says so; 0 if all is whole, else 3. To be called under the lock.

    Args:
        opened: the run folder.
        is_read_only: whether it cannot be written: nothing is locked then, and nothing changed.

    Raises:
        SpecError: its sweep.yaml is none.
        NewerSchemaError, StorageError: as of `Store.trials`.
    """
    store = opened.store
    aside = "damaged, and nothing is changed: the run folder is read-only" if is_read_only else "set aside"
    found = store.find_damaged() if is_read_only else store.set_damaged_aside()
    damaged = [f"{line}: {aside}, runs again" for line in found]
    damaged += [f"{line}: {aside}, is trained again" for line in _find_damaged(store, "warmup", is_read_only)]
    damaged += [
        f"{line}: {aside}, the result stands but cannot be exported"
        for line in _find_damaged(store, "weights", is_read_only)
    ]
    rows = opened.read_rows()
    ours = rows.results
    links = [line for line in rows.left_out if IS_LINK in line]
    anew = []
    for line in [] if links else _find_old_table(store, ours):  # with the rows behind links it may be right
        anew.append(f"{line}: {'left as it is' if is_read_only else 'written anew'}")
        if not is_read_only:
            store.write_pareto([result.trial.trial_id for result in ours])
    for line in [*damaged, *anew, *(f"{line}: left out" for line in rows.left_out)]:
        print(one_line(line))
    for line in _list_remarks(ours, len(store.ids())):
        print(one_line(line))
    counts = (
        format_count(len(store.ids()), "trial"),
        format_count(len(rows.trials), "row"),
        format_count(len(rows.history), "epoch"),
    )
    faults = [format_count(len(damaged), "fault")] if damaged else []
    faults += [f"{format_count(len(links), 'link')} not read"] if links else []
    print(one_line(f"{opened.where}: {', '.join(counts)}: {', '.join(faults) or 'all whole'}"))
    return EXIT_DAMAGED if faults else EXIT_WHOLE


def _find_damaged(store: Store, within: str, is_read_only: bool) -> Iterator[str]:
    """Sets damaged safetensors files aside if that can be done; a line for each. Links are left alone."""
    for file in store.folder.list_files(within):
        name = f"{within}/{file}"
        if not file.endswith(".safetensors") or file[0] == "." or store.folder.describe_link(name):
            continue
        if why := find_fault(store.folder.read_file(name) or b"", older=within == "warmup"):
            if not is_read_only:
                store.folder.rename_file(name, f"{name}.damaged")
            yield f"{store.folder.full_name(name)}: {why}"


def _find_old_table(store: Store, ours: Sequence[Result]) -> Iterator[str]:
    """A line if `pareto.parquet` is not what the rows say; there is none before the first launch has ended."""
    data, name = store.folder.read_file("pareto.parquet"), store.folder.full_name("pareto.parquet")
    if data is None:
        return
    ids = [result.trial.trial_id for result in ours]
    try:
        made = aggregate(store.trials(ids), bootstrap=True)
        right = parse_table(data, name, made.schema).equals(made)
        why = "it is older than the rows"
    except DamagedError as error:
        right, why = False, str(error)
    if not right:
        yield f"{name}: {why}"


def _list_remarks(ours: Sequence[Result], there: int) -> Iterator[str]:
    if other := there - len(ours):
        yield f"{format_count(other, 'trial')} of other axes, or of another version of qdtune: kept, and not counted"
    for result in ours:
        if result.state in ("ok", "pruned") and not result.curve:
            yield f"{result.trial.trial_id} ({result.trial.label}) has lost its learning curve; its result stands"
