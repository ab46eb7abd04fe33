"""One launch: it opens the run folder, trains what is left, and prints the table.

It reports a finished sweep from its files alone, and imports Ray only if something is left to train.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from qdtune import plugins
from qdtune.datasets.load import Samples
from qdtune.machine import PASSING_SIGNALS, handle_signals
from qdtune.messages import name_option, one_line
from qdtune.spec.groups import Resources
from qdtune.store.folder import StorageError
from qdtune.store.releases import shares_to_reach
from qdtune.store.store import Store
from qdtune.sweep.cluster import Cluster, RayAt, connect
from qdtune.sweep.held_run import JOURNAL, HeldRun, hold_run
from qdtune.sweep.pace import Start
from qdtune.sweep.placement import check_fits
from qdtune.sweep.prepare import read_data
from qdtune.sweep.prepared import Prepared
from qdtune.sweep.resumed import find_start
from qdtune.sweep.summary import announce, print_summary
from qdtune.terminal import console

Drawing = Callable[[Any, Any], AbstractContextManager[Callable[[], None]]]


def run_sweep(prepared: Prepared, *, ray_at: RayAt, drawing: Drawing) -> int:
    """Runs or finishes a sweep and prints its front; returns the exit code: 0, 3, 4, or 128 + a signal's number.

    Args:
        prepared: the launch.
        ray_at: the Ray cluster to run on.
        drawing: given the run folder and a console, keeps the report page up to date during training.

    Raises:
        SpecError, DataError, LocationError, NoClusterError, RunInUse: what the user has to mend; nothing was started.
        StorageError: the run folder cannot be written.
    """
    early: list[int] = []
    join = partial(_join, ray_at, prepared.spec.resources)
    try:
        with _until_the_sweep(early):
            if ray_at.address is None:
                return _run(prepared, join, drawing, early)
            with join(0) as cluster:  # first, because the cluster may be too small or have another version
                return _run(prepared, lambda _: nullcontext(cluster), drawing, early)
    except SystemExit:  # our early handler and Ray's answer a signal with it
        number = early[0] if early else signal.SIGTERM
        print(f"stopped by {signal.Signals(number).name}; the same command goes on from here", file=sys.stderr)
        return 128 + number


@contextmanager
def _join(ray_at: RayAt, resources: Resources, data_bytes: int) -> Iterator[Cluster]:
    """A cluster with room for at least one trial, within a `with` block."""
    with connect(ray_at, data_bytes) as cluster:
        check_fits(resources, cluster.nodes)
        yield cluster


@contextmanager
def _until_the_sweep(early: list[int]) -> Iterator[None]:
    """Signals that stop a sweep end the preparation; `early` notes them because Ray can swallow the exception."""

    def handle(number: int, frame: Any) -> None:
        if early and number in PASSING_SIGNALS:
            return
        early.append(number)
        raise SystemExit(128 + number)

    with handle_signals(handle):
        yield


def _run(prepared: Prepared, join: Any, drawing: Drawing, early: list[int]) -> int:
    """As `run_sweep`, with `join` as `driver.run_trials` takes it."""
    out = console()
    prepared, data, notes = read_data(prepared, out)
    for source in plugins.sources():
        out.print(one_line(f"plugin {source.module}: {source.path}, sha256 {source.sha256}"))
    os.umask(0o077)  # what is made from here on, by Ray and its workers too, is for the user alone
    store = Store(prepared.folder)
    if prepared.options.is_fresh and (aside := store.set_aside()):
        out.print(f"{name_option('--fresh')}: what was in {store.folder} is now in {aside}")
    with store.lock(), store.workspace() as work:
        run = hold_run(prepared.spec, prepared.plan, store, work, out)
        try:
            has_more = run.queue.more()
            start = find_start(run)
            announce(prepared.spec, data, prepared.plan, run.queue, start, notes, out)
            for line in prepared.notes:
                out.print(line)
            stopped, error = _train(run, start, data, join, drawing, early, out) if has_more else (None, None)
            if error is None and not run.queue.left:
                run.queue.more()  # stopped as the last one ended, it may have more to do all the same
        finally:
            with suppress(StorageError):  # which is told already
                run.queue.study.close()
                store.keep(work / JOURNAL)
        shares = shares_to_reach(prepared.spec, run.queue.results.values())
        table = store.write_pareto(list(run.queue.results), shares, prepared.spec)
        store.pack_files()
        if prepared.front_notes and not has_more:  # nothing was trained, so nobody has drawn the other front
            with drawing(store.folder.where, out):
                pass
    return print_summary(run, table, stopped, error, out)


def _train(
    run: HeldRun, start: Start, data: Samples, join: Any, drawing: Drawing, early: list[int], out: Any
) -> tuple[int | None, StorageError | None]:
    """Trains what is left while the page is drawn; as `driver.run_trials`."""
    from qdtune.sweep.driver import run_trials  # Ray: a sweep that is finished answers without it

    try:
        with drawing(run.store.folder.where, out) as finish_page:
            return run_trials(run, start, data, join, early, out, finish_page)
    except SystemExit:
        return (early[0] if early else signal.SIGTERM), None
