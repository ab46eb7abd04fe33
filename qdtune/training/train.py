"""One configuration from its initial weights to its rows: float warm-up, quantisation-aware training, test.

The warm-up depends on neither bits, step sizes nor QAT, so it is trained once and shared; see `Warmups`.
Source of the recipe: the notebook (five epochs of float training, then ten with every layer quantised).
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import nn

from qdtune.machine import is_compiled
from qdtune.model.chain import Chain
from qdtune.model.factored import decompose
from qdtune.model.packed import pack_replicas
from qdtune.model.quantize import calibrate_alike, count_sizes, quantize
from qdtune.model.signed_file import find_fault, sign_file, split_file
from qdtune.spec.configuration import Configuration
from qdtune.training.cohort import Cohort, Tensors, generator
from qdtune.training.step import Shape, normalise

CALIBRATION_ROWS = 2048  # training samples from which the steps of activations start
CHANCE_MARGIN = 0.02  # a warm-up this close to always naming the largest class has learned nothing


class Warmups(Protocol):
    """Where float warm-ups are kept, so that configurations that differ only in bits train them once."""

    def claim(self, key: str) -> bytes | None:
        """The kept warm-up; None where the caller is now the one to train and `keep` it."""

    def keep(self, key: str, blob: bytes) -> None: ...


class Nowhere:
    """Warm-ups that are not kept."""

    def claim(self, key: str) -> bytes | None:
        return None

    def keep(self, key: str, blob: bytes) -> None:
        pass


@dataclass
class Log:
    """The curves of the replicas so far; a replica whose loss is not finite has ended there."""

    seeds: tuple[int, ...]
    entries: list[dict[str, Any]] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    shared: bool = False  # whether the warm-up was trained by another trial, which then counts its seconds

    def add(
        self, phase: str, epoch: int, losses: list[float], accuracies: list[float], seconds: float
    ) -> dict[str, Any]:
        """Notes one epoch (from 1) of all replicas; the same as a report, None where a replica has ended."""
        report: dict[str, Any] = {"phase": phase, "epoch": epoch, "seconds": seconds}
        report |= {"train_loss": [], "val_accuracy": []}
        for k, seed in enumerate(self.seeds):
            ended = k in self.dead
            if not math.isfinite(losses[k]):
                self.dead.add(k)
            loss, accuracy = (None, None) if k in self.dead else (losses[k], accuracies[k])
            report["train_loss"].append(loss)
            report["val_accuracy"].append(accuracy)
            if not ended:
                entry = {"seed": seed, "phase": phase, "epoch": epoch, "train_loss": loss, "val_accuracy": accuracy}
                self.entries.append(entry | {"seconds": seconds / len(self.seeds)})
        return report | {"history": list(self.entries)}

    def of(self, seed: int) -> list[dict[str, Any]]:
        return [e for e in self.entries if e["seed"] == seed]


def train_configuration(
    trial: Configuration, data: Tensors, warmups: Warmups, compile: str = "auto"
) -> Iterator[dict[str, Any]]:
    """Trains one configuration, one report per epoch; the last one has `done` and has looked at the test set.

    A report: `phase` (`warmup` or `qat`), `epoch` from 1, `seconds`, per replica `train_loss` and `val_accuracy`
    (None once it has diverged), and `history`, every epoch so far. In QAT also `rows`: what the store is told where
    training ends there, without a test accuracy before the last one; and in the last one `weights`, the packed file
    of the replicas that came to their end, as they were tested (see `packed`), None where none did.

    Args:
        trial: the configuration.
        data: on the device that shall do the work.
        warmups: where float warm-ups are kept.
        compile: `always`, `never`, or `auto`: see `machine.is_compiled`.
    """
    started = datetime.now(timezone.utc)
    log = Log(trial.seeds)
    replicas = yield from _warm_up(trial, data, warmups, log, compile)
    floats = _cohort(replicas, trial, data, "warmup", compile).accuracy(data.val_x, data.val_y)
    for replica in replicas:
        quantize(replica, trial.weight_bits, trial.act_bits, trial.scale, trial.levels, granularity=trial.granularity)
    calibrate_alike(replicas, normalise(data.train_x[:CALIBRATION_ROWS].cpu()))
    cohort = _cohort(replicas, trial, data, "qat", compile)
    report: dict[str, Any] = {"phase": "qat", "epoch": 0, "seconds": 0.0, "history": log.entries}
    untested: list[float | None] = [None] * len(replicas)
    for epoch in range(trial.qat.epochs):
        if len(log.dead) == len(trial.seeds):
            break
        if epoch:
            yield report
        report = _epoch(cohort, "qat", epoch, log)
        report["rows"] = _rows(trial, replicas, log, floats, untested, data, started)
    tests = cohort.accuracy(data.test_x, data.test_y)  # the only look at the test set
    cohort.unstack(replicas)
    alive = {seed: replicas[k] for k, seed in enumerate(trial.seeds) if k not in log.dead}
    weights = (
        pack_replicas(alive, trial.trial_id, data.inputs, data.classes, trial.columns["model"]) if alive else None
    )
    rows = _rows(trial, replicas, log, floats, tests, data, started)
    yield report | {"rows": rows, "weights": weights, "done": True}


def _cohort(replicas: list[nn.Module], trial: Configuration, data: Tensors, name: str, compile: str) -> Cohort:
    phase = trial.warmup if name == "warmup" else trial.qat
    compiled = is_compiled(compile, phase.epochs, trial.batch_size, len(data.train_x))
    shape = Shape.of(trial, data.inputs, data.classes, name)
    return Cohort(replicas, shape, phase, trial.seeds, name, data, trial.batch_size, compiled)


def _epoch(cohort: Cohort, name: str, epoch: int, log: Log) -> dict[str, Any]:
    cohort.prepare()  # compiled, if it has to be, before the clock starts
    began = time.perf_counter()
    losses = cohort.train(epoch)
    accuracies = cohort.accuracy(cohort.data.val_x, cohort.data.val_y)
    return log.add(name, epoch + 1, losses, accuracies, time.perf_counter() - began)


def _warm_up(
    trial: Configuration, data: Tensors, warmups: Warmups, log: Log, compile: str
) -> Generator[dict[str, Any], None, list[nn.Module]]:
    """The K float replicas from which QAT starts: taken from `warmups`, or trained and kept there."""
    base, norm = trial.warmup_base, trial.batch_norm == "factors"
    replicas: list[nn.Module] = []
    for seed in trial.seeds:
        model = Shape.of(trial, data.inputs, data.classes, "warmup").undivided(seed)
        between = (base.depth, base.activation, base.factor_init)
        replicas.append(decompose(model, *between, generator("init", seed), base.decompose, norm))
    blob = warmups.claim(base.warmup_id)
    if blob is None or not unpack_warmup(blob, replicas, log):
        cohort = _cohort(replicas, base, data, "warmup", compile)
        for epoch in range(trial.warmup.epochs):
            if len(log.dead) < len(trial.seeds):
                yield _epoch(cohort, "warmup", epoch, log)
        cohort.unstack(replicas)
        warmups.keep(base.warmup_id, pack_warmup(replicas, log))
    if base is not trial:
        for k, replica in enumerate(replicas):
            # An ended replica has no singular values; it only keeps its place in the stack.
            init = "default" if k in log.dead else "svd"
            between = (trial.depth, trial.activation, init)
            replicas[k] = decompose(replica, *between, decomposed=trial.decompose, norm=norm)
    return replicas


def pack_warmup(replicas: list[nn.Module], log: Log) -> bytes:
    """The numbers and the curves of K warmed-up replicas as one safetensors file."""
    states = [replica.state_dict() for replica in replicas]
    tensors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    names = ("epoch", "train_loss", "val_accuracy", "seconds")
    points = [[math.nan if e[name] is None else e[name] for name in names] for e in log.entries]
    curves = {
        "/points": torch.tensor(points, dtype=torch.float64).reshape(-1, len(names)),
        "/owners": torch.tensor([log.seeds.index(e["seed"]) for e in log.entries], dtype=torch.int64),
    }
    return sign_file(*split_file(safetensors.torch.save(tensors | curves)))


def unpack_warmup(blob: bytes, replicas: list[nn.Module], log: Log) -> bool:
    """Puts a kept warm-up into fresh replicas and its curves into the log; False where the file is damaged."""
    if find_fault(blob):
        return False
    try:
        tensors = safetensors.torch.load(blob)
    except safetensors.SafetensorError:
        return False
    points, owners = tensors.pop("/points").tolist(), tensors.pop("/owners").tolist()
    for k, replica in enumerate(replicas):
        replica.load_state_dict({name: t[k] for name, t in tensors.items()})
    for (epoch, loss, accuracy, seconds), k in zip(points, owners, strict=True):
        entry: dict[str, Any] = {"seed": log.seeds[k], "phase": "warmup", "epoch": int(epoch), "seconds": seconds}
        if math.isnan(loss):
            log.dead.add(k)
            entry |= {"train_loss": None, "val_accuracy": None}
        else:
            entry |= {"train_loss": loss, "val_accuracy": accuracy}
        log.entries.append(entry)
    log.shared = True
    return True


def _rows(
    trial: Configuration,
    replicas: list[nn.Module],
    log: Log,
    floats: list[float],
    tests: Sequence[float | None],
    data: Tensors,
    started: datetime,
) -> list[dict[str, Any]]:
    """One row per seed, as `store.TRIALS` has them; `attempt` is added by the driver, who counts them."""
    device = data.train_x.device
    shared = trial.columns | {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "started_at": started,
        "finished_at": datetime.now(timezone.utc),
    }
    assert count_sizes(replicas[0]) == trial.sizes, "the sizes by arithmetic and the one by tensors disagree"
    inner_dims = [m.inner_dims for m in replicas[0].modules() if isinstance(m, Chain)]
    assert inner_dims == shared["inner_dims"]
    rows = []
    for k, seed in enumerate(trial.seeds):
        curve, dead = log.of(seed), k in log.dead
        own = [e for e in curve if not (log.shared and e["phase"] == "warmup")]
        note = None
        if dead:
            note = f"loss not finite in {curve[-1]['phase']} epoch {curve[-1]['epoch']}"
        elif trial.warmup.epochs and floats[k] <= data.chance + CHANCE_MARGIN:
            note = f"the warm-up ended at chance ({floats[k]:.1%})"
        rows.append(
            shared
            | {
                "seed": seed,
                "state": "diverged" if dead else "ok",
                "epochs": len(curve),
                "train_loss": curve[-1]["train_loss"] if curve else None,
                "val_accuracy": None if dead else curve[-1]["val_accuracy"],
                "test_accuracy": None if dead else tests[k],
                "float_val_accuracy": None if dead and curve[-1]["phase"] == "warmup" else floats[k],
                "seconds": sum(e["seconds"] for e in own),
                "error": note,
            }
        )
    return rows
