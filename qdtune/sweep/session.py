"""One launch: what the run folder holds and what is left, the training of that, the table and what it says.

A sweep that is finished is told from its files alone; Ray is imported where there is something to train.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from qdtune import plugins
from qdtune.datasets import load
from qdtune.machine import cache_dir, handling, has_compiler, is_compiled
from qdtune.messages import format_count, one_line
from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.plan import Plan, check_comparable, plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.columns import FINAL, TRIALS
from qdtune.store.folder import StorageError, child, open_folder
from qdtune.store.front import front_table
from qdtune.store.pareto_table import table_front
from qdtune.store.results import Rows, results
from qdtune.store.store import PAGE, Store
from qdtune.store.tables import Table
from qdtune.sweep.cluster import RayAt, connect
from qdtune.sweep.placement import placement
from qdtune.sweep.prepare import with_own_data
from qdtune.terminal import console

Drawing = Callable[[Any, Any], AbstractContextManager[None]]

DONE, FAILED_TRIALS = 0, 3  # exit codes; 130 and 143 after a signal


def run_sweep(
    spec: Spec, *, runs_dir: str, data_dir: Path, ray_at: RayAt, drawing: Drawing, fresh: bool = False
) -> int:
    """Runs, or finishes, a sweep and prints its front; the exit code of design: 0, 3, 4, 130 or 143.

    Args:
        spec: as loaded; the first of its data sets that can be had is used.
        runs_dir: a path or a URL; the run folder is made in it, under the sweep's name.
        data_dir: where data sets lie or are downloaded to.
        ray_at: the Ray cluster to run on.
        drawing: given the run folder and a console, draws the page of the sweep while it is trained.
        fresh: set what an earlier launch left aside and start anew.

    Raises:
        SpecError, DataError, LocationError, NoClusterError, RunInUse: what the user has to mend; nothing was started.
        StorageError: the run folder cannot be written.
    """
    early: list[int] = []
    try:
        with _until_the_sweep(early):
            if ray_at.address is None:
                return _run(spec, runs_dir, data_dir, partial(connect, ray_at), drawing, fresh, early)
            with connect(ray_at, 0) as cluster:  # before anything is made: it may be of another version, or too small
                placement(spec.resources, cluster.nodes)
                return _run(spec, runs_dir, data_dir, lambda _: nullcontext(cluster), drawing, fresh, early)
    except SystemExit:  # how a signal is answered while the sweep's own handlers are not set, by Ray, too
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + (early[0] if early else signal.SIGTERM)


@contextmanager
def _until_the_sweep(early: list[int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end what is being prepared; they are noted, too, for an exception can get lost in Ray."""

    def handle(number: int, frame: Any) -> None:
        early.append(number)
        raise SystemExit(128 + number)

    with handling(handle):
        yield


def _run(
    spec: Spec, runs_dir: str, data_dir: Path, connect: Any, drawing: Drawing, fresh: bool, early: list[int]
) -> int:
    """As `run`, with `connect` as `driver.run_trials` takes it."""
    out = console()
    spec, data, notes = _loaded(spec, data_dir, out)
    planned = plan(spec)
    open_folder(runs_dir).probe()
    os.umask(0o077)  # what is made from here on, by Ray and its workers too, is for the user alone
    store = Store(child(runs_dir, spec.name))
    if not fresh:
        check_comparable(spec, store.sweep_yaml(), str(store.folder), notes[0] if notes else None)
    elif aside := store.set_aside():
        out.print(f"--fresh: what was in {store.folder} is now in {aside}")
    with store.lock(), store.workspace() as work:
        store.create(spec.to_yaml())
        store.pack()
        rows, damaged = store.trials(), list(store.damaged)
        history = store.history()
        for line in damaged + store.damaged:
            out.print(f"damaged, runs again: {line}", style="yellow")
        earlier = results(spec, rows, history)
        queue = Queue(spec, planned.trials, Study(spec, work / "study.journal"), earlier)
        known: Rows = {}
        for row in rows.select(TRIALS.names).to_pylist():
            if row["trial_id"] in queue.results:
                known.setdefault(row["trial_id"], []).append(row)
        stopped, error = None, None
        try:
            more = queue.more()
            _announce(spec, data, planned, queue, notes, out)
            if more:
                from qdtune.sweep.driver import run_trials  # Ray: a sweep that is finished answers without it

                try:
                    with drawing(store.folder.where, out):
                        stopped, error = run_trials(spec, data, queue, store, known, connect, early, out)
                except SystemExit:
                    stopped = early[0] if early else signal.SIGTERM
            if error is None and not queue.left:
                queue.more()  # stopped as the last one ended, it may have more to do all the same
        finally:
            with suppress(StorageError):  # which is told already
                queue.study.close()
                store.keep(work / "study.journal")
        table = store.write_pareto(list(queue.results))
        store.pack()
    return _report(spec, queue, store, known, table, stopped, error, out)


def _loaded(spec: Spec, data_dir: Path, out: Any) -> tuple[Spec, load.Samples, list[str]]:
    """The spec with its data and model known, the data, and what to say about it."""
    notes: list[str] = []
    if spec.data.dataset:
        if not load.on_disk(spec.data.dataset[0], data_dir):
            out.print(f"{spec.data.dataset[0]} is not in {data_dir}: downloading it")
        data, notes = load.load(spec.data.dataset, data_dir, lambda name: spec.resolve(name).data.val_size)
    else:
        spec, data = with_own_data(spec, data_dir)
    spec = spec.resolve(data.name)
    if spec.model.factory:
        from qdtune.training.own_model import described  # torch

        spec = described(spec)
    for source in plugins.sources():
        out.print(f"plugin {source.module}: {source.path}, sha256 {source.sha256}")
    return spec, data, notes


def _compiles(spec: Spec, samples: int) -> bool:
    phases = (spec.train.warmup, spec.train.qat)
    return any(is_compiled(spec.run.compile, phase.epochs, spec.train.batch_size, samples) for phase in phases)


def _announce(spec: Spec, data: Any, planned: Plan, queue: Queue, notes: list[str], out: Any) -> None:
    """Says what is going to be trained, and what is not as it should be."""
    count = (spec.run_cap or 0) if queue.searching else len(planned.trials)
    size = f"{format_count(count, 'configuration')} x {format_count(len(spec.seeds), 'seed')} on {data.name}"
    samples = f"({len(data.train_x):,} training, {len(data.val_x):,} validation samples)"
    done = f"{queue.total - queue.left} done before" if queue.left else "all done before"
    out.print(f"{spec.name}: {size} {samples}; {done}", style="bold")
    if queue.left and not has_compiler():
        what = "no C++ compiler (g++, or what CXX names) and openssl here"
        out.print(f"{what}: training runs uncompiled, slowly", style="yellow")
    elif queue.left and _compiles(spec, len(data.train_x)) and not any(cache_dir().glob("steps/*.so")):
        shapes = len({(t.depth, t.activation, t.hidden) for t in planned.trials})
        what = f"{format_count(shapes, 'shape')} of network, {'one' if shapes == 1 else 'each'} some 30 s, once"
        out.print(f"nothing is compiled yet: long trainings compile their steps first ({what} for all sweeps)")
    if queue.left and planned.warning:
        out.print(f"warning: {planned.warning}", style="yellow")
    for note in notes:
        out.print(f"WARNING: {note}", style="bold white on red")


def _report(
    spec: Spec,
    queue: Queue,
    store: Store,
    known: Rows,
    table: Table,
    stopped: int | None,
    error: StorageError | None,
    out: Any,
) -> int:
    """Prints the front, what went wrong and where the files are; the exit code."""
    rows = table.to_pylist()
    states = Counter(result.state for result in queue.results.values())
    front = table_front(table)
    varying = {axis for axis in spec.axes if len({row[axis] for row in rows}) > 1}
    out.print()
    if front.num_rows:
        title = f"Pareto front of {format_count(len(rows), 'configuration')} on {spec.data.names[0]}"
        out.print(front_table(front, varying, title))
        if max(row["n_seeds"] for row in front.to_pylist()) > 1:
            out.print("accuracy: mean of n seeds ± half of its 95 % interval (Student t)", style="dim")
        if other := max(row["other_bytes"] or 0 for row in front.to_pylist()):
            what = "are float32 at any bits, in what is no linear layer: see the column `other_bytes`"
            out.print(f"up to {other:,} bytes of each {what}", style="dim")
    if states["pruned"] and spec.early_terminate.type != "none":  # else they are left to do
        out.print(_pruned_line(spec, queue, states["pruned"]))
    for state in sorted(set(states) - {"ok", "pruned"}):
        theirs = (row for t, rows in known.items() if queue.results[t].state == state for row in rows)
        why = next((f", such as: {one_line(row['error'])}" for row in theirs if row["error"]), "")
        what = f"{format_count(states[state], 'trial')} ended as {state}: see the column `error`{why}"
        out.print(what, style="yellow")
    _print_dead_warmups(queue, known, out)
    if rows:
        out.print(f"full table: {store.folder.name('pareto.parquet')}; rows: {store.folder.name('trials')}")
        if PAGE in store.folder.files():
            out.print(f"report: {store.folder.name(PAGE)}")
    if error:
        raise error
    if queue.left:
        why = f"stopped by {signal.Signals(stopped).name}" if stopped else "ended early"
        if spec.run.time_budget_s and not stopped:
            why = "the time budget is spent"
        left = f"{queue.left} of {format_count(queue.total, 'trial')} left to do"
        out.print(f"{why}: {left}; the same command goes on from here")
        return 128 + stopped if stopped else FAILED_TRIALS
    return DONE if set(states) <= FINAL else FAILED_TRIALS


def _pruned_line(spec: Spec, queue: Queue, pruned: int) -> str:
    """How much was stopped early, and the QAT epochs that this saved."""
    planned = spec.train.qat.epochs * len(queue.results)
    spared = sum(spec.train.qat.epochs - len(r.curve) for r in queue.results.values() if r.state == "pruned")
    rule = f"{format_count(pruned, 'trial')} stopped early by {spec.early_terminate.type}"
    return f"{rule}: {(spared - queue.twice) / planned:.0%} of all QAT epochs saved; see the column `pruned_by`"


def _print_dead_warmups(queue: Queue, known: Rows, out: Any) -> None:
    dead = {
        queue.results[trial_id].trial.key
        for trial_id, rows in known.items()
        if any(row["state"] in ("ok", "pruned") and row["error"] for row in rows)
    }
    if dead:
        out.print(
            f"{format_count(len(dead), 'configuration')} started from a warm-up that ended at chance: see `error`",
            style="yellow",
        )
