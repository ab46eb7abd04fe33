"""Run folders of sweeps that are judged by any metric, with numbers that are drawn and not trained."""

import random
from datetime import datetime, timedelta, timezone

from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.store import Store

SWEEP = """version: 1
name: {name}
parameters:
  depth: {{values: [1, 2]}}
  weight_bits: {{values: [1, 2, 4, 8]}}
  activation: {{values: [identity, relu]}}
exclude: [{{depth: 1, activation: relu}}]
seeds: [0, 1, 2, 3]
data:
  factory: houses:data
  sha256: {digest}
  content: {digest}
  shape: [1000, 8, 2]
  dtype: float32
  val_size: 200
  task: {task}
  metric: {metric}
train: {{batch_size: 50, warmup: {{epochs: 2}}, qat: {{epochs: 4}}}}
"""
DRAWN_BY = AXIS_NAMES.index("augment") + 1  # the axes that change what is drawn: later ones do not
START = datetime(2026, 1, 2, tzinfo=timezone.utc)


def make_spec(task, metric, overrides=()):
    """The spec of a sweep, as if its factory had been called."""
    name = f"{task}-{metric}"
    text = SWEEP.format(name=name, digest="a" * 64, task=task, metric=metric)
    return loads(text.encode(), "judged.yaml", overrides)


def draw_skill(trial, seed, epoch=4):
    """How good a trial is after an epoch of QAT, about 0.5 to 1: the same for every task and metric."""
    draw = random.Random(f"{trial.key[:DRAWN_BY]} {seed}")
    bits = {1: 0.0, 2: 0.12, 4: 0.16, 8: 0.17}[trial.weight_bits]
    factors = {"identity": -0.01, "relu": 0.02}[trial.activation] if trial.depth > 1 else 0.0
    return round(0.7 + bits + factors + draw.gauss(0, 0.006) - 0.05 * (4 - epoch), 4)


def write_run(folder, spec, value_of, dead=()):
    """Writes the results of a whole sweep into a run folder.

    Args:
        value_of: returns the metric at a skill.
        dead: (place in the plan, state) of trials without a result.
    """
    store, metric = Store(folder), spec.metric
    states = dict(dead)
    with store.lock():
        store.create(spec.to_yaml())
        for place, trial in enumerate(plan(spec).trials):
            rows, history = [], []
            for seed in trial.seeds:
                curve = [value_of(draw_skill(trial, seed, epoch)) for epoch in (1, 2, 3, 4)]
                end = {"seed": seed, "state": states.get(place, "ok"), "epochs": 6, "attempt": 1}
                end |= {"finished_at": START + timedelta(minutes=place), "error": None}
                if place not in states:
                    end |= {metric.val: curve[-1], metric.test: curve[-1], metric.float_val: curve[-1]}
                    end |= {one.test: 0.5 for one in spec.task.also_tested(metric)}
                rows.append(trial.columns | end)
                for epoch, value in enumerate(curve, 1):
                    entry = {"trial_id": trial.trial_id, "seed": seed, "phase": "qat", "epoch": epoch}
                    history.append(entry | {"train_loss": 1.0, metric.val: value, "seconds": 0.1})
            store.write(trial.trial_id, rows, history, {})
        store.write_pareto(spec=spec)
    return store
