"""The sweep itself: what the store does not hold yet is trained by Ray Tune, and every result goes into the store.

Tune places trials and keeps them alive; it does not own the results. Each launch builds a fresh `Tuner` over the
configurations that are missing, so that the same command finishes an interrupted sweep.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdtune import data as data_sets
from qdtune.cluster import Cluster, connect
from qdtune.compiled import has_compiler
from qdtune.feed import Feed
from qdtune.names import PLANNED, text_of
from qdtune.placement import Placement, placement
from qdtune.plan import Plan, check_comparable, plan
from qdtune.progress import SweepProgress, console, counted, front_table
from qdtune.recorder import FeedSearcher, PruningScheduler, Recorder, Rows
from qdtune.results import results
from qdtune.rules import mistake
from qdtune.spec import Spec
from qdtune.store import StorageError, Store
from qdtune.study import Study, configuration
from qdtune.tables import FINAL, TRIALS, table_front
from qdtune.trial import trainable
from qdtune.warmups import WarmupFolder

DONE, FAILED_TRIALS, STORAGE = 0, 3, 4  # exit codes; 130 and 143 after a signal


def param_space(spec: Spec) -> dict[str, Any]:
    """The sweep as a Ray Tune search space: one domain per axis, usable with any `Tuner` over `QATTrial`."""
    space: dict[str, Any] = {}
    for name, axis in spec.axes.items():
        values = axis.choices
        if values is not None and name == "hidden":
            values = tuple(text_of(widths) for widths in values)
        if values is None:
            uniform = {"uniform": tune.uniform, "log_uniform": tune.loguniform}[axis.distribution]  # type: ignore[attr-defined]
            space[name] = uniform(axis.min, axis.max)  # type: ignore[attr-defined]
        elif len(values) == 1:
            space[name] = values[0]
        else:
            space[name] = tune.grid_search(list(values)) if spec.method == "grid" else tune.choice(list(values))
    return space


def run(spec: Spec, *, runs_dir: Path, data_dir: Path, address: str | None, fresh: bool) -> int:
    """Runs, or finishes, a sweep and prints its front; the exit code of design: 0, 3, 4, 130 or 143.

    Args:
        spec: as loaded; the first of its data sets that can be had is used.
        runs_dir: the run folder is made in it, under the sweep's name.
        data_dir: where data sets lie or are downloaded to.
        address: of a running Ray cluster; None starts one here.
        fresh: set what an earlier launch left aside and start anew.

    Raises:
        SpecError, DataError, RunInUse: what the user has to mend; nothing was started.
        StorageError: the run folder cannot be written.
    """
    out = console()
    for name in spec.data.dataset[:1]:
        if not data_sets.on_disk(name, data_dir):
            out.print(f"{name} is not in {data_dir}: downloading it")
    data, notes = data_sets.load(spec.data.dataset, data_dir, lambda name: spec.resolve(name).data.val_size)
    spec = spec.resolve(data.name)
    planned = plan(spec)
    store = Store(runs_dir / spec.name)
    if not fresh:
        check_comparable(spec, store.root)
    elif aside := store.set_aside():
        out.print(f"--fresh: what was in {store.root} is now in {aside}")
    with store.lock():
        store.create(spec.to_yaml())
        rows, damaged = store.trials(), list(store.damaged)
        history = store.history()
        for line in damaged + store.damaged:
            out.print(f"damaged, runs again: {line}", style="yellow")
        earlier = results(spec, rows, history)
        feed = Feed(spec, planned.trials, Study(spec, store.root / "study.journal"), earlier)
        known: Rows = {}
        for row in rows.select(TRIALS.names).to_pylist():
            if row["trial_id"] in feed.results:
                known.setdefault(row["trial_id"], []).append(row)
        stopped, error = None, None
        try:
            more = feed.more()
            _announce(spec, data, planned, feed, notes, out)
            if more:
                stopped, error = _train(spec, data, feed, store, known, address, out)
            if error is None and not feed.left:
                feed.more()  # stopped as the last one ended, it may have more to do all the same
        finally:
            with suppress(StorageError):  # which is told already
                feed.study.close()
        table = store.write_pareto(list(feed.results))
    return _report(spec, feed, store, known, table, stopped, error, out)


def _announce(spec: Spec, data: Any, planned: Plan, feed: Feed, notes: list[str], out: Any) -> None:
    """Says what is going to be trained, and what is not as it should be."""
    count = (spec.run_cap or 0) if feed.searching else len(planned.trials)
    size = f"{counted(count, 'configuration')} x {counted(len(spec.seeds), 'seed')} on {data.name}"
    samples = f"({len(data.train_x):,} training, {len(data.val_x):,} validation samples)"
    done = f"{feed.total - feed.left} done before" if feed.left else "all done before"
    out.print(f"{spec.name}: {size} {samples}; {done}", style="bold")
    if feed.left and not has_compiler():
        out.print("no C++ compiler here (g++, or what CXX names): training runs uncompiled, slowly", style="yellow")
    for note in notes:
        out.print(f"WARNING: {note}", style="bold white on red")


def _train(
    spec: Spec, data: Any, feed: Feed, store: Store, known: Rows, address: str | None, out: Any
) -> tuple[int | None, StorageError | None]:
    """Trains what the feed gives; the signal that stopped it, if any, and the storage error, if any."""
    data_bytes = sum(x.nbytes for x in (data.train_x, data.val_x, data.test_x))
    with connect(address, data_bytes) as cluster, _signals() as stopped, tempfile.TemporaryDirectory() as scratch:
        place = _place(spec, cluster, feed.left, out)
        warmups = _warmup_actor(store)
        varying = {name for name, axis in spec.axes.items() if axis.choices is None or len(axis.choices) > 1}
        with SweepProgress(out, feed.total, feed.total - feed.left, varying) as progress:
            recorder = Recorder(feed, store, progress, warmups, known, stopped)
            kind = trainable(place, spec=spec, data=data, warmups=warmups)
            if not stopped:
                _tune(spec, kind, place, recorder, scratch)
        return (stopped[0] if stopped else None), recorder.error


def _place(spec: Spec, cluster: Cluster, trials: int, out: Any) -> Placement:
    """How many trials run at once, and where to look: printed before anything runs."""
    for kind, asked, there in (
        ("cpu", spec.resources.cpu, cluster.node_cpus),
        ("gpu", spec.resources.gpu if cluster.node_gpus else 0, cluster.node_gpus),
    ):
        if asked > there:
            raise mistake(f"{asked:g} {kind.upper()}s per trial asked, largest node has {there}", "resources", kind)
    place = placement(spec.resources, cluster.cpus, cluster.gpus, spec.run.max_concurrent_trials)
    for note in place.notes:
        out.print(note, style="yellow")
    share = f"{place.gpu:g} GPU and {place.cpu:g} CPU" if place.gpu else f"{place.cpu:g} CPU"
    out.print(
        f"{counted(place.concurrent, 'trial')} at a time, {share} each: "
        f"{trials} left in {counted(place.waves(trials), 'wave')}"
    )
    if cluster.dashboard:
        token = os.environ.get("RAY_AUTH_TOKEN_PATH")
        out.print(f"Ray dashboard: {cluster.dashboard}" + (f" (its token is in {token})" if token else ""))
    return place


def _warmup_actor(store: Store) -> Any:
    """The actor that keeps the warm-ups, on this node, where the run folder is; started again if it is lost."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(WarmupFolder).options(**options).remote(str((store.root / "warmup").resolve()))


def _tune(spec: Spec, kind: type[tune.Trainable], place: Placement, recorder: Recorder, scratch: str) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what went wrong is told by the recorder, in a line
    # As many trials may be waiting as can run; Tune's own default for a searcher is one, which starts them in turn.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(place.concurrent)
    # A search shall know what came out when it chooses: there, nothing waits.
    searching = spec.method not in PLANNED
    tuner = tune.Tuner(
        kind,
        param_space=param_space(spec),  # for what looks at a Tuner; the searcher suggests whole configurations
        tune_config=tune.TuneConfig(
            search_alg=FeedSearcher(recorder),
            scheduler=PruningScheduler(recorder),
            num_samples=-1,  # until the searcher has no more
            max_concurrent_trials=place.concurrent if searching else spec.run.max_concurrent_trials,
            time_budget_s=spec.run.time_budget_s,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial_id"],
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=spec.name,
            storage_path=scratch,  # Tune's own state: thrown away with the sweep
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=spec.run.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the sweep in order, a second one at once; yields the signals received.

    To be entered after ray.init, which sets handlers of its own.
    """
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            os.write(2, b"\nstopped; the same command goes on from here\n")
            os._exit(128 + number)
        os.write(2, b"\nstopping in order, what is finished is kept (once more: stop at once)\n")

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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
        title = f"Pareto front of {counted(len(rows), 'configuration')} on {spec.data.dataset[0]}"
        out.print(front_table(front, varying, title))
        if max(row["n_seeds"] for row in front.to_pylist()) > 1:
            out.print("accuracy: mean of n seeds ± half of its 95 % interval (Student t)", style="dim")
    if states["pruned"] and spec.early_terminate.type != "none":  # else they are left to do
        out.print(_pruned_line(spec, feed, states["pruned"]))
    for state in sorted(set(states) - {"ok", "pruned"}):
        out.print(f"{counted(states[state], 'trial')} ended as {state}: see the column `error`", style="yellow")
    _print_dead_warmups(feed, known, out)
    if rows:
        out.print(f"full table: {store.root / 'pareto.parquet'}; rows: {store.root / 'trials'}")
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
        if any(row["state"] == "ok" and row["error"] for row in rows)
    }
    if dead:
        out.print(
            f"{counted(len(dead), 'configuration')} started from a warm-up that ended at chance: see `error`",
            style="yellow",
        )
