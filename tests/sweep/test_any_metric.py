"""What a running sweep says when it is judged by another metric than accuracy."""

import math

import pytest

from qdtune.commands.trained_models import _best_row
from qdtune.commands.training_facts import list_training_facts
from qdtune.pareto import hypervolume
from qdtune.spec.objectives import untrained_value
from qdtune.spec.plan import plan
from qdtune.spec.tasks import ACCURACY, AUC, F1, MAE, METRICS, MSE, R2
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.sweep import metrics as sweep_metrics
from qdtune.sweep.loggers import SweepLoggers, epoch_means, final_numbers
from qdtune.sweep.metrics import SweepMetrics, list_gauges
from qdtune.sweep.pace import Start
from qdtune.sweep.progress import SweepProgress
from qdtune.terminal import console
from tests.judged import make_spec, write_run
from tests.sweep.test_metrics import Series


@pytest.fixture
def table(tmp_path):
    """The Pareto table of a run by mae."""
    return aggregate(write_run(tmp_path / "run", make_spec("regression", "mae"), lambda skill: 1 - skill).trials())


def test_progress_shows_the_value_and_names_it(table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    shown = SweepProgress(console(), 1, Start(), set(), {"warmup": 2, "qat": 4}, MAE)
    shown.start("a", "d1 w2")
    shown.update("a", {"phase": "qat", "epoch": 1, MAE.val: [0.02, None, 0.021]})
    assert shown._texts() == ["d1 w2 qat 1/4 0.0205"]
    front = table_front(table)
    shown.finish("a", "ok", front, 1, 4)
    best = front.to_pylist()[-1]
    assert f"best mae {best[MAE.val]:.4f} at {best['size_bytes']} bytes" in capsys.readouterr().out


def test_progress_names_each_cost_of_the_best_on_the_front(tmp_path, capsys, monkeypatch):
    """Over several costs the last row of the front is not the best one."""
    monkeypatch.setenv("COLUMNS", "400")
    spec = make_spec("regression", "mae", ["objectives=[val_mae, macs, size_bytes]"])
    table = aggregate(write_run(tmp_path / "run", spec, lambda skill: 1 - skill).trials(), costs=spec.costs)
    front = table_front(table)
    rows = front.to_pylist()
    best = min(rows, key=lambda row: row[MAE.val])
    shown = SweepProgress(console(), 1, Start(), {"depth", "weight_bits"}, {"warmup": 2, "qat": 4}, MAE)
    shown.start("a", "d1 w2")
    shown.finish("a", "ok", front.take(list(range(len(rows)))[::-1]), 1, 4)
    said = f"best mae {best[MAE.val]:.4f} at {best['macs']:,} MACs, {best['size_bytes']:,} bytes"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("metric", METRICS)
def test_gauges_are_named_by_the_metric(metric):
    spec = make_spec("binary" if metric in (ACCURACY, F1, AUC) else "regression", metric.name)
    reference = untrained_value(metric, spec.data.info)
    assert reference == {ACCURACY: 0.5, AUC: 0.5, F1: 0.0, R2: 0.0}.get(metric)
    found = list_gauges(metric, reference is not None)
    assert f"qdtune_best_{metric.val}" in found
    assert [name for name in found if "best" in name] == [f"qdtune_best_{metric.val}"]
    assert ("qdtune_hypervolume" in found) == (metric not in (MAE, MSE))
    if metric is not ACCURACY:
        assert not any("accuracy" in what for _, what, _ in found.values())


def test_the_best_gauge_of_a_metric_that_goes_down_is_the_lowest(table, monkeypatch):
    theirs = {name: (Series, *rest) for name, (_, *rest) in sweep_metrics.GAUGES.items()}
    monkeypatch.setattr(sweep_metrics, "GAUGES", theirs)
    spec = make_spec("regression", "mae")
    made = SweepMetrics(spec, plan(spec).trials)
    made.stand(["ok"] * 12, table)
    rows = table.to_pylist()
    for bits in (1, 2, 4, 8):
        lowest = min(row[MAE.val] for row in rows if row["weight_bits"] == bits)
        assert made._of["qdtune_best_val_mae"][str(bits),] == lowest
    assert "qdtune_hypervolume" not in made._of


def test_the_hypervolume_of_r2_starts_at_zero(tmp_path, monkeypatch):
    theirs = {name: (Series, *rest) for name, (_, *rest) in sweep_metrics.GAUGES.items()}
    monkeypatch.setattr(sweep_metrics, "GAUGES", theirs)
    spec = make_spec("regression", "r2")
    table = aggregate(write_run(tmp_path / "run", spec, lambda skill: skill - 2).trials())
    made = SweepMetrics(spec, plan(spec).trials)
    made.stand(["ok"] * 12, table)
    assert made._of["qdtune_hypervolume"] == {(): 0.0}  # all are worse than the mean of the targets


def test_the_hypervolume_is_over_the_costs_of_the_file(tmp_path, monkeypatch):
    theirs = {name: (Series, *rest) for name, (_, *rest) in sweep_metrics.GAUGES.items()}
    monkeypatch.setattr(sweep_metrics, "GAUGES", theirs)
    spec = make_spec("regression", "r2", ["objectives=[val_r2, macs, size_bytes]"])
    table = aggregate(write_run(tmp_path / "run", spec, lambda skill: skill).trials(), costs=spec.costs)
    made = SweepMetrics(spec, plan(spec).trials)
    made.stand(["ok"] * 12, table)
    rows = table.to_pylist()
    corner = [0, 1 + math.log2(max(row["macs"] for row in rows)), math.log2(4 * max(row["params"] for row in rows))]
    costs = [[-row["val_r2"], math.log2(row["macs"]), math.log2(row["size_bytes"])] for row in rows]
    assert made._of["qdtune_hypervolume"][()] == pytest.approx(hypervolume(costs, corner))
    (_, what, _) = made.metrics["qdtune_hypervolume"]
    assert what.endswith("r2 above that of an untrained network times halvings of MACs times halvings of bytes")


def test_trackers_get_the_columns_of_the_metric():
    assert final_numbers(MAE, (R2,))[:3] == ["test_mae", "float_val_mae", "test_r2"]
    assert final_numbers(ACCURACY)[:2] == ["test_accuracy", "float_val_accuracy"]
    history = [{"phase": "qat", "epoch": 1, "train_loss": 2.0, MAE.val: value} for value in (0.5, 1.5)]
    assert list(epoch_means(history, MAE, 0)) == [(1, {"train_loss": 2.0, "val_mae": 1.0})]


def test_trackers_of_a_sweep_follow_its_spec():
    sent = []
    thread = type("Thread", (), {"send": lambda self, *what: sent.append(what)})()
    (trial, *_) = plan(make_spec("regression", "mae")).trials
    told = SweepLoggers([thread], metric=MAE, also=(R2,))
    row = {MAE.test: 0.5, MAE.float_val: 0.7, R2.test: 0.9, "size_bytes": 10}
    told.finish(trial, [row, row], [{"phase": "qat", "epoch": 1, "train_loss": 1.0, MAE.val: 0.4}], "ok")
    numbers = [what[3] for what in sent if what[0] == "log_trial_result"]
    assert numbers[0].items() >= {"train_loss": 1.0, "val_mae": 0.4}.items()
    assert numbers[-1].items() >= {"test_mae": 0.5, "float_val_mae": 0.7, "test_r2": 0.9}.items()


@pytest.mark.parametrize(("metric", "seed"), [(MAE, 2), (R2, 1)])
def test_the_best_seed_is_exported(metric, seed):
    rows = [{"state": "ok", "seed": s, metric.val: value} for s, value in ((0, 0.5), (1, 0.6), (2, 0.4))]
    rows.append({"state": "diverged", "seed": 3, metric.val: None})
    assert _best_row({}, rows, None, metric)["seed"] == seed


def test_a_dry_run_says_what_judges():
    spec = make_spec("regression", "mae")
    assert ("task", "regression, judged by mae (lowest is best)") in list(list_training_facts(spec, plan(spec)))
    spec = make_spec("classification", "accuracy")
    assert "task" not in dict(list_training_facts(spec, plan(spec)))
