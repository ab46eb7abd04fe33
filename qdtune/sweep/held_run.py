"""The run folder that a launch has locked: its results, and the trials that are left."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdtune.messages import format_count, list_first, one_line
from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.plan import Plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.columns import find_partition
from qdtune.store.opened import read_rows
from qdtune.store.results import Result, Rows
from qdtune.store.store import Store

JOURNAL = "study.journal"  # the file of the Optuna studies in the run folder


@dataclass(frozen=True)
class HeldRun:
    """A run folder that a launch has locked.

    Attributes:
        spec: resolved.
        store: the folder.
        queue: the trials, with the results of earlier launches.
        known: the rows of those results; the recorder adds later rows.
        reopened: the results of earlier launches that lost their weights since, in a state that is not final.
    """

    spec: Spec
    store: Store
    queue: Queue
    known: Rows
    reopened: dict[str, Result] = field(default_factory=dict)


def hold_run(spec: Spec, planned: Plan, store: Store, workspace: Path, out: Any) -> HeldRun:
    """The run of a sweep; its folder must be locked, and is filled if it is new.

    Args:
        spec: resolved, and comparable with the results in the folder.
        planned: its configurations.
        store: the folder.
        workspace: where the journal of the studies grows.
        out: where to report damaged files.

    Raises:
        StorageError: the folder cannot be read or written.
    """
    store.create(spec.to_yaml())
    store.pack_files()
    for line in store.folder.notes:
        out.print(line, style="yellow")
    if column := find_partition(store.folder.where):
        what = "DuckDB reads this part of the path as a column, unless the query sets hive_partitioning = false"
        out.print(one_line(f"warning: {column}: {what}"), style="yellow")
    rows = read_rows(store, spec)
    for line in rows.damaged:
        what = "damaged, its result stands" if line in rows.damaged_curves else "damaged, runs again"
        out.print(f"{what}: {line}", style="yellow")
    for line in rows.left_out:
        out.print(f"left out: {line}", style="yellow")
    study = Study(spec, workspace / JOURNAL, unstoppable=rows.lost_weights)
    queue = Queue(spec, planned.trials, study, rows.results_to_resume)
    lost = {trial_id: queue.results[trial_id] for trial_id in sorted(rows.lost_weights & queue.results.keys())}
    if again := [trial.trial_id for trial in queue.waiting if trial.trial_id in lost]:
        what = f"{format_count(len(again), 'trial')} lost the weights and will be trained again"
        out.print(f"{what}: {list_first(again)}", style="yellow")
    known: Rows = {}
    for row in rows.trials.select(store.trials_schema.names).to_pylist():
        if row["trial_id"] in queue.results:
            known.setdefault(row["trial_id"], []).append(row)
    return HeldRun(spec, store, queue, known, lost)
