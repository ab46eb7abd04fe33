"""`qdtune verify RUN`: looks at every file of a run folder, sets damaged ones aside, and says what follows.

Rows or weights that are lost are trained again by the next launch. A result stands without its learning curve.
Nothing is deleted: a damaged file is renamed to `NAME.damaged`, and `pareto.parquet` is written anew from the rows.
In a run folder that is read-only nothing is changed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack

from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import Parser, print_error, run_command
from qdtune.commands.verb import Verb
from qdtune.messages import format_count, one_line
from qdtune.model.signed_file import find_fault, read_owner
from qdtune.spec.choices import PLANNED
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.disk_folder import IS_LINK
from qdtune.store.folder import ReadOnlyError
from qdtune.store.lost_weights import find_shipped
from qdtune.store.opened import OpenedRun, StoredRows, open_run
from qdtune.store.packs import Damage
from qdtune.store.parquet import DamagedError, parse_table
from qdtune.store.releases import shares_to_reach
from qdtune.store.results import Result
from qdtune.store.store import FAULTS, Store
from qdtune.sweep.resumed import find_checkpoints

VERB = Verb(place=3, text="check a run folder and set damaged files aside")
USAGE = "qdtune verify RUN"
EXIT_WHOLE, EXIT_DAMAGED = 0, 3
TRIAL_ID = re.compile(r"[0-9a-f]{12}")
NOBODYS = "belongs to no result of this sweep"


def main(argv: Sequence[str] | None = None) -> int:
    """Checks a run folder; the exit code: 0 if all is whole, 3 if something is damaged or lost, else as of `launch`.

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
    tables = store.list_damage()
    if not is_read_only and tables:
        store.set_damaged_aside()
    rows = opened.read_rows()
    ours = rows.results
    ids, known = store.ids(), {result.trial.trial_id for result in ours}
    damaged = [f"{one.line}: {aside}, {text}" for one, text in _describe_tables(tables, opened.spec, known)]
    shipped = find_shipped(rows.trials) & known
    damaged += [f"{line}: {aside}, {text}" for line, text in _describe_files(store, shipped, is_read_only)]
    links = [line for line in rows.left_out if IS_LINK in line]
    anew = []
    shares = shares_to_reach(opened.spec, ours)
    # With the rows behind links the table may be right.
    for line in [] if links else _find_old_table(store, ours, shares, opened.spec):
        anew.append(f"{line}: {'left as it is' if is_read_only else 'written anew'}")
        if not is_read_only:
            store.write_pareto([result.trial_id for result in ours], shares, opened.spec)
    remarks, lost = _describe_losses(rows, {one.trial_id for one in tables})
    if other := len(ids) - len(ours):
        what = "of other axes, or of another version of qdtune: kept, and not counted"
        remarks.insert(0, f"{format_count(other, 'trial')} {what}")
    for line in [*damaged, *anew, *(f"{line}: left out" for line in rows.left_out), *remarks]:
        print_wrapped(one_line(line))
    counts = [
        format_count(len(ids), "trial"),
        format_count(len(rows.trials), "row"),
        format_count(len(rows.history), "epoch"),
    ]
    if checkpoints := find_checkpoints(store.folder):
        counts.append(f"{format_count(len(checkpoints), 'checkpoint')} of trials that may go on")
    faults = [format_count(len(damaged), "fault")] if damaged else []
    faults += [f"{format_count(len(links), 'link')} not read"] if links else []
    faults += [] if links else lost
    print_wrapped(one_line(f"{opened.where}: {', '.join(counts)}: {', '.join(faults) or 'all whole'}"))
    return EXIT_DAMAGED if faults else EXIT_WHOLE


def _describe_files(store: Store, shipped: Collection[str], is_read_only: bool) -> Iterator[tuple[str, str]]:
    """Each damaged file beside the tables, with what follows.

    Args:
        store: of the run.
        shipped: the trials of the sweep whose weights are needed.
        is_read_only: whether the files stay where they are.
    """
    for _, line in _find_damaged(store, "warmup", is_read_only):
        yield line, "is trained again if a trial needs it"
    for _, line in _find_damaged(store, "paused", is_read_only):
        yield line, "its trial is trained from the beginning"
    for trial_id, line in _find_damaged(store, "weights", is_read_only):
        yield line, "the next launch trains its trial again" if trial_id in shipped else NOBODYS


def _describe_losses(rows: StoredRows, told: Collection[str | None]) -> tuple[list[str], list[str]]:
    """A line for each result that has lost its curve or weights before, and the counts of both.

    Args:
        rows: read before damaged weights were set aside.
        told: the trials of damaged tables, which are told already.
    """
    curves = [r.trial for r in rows.results if r.state in ("ok", "pruned") and not r.curve]
    curves = [trial for trial in curves if trial.trial_id not in told]
    weights = [result.trial for result in rows.results if result.trial.trial_id in rows.lost_weights]
    lines = [f"{trial.trial_id} ({trial.label}) has lost its learning curve; its result stands" for trial in curves]
    lines += [
        f"{trial.trial_id} ({trial.label}) has lost its weights; the next launch trains it again" for trial in weights
    ]
    counts = [f"{format_count(len(curves), 'learning curve')} lost"] if curves else []
    counts += [f"weights of {format_count(len(weights), 'trial')} lost"] if weights else []
    return lines, counts


def _describe_tables(tables: Sequence[Damage], spec: Spec, known: Collection[str]) -> Iterator[tuple[Damage, str]]:
    """What follows from each damaged table, as the end of a sentence.

    Args:
        tables: the damaged tables.
        spec: the sweep.
        known: the trials of the sweep whose rows can be read.
    """
    lost = {table.trial_id for table in tables if table.kind == "trials"} - {None}
    is_planned = spec.method in PLANNED
    planned = {trial.trial_id for trial in plan(spec).trials} if lost and is_planned else set()
    for table in tables:
        trial_id = table.trial_id
        if table.kind == "history" and trial_id not in lost:
            if trial_id is None:
                yield table, "the results stand without their learning curves"
            else:
                yield table, "the result stands without its learning curve" if trial_id in known else NOBODYS
        elif trial_id is None or trial_id in planned:
            yield table, "runs again"
        elif not TRIAL_ID.fullmatch(trial_id):
            yield table, NOBODYS
        elif not is_planned:
            yield table, "is gone, and the search goes on without it"
        else:
            yield table, "runs again if its configuration needs more seeds" if spec.replicate else NOBODYS


def _find_damaged(store: Store, within: str, is_read_only: bool) -> Iterator[tuple[str, str]]:
    """Sets damaged safetensors files aside if that can be done; (stem, line) of each. Links are left alone."""
    for file in store.folder.list_files(within):
        name, stem = f"{within}/{file}", file.removesuffix(".safetensors")
        if not file.endswith(".safetensors") or file[0] == "." or store.folder.describe_link(name):
            continue
        blob = store.folder.read_file(name) or b""
        why = find_fault(blob, older=within == "warmup")
        if not why and within != "warmup" and (owner := read_owner(blob)) not in (None, stem):
            why = f"{'they belong' if within == 'weights' else 'it belongs'} to trial {owner}"
        if why:
            if not is_read_only:
                store.folder.rename_file(name, f"{name}.damaged")
            yield stem, f"{store.folder.full_name(name)}: {why}"


def _find_old_table(store: Store, ours: Sequence[Result], p_reach: Mapping[str, float], spec: Spec) -> Iterator[str]:
    """A line if `pareto.parquet` is not what the rows say; there is none before the first launch has ended."""
    data, name = store.folder.read_file("pareto.parquet"), store.folder.full_name("pareto.parquet")
    if data is None:
        return
    ids = [result.trial_id for result in ours]
    try:
        made = store.make_pareto(ids, p_reach, spec)
        right = parse_table(data, name, made.schema).equals(made)
        why = "it is older than the rows"
    except DamagedError as error:
        right, why = False, str(error)
    if not right:
        yield f"{name}: {why}"
