"""The sweep itself: what the store does not hold yet is trained by Ray Tune, and every result goes into the store.

Tune places trials and keeps them alive; it does not own the results. Each launch builds a fresh `Tuner` over the
configurations that are missing, so that the same command finishes an interrupted sweep.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdtune import data as data_sets
from qdtune.cluster import Cluster, connect
from qdtune.plan import Placement, check_comparable, has_compiler, placement, plan
from qdtune.progress import SweepProgress, console, counted, front_table
from qdtune.recorder import Recorder
from qdtune.rules import mistake
from qdtune.schema import text_of
from qdtune.spec import Spec, Trial
from qdtune.store import StorageError, Store
from qdtune.tables import table_front
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


class PlanSearcher(Searcher):
    """Suggests the configurations of a plan in their order; what is excluded or done never costs a trial."""

    def __init__(self, trials: list[Trial]) -> None:
        super().__init__()
        self.trials = list(reversed(trials))

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True  # the space was expanded by the plan

    def suggest(self, trial_id: str) -> Any:
        if not self.trials:
            return Searcher.FINISHED
        trial = self.trials.pop()
        return trial.config | {"trial_id": trial.trial_id}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # a resume is planned from the store

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a sweep is resumed by launching it again")


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
        done = store.done()
        pending = [trial for trial in planned.trials if trial.trial_id not in done]
        for line in store.damaged:
            out.print(f"damaged, runs again: {line}", style="yellow")
        size = f"{counted(len(planned.trials), 'configuration')} x {counted(len(spec.seeds), 'seed')} on {data.name}"
        samples = f"({len(data.train_x):,} training, {len(data.val_x):,} validation samples)"
        out.print(f"{spec.name}: {size} {samples}; {len(planned.trials) - len(pending)} done before", style="bold")
        if pending and not has_compiler():
            out.print(
                "no C++ compiler here (g++, or what CXX names): training runs uncompiled, slowly",
                style="yellow",
            )
        for note in notes:
            out.print(f"WARNING: {note}", style="bold white on red")
        stopped, error = None, None
        if pending:
            stopped, error = _train(spec, data, planned.trials, pending, store, address, out)
        table = store.write_pareto([trial.trial_id for trial in planned.trials])
    return _report(spec, planned.trials, store, table, stopped, error, out)


def _train(
    spec: Spec, data: Any, trials: list[Trial], pending: list[Trial], store: Store, address: str | None, out: Any
) -> tuple[int | None, StorageError | None]:
    """Trains what is pending; the signal that stopped it, if any, and the storage error, if any."""
    data_bytes = sum(x.nbytes for x in (data.train_x, data.val_x, data.test_x))
    with connect(address, data_bytes) as cluster, _signals() as stopped, tempfile.TemporaryDirectory() as scratch:
        place = _place(spec, cluster, len(pending), out)
        warmups = _warmup_actor(store)
        varying = {axis for axis in spec.axes if len({trial.config[axis] for trial in trials}) > 1}
        missing = {trial.trial_id for trial in pending}
        known = store.trials([trial.trial_id for trial in trials if trial.trial_id not in missing])
        with SweepProgress(out, len(trials), len(trials) - len(pending), varying) as progress:
            recorder = Recorder(store, pending, progress, warmups, known, stopped)
            kind = trainable(place, spec=spec, data=data, warmups=warmups)
            if not stopped:
                _tune(spec, kind, pending, place, recorder, scratch)
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
        f"{trials} in {counted(place.waves(trials), 'wave')}"
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


def _tune(
    spec: Spec, kind: type[tune.Trainable], pending: list[Trial], place: Placement, recorder: Recorder, scratch: str
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what went wrong is told by the recorder, in a line
    # As many trials may be waiting as can run; Tune's own default for a searcher is one, which starts them in turn.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(place.concurrent)
    tuner = tune.Tuner(
        kind,
        param_space=param_space(spec),  # for what looks at a Tuner; the searcher suggests whole configurations
        tune_config=tune.TuneConfig(
            search_alg=PlanSearcher(pending),
            num_samples=len(pending),
            max_concurrent_trials=spec.run.max_concurrent_trials,
            time_budget_s=spec.run.time_budget_s,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial_id"],
            trial_dirname_creator=lambda trial: trial.config["trial_id"],
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
    trials: list[Trial],
    store: Store,
    table: pa.Table,
    stopped: int | None,
    error: StorageError | None,
    out: Any,
) -> int:
    """Prints the front, what went wrong and where the files are; the exit code."""
    rows = {row["trial_id"]: row for row in table.to_pylist()}
    states = [rows[trial.trial_id]["state"] if trial.trial_id in rows else "missing" for trial in trials]
    front = table_front(table)
    varying = {axis for axis in spec.axes if len({row[axis] for row in rows.values()}) > 1}
    out.print()
    if front.num_rows:
        title = f"Pareto front of {counted(states.count('ok'), 'configuration')} on {spec.data.dataset[0]}"
        out.print(front_table(front, varying, title))
        if len(spec.seeds) > 1:
            out.print("accuracy: mean of n seeds ± half of its 95 % interval (Student t)", style="dim")
    for state in sorted(set(states) - {"ok", "missing"}):
        n = counted(states.count(state), "configuration")
        out.print(f"{n} ended as {state}: see the column `error`", style="yellow")
    _print_dead_warmups(store, trials, out)
    if rows:
        out.print(f"full table: {store.root / 'pareto.parquet'}; rows: {store.root / 'trials'}")
    if error:
        raise error
    if missing := states.count("missing"):
        why = f"stopped by {signal.Signals(stopped).name}" if stopped else "ended early"
        if spec.run.time_budget_s and not stopped:
            why = "the time budget is spent"
        left = f"{missing} of {counted(len(trials), 'configuration')} left to do"
        out.print(f"{why}: {left}; the same command goes on from here")
        return 128 + stopped if stopped else FAILED_TRIALS
    return DONE if set(states) <= {"ok", "pruned", "diverged"} else FAILED_TRIALS


def _print_dead_warmups(store: Store, trials: list[Trial], out: Any) -> None:
    rows = store.trials([trial.trial_id for trial in trials]).to_pylist()
    dead = {row["trial_id"] for row in rows if row["state"] == "ok" and row["error"]}
    if dead:
        out.print(
            f"{counted(len(dead), 'configuration')} started from a warm-up that ended at chance: see `error`",
            style="yellow",
        )
