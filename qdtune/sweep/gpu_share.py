"""`resources: {gpu: auto}`: the share of a GPU that a trial gets, measured on a GPU of its own before the sweep."""

from __future__ import annotations

from typing import Any

import ray

from qdtune import plugins
from qdtune.datasets.load import Samples
from qdtune.search.queue import Queue
from qdtune.spec.groups import Resources
from qdtune.spec.sweep_file import Spec
from qdtune.sweep.cluster import Cluster
from qdtune.sweep.placement import Need

PROBE_S = 300.0  # how long a GPU of its own is waited for, and its measurement


def measure_share(
    spec: Spec, cluster: Cluster, data: Samples, queue: Queue, stopped: list[int], out: Any
) -> Resources:
    """The resources with the share of a GPU that the largest trial was found to take; a whole one if that fails.

    Args:
        spec: resolved; its share is `auto`.
        cluster: with a GPU.
        data: what to train on.
        queue: the trials.
        stopped: the signals received so far; the first one ends the measurement.
        out: where to say what was found.
    """
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
    return spec.resources.model_copy(update={"gpu": gpu})


class _Probe:
    """A process of its own to call something in."""

    def __init__(self, grant: plugins.Grant) -> None:
        plugins.allow(grant)

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


def _measure(*arguments: Any) -> dict[str, float]:
    from qdtune.training.gpu_need import measure  # torch

    return measure(*arguments)
