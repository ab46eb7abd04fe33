"""The Ray Tune trainable: one configuration in, one report per epoch out.

A trial needs no shared file system. Warm-ups and checkpoints lie with the driver, and its rows travel there inside
its last report. A lost trial goes on from its latest checkpoint, or starts again. torch is imported only when a trial
starts, because the driver imports this file too and trains nothing.
"""

from __future__ import annotations

import faulthandler
import math
import os
import time
import traceback
from collections.abc import Generator
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
from qdtune.store.results import mean
from qdtune.sweep.kept_files import SharedPaused, SharedWarmups
from qdtune.sweep.placement import MEMORY_SHARE, Placement
from qdtune.training.compile_watch import COMPILE_WATCH

if TYPE_CHECKING:
    from qdtune.training.paused import Checkpoints
    from qdtune.training.tensors import Tensors


GRACE_S = 10.0  # a trial over its time ends by itself if its epoch ends within these seconds; then it is killed


class QATTrial(tune.Trainable):
    """Trains the configuration in its config and reports every epoch.

    The config maps axis names to values. Its optional keys are `seeds`, which replace the seeds of the spec;
    `alone`, with which the trial may fill the memory of its GPU; and `trial_id`. A trial that hangs is killed and
    leaves its stack in the file TRIAL_ID of the folder `stacks`, if that folder exists.

    A report is what `train.train_configuration` yields, and two numbers for Tune's own schedulers and searchers:
    `qat_epoch`, which is 0 during the warm-up, and the mean over the seeds, such as `mean_val_accuracy`, which is NaN
    if a seed has diverged. If training raises, the report holds `state` and `error`, because Ray may retry a lost
    worker but not a mistake.
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
        paused: Any = None,
        stacks: str = "",
        grant: plugins.Grant = plugins.NO_GRANT,
    ) -> None:
        plugins.allow(grant)
        # Ray also sets up actors that a reused actor has already replaced, so nothing heavy may happen here.
        self._spec, self._data, self._folder, self._cpu, self._gpu = spec, data, warmups, cpu, gpu
        self._tensors: Tensors | None = None
        self._reports: Generator[dict[str, Any], None, None] | None = None
        self._paused = paused
        self._checkpoints: Checkpoints | None = None
        self._began, self._stacks = 0.0, stacks
        self._preparing_s = 0.0  # see `_count_preparing`
        self._stack: int | None = None  # the open file for the stack, only while an epoch runs
        self._warmups = SharedWarmups(warmups, "", self._watch)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._stop_training()
        return True

    def cleanup(self) -> None:
        self._stop_training()
        self._tensors = None

    def _stop_training(self) -> None:
        """Drops the training, finished or not, and its claim on a warm-up: a scheduler may stop it at any epoch."""
        if self._reports is not None:
            self._reports.close()  # keeps a checkpoint if the training may go on later
            self._reports = None
        self._warmups.release()

    def step(self) -> dict[str, Any]:
        try:
            if self._reports is None:
                self._began = time.monotonic()
                self._reports = self._start()
            self._watch()
            self._show()
            report = next(self._reports)
        except Exception as error:  # the boundary between a trial and its sweep: the other trials go on
            return self._end(self._describe_error(error))
        finally:
            faulthandler.cancel_dump_traceback_later()
            if self._stack is not None:
                os.close(self._stack)
                self._stack = None
        limit = self._spec.run.trial_timeout_s
        if "done" not in report and limit is not None and self._taken() > limit:
            return self._end({"state": "timeout", "error": describe_timeout(limit)})
        numbers = {
            "qat_epoch": report["epoch"] if report["phase"] == "qat" else 0,
            f"mean_{self._spec.metric.val}": mean(report.get(self._spec.metric.val, ())),
        }
        where = {"node": ray.get_runtime_context().get_node_id()}
        preparing = {"preparing_s": self._count_preparing()}
        return {"done": False} | where | numbers | report | preparing | self._gpu_memory() | self._notes()

    def _end(self, failure: dict[str, Any]) -> dict[str, Any]:
        """The last report of a trial that failed; Tune requires the metric in every report."""
        self._stop_training()
        return failure | {f"mean_{self._spec.metric.val}": math.nan, "done": True}

    def _notes(self) -> dict[str, str]:
        """What the user should know of this process: why its steps are not compiled although they should be."""
        from qdtune.training.compiled import why_eager

        why = why_eager()
        return {} if why is None else {"note": printable(why)}

    def _gpu_memory(self) -> dict[str, float]:
        if self._tensors is None:
            return {}
        from qdtune.training.device import memory_peak

        return memory_peak(self._tensors.train_x.device)

    def _count_preparing(self) -> float:
        """The seconds since the last report in which this process made steps or waited for another trial."""
        before, self._preparing_s = self._preparing_s, COMPILE_WATCH.seconds + self._warmups.waited_s
        return self._preparing_s - before

    def _report_preparing(self, text: str | None) -> None:
        """Tells the driver what this trial does instead of training; None: it trains."""
        if self._paused is not None:
            self._paused.set_preparing.remote(self.config.get("trial_id", self.trial_id), text)

    def _taken(self) -> float:
        """The seconds since the trial began, without those in which it waited for another trial."""
        return time.monotonic() - self._began - self._warmups.waited_s

    def _watch(self) -> None:
        """Kills this process if it hangs, even inside C code; each call restarts the clock.

        The driver then sees a lost worker and the time that has passed, and the stack if both share a machine.
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

    def _describe_error(self, error: BaseException) -> dict[str, Any]:
        """The state and the error in one line; frees the memory that the failed training holds."""
        from qdtune.training.device import free_memory, is_out_of_memory

        traceback.print_exception(error)
        self._reports = None
        chain = [error]
        while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
            chain.append(before)
        for e in chain:
            e.__traceback__ = None  # its frames hold tensors
        free_memory()
        return {
            "state": "oom" if is_out_of_memory(chain) else "failed",
            "error": f"{type(error).__name__}: {' '.join(printable(str(error)).split())}"[:500],
        }

    def _start(self) -> Generator[dict[str, Any], None, None]:
        from qdtune.training.device import cap_memory, choose_device, set_up_process
        from qdtune.training.paused import Checkpoints
        from qdtune.training.tensors import Tensors
        from qdtune.training.train import train_configuration

        set_up_process(self._cpu)
        if self._tensors is None:
            self._tensors = Tensors.of(self._data, choose_device(self._gpu))
        if self._gpu < 1:
            share = 1.0 if self.config.get("alone") else MEMORY_SHARE * self._gpu
            cap_memory(self._tensors.train_x.device, share)
        seeds = self.config.get("seeds")
        trial = make_trial(self._spec, self.config, None if seeds is None else tuple(seeds))
        # The sweep's recorder releases claims by the configuration's id. A search by hand gives no such id and may
        # try one configuration twice, so that there the holder is Tune's trial.
        holder = self.config.get("trial_id") or self.trial_id
        self._warmups = SharedWarmups(self._folder, holder, self._watch, self._report_preparing)
        COMPILE_WATCH.listener = lambda is_on: self._report_preparing("compiling" if is_on else None)
        self._preparing_s = COMPILE_WATCH.seconds
        if self._paused is not None and self._checkpoints is None:
            # Only with a risk a stopped trial is likely to be released.
            self._checkpoints = Checkpoints(SharedPaused(self._paused), self._spec.early_terminate.risk is not None)
        compile = self._spec.run.compile
        return train_configuration(trial, self._tensors, self._warmups, compile, None, self._checkpoints)

    def __repr__(self) -> str:
        """The name of this actor in the Ray dashboard; Ray reads it once, when the actor starts."""
        return f"QATTrial(first {label(self.config)})"

    def _show(self) -> None:
        """Names this process by the configuration that it trains now; Ray renames it after each step.

        An actor trains one configuration after another. The Cluster page of the dashboard and `ps` show the name.
        """
        if ray.get_runtime_context().get_actor_id() is not None:  # a driver is the user's process: keep its name
            ray._raylet.setproctitle(f"ray::QATTrial({label(self.config)})")  # type: ignore[attr-defined]


def describe_timeout(limit: float) -> str:
    """The error of a trial that took longer than `limit` seconds."""
    return f"not finished after {limit:g} s (run.trial_timeout_s)"


def make_trainable(place: Placement, **parameters: Any) -> type[tune.Trainable]:
    """`QATTrial` with its parameters and its share of a machine; any `tune.Tuner` takes it.

    The parameters lie in Ray's object store, once per node.

    Args:
        place: the CPUs and the fraction of a GPU that each trial gets.
        parameters: `spec`, `data`, `warmups`, `paused`, `stacks` and `grant` of `QATTrial.setup`.
    """
    return set_share(tune.with_parameters(QATTrial, cpu=place.cpu, gpu=place.gpu, **parameters), place)


def set_share(kind: type[tune.Trainable], place: Placement) -> type[tune.Trainable]:
    """The trainable with its share of a machine.

    `tune.with_resources` would also change its name in the dashboard.
    """
    bundle = {"CPU": place.cpu} | ({"GPU": place.gpu} if place.gpu else {})

    def default_resource_request(cls: type[tune.Trainable], config: dict[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([bundle])

    kind.__qualname__ = kind.__name__  # process titles show it
    kind.default_resource_request = classmethod(default_resource_request)  # type: ignore[assignment]
    return kind
