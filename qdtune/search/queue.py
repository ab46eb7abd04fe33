"""Which trial is next.

First the planned or proposed trials; then stopped trials that may belong to the front all the same; then more seeds;
at last, one by one, the trials that ran out of memory. The queue starts nothing itself, so a sweep on a cluster and
one that is replayed from its curves use the same queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from qdtune.reach import neighbours_of
from qdtune.search.study import Study
from qdtune.spec.choices import PLANNED
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import sort_trials
from qdtune.spec.sweep_file import Spec
from qdtune.store.further_seeds import Tally, count_decisions, find_further_seeds
from qdtune.store.releases import find_prospects, find_to_release
from qdtune.store.results import Result
from qdtune.store.unfinished import count_unasked, find_to_replicate, is_ended


class Queue:
    """The trials of one launch, one after the other.

    Args:
        spec: resolved.
        planned: the trials in the order in which they start; ignored if the method searches.
        study: new and empty; only the queue asks and tells it.
        results: of earlier launches.

    Attributes:
        results: the latest result of each trial, by trial_id.
        running: the running trials, by trial_id.
        alone: whether trials now start one at a time, each alone on a machine.
    """

    def __init__(self, spec: Spec, planned: Sequence[Configuration], study: Study, results: Iterable[Result]) -> None:
        self.spec, self.planned, self.study = spec, planned, study
        self.results = {result.trial.trial_id: result for result in results}
        done = {trial_id for trial_id, result in self.results.items() if is_ended(spec, result.state)}
        study.restore(result for trial_id, result in self.results.items() if trial_id in done)
        self.searching = spec.method not in PLANNED
        first = [result.trial for result in self.results.values()] if self.searching else planned
        self.waiting = deque(trial for trial in first if trial.trial_id not in done)
        self.twice = 0  # QAT epochs of trials that were stopped, released, and trained again
        self.judged = True  # whether the pruner may stop a trial that starts now
        self.running: dict[str, Configuration] = {}
        self.dry = False  # whether the search has nothing more to propose; a trial that ends may change that
        self.alone = False
        self.tried_alone: set[str] = set()
        self.nothing_to_release = False  # as found since the last trial ended, because the search takes time
        # Stopped trials that are trained to their end all the same, each with the share of its prospect.
        self.released: dict[str, float | None] = {}
        self.unjudged: set[str] = set()  # those of them that too few finished trials could be compared with
        self.again: set[str] = set()  # trials started after the plan or the search was finished

    def next(self) -> Configuration | None:
        """The trial to start now, noted as running; None if there is none until another trial ends."""
        if not self.more() or (self.alone and self.running):
            return None
        trial = self.waiting.popleft()
        self.running[trial.trial_id] = trial
        if not self.judged:
            self.again.add(trial.trial_id)
        if self.alone:
            self.tried_alone.add(trial.trial_id)
        # A trial with more seeds for a finished configuration is never pruned: half a trial adds nothing.
        self.study.start(trial, self.judged and trial.seeds == self.spec.seeds)
        return trial

    def more(self) -> bool:
        """Whether there is a trial to start now."""
        if not self.waiting and self._unasked():
            proposed = self.study.propose()
            self.waiting = deque([proposed] if proposed else [])
            self.dry = proposed is None
        if not self.waiting and not (self.running and self.judged):  # a released trial may start beside others
            self.judged = False
            self.waiting = deque(self._released())
        if not self.waiting and not self.running:
            self.waiting = deque(self._replicates())
            self.alone = not self.waiting
            self.waiting = self.waiting or deque(self._out_of_memory())
        return bool(self.waiting)

    @property
    def left(self) -> int:
        """How many trials have not ended, as far as known."""
        return len(self.waiting) + len(self.running) + self._unasked()

    @property
    def total(self) -> int:
        """How many trials there are, including those of earlier launches, as far as known."""
        ours = {*self.results, *self.running, *(trial.trial_id for trial in self.waiting)}
        return len(ours) + self._unasked()

    def _unasked(self) -> int:
        """How many configurations the search may still propose."""
        if not self.searching or not self.judged or self.dry:
            return 0
        known = {*self.study.seeds, *(trial.key for trial in self.waiting)}
        return count_unasked(self.spec.run_cap or 0, len(known))

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing is left; valid after `next` has returned None."""
        return not (self.waiting or self.running)

    def ended(self, result: Result, resumed_at: int = 0) -> None:
        """Notes how a running trial ended.

        Args:
            result: of all its epochs.
            resumed_at: the QAT epoch of the checkpoint from which it went on; 0 if it was trained from its beginning.
        """
        trial_id = result.trial.trial_id
        del self.running[trial_id]
        if (before := self.results.get(trial_id)) and before.state == "pruned":
            self.twice += max(0, len(before.curve) - resumed_at)
        self.results[trial_id] = result
        self.nothing_to_release = False
        self.dry = self.dry and self.spec.duplicates == "resample"  # else it may come back with new seeds
        self.study.finish(trial_id, result.state, result.score, result.curve)

    def _released(self) -> list[Configuration]:
        """The stopped trials to train to their end all the same, noted as released.

        With a risk they start one by one, the most promising one first, because what a finished one comes to decides
        about the others. Without a risk all of them start, once nothing runs that could still beat them.
        """
        risk = self.spec.early_terminate.risk
        if (risk is None and self.running) or self.nothing_to_release:
            return []
        if risk is None:
            found = self._not_yet(one.trial for one in find_to_release(self.spec, self.results.values()))
            self.released |= dict.fromkeys(trial.trial_id for trial in found)
        else:
            ranked = find_prospects(self.spec, self.results.values())
            first = [one for one in ranked if one[1].share > risk and one[0].trial_id not in self.again][:1]
            found = [result.trial for result, _ in first]
            for result, prospect in first:
                self.released[result.trial_id] = prospect.share
                if prospect.gap > 0 and prospect.alike < neighbours_of(risk):
                    self.unjudged.add(result.trial_id)
        self.nothing_to_release = not found
        return found

    def _replicates(self) -> list[Configuration]:
        """Trials with more seeds: for the front and what is close behind it, or for undecided comparisons."""
        known = self.results.values()
        if self.spec.looks is not None:
            wanted = [replace(result.trial, seeds=seeds) for result, seeds in find_further_seeds(self.spec, known)]
            return [trial for trial in wanted if trial.trial_id not in self.again]
        return self._not_yet(replace(one.trial, seeds=seeds) for one, seeds in find_to_replicate(self.spec, known))

    @property
    def is_replicating(self) -> bool:
        """Whether the plan is through and comparisons get more seeds until they are decided."""
        return self.spec.looks is not None and not self.judged

    def count_decisions(self) -> Tally | None:
        """How the comparisons stand that get more seeds until they are decided; None if there are none."""
        return count_decisions(self.spec, self.results.values())

    def _out_of_memory(self) -> list[Configuration]:
        """The trials that ran out of memory beside others; alone on a machine they may fit."""
        out = [r.trial for r in self.results.values() if r.state == "oom"]
        return sort_trials([trial for trial in out if trial.trial_id not in self.tried_alone], self.spec.run.order)

    def _not_yet(self, trials: Iterable[Configuration]) -> list[Configuration]:
        """The trials that this launch has not started again yet, in the order of the sweep."""
        return sort_trials([t for t in trials if t.trial_id not in self.again], self.spec.run.order)
