"""The searcher that hands trials to Ray Tune, and the scheduler that stops them."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from qdtune.sweep.recorder import Recorder
from qdtune.sweep.search_space import check_space


class QueueSearcher(Searcher):
    """Hands the trials of a sweep to Ray Tune, one each time there is room.

    Tune passes its `param_space` to `set_search_properties`; it must equal the space of the sweep.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        check_space(self.recorder.queue.spec, config)
        return True

    def suggest(self, trial_id: str) -> Any:
        trial = self.recorder.next()
        if trial is None:
            return Searcher.FINISHED if self.recorder.over else None
        return trial.cells | {
            "trial_id": trial.trial_id,
            "seeds": list(trial.seeds),
            "alone": self.recorder.queue.alone,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # a relaunch plans from the store

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a sweep is resumed by launching it again")


class PruningScheduler(FIFOScheduler):
    """Stops a trial in QAT if the sweep's pruner says so; the recorder comes next and notes which one beat it."""

    _supports_buffered_results = False

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "rows" in result and self.recorder.stops(trial.config["trial_id"], result):
            return FIFOScheduler.STOP
        return FIFOScheduler.CONTINUE
