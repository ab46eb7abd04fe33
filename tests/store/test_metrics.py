"""A run folder has the columns of its metric, and its front follows the direction of the metric."""

import numpy as np
import pytest

from qdtune.spec.tasks import ACCURACY, AUC, MAE, METRICS, MSE, R2, TASKS
from qdtune.store.cohorts import find_stored_cohorts
from qdtune.store.columns import also_in, find_partition, metric_in, pareto_schema, trials_schema
from qdtune.store.opened import open_run
from qdtune.store.pareto_table import aggregate
from qdtune.store.store import Store
from tests.judged import make_spec, write_run


def read(folder, task, metric, value_of, **options):
    """The rows of a run folder that is written and read back by what it says itself."""
    write_run(folder, make_spec(task, metric), value_of, **options)
    return open_run(folder).read_rows()


@pytest.mark.parametrize(("task", "metric"), [(task, metric) for task in TASKS for metric in task.metrics])
def test_columns_are_named_by_what_they_hold(tmp_path, task, metric):
    rows = read(tmp_path / "run", task.name, metric.name, lambda skill: skill)
    pareto = aggregate(rows.trials)
    for table in (rows.trials, rows.history, pareto):
        names = {name for other in METRICS for name in (other.val, other.float_val) if name in table.column_names}
        assert names <= {metric.val, metric.float_val}
        assert (metric_in(table), metric.val in names) == (metric, True)
    also = task.also_tested(metric)
    assert also_in(rows.trials) == also_in(pareto) == also
    assert [one.test in rows.trials.column_names for one in also] == [True] * len(also)
    assert (rows.damaged, rows.trials.schema) == ((), trials_schema(metric, also))
    assert pareto.schema == pareto_schema(metric, also)
    assert {f"{metric.val}{part}" for part in ("_std", "_low", "_high")} <= set(pareto.column_names)
    for one in also:
        assert pareto[one.test].to_pylist() == [0.5] * len(pareto)
        assert f"{one.test}_std" not in pareto.column_names


def test_a_run_that_is_judged_by_accuracy_has_no_new_columns():
    names = [name for name in trials_schema().names if "accuracy" in name or name.startswith("test_")]
    assert names == ["val_accuracy", "test_accuracy", "float_val_accuracy"]


def test_a_metric_that_goes_down_gives_the_front_of_the_one_that_goes_up(tmp_path):
    dead = [(3, "diverged")]
    up = read(tmp_path / "up", "regression", "r2", lambda skill: skill, dead=dead)
    down = read(tmp_path / "down", "regression", "mse", lambda skill: 2 - skill, dead=dead)
    tables = [aggregate(rows.trials, bootstrap=True) for rows in (up, down)]
    same = ["depth", "weight_bits", "activation", "pareto_rank", "is_pareto", "p_front"]
    first, second = (
        table.select(same).sort_by([(name, "ascending") for name in same[:3]]).to_pylist() for table in tables
    )
    assert first == second
    assert len({row["pareto_rank"] for row in first}) > 2
    assert any(0 < (row["p_front"] or 0) < 1 for row in first)
    best = max(tables[1].filter(tables[1]["is_pareto"]).to_pylist(), key=lambda row: row["size_bytes"])
    assert best[MSE.val] == min(tables[1][MSE.val].drop_null().to_pylist())


def test_scores_of_stored_cohorts_follow_the_direction(tmp_path):
    up = read(tmp_path / "up", "regression", "r2", lambda skill: skill - 1)
    down = read(tmp_path / "down", "regression", "mae", lambda skill: 1 - skill)
    scores = [[one.score for one in find_stored_cohorts(rows.trials, rows.history)] for rows in (up, down)]
    assert sorted(scores[0]) == pytest.approx(sorted(scores[1]))
    for rows, stored in zip((up, down), scores, strict=True):
        assert sorted(result.score for result in rows.results) == sorted(stored)


@pytest.mark.parametrize(
    ("task", "metric", "values", "bounds"),
    [
        ("binary", AUC, (0.999, 0.9, 1.0, 0.99), (0, 1)),
        ("regression", R2, (0.999, -5.0, 0.99, 1.0), (-np.inf, 1)),
        ("regression", MAE, (0.001, 5.0, 0.002, 0.003), (0, np.inf)),
    ],
)
def test_intervals_end_at_the_bounds_of_the_metric(tmp_path, task, metric, values, bounds):
    seeds = iter([value for value in values for _ in range(4)] * 1000)  # the same at each of four epochs
    rows = read(tmp_path / "run", task, metric.name, lambda skill: next(seeds))
    for row in aggregate(rows.trials).to_pylist():
        mean, low, high = (row[f"{metric.val}{part}"] for part in ("", "_low", "_high"))
        assert bounds[0] <= low < mean < high <= bounds[1]
        reached = [low == bounds[0], high == bounds[1]]
        assert reached == [np.isfinite(bounds[0]) and metric is MAE, np.isfinite(bounds[1])]


def test_a_folder_without_a_sweep_file_is_judged_by_accuracy(tmp_path):
    store = Store(tmp_path / "run")
    assert store.trials().schema == trials_schema(ACCURACY)
    store.create(make_spec("regression", "mae").to_yaml())
    assert store.trials().schema == trials_schema(MAE, (R2,))
    assert Store(tmp_path / "run").history().schema.names[5] == MAE.val
    store.create(make_spec("regression", "r2").to_yaml())
    assert metric_in(store.history()) is R2


def test_rows_of_another_metric_are_refused(tmp_path):
    store = write_run(tmp_path / "run", make_spec("regression", "mae"), lambda skill: 1 - skill)
    with pytest.raises(ValueError, match=r"must be among .*; got val_accuracy"):
        store.write("a", [{"trial_id": "a", "state": "ok", ACCURACY.val: 0.5}], [], {})


def test_a_part_of_a_path_may_name_a_column_of_any_metric():
    assert find_partition("runs/val_mae=1/a") == "val_mae=1"


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_small_errors_are_ranked_as_large_ones(tmp_path, metric):
    tables = []
    for scale in (1.0, 1e-13):
        rows = read(tmp_path / str(scale), "regression", metric, lambda skill, scale=scale: (1.2 - skill) * scale)
        tables.append(aggregate(rows.trials, bootstrap=True).sort_by([("trial_id", "ascending")]))
        best = max(one.score for one in find_stored_cohorts(rows.trials, rows.history))
        assert max(result.score for result in rows.results) == best < 0
        curves = [one.scores for one in find_stored_cohorts(rows.trials, rows.history)]
        assert all(len(set(curve)) > 2 for curve in curves)
    large, small = tables
    for name in ("pareto_rank", "is_pareto", "p_front"):
        assert small[name].to_pylist() == large[name].to_pylist()
    for part in ("", "_std", "_low", "_high"):
        wanted = [1e-13 * x for x in large[f"val_{metric}{part}"].to_pylist()]
        assert small[f"val_{metric}{part}"].to_pylist() == pytest.approx(wanted, rel=1e-8, abs=0)
