"""Checkpoints: the QAT of one configuration between two epochs, kept so that another process goes on from there.

Training that goes on from a checkpoint ends with the numbers that it would have had undisturbed, to the last bit. So
a checkpoint counts only for the same configuration on the same kind of machine; otherwise training starts over.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from qdtune.model.quantize import read_signs, set_signs
from qdtune.model.signed_file import (
    PROGRESS,
    TRIAL,
    find_fault,
    read_owner,
    read_progress,
    sign_file,
    split_file,
)
from qdtune.spec.configuration import Configuration
from qdtune.training.cohort import Cohort
from qdtune.training.compiled import describe_machine, why_eager
from qdtune.training.device import name_device
from qdtune.training.training_log import OWNERS, POINTS, TrainingLog, pack_log, unpack_log

FORMAT = 1  # of the file; raise it when older checkpoints cannot be read any more
GENERATORS = "/generators"  # (K, bytes): the state of each seed's generator
TRAINING_PER_COST = 20  # a checkpoint is kept after so many times the seconds that the last one took: at most 5 %
STOP_PER_COST = 4  # the same if a trial is stopped: about one stopped trial in four is released later
FIRST_COST_S = 0.05  # assumed before the first checkpoint; short trainings keep none
Outcome = Literal["loaded", "foreign", "damaged"]


class PausedTrainings(Protocol):
    """A store of checkpoints, at most one of each trial."""

    def find(self, trial_id: str) -> bytes | None:
        """The checkpoint of a trial that starts now; None if there is none."""

    def keep(self, trial_id: str, blob: bytes) -> None:
        """Keeps a checkpoint in place of the trial's earlier one."""

    def refuse(self, trial_id: str) -> None:
        """Sets the checkpoint of a trial aside, because it is damaged."""


@dataclass
class Training:
    """The QAT of one configuration between two epochs.

    Attributes:
        trial: the configuration.
        replicas: K quantised networks; the cohort holds their tensors until it unstacks them.
        cohort: in QAT.
        log: the curves so far, warm-up included.
        floats: the metric of each replica at the end of the warm-up.
        started: the time of the first start.
        epoch: the number of QAT epochs done.
        resumed_at: the number of QAT epochs that another process did.
    """

    trial: Configuration
    replicas: list[nn.Module]
    cohort: Cohort
    log: TrainingLog
    floats: list[float]
    started: datetime
    epoch: int = 0
    resumed_at: int = 0

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left, or all replicas have diverged."""
        return self.epoch >= self.trial.qat.epochs or len(self.log.dead) == len(self.trial.seeds)


class Checkpoints:
    """Loads and keeps the checkpoints of trainings, one training after the other.

    Args:
        store: holds them.
        keeps_stopped: whether a training that is stopped between two epochs is kept, because it may go on later.
        clock: seconds, to measure what a checkpoint costs.
    """

    def __init__(
        self, store: PausedTrainings, keeps_stopped: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.store, self.keeps_stopped, self.clock = store, keeps_stopped, clock
        self.cost_s = FIRST_COST_S  # seconds that the last checkpoint took
        self.trained_s = 0.0  # seconds of training that no checkpoint holds

    def load(self, make_training: Callable[[], Training], trial_id: str) -> Training | None:
        """The training of a trial at its checkpoint; None if it must start from the beginning.

        Args:
            make_training: a new training of the trial, of which only the structure matters.
            trial_id: of the trial.
        """
        self.trained_s = 0.0
        blob = self.store.find(trial_id)
        if blob is None:
            return None
        training = make_training()
        outcome = unpack_training(blob, training)
        if outcome == "damaged":
            self.store.refuse(trial_id)
        return training if outcome == "loaded" else None

    def add_epoch(self, training: Training, seconds: float) -> None:
        """Notes an epoch after which training goes on, and keeps a checkpoint if it pays."""
        self.trained_s += seconds
        if self._pays(TRAINING_PER_COST):
            self._keep(training)

    def stop(self, training: Training, seconds: float) -> None:
        """Notes an epoch after which training is stopped, and keeps a checkpoint if it may go on later and pays."""
        self.trained_s += seconds
        if self.keeps_stopped and self._pays(STOP_PER_COST):
            self._keep(training)

    def _pays(self, per_cost: float) -> bool:
        return self.trained_s >= per_cost * self.cost_s

    def _keep(self, training: Training) -> None:
        began = self.clock()
        self.store.keep(training.trial.trial_id, pack_training(training))
        self.cost_s, self.trained_s = self.clock() - began, 0.0


def pack_training(training: Training) -> bytes:
    """A training between two epochs as one safetensors file with a checksum."""
    log = training.log
    tensors = {name: t.detach().cpu().contiguous() for name, t in _name_state(training.cohort).items()}
    tensors[GENERATORS] = torch.stack([generator.get_state() for generator in training.cohort.generators])
    progress = {
        "format": FORMAT,
        "machine": describe_circumstances(training.cohort),
        "epoch": training.epoch,
        "started_at": training.started.isoformat(),
        "floats": training.floats,
        "is_shared": log.shared,
        "warmup_entries": sum(entry["phase"] == "warmup" for entry in log.entries),
        "signs": read_signs(training.replicas[0]),
    }
    metadata = {TRIAL: training.trial.trial_id, PROGRESS: json.dumps(progress)}
    return sign_file(*split_file(safetensors.torch.save(tensors | pack_log(log), metadata)))


def unpack_training(blob: bytes, training: Training) -> Outcome:
    """Loads a checkpoint into a new training of the same configuration.

    Returns:
        `loaded`; `damaged`, or `foreign` if another kind of machine made it. Unless it is loaded, the training must
        not be used any more.
    """
    if find_fault(blob, older=False) or read_owner(blob) != training.trial.trial_id:
        return "damaged"
    progress = read_progress(blob)
    if progress.get("format") != FORMAT or progress.get("machine") != describe_circumstances(training.cohort):
        return "foreign"
    try:
        _load(safetensors.torch.load(blob), progress, training)
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, RuntimeError):
        return "damaged"
    return "loaded"


def _load(tensors: dict[str, Tensor], progress: dict[str, Any], training: Training) -> None:
    """Raises one of the errors that `unpack_training` expects if the checkpoint has another shape."""
    log, state = training.log, _name_state(training.cohort)
    curves = {name: tensors.pop(name) for name in (POINTS, OWNERS)}
    states = tensors.pop(GENERATORS)
    shapes = [{name: (t.shape, t.dtype) for name, t in those.items()} for those in (tensors, state)]
    if shapes[0] != shapes[1]:
        raise ValueError("its tensors are those of another network")
    for name, tensor in state.items():
        tensor.copy_(tensors[name])
    for generator, its_state in zip(training.cohort.generators, states, strict=True):
        generator.set_state(its_state.clone())  # torch (2.15) crashes if the bytes are not aligned, as in a file
    for replica in training.replicas:
        set_signs(replica, progress["signs"])
    unpack_log(curves, log, progress["warmup_entries"])
    log.shared = progress["is_shared"]
    training.floats = progress["floats"]
    training.started = datetime.fromisoformat(progress["started_at"])
    training.epoch = training.resumed_at = progress["epoch"]


def _name_state(cohort: Cohort) -> dict[str, Tensor]:
    """All tensors that a training step changes or reads besides data: by name, as a file names them."""
    parts = {"params": cohort.params, "buffers": cohort.buffers}
    parts |= {f"moments/{name}": moment for name, moment in cohort.moments.items()}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def describe_circumstances(cohort: Cohort) -> str:
    """A hash of what decides the last bits of a training besides its configuration: the machine and how it trains.

    Args:
        cohort: its step is made here, because a step that cannot be compiled runs eagerly.
    """
    cohort.prepare()
    is_compiled = cohort.compile and why_eager() is None
    said = (describe_machine(), name_device(cohort.device), torch.get_num_threads(), is_compiled)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]
