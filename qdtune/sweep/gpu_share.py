"""`resources: {gpu: auto}`: before the sweep, one trial runs alone on a GPU to measure the share that trials need."""

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

PROBE_S = 300.0  # the longest time to wait for a free GPU and the measurement


def measure_share(
    spec: Spec, cluster: Cluster, data: Samples, queue: Queue, stopped: list[int], out: Any
) -> Resources:
    """The resources with the share of a GPU that the largest trial needs; a whole GPU if it cannot be measured.

    Args:
        spec: resolved; its share is `auto`.
        cluster: with a GPU.
        data: what to train on.
        queue: the trials.
        stopped: the signals received so far; the first one ends the measurement.
        out: where to print the result.
    """
    trial = max(queue.planned, key=lambda t: (t.sizes.fp32_bytes, t.depth, t.act_bits or 0))
    out.print(f"gpu: auto: measuring {trial.label} ({trial.sizes.params:,} parameters) on a GPU of its own")
    # An actor can be killed at any moment; cancelling a task as it ends would abort the driver (Ray 2.60).
    probe: Any = ray.remote(_Probe).options(num_gpus=1, num_cpus=spec.resources.cpu).remote(plugins.current_grant())
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
        ray.kill(probe)  # frees the GPU for the trials
    return spec.resources.model_copy(update={"gpu": gpu})


class _Probe:
    """A separate process to call a function in."""

    def __init__(self, grant: plugins.Grant) -> None:
        plugins.allow(grant)

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


def _measure(*arguments: Any) -> dict[str, float]:
    from qdtune.training.gpu_need import measure  # torch

    return measure(*arguments)
