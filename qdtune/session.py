"""One launch: what the run folder holds and what is left, the training of that, the table and what it says.

A sweep that is finished is told from its files alone; Ray is imported where there is something to train.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from qdtune import data as data_sets
from qdtune import plugins
from qdtune.cluster import RayAt, connect
from qdtune.feed import Feed
from qdtune.machine import cache_dir, handling, has_compiler, is_compiled
from qdtune.placement import placement
from qdtune.plan import Plan, check_comparable, plan
from qdtune.progress import console, counted, front_table
from qdtune.results import Rows, results
from qdtune.rules import one_line
from qdtune.spec import Spec
from qdtune.storage import StorageError, child, open_folder
from qdtune.store import Store
from qdtune.study import Study, configuration
from qdtune.tables import FINAL, TRIALS, table_front
from qdtune.watch import PAGE, drawing

DONE, FAILED_TRIALS = 0, 3  # exit codes; 130 and 143 after a signal


def run(spec: Spec, *, runs_dir: str, data_dir: Path, ray_at: RayAt, fresh: bool = False) -> int:
    """Runs, or finishes, a sweep and prints its front; the exit code of design: 0, 3, 4, 130 or 143.

    Args:
        spec: as loaded; the first of its data sets that can be had is used.
        runs_dir: a path or a URL; the run folder is made in it, under the sweep's name.
        data_dir: where data sets lie or are downloaded to.
        ray_at: the Ray cluster to run on.
        fresh: set what an earlier launch left aside and start anew.

    Raises:
        SpecError, DataError, LocationError, NoClusterError, RunInUse: what the user has to mend; nothing was started.
        StorageError: the run folder cannot be written.
    """
    early: list[int] = []
    try:
        with _until_the_sweep(early):
            if ray_at.address is None:
                return _run(spec, runs_dir, data_dir, partial(connect, ray_at), fresh, early)
            with connect(ray_at, 0) as cluster:  # before anything is made: it may be of another version, or too small
                placement(spec.resources, cluster.nodes)
                return _run(spec, runs_dir, data_dir, lambda _: nullcontext(cluster), fresh, early)
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


def _run(spec: Spec, runs_dir: str, data_dir: Path, connect: Any, fresh: bool, early: list[int]) -> int:
    """As `run`, with `connect` as `sweep.train` takes it."""
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
        feed = Feed(spec, planned.trials, Study(spec, work / "study.journal"), earlier)
        known: Rows = {}
        for row in rows.select(TRIALS.names).to_pylist():
            if row["trial_id"] in feed.results:
                known.setdefault(row["trial_id"], []).append(row)
        stopped, error = None, None
        try:
            more = feed.more()
            _announce(spec, data, planned, feed, notes, out)
            if more:
                from qdtune.sweep import train  # Ray: a sweep that is finished answers without it

                try:
                    with drawing(store.folder.where, out):
                        stopped, error = train(spec, data, feed, store, known, connect, early, out)
                except SystemExit:
                    stopped = early[0] if early else signal.SIGTERM
            if error is None and not feed.left:
                feed.more()  # stopped as the last one ended, it may have more to do all the same
        finally:
            with suppress(StorageError):  # which is told already
                feed.study.close()
                store.keep(work / "study.journal")
        table = store.write_pareto(list(feed.results))
        store.pack()
    return _report(spec, feed, store, known, table, stopped, error, out)


def _loaded(spec: Spec, data_dir: Path, out: Any) -> tuple[Spec, data_sets.Data, list[str]]:
    """The spec with its data and model known, the data, and what to say about it."""
    notes: list[str] = []
    if spec.data.dataset:
        if not data_sets.on_disk(spec.data.dataset[0], data_dir):
            out.print(f"{spec.data.dataset[0]} is not in {data_dir}: downloading it")
        data, notes = data_sets.load(spec.data.dataset, data_dir, lambda name: spec.resolve(name).data.val_size)
    else:
        spec, data = plugins.read(spec, data_dir)
    spec = spec.resolve(data.name)
    if spec.model.factory:
        from qdtune.foreign import described  # torch

        spec = described(spec)
    for source in plugins.sources():
        out.print(f"plugin {source.module}: {source.path}, sha256 {source.sha256}")
    return spec, data, notes


def _compiles(spec: Spec, samples: int) -> bool:
    phases = (spec.train.warmup, spec.train.qat)
    return any(is_compiled(spec.run.compile, phase.epochs, spec.train.batch_size, samples) for phase in phases)


def _announce(spec: Spec, data: Any, planned: Plan, feed: Feed, notes: list[str], out: Any) -> None:
    """Says what is going to be trained, and what is not as it should be."""
    count = (spec.run_cap or 0) if feed.searching else len(planned.trials)
    size = f"{counted(count, 'configuration')} x {counted(len(spec.seeds), 'seed')} on {data.name}"
    samples = f"({len(data.train_x):,} training, {len(data.val_x):,} validation samples)"
    done = f"{feed.total - feed.left} done before" if feed.left else "all done before"
    out.print(f"{spec.name}: {size} {samples}; {done}", style="bold")
    if feed.left and not has_compiler():
        what = "no C++ compiler (g++, or what CXX names) and openssl here"
        out.print(f"{what}: training runs uncompiled, slowly", style="yellow")
    elif feed.left and _compiles(spec, len(data.train_x)) and not any(cache_dir().glob("steps/*.so")):
        shapes = len({(t.depth, t.activation, t.hidden) for t in planned.trials})
        what = f"{counted(shapes, 'shape')} of network, {'one' if shapes == 1 else 'each'} some 30 s, once"
        out.print(f"nothing is compiled yet: long trainings compile their steps first ({what} for all sweeps)")
    if feed.left and planned.warning:
        out.print(f"warning: {planned.warning}", style="yellow")
    for note in notes:
        out.print(f"WARNING: {note}", style="bold white on red")


def _report(
    spec: Spec,
    feed: Feed,
    store: Store,
    known: Rows,
    table: pa.Table,
    stopped: int | None,
    error: StorageError | None,
    out: Any,
) -> int:
    """Prints the front, what went wrong and where the files are; the exit code."""
    rows = table.to_pylist()
    states = Counter(result.state for result in feed.results.values())
    front = table_front(table)
    varying = {axis for axis in spec.axes if len({row[axis] for row in rows}) > 1}
    out.print()
    if front.num_rows:
        title = f"Pareto front of {counted(len(rows), 'configuration')} on {spec.data.names[0]}"
        out.print(front_table(front, varying, title))
        if max(row["n_seeds"] for row in front.to_pylist()) > 1:
            out.print("accuracy: mean of n seeds ± half of its 95 % interval (Student t)", style="dim")
        if other := max(row["other_bytes"] or 0 for row in front.to_pylist()):
            what = "are float32 at any bits, in what is no linear layer: see the column `other_bytes`"
            out.print(f"up to {other:,} bytes of each {what}", style="dim")
    if states["pruned"] and spec.early_terminate.type != "none":  # else they are left to do
        out.print(_pruned_line(spec, feed, states["pruned"]))
    for state in sorted(set(states) - {"ok", "pruned"}):
        theirs = (row for t, rows in known.items() if feed.results[t].state == state for row in rows)
        why = next((f", such as: {one_line(row['error'])}" for row in theirs if row["error"]), "")
        what = f"{counted(states[state], 'trial')} ended as {state}: see the column `error`{why}"
        out.print(what, style="yellow")
    _print_dead_warmups(feed, known, out)
    if rows:
        out.print(f"full table: {store.folder.name('pareto.parquet')}; rows: {store.folder.name('trials')}")
        if PAGE in store.folder.files():
            out.print(f"report: {store.folder.name(PAGE)}")
    if error:
        raise error
    if feed.left:
        why = f"stopped by {signal.Signals(stopped).name}" if stopped else "ended early"
        if spec.run.time_budget_s and not stopped:
            why = "the time budget is spent"
        left = f"{feed.left} of {counted(feed.total, 'trial')} left to do"
        out.print(f"{why}: {left}; the same command goes on from here")
        return 128 + stopped if stopped else FAILED_TRIALS
    return DONE if set(states) <= FINAL else FAILED_TRIALS


def _pruned_line(spec: Spec, feed: Feed, pruned: int) -> str:
    """How much was stopped early, and the QAT epochs that this saved."""
    planned = spec.train.qat.epochs * len(feed.results)
    spared = sum(spec.train.qat.epochs - len(r.curve) for r in feed.results.values() if r.state == "pruned")
    rule = f"{counted(pruned, 'trial')} stopped early by {spec.early_terminate.type}"
    return f"{rule}: {(spared - feed.twice) / planned:.0%} of all QAT epochs saved; see the column `pruned_by`"


def _print_dead_warmups(feed: Feed, known: Rows, out: Any) -> None:
    dead = {
        configuration(feed.results[trial_id].trial)
        for trial_id, rows in known.items()
        if any(row["state"] in ("ok", "pruned") and row["error"] for row in rows)
    }
    if dead:
        out.print(
            f"{counted(len(dead), 'configuration')} started from a warm-up that ended at chance: see `error`",
            style="yellow",
        )
