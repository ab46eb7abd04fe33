"""The sweep on Ray Tune: it trains what the queue gives, and every result goes to the recorder.

Tune places trials and keeps them alive; it does not own the results. Each launch builds a fresh `Tuner` over the
configurations that are missing, so that the same command finishes an interrupted sweep.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdtune import plugins
from qdtune.datasets.load import Samples
from qdtune.machine import handling, own_folder
from qdtune.messages import format_count
from qdtune.search.queue import Queue
from qdtune.spec.choices import PLANNED
from qdtune.spec.sweep_file import Spec
from qdtune.spec.values import cell_text
from qdtune.store.folder import StorageError, child
from qdtune.store.results import Rows
from qdtune.store.store import Store
from qdtune.store.warmups import WarmupFolder
from qdtune.sweep.cluster import Cluster, nodes_now
from qdtune.sweep.placement import Need, Node, Placement, placement
from qdtune.sweep.progress import SweepProgress
from qdtune.sweep.ray_hooks import PruningScheduler, QueueSearcher
from qdtune.sweep.recorder import Recorder
from qdtune.sweep.trainable import trainable

Connect = Callable[[int], AbstractContextManager[Cluster]]
BEAT_S, GONE_S = 1.0, 10.0  # how often Ray's head is looked for, and how long it may be silent
LOOK_S = 3.0  # between two looks at the nodes
PROBE_S = 300.0  # how long a GPU of its own is waited for, and its measurement


def param_space(spec: Spec) -> dict[str, Any]:
    """The sweep as a Ray Tune search space: one domain per axis, usable with any `Tuner` over `QATTrial`."""
    space: dict[str, Any] = {}
    for name, axis in spec.axes.items():
        values = axis.choices
        if values is not None:
            values = tuple(cell_text(value) if isinstance(value, tuple) else value for value in values)
        if values is None:
            uniform = {"uniform": tune.uniform, "log_uniform": tune.loguniform}[axis.distribution]  # type: ignore[attr-defined]
            space[name] = uniform(axis.min, axis.max)  # type: ignore[attr-defined]
        elif len(values) == 1:
            space[name] = values[0]
        else:
            space[name] = tune.grid_search(list(values)) if spec.method == "grid" else tune.choice(list(values))
    return space


def run_trials(
    spec: Spec,
    data: Samples,
    queue: Queue,
    store: Store,
    known: Rows,
    connect: Connect,
    stopped: list[int],
    out: Any,
) -> tuple[int | None, StorageError | None]:
    """Trains what the queue gives; the signal that stopped it, if any, and the storage error, if any.

    Args:
        spec: resolved.
        data: what to train on.
        queue: the trials.
        store: where results go.
        known: rows that are there; those of the results are added.
        connect: to the cluster to run on, given the size of the data.
        stopped: the signals received so far, to which later ones are added; the first one ends the sweep.
        out: where to say how it goes.

    Raises:
        SpecError: a trial asks for more than the cluster has.
        NoClusterError: no cluster answers.
    """
    over = threading.Event()
    data_bytes = sum(x.nbytes for x in (data.train_x, data.val_x, data.test_x))
    with connect(data_bytes) as cluster, _signals(stopped), own_folder() as scratch:
        placement(spec.resources, cluster.nodes)  # raises where no node has room for one
        if spec.resources.gpu == "auto" and any(node.gpus for node in cluster.nodes):
            spec = _measured(spec, cluster, data, queue, stopped, out)
        there = nodes_now()  # a cluster may have grown since it was joined
        place = _announce_placement(spec, replace(cluster, nodes=tuple(there.values())), queue.left, out)
        warmups = _warmup_actor(store)
        varying = {name for name, axis in spec.axes.items() if axis.choices is None or len(axis.choices) > 1}
        epochs = {"warmup": spec.train.warmup.epochs, "qat": spec.train.qat.epochs}
        with SweepProgress(out, queue.total, queue.total - queue.left, varying, epochs) as progress:
            recorder = Recorder(queue, store, progress, warmups, known, stopped, Path(scratch))
            recorder.metrics.granted(place.gpu)
            kind = trainable(place, spec=spec, data=data, warmups=warmups, stacks=scratch, grant=plugins.granted())
            watch = threading.Thread(target=_watch, args=(stopped, over), daemon=True)
            watch.start()
            try:
                if not stopped:
                    _tune(spec, kind, place, recorder, scratch, NodeWatch(there, place, _most(spec, place), out))
            finally:
                over.set()
            recorder.close()
        return (stopped[0] if stopped else None), recorder.error


def _measured(spec: Spec, cluster: Cluster, data: Samples, queue: Queue, stopped: list[int], out: Any) -> Spec:
    """The spec with the share of a GPU that the largest trial was found to take; a whole one if that fails."""
    trial = max(queue.planned, key=lambda t: (t.sizes.fp32_bytes, t.depth, t.act_bits or 0))
    out.print(f"gpu: auto: measuring {trial.label} ({trial.sizes.params:,} parameters) on a GPU of its own")
    # An actor, which can be killed at any moment: cancelling a task that is just ending aborts the driver (Ray 2.60).
    probe: Any = ray.remote(_Probe).options(num_gpus=1, num_cpus=spec.resources.cpu).remote(plugins.granted())
    answer = probe.call.remote(_measure, trial, data, spec.run.compile)
    gpu, waited = 1.0, 0.0
    while not stopped and waited < PROBE_S and not ray.wait([answer], timeout=1.0)[0]:
        waited += 1.0
    try:
        most = max(int(n.cpus / spec.resources.cpu / n.gpus) for n in cluster.nodes if n.gpus)
        need = Need(**ray.get(answer, timeout=0), most=most)
        out.print(str(need))
        gpu = need.gpu
    except ray.exceptions.GetTimeoutError:
        out.print(f"gpu: auto: no answer after {waited:.0f} s: a whole GPU for each trial", style="yellow")
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[-1]
        out.print(f"gpu: auto: it cannot be measured ({why}): a whole GPU for each trial", style="yellow")
    finally:
        ray.kill(probe)  # the GPU is the trials' now
    return spec.model_copy(update={"resources": spec.resources.model_copy(update={"gpu": gpu})})


class _Probe:
    """A process of its own to call something in."""

    def __init__(self, grant: plugins.Grant) -> None:
        plugins.allow(grant)

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


def _measure(*arguments: Any) -> dict[str, float]:
    from qdtune.training.gpu_need import measure  # torch

    return measure(*arguments)


def _announce_placement(spec: Spec, cluster: Cluster, trials: int, out: Any) -> Placement:
    """How many trials run at once, and where to look: printed before anything runs."""
    place = placement(spec.resources, cluster.nodes, spec.run.max_concurrent_trials)
    for note in place.notes:
        out.print(note, style="yellow")
    share = f"{place.gpu:g} GPU and {place.cpu:g} CPU" if place.gpu else f"{place.cpu:g} CPU"
    out.print(
        f"{format_count(place.concurrent, 'trial')} at a time, {share} each: "
        f"{trials} left in {format_count(place.waves(trials), 'wave')}"
    )
    if cluster.dashboard:
        token = os.environ.get("RAY_AUTH_TOKEN_PATH")
        out.print(f"Ray dashboard: {cluster.dashboard}" + (f" (its token is in {token})" if token else ""))
    return place


def _warmup_actor(store: Store) -> Any:
    """The actor that keeps the warm-ups, on this node, where the run folder is; started again if it is lost."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(WarmupFolder).options(**options).remote(child(store.folder.where, "warmup"))


def _most(spec: Spec, place: Placement) -> int | None:
    """How many trials may run at a time, None where nobody says; a search shall know what came out first."""
    return spec.run.max_concurrent_trials if spec.method in PLANNED else place.concurrent


def _tune(
    spec: Spec,
    kind: type[tune.Trainable],
    place: Placement,
    recorder: Recorder,
    scratch: str,
    *watching: tune.Callback,
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what went wrong is told by the recorder, in a line
    # As many trials may be waiting as can run; Tune's own default for a searcher is one, which starts them in turn.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(place.concurrent)
    tuner = tune.Tuner(
        kind,
        param_space=param_space(spec),  # for what looks at a Tuner; the searcher suggests whole configurations
        tune_config=tune.TuneConfig(
            search_alg=QueueSearcher(recorder),
            scheduler=PruningScheduler(recorder),
            num_samples=-1,  # until the searcher has no more
            max_concurrent_trials=_most(spec, place),
            time_budget_s=spec.run.time_budget_s,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial_id"],
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=spec.name,
            storage_path=scratch,  # Tune's own state: thrown away with the sweep
            callbacks=[recorder, *watching],
            failure_config=tune.FailureConfig(max_failures=spec.run.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()


class NodeWatch(tune.Callback):
    """Says in one line which nodes have left or joined, and how many trials run at a time now.

    Args:
        known: the nodes that were there, as `nodes_now` has them.
        place: what each trial holds.
        most: how many trials may run at a time, None for as many as there is room for.
        out: where to say it.
    """

    def __init__(self, known: dict[str, Node], place: Placement, most: int | None, out: Any) -> None:
        self.known, self.place, self.most, self.out = known, place, most, out
        self.looked_at = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as the recorder

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self.looked_at < LOOK_S:
            return
        before, self.known, self.looked_at = self.known, nodes_now(), time.monotonic()
        changes = [f"node {name} has left" for name in before if name not in self.known]
        changes += [f"node {name} has joined" for name in self.known if name not in before]
        if changes:
            n = self.place.at_once(list(self.known.values()))
            n = n if self.most is None else min(n, self.most)
            wait = "" if n else ", until a node has room for one"
            self.out.print(f"{', '.join(changes)}: {format_count(n, 'trial')} at a time now{wait}")


def _watch(stopped: list[int], over: threading.Event) -> None:
    """Ends the process where Ray's head is gone: Ray would wait for a minute, and then abort without a word.

    What is finished is stored, and the kernel frees the lock. A SIGTERM to the whole process group, as `timeout` or a
    batch system sends it, ends a local head, too.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    silent = 0.0
    while not over.wait(BEAT_S):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=BEAT_S).close()
        except OSError:
            silent += BEAT_S
        else:
            silent = 0.0
        if silent >= GONE_S:
            if stopped:
                _leave(f"stopped by {signal.Signals(stopped[0]).name}, which ended Ray, too", 128 + stopped[0])
            _leave("Ray's head is gone; what was finished is kept", 4)


def _leave(what: str, code: int) -> NoReturn:
    """Ends the process at once, with what it was and what to do."""
    cursor = "\x1b[?25h" if sys.stdout is not None and sys.stdout.isatty() else ""  # which the progress bar hides
    os.write(2, f"{cursor}\n{what}; the same command goes on from here\n".encode())
    os._exit(code)


@contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the sweep in order, a second one at once; they are noted in `received`.

    To be entered after ray.init, which sets handlers of its own.
    """

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            _leave("stopped", 128 + number)
        os.write(2, b"\nstopping in order, what is finished is kept (once more: stop at once)\n")

    with handling(handle):
        yield
