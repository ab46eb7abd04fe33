"""Trains one configuration, from its initial weights to its rows: float warm-up, quantisation-aware training, test.

The warm-up is independent of bits, step sizes and QAT, so it is trained once and shared; see `Warmups`.
Source of the recipe: the notebook (five epochs of float training, then ten with every layer quantised).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from torch import nn

from qdtune.machine import has_compiler, should_compile
from qdtune.model.chain import Chain
from qdtune.model.factored import decompose
from qdtune.model.packed import RowFormat, pack_replicas
from qdtune.model.quantize import calibrate_alike, count_sizes, quantize
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import UNTRAINED_MARGIN
from qdtune.spec.sizes import normalisation_sizes
from qdtune.spec.tasks import metric_of, task_of
from qdtune.training.cohort import Cohort, make_generator
from qdtune.training.device import name_device
from qdtune.training.losses import chance_of
from qdtune.training.paused import Checkpoints, Training
from qdtune.training.shipped import measure_shipped
from qdtune.training.step import StepShape, normalise
from qdtune.training.tensors import Tensors
from qdtune.training.training_log import TrainingLog, check_value
from qdtune.training.warmups import Warmups, pack_warmup, unpack_warmup

CALIBRATION_ROWS = 2048  # training samples that set the initial step sizes of activations


def train_configuration(
    trial: Configuration,
    data: Tensors,
    warmups: Warmups,
    compile: str = "auto",
    on_end: Callable[[Mapping[int, nn.Module], bytes], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Trains one configuration and yields one report per epoch.

    A report has `phase` (`warmup` or `qat`), `epoch` from 1, `seconds`, `train_loss` and `Metric.val` per replica
    (None once it has diverged), and `history`, the epochs so far. In QAT it has `rows` too: the rows to store if
    training ends here. Only the last report has test results, `done`, and `weights`: the packed file of the
    replicas that did not diverge, as they were tested (see `packed`), or None if all diverged. If training goes on
    from a checkpoint, reports begin after it, with the whole `history`, and have `resumed_at`: its QAT epoch.

    Args:
        trial: the configuration.
        data: on the device that trains.
        warmups: the store of float warm-ups.
        compile: `always`, `never`, or `auto`, see `machine.should_compile`.
        on_end: called with the trained replicas by seed, without those that diverged, and their packed file.
        checkpoints: from which training goes on, and where it keeps others; None trains from the beginning.
    """
    data = data.averaged(trial.averaging)
    training = None
    if checkpoints:
        training = checkpoints.load(lambda: _make_unloaded(trial, data, compile), trial.trial_id)
    if training is None:
        training = yield from _begin(trial, data, warmups, compile)
    report = yield from _train_quantised(training, data, checkpoints)
    yield report | _finish(training, data, on_end)


def _begin(
    trial: Configuration, data: Tensors, warmups: Warmups, compile: str
) -> Generator[dict[str, Any], None, Training]:
    """The training of a configuration before its first QAT epoch."""
    started, metric = datetime.now(timezone.utc), metric_of(trial.metric)
    log = TrainingLog(trial.seeds, metric)
    replicas = yield from _warm_up(trial, data, warmups, log, compile)
    floats = make_cohort(replicas, trial, data, "warmup", compile).measure(metric, data.val_x, data.val_y)
    quantize_replicas(replicas, trial, data)
    cohort = make_cohort(replicas, trial, data, "qat", compile)
    return Training(trial, replicas, cohort, log, floats, started)


def _make_unloaded(trial: Configuration, data: Tensors, compile: str) -> Training:
    """A training whose tensors have the right shapes only: a checkpoint is loaded into it."""
    log = TrainingLog(trial.seeds, metric_of(trial.metric))
    replicas = _split_trained(make_floats(trial, data), trial, data, untrained=range(len(trial.seeds)))
    _quantize_all(replicas, trial)
    cohort = make_cohort(replicas, trial, data, "qat", compile)
    return Training(trial, replicas, cohort, log, [], datetime.now(timezone.utc))


def quantize_replicas(replicas: list[nn.Module], trial: Configuration, data: Tensors) -> None:
    """Quantises float replicas in place; the step sizes of their inputs are those of the first training samples."""
    _quantize_all(replicas, trial)
    calibrate_alike(replicas, normalise(data.train_x[:CALIBRATION_ROWS].cpu()))


def _quantize_all(replicas: list[nn.Module], trial: Configuration) -> None:
    for replica in replicas:
        settings = (trial.scale, trial.levels, trial.granularity, trial.overhead)
        quantize(replica, trial.bits, trial.input_bits, *settings)


def _train_quantised(
    training: Training, data: Tensors, checkpoints: Checkpoints | None
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Trains all QAT epochs that are left; yields their reports, but returns the last one."""
    trial, log = training.trial, training.log
    untested: list[dict[str, float]] = [{}] * len(trial.seeds)
    common = {"resumed_at": training.resumed_at} if training.resumed_at else {}
    report: dict[str, Any] = {"phase": "qat", "epoch": training.epoch, "seconds": 0.0, "history": log.entries}
    while not training.is_over:
        report = common | _train_epoch(training.cohort, "qat", training.epoch, log)
        training.epoch += 1
        report["rows"] = _make_rows(training, untested, data)
        if training.is_over:
            break
        seconds = report["seconds"]
        try:
            yield report
        except GeneratorExit:
            if checkpoints:
                checkpoints.stop(training, seconds)
            raise
        if checkpoints:
            checkpoints.add_epoch(training, seconds)
    return report


def _finish(
    training: Training, data: Tensors, on_end: Callable[[Mapping[int, nn.Module], bytes], None] | None
) -> dict[str, Any]:
    """The part of the last report that the earlier ones lack; the test set is read only here."""
    trial, replicas = training.trial, training.replicas
    task, metric = task_of(trial.task), metric_of(trial.metric)
    training.cohort.unstack(replicas)
    alive = {seed: replicas[k] for k, seed in enumerate(trial.seeds) if k not in training.log.dead}
    outputs = task.outputs(trial.info)
    found: dict[int, dict[str, float]] = {}
    weights = None
    if alive:
        shape = StepShape.of(trial, data.inputs, outputs, "qat")
        weights = pack_replicas(
            alive, trial.trial_id, data.test_x.shape[1], outputs, trial.columns["model"], _row_format(data)
        )
        found = dict(measure_shipped(weights, alive, data, (metric, *task.also_tested(metric)), shape))
        if on_end:
            on_end(alive, weights)
    tests = [found.get(seed, {}) for seed in trial.seeds]
    return {"rows": _make_rows(training, tests, data), "weights": weights, "done": True}


def _row_format(data: Tensors) -> RowFormat:
    """What is shipped of how the rows of a data set become inputs."""
    return RowFormat(str(data.test_x.dtype).removeprefix("torch."), data.scale, data.shift, data.averaging)


def will_compile(trial: Configuration, data: Tensors, name: str, compile: str) -> bool:
    """Whether the steps of the phase `name` are compiled here; `always` is tried without a compiler, too."""
    phase = trial.warmup if name == "warmup" else trial.qat
    convolves = trial.structure.convolves and data.train_x.device.type == "cpu"
    wanted = should_compile(compile, name, phase.epochs, trial.batch_size, len(data.train_x), convolves)
    return wanted and (compile == "always" or has_compiler())


def make_cohort(replicas: list[nn.Module], trial: Configuration, data: Tensors, name: str, compile: str) -> Cohort:
    """The replicas as a cohort of the phase `name`: `warmup`, of float ones, or `qat`."""
    phase = trial.warmup if name == "warmup" else trial.qat
    compiled = will_compile(trial, data, name, compile)
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
    base, replicas = trial.warmup_base, make_floats(trial, data)
    blob = warmups.claim(base.warmup_id)
    if blob is None or not unpack_warmup(blob, replicas, log):
        cohort = make_cohort(replicas, base, data, "warmup", compile)
        for epoch in range(trial.warmup.epochs):
            if len(log.dead) < len(trial.seeds):
                yield _train_epoch(cohort, "warmup", epoch, log)
        cohort.unstack(replicas)
        warmups.keep(base.warmup_id, pack_warmup(replicas, log))
    return _split_trained(replicas, trial, data, log.dead)


def make_floats(trial: Configuration, data: Tensors) -> list[nn.Module]:
    """The K float replicas that are warmed up, with their initial weights."""
    base = trial.warmup_base
    shape, whole = _read_layout(trial, data)
    replicas: list[nn.Module] = []
    for seed in trial.seeds:
        model = shape.build_undivided(seed)
        between = (base.depth, base.activation, base.factor_init)
        norm = trial.batch_norm == "factors"
        replicas.append(decompose(model, *between, make_generator("init", seed), base.decompose, norm, **whole))
    return replicas


def _split_trained(
    replicas: list[nn.Module], trial: Configuration, data: Tensors, untrained: Collection[int]
) -> list[nn.Module]:
    """The warmed-up replicas in the structure of the trial.

    Args:
        replicas: of `make_floats`.
        untrained: the places of those that only keep their place in the stack, such as diverged ones, which have no
            singular values.
    """
    if trial.warmup_base is trial:
        return replicas
    _, whole = _read_layout(trial, data)
    norm = trial.batch_norm == "factors"
    inits = ["default" if k in untrained else "svd" for k in range(len(replicas))]
    return [
        decompose(replica, trial.depth, trial.activation, init, decomposed=trial.decompose, norm=norm, **whole)
        for replica, init in zip(replicas, inits, strict=True)
    ]


def _read_layout(trial: Configuration, data: Tensors) -> tuple[StepShape, dict[str, Any]]:
    """The shape of the warm-up's step, and what `decompose` must know of the network besides axes."""
    shape = StepShape.of(trial, data.inputs, task_of(trial.task).outputs(trial.info), "warmup")
    # The first weights of a user's own model may be those of a checkpoint. The mlp's are drawn at any depth.
    return shape, {"head": shape.head, "keeps_whole": trial.own_model is not None, "bias": trial.bias}


def _make_rows(training: Training, tests: Sequence[Mapping[str, float]], data: Tensors) -> list[dict[str, Any]]:
    """One row per seed, with the columns of `store/columns.py`; the driver adds `attempt`, which it counts."""
    trial, replicas, log, floats = training.trial, training.replicas, training.log, training.floats
    shared = trial.columns | {
        "device": name_device(data.train_x.device),
        "started_at": training.started,
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
            check_value(one, tested[one.test])
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
