"""Trains one configuration, from its initial weights to its rows: float warm-up, quantisation-aware training, test.

The warm-up is independent of bits, step sizes and QAT, so it is trained once and shared; see `Warmups`.
Source of the recipe: the notebook (five epochs of float training, then ten with every layer quantised).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import nn

from qdtune.machine import is_compiled
from qdtune.model.chain import Chain
from qdtune.model.factored import decompose
from qdtune.model.packed import RowFormat, pack_replicas
from qdtune.model.quantize import calibrate_alike, count_sizes, quantize
from qdtune.model.signed_file import find_fault, sign_file, split_file
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import UNTRAINED_MARGIN
from qdtune.spec.sizes import normalisation_sizes
from qdtune.spec.tasks import ACCURACY, Metric, metric_of, task_of
from qdtune.training.cohort import Cohort, Tensors, make_generator
from qdtune.training.losses import chance_of
from qdtune.training.shipped import measure_shipped
from qdtune.training.step import StepShape, normalise

CALIBRATION_ROWS = 2048  # training samples that set the initial step sizes of activations


class Warmups(Protocol):
    """A store of float warm-ups, so that configurations that differ only in quantisation train them once."""

    def claim(self, key: str) -> bytes | None:
        """The kept warm-up; None if the caller has to train it and `keep` it."""

    def keep(self, key: str, blob: bytes) -> None:
        """Keeps a warm-up that the caller has claimed."""


class NoWarmups:
    """A store that keeps no warm-ups."""

    def claim(self, key: str) -> bytes | None:
        return None

    def keep(self, key: str, blob: bytes) -> None:
        pass


@dataclass
class TrainingLog:
    """The curves of the replicas so far. The curve of a replica ends if its loss is not finite."""

    seeds: tuple[int, ...]
    metric: Metric = ACCURACY
    entries: list[dict[str, Any]] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    shared: bool = False  # whether another trial trained the warm-up; that trial counts its seconds

    def add(self, phase: str, epoch: int, losses: list[float], values: list[float], seconds: float) -> dict[str, Any]:
        """Adds one epoch, which counts from 1; returns it as a report, with None for replicas that have ended."""
        report: dict[str, Any] = {"phase": phase, "epoch": epoch, "seconds": seconds}
        report |= {"train_loss": [], self.metric.val: []}
        for k, seed in enumerate(self.seeds):
            ended = k in self.dead
            if not (math.isfinite(losses[k]) and math.isfinite(values[k])):
                self.dead.add(k)
            loss, value = (None, None) if k in self.dead else (losses[k], values[k])
            _check_value(self.metric, value)
            report["train_loss"].append(loss)
            report[self.metric.val].append(value)
            if not ended:
                entry = {"seed": seed, "phase": phase, "epoch": epoch, "train_loss": loss, self.metric.val: value}
                self.entries.append(entry | {"seconds": seconds / len(self.seeds)})
        return report | {"history": list(self.entries)}

    def of_seed(self, seed: int) -> list[dict[str, Any]]:
        """The entries of one replica."""
        return [e for e in self.entries if e["seed"] == seed]


def train_configuration(
    trial: Configuration,
    data: Tensors,
    warmups: Warmups,
    compile: str = "auto",
    on_end: Callable[[Mapping[int, nn.Module], bytes], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Trains one configuration and yields one report per epoch.

    A report has `phase` (`warmup` or `qat`), `epoch` from 1, `seconds`, `train_loss` and `Metric.val` per replica
    (None once it has diverged), and `history`, the epochs so far. In QAT it has `rows` too: the rows to store if
    training ends here. Only the last report has test results, `done`, and `weights`: the packed file of the
    replicas that did not diverge, as they were tested (see `packed`), or None if all diverged.

    Args:
        trial: the configuration.
        data: on the device that trains.
        warmups: the store of float warm-ups.
        compile: `always`, `never`, or `auto`, see `machine.is_compiled`.
        on_end: called with the trained replicas by seed, without those that diverged, and their packed file.
    """
    started = datetime.now(timezone.utc)
    task, metric = task_of(trial.task), metric_of(trial.metric)
    log = TrainingLog(trial.seeds, metric)
    replicas = yield from _warm_up(trial, data, warmups, log, compile)
    floats = _make_cohort(replicas, trial, data, "warmup", compile).measure(metric, data.val_x, data.val_y)
    for replica in replicas:
        quantize(replica, trial.weight_bits, trial.act_bits, trial.scale, trial.levels, granularity=trial.granularity)
    calibrate_alike(replicas, normalise(data.train_x[:CALIBRATION_ROWS].cpu()))
    cohort = _make_cohort(replicas, trial, data, "qat", compile)
    report: dict[str, Any] = {"phase": "qat", "epoch": 0, "seconds": 0.0, "history": log.entries}
    untested: list[dict[str, float]] = [{}] * len(replicas)
    for epoch in range(trial.qat.epochs):
        if len(log.dead) == len(trial.seeds):
            break
        if epoch:
            yield report
        report = _train_epoch(cohort, "qat", epoch, log)
        report["rows"] = _make_rows(trial, replicas, log, floats, untested, data, started)
    cohort.unstack(replicas)
    alive = {seed: replicas[k] for k, seed in enumerate(trial.seeds) if k not in log.dead}
    outputs = task.outputs(trial.info)
    found: dict[int, dict[str, float]] = {}
    weights = None
    if alive:
        shape = StepShape.of(trial, data.inputs, outputs, "qat")
        weights = pack_replicas(
            alive, trial.trial_id, data.inputs, outputs, trial.columns["model"], _row_format(data)
        )
        # The test set is read only here.
        found = dict(measure_shipped(weights, alive, data, (metric, *task.also_tested(metric)), shape))
        if on_end:
            on_end(alive, weights)
    tests = [found.get(seed, {}) for seed in trial.seeds]
    rows = _make_rows(trial, replicas, log, floats, tests, data, started)
    yield report | {"rows": rows, "weights": weights, "done": True}


def _row_format(data: Tensors) -> RowFormat:
    """What is shipped of how the rows of a data set become inputs."""
    return RowFormat(str(data.test_x.dtype).removeprefix("torch."), data.scale, data.shift)


def _make_cohort(replicas: list[nn.Module], trial: Configuration, data: Tensors, name: str, compile: str) -> Cohort:
    phase = trial.warmup if name == "warmup" else trial.qat
    compiled = is_compiled(compile, phase.epochs, trial.batch_size, len(data.train_x))
    shape = StepShape.of(trial, data.inputs, task_of(trial.task).outputs(trial.info), name)
    return Cohort(replicas, shape, phase, trial.seeds, name, data, trial.batch_size, compiled)


def _train_epoch(cohort: Cohort, name: str, epoch: int, log: TrainingLog) -> dict[str, Any]:
    cohort.prepare()  # compiles, if necessary, before the clock starts
    began = time.perf_counter()
    losses = cohort.train(epoch)
    values = cohort.measure(log.metric, cohort.data.val_x, cohort.data.val_y)
    return log.add(name, epoch + 1, losses, values, time.perf_counter() - began)


def _warm_up(
    trial: Configuration, data: Tensors, warmups: Warmups, log: TrainingLog, compile: str
) -> Generator[dict[str, Any], None, list[nn.Module]]:
    """The K float replicas from which QAT starts: read from `warmups`, or trained and kept there."""
    base, norm = trial.warmup_base, trial.batch_norm == "factors"
    shape = StepShape.of(trial, data.inputs, task_of(trial.task).outputs(trial.info), "warmup")
    # The first weights of a user's own model may be those of a checkpoint. The mlp's are drawn at any depth.
    whole: dict[str, Any] = {"head": shape.head, "keeps_whole": trial.own_model is not None}
    replicas: list[nn.Module] = []
    for seed in trial.seeds:
        model = shape.build_undivided(seed)
        between = (base.depth, base.activation, base.factor_init)
        replicas.append(decompose(model, *between, make_generator("init", seed), base.decompose, norm, **whole))
    blob = warmups.claim(base.warmup_id)
    if blob is None or not unpack_warmup(blob, replicas, log):
        cohort = _make_cohort(replicas, base, data, "warmup", compile)
        for epoch in range(trial.warmup.epochs):
            if len(log.dead) < len(trial.seeds):
                yield _train_epoch(cohort, "warmup", epoch, log)
        cohort.unstack(replicas)
        warmups.keep(base.warmup_id, pack_warmup(replicas, log))
    if base is not trial:
        for k, replica in enumerate(replicas):
            # A diverged replica has no singular values. It only keeps its place in the stack.
            init = "default" if k in log.dead else "svd"
            between = (trial.depth, trial.activation, init)
            replicas[k] = decompose(replica, *between, decomposed=trial.decompose, norm=norm, **whole)
    return replicas


def pack_warmup(replicas: list[nn.Module], log: TrainingLog) -> bytes:
    """The tensors and the curves of K warmed-up replicas as one safetensors file."""
    states = [replica.state_dict() for replica in replicas]
    tensors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    names = ("epoch", "train_loss", log.metric.val, "seconds")
    points = [[math.nan if e[name] is None else e[name] for name in names] for e in log.entries]
    curves = {
        "/points": torch.tensor(points, dtype=torch.float64).reshape(-1, len(names)),
        "/owners": torch.tensor([log.seeds.index(e["seed"]) for e in log.entries], dtype=torch.int64),
    }
    return sign_file(*split_file(safetensors.torch.save(tensors | curves)))


def unpack_warmup(blob: bytes, replicas: list[nn.Module], log: TrainingLog) -> bool:
    """Copies a kept warm-up into fresh replicas and its curves into the log; returns False if the file is damaged."""
    if find_fault(blob):
        return False
    try:
        tensors = safetensors.torch.load(blob)
    except safetensors.SafetensorError:
        return False
    points, owners = tensors.pop("/points").tolist(), tensors.pop("/owners").tolist()
    for k, replica in enumerate(replicas):
        replica.load_state_dict({name: t[k] for name, t in tensors.items()})
    for (epoch, loss, value, seconds), k in zip(points, owners, strict=True):
        entry: dict[str, Any] = {"seed": log.seeds[k], "phase": "warmup", "epoch": int(epoch), "seconds": seconds}
        if math.isnan(loss):
            log.dead.add(k)
            entry |= {"train_loss": None, log.metric.val: None}
        else:
            entry |= {"train_loss": loss, log.metric.val: value}
        log.entries.append(entry)
    log.shared = True
    return True


def _check_value(metric: Metric, value: float | None) -> None:
    """Raises AssertionError if a metric cannot have this value: every one of a result goes through here."""
    low, high = metric.bounds
    assert value is None or low <= value <= high, f"{metric.name} must be {low} to {high}, got {value}"


def _make_rows(
    trial: Configuration,
    replicas: list[nn.Module],
    log: TrainingLog,
    floats: list[float],
    tests: Sequence[Mapping[str, float]],
    data: Tensors,
    started: datetime,
) -> list[dict[str, Any]]:
    """One row per seed, with the columns of `store/columns.py`; the driver adds `attempt`, which it counts."""
    device = data.train_x.device
    shared = trial.columns | {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "started_at": started,
        "finished_at": datetime.now(timezone.utc),
    }
    shipped = count_sizes(replicas[0]) + normalisation_sizes(trial.structure.normalised)
    assert shipped == trial.sizes, "the sizes by arithmetic and the one by tensors disagree"
    inner_dims = [m.inner_dims for m in replicas[0].modules() if isinstance(m, Chain)]
    assert inner_dims == shared["inner_dims"]
    metric, task = log.metric, task_of(trial.task)
    chance = chance_of(task, metric, data.val_y)
    rows = []
    for k, seed in enumerate(trial.seeds):
        curve, dead = log.of_seed(seed), k in log.dead
        own = [e for e in curve if not (log.shared and e["phase"] == "warmup")]
        note = None
        if dead:
            note = f"loss not finite in {curve[-1]['phase']} epoch {curve[-1]['epoch']}"
        elif trial.warmup.epochs and floats[k] <= chance + UNTRAINED_MARGIN:
            share = f"{floats[k]:.1%}" if metric.is_fraction else f"{floats[k]:.3g}"
            note = f"the warm-up ended at chance ({share})"
        tested = {}
        for one in (metric, *task.also_tested(metric)):
            tested[one.test] = _finite(tests[k].get(one.test))
            _check_value(one, tested[one.test])
        rows.append(
            shared
            | {
                "seed": seed,
                "state": "diverged" if dead else "ok",
                "epochs": len(curve),
                "train_loss": curve[-1]["train_loss"] if curve else None,
                metric.val: None if dead else curve[-1][metric.val],
                **(dict.fromkeys(tested) if dead else tested),
                metric.float_val: None if dead and curve[-1]["phase"] == "warmup" else _finite(floats[k]),
                "seconds": sum(e["seconds"] for e in own),
                "error": note,
            }
        )
    return rows


def _finite(value: float | None) -> float | None:
    """The value; None for one that is not defined."""
    return None if value is None or not math.isfinite(value) else value
