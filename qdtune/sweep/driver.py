"""The sweep on Ray Tune: it trains the trials of the queue and hands every result to the recorder.

Tune places trials and keeps them alive, but the store owns the results. Each launch builds a new `Tuner` over the
missing configurations, so that the same command finishes an interrupted sweep.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdtune import plugins
from qdtune.datasets.load import Samples
from qdtune.machine import own_folder
from qdtune.messages import format_count
from qdtune.search.queue import Queue
from qdtune.spec.axes import find_varying
from qdtune.spec.choices import PLANNED
from qdtune.spec.sweep_file import Spec
from qdtune.store.folder import StorageError
from qdtune.store.store import Store
from qdtune.sweep.cluster import Cluster, nodes_now
from qdtune.sweep.gpu_share import measure_share
from qdtune.sweep.held_run import HeldRun
from qdtune.sweep.kept_files import KeptFiles
from qdtune.sweep.loggers import sweep_loggers
from qdtune.sweep.pace import Start
from qdtune.sweep.placement import Node, Placement, place_trials
from qdtune.sweep.progress import SweepProgress
from qdtune.sweep.ray_hooks import PruningScheduler, QueueSearcher
from qdtune.sweep.recorder import Recorder
from qdtune.sweep.search_space import param_space
from qdtune.sweep.trainable import make_trainable
from qdtune.sweep.watches import NodeWatch, note_signals, watch_head

Connect = Callable[[int], AbstractContextManager[Cluster]]


def run_trials(
    run: HeldRun,
    start: Start,
    data: Samples,
    connect: Connect,
    stopped: list[int],
    out: Any,
    on_end: Callable[[], None] = lambda: None,
) -> tuple[int | None, StorageError | None]:
    """Trains the trials of the queue; returns the signal that stopped it and the storage error, None if none.

    Args:
        run: the run folder; later rows are added to `known`.
        start: what it holds.
        data: to train on.
        connect: joins the cluster, given the bytes of the data; it has room for at least one trial.
        stopped: the signals received so far; later signals are added, and the first one ends the sweep.
        out: where to print progress.
        on_end: called when the last result is stored, before Ray stops, which takes a second or two.

    Raises:
        SpecError: a trial asks for more than the cluster has.
        NoClusterError: no cluster answers.
    """
    spec, queue, store, known = run.spec, run.queue, run.store, run.known
    data_bytes = sum(x.nbytes for x in (data.train_x, data.val_x, data.test_x))
    with connect(data_bytes) as cluster, note_signals(stopped), own_folder() as scratch:
        place, nodes = decide_placement(spec, cluster, data, queue, stopped, out)
        _announce_placement(place, cluster, queue.left, out)
        files = _start_files_actor(store)
        # A launch that was killed may have stored a result and left the checkpoint.
        files.forget_paused.remote([i for i, result in queue.results.items() if result.state in ("ok", "diverged")])
        epochs = {"warmup": spec.train.warmup.epochs, "qat": spec.train.qat.epochs}
        with (
            SweepProgress(out, queue.total, start, _find_varying(spec, queue), epochs, spec.metric) as progress,
            sweep_loggers(spec, store, stopped, out) as loggers,
        ):
            recorder = Recorder(queue, store, progress, files, known, stopped, Path(scratch), loggers, files)
            recorder.metrics.granted(place.gpu)
            grant = plugins.current_grant()
            given = {"spec": spec, "data": data, "warmups": files, "paused": files, "stacks": scratch}
            kind = make_trainable(place, **given, grant=grant)
            with watch_head(stopped):
                if not stopped:
                    _tune(spec, kind, place, recorder, scratch, NodeWatch(nodes, place, _most(spec, place), out))
            recorder.close()
        on_end()
        return (stopped[0] if stopped else None), recorder.error


def _find_varying(spec: Spec, queue: Queue) -> frozenset[str]:
    """The axes that tell trials apart."""
    if spec.method in PLANNED:
        return find_varying(trial.cells for trial in queue.planned)
    return frozenset(name for name, axis in spec.axes.items() if axis.choices is None or len(axis.choices) > 1)


def decide_placement(
    spec: Spec, cluster: Cluster, data: Samples, queue: Queue, stopped: list[int], out: Any
) -> tuple[Placement, dict[str, Node]]:
    """How trials share the cluster, and its nodes; measures `gpu: auto` first."""
    resources = spec.resources
    if resources.gpu == "auto" and any(node.gpus for node in cluster.nodes):
        resources = measure_share(spec, cluster, data, queue, stopped, out)
    nodes = nodes_now()  # the cluster may have grown since the driver joined
    return place_trials(resources, list(nodes.values()), spec.run.max_concurrent_trials), nodes


def _announce_placement(place: Placement, cluster: Cluster, trials: int, out: Any) -> None:
    """Prints how many trials run at once, and the dashboard's URL."""
    for note in (*cluster.notes, *place.notes):
        out.print(note, style="yellow")
    share = f"{place.gpu:g} GPU and {place.cpu:g} CPU" if place.gpu else f"{place.cpu:g} CPU"
    out.print(
        f"{format_count(place.concurrent, 'trial')} at a time, {share} each: "
        f"{trials} left in {format_count(place.waves(trials), 'wave')}"
    )
    if cluster.dashboard:
        token = os.environ.get("RAY_AUTH_TOKEN_PATH")
        out.print(f"Ray dashboard: {cluster.dashboard}" + (f" (its token is in {token})" if token else ""))


def _start_files_actor(store: Store) -> Any:
    """The actor of `KeptFiles`; it runs on this node, where the run folder is, and restarts if lost."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(KeptFiles).options(**options).remote(store.folder.where)


def _most(spec: Spec, place: Placement) -> int | None:
    """The most trials at a time, None for no limit; a search has a limit so that it learns from the first results."""
    return spec.run.max_concurrent_trials if spec.method in PLANNED else place.concurrent


def _tune(
    spec: Spec,
    kind: type[tune.Trainable],
    place: Placement,
    recorder: Recorder,
    scratch: str,
    *watching: tune.Callback,
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the recorder prints errors, in one line each
    # Tune counts callbacks for its statistics, which are off. For that it imports MLflow and W&B, a second or two.
    with suppress(ImportError):  # it is Ray's own module, which another version may not have
        from ray.air._internal import usage

        usage.tag_callbacks = lambda callbacks: False
    # Let as many trials wait as can run. With a searcher Tune's default is one, which starts trials one by one.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(place.concurrent)
    tuner = tune.Tuner(
        kind,
        param_space=param_space(spec),
        tune_config=tune.TuneConfig(
            search_alg=QueueSearcher(recorder),
            scheduler=PruningScheduler(recorder),
            num_samples=-1,  # until the searcher has no more trials
            max_concurrent_trials=_most(spec, place),
            time_budget_s=spec.run.time_budget_s,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial_id"],
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=spec.name,
            storage_path=scratch,  # Tune's own state, deleted after the sweep
            callbacks=[recorder, *watching],
            failure_config=tune.FailureConfig(max_failures=spec.run.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()
