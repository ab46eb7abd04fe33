"""The Ray Tune trainable: one configuration in, one report per epoch out.

A trial needs no checkpoint and no file system shared with others: it is short, so a lost one starts again, and its
rows travel to the driver inside its last report. The driver, which trains nothing, imports this file, too: torch is
imported where a trial starts.
"""

from __future__ import annotations

import faulthandler
import os
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory

from qdtune import plugins
from qdtune.datasets.load import Samples
from qdtune.messages import printable
from qdtune.spec.axes import label
from qdtune.spec.plan import make_trial
from qdtune.spec.sweep_file import Spec
from qdtune.sweep.placement import MEMORY_SHARE, Placement

if TYPE_CHECKING:
    from qdtune.training.cohort import Tensors


POLL_S = 0.2  # between two questions whether somebody else's warm-up is ready
GRACE_S = 10.0  # a trial over its time may end its epoch within this, and then ends by itself


class SharedWarmups:
    """The sweep's `WarmupFolder` as one trial sees it: a claim waits while another trial trains."""

    def __init__(self, folder: Any, holder: str, alive: Callable[[], None]) -> None:
        self.folder, self.holder, self.alive, self.waited_s = folder, holder, alive, 0.0

    def claim(self, key: str) -> bytes | None:
        while True:
            answer, blob = ray.get(self.folder.claim.remote(key, self.holder))
            if answer != "wait":
                return blob
            time.sleep(POLL_S)
            self.waited_s += POLL_S
            self.alive()

    def keep(self, key: str, blob: bytes) -> None:
        ray.get(self.folder.keep.remote(key, blob))


class QATTrial(tune.Trainable):
    """Trains the configuration in its config, the axes by name, and reports every epoch.

    `seeds` in the config are taken instead of the sweep's own; with `alone` it may fill all memory of its GPU. The
    folder `stacks`, where there is one, gets a file TRIAL_ID with the stack of a trial that fell silent.

    A report is what `train.train_configuration` yields; where training raised, `state` and `error` instead, because
    Ray may retry a lost worker but must not retry a mistake.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters gives the rest
        self,
        config: dict[str, Any],
        *,
        spec: Spec,
        data: Samples,
        warmups: Any,
        cpu: float,
        gpu: float,
        stacks: str = "",
        grant: plugins.Grant = plugins.NOTHING,
    ) -> None:
        plugins.allow(grant)
        # Ray also sets up actors that a reused one has already replaced: nothing heavy may happen here.
        self._spec, self._data, self._folder, self._cpu, self._gpu = spec, data, warmups, cpu, gpu
        self._tensors: Tensors | None = None
        self._reports: Iterator[dict[str, Any]] | None = None
        self._began, self._stacks = 0.0, stacks
        self._stack: int | None = None  # the file for it, open while it may have to be written
        self._warmups = SharedWarmups(warmups, "", self._watch)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._reports = None
        return True

    def step(self) -> dict[str, Any]:
        try:
            if self._reports is None:
                self._began = time.monotonic()
                self._reports = self._start()
            self._watch()
            self._show()
            report = next(self._reports)
        except Exception as error:  # the boundary between a trial and its sweep: the rest goes on
            return self._ended(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
            if self._stack is not None:
                os.close(self._stack)
                self._stack = None
        limit = self._spec.run.trial_timeout_s
        if "done" not in report and limit is not None and self._taken() > limit:
            return {"state": "timeout", "error": over_time(limit), "done": True}
        return {"done": False, "node": ray.get_runtime_context().get_node_id()} | report | self._gpu_memory()

    def _gpu_memory(self) -> dict[str, float]:
        if self._tensors is None:
            return {}
        from qdtune.training.device import memory_peak

        return memory_peak(self._tensors.train_x.device)

    def _taken(self) -> float:
        """Seconds since it began, without those in which it waited for another trial."""
        return time.monotonic() - self._began - self._warmups.waited_s

    def _watch(self) -> None:
        """Ends this process if it neither reports nor waits for too long, even where Python is stuck in C.

        The driver sees a lost worker and the time that has passed; where on its machine, also the stack.
        """
        run = self._spec.run
        limits = [run.stall_timeout_s] if run.stall_timeout_s is not None else []
        if run.trial_timeout_s is not None:
            limits.append(max(0.0, run.trial_timeout_s - self._taken()) + GRACE_S)
        if limits:
            if self._stack is None:
                here = os.path.isdir(self._stacks)
                path = os.path.join(self._stacks, self.config.get("trial_id", "trial")) if here else os.devnull
                self._stack = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            faulthandler.dump_traceback_later(min(limits), exit=True, file=self._stack)

    def _ended(self, error: BaseException) -> dict[str, Any]:
        from qdtune.training.device import free_memory, is_out_of_memory

        traceback.print_exception(error)
        self._reports = None
        chain = [error]
        while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
            chain.append(before)
        for e in chain:
            e.__traceback__ = None  # its frames hold tensors, too
        free_memory()
        return {
            "state": "oom" if is_out_of_memory(chain) else "failed",
            "error": f"{type(error).__name__}: {' '.join(printable(str(error)).split())}"[:500],
            "done": True,
        }

    def _start(self) -> Iterator[dict[str, Any]]:
        from qdtune.training.cohort import Tensors
        from qdtune.training.device import cap_memory, choose_device, set_threads
        from qdtune.training.train import train_configuration

        set_threads(self._cpu)
        if self._tensors is None:
            self._tensors = Tensors.of(self._data, choose_device(self._gpu))
        if self._gpu < 1:
            share = 1.0 if self.config.get("alone") else MEMORY_SHARE * self._gpu
            cap_memory(self._tensors.train_x.device, share)
        seeds = self.config.get("seeds")
        trial = make_trial(self._spec, self.config, None if seeds is None else tuple(seeds))
        self._warmups = SharedWarmups(self._folder, trial.trial_id, self._watch)
        return train_configuration(trial, self._tensors, self._warmups, self._spec.run.compile)

    def __repr__(self) -> str:
        """What the Ray dashboard calls this actor for as long as it lives: Ray asks once, when it is made."""
        return f"QATTrial(first {label(self.config)})"

    def _show(self) -> None:
        """Names this process by the configuration that it trains now, until Ray takes the method's name again.

        The page Cluster of the dashboard shows it, as `ps` does; an actor trains one after the other.
        """
        if ray.get_runtime_context().get_actor_id() is not None:  # not a driver, which is somebody else's
            ray._raylet.setproctitle(f"ray::QATTrial({label(self.config)})")  # type: ignore[attr-defined]


def over_time(limit: float) -> str:
    """What a trial that took longer than `limit` seconds is told to have ended with."""
    return f"not finished after {limit:g} s (run.trial_timeout_s)"


def trainable(place: Placement, **parameters: Any) -> type[tune.Trainable]:
    """`QATTrial` with its parameters in the object store, once per node, and with its share of a machine.

    Args:
        place: the CPUs and the fraction of a GPU that each trial gets.
        parameters: `spec`, `data`, `warmups`, `stacks` and `grant` of `QATTrial.setup`.
    """
    return sized(tune.with_parameters(QATTrial, cpu=place.cpu, gpu=place.gpu, **parameters), place)


def sized(kind: type[tune.Trainable], place: Placement) -> type[tune.Trainable]:
    """The trainable with its share of a machine; not `tune.with_resources`, which renames it in the dashboard."""
    bundle = {"CPU": place.cpu} | ({"GPU": place.gpu} if place.gpu else {})

    def default_resource_request(cls: type[tune.Trainable], config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([bundle])

    kind.__qualname__ = kind.__name__  # which process titles show
    kind.default_resource_request = classmethod(default_resource_request)  # type: ignore[assignment]
    return kind
