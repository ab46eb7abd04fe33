"""The Pareto table over the rows of a run: one row per configuration, ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qdtune.pareto import front_probability, rank, round_means
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.objectives import DEFAULT_COSTS, Objective, front_of
from qdtune.spec.tasks import Metric
from qdtune.store.columns import (
    FINAL,
    SHARED_COLUMNS,
    SPREAD_SUFFIXES,
    STATES,
    also_in,
    costs_in,
    mark_costs,
    metric_in,
    pareto_schema,
)

KEYS = [*AXIS_NAMES, "dataset"]  # rows that agree in these are of one configuration


def aggregate(
    trials: pa.Table,
    bootstrap: bool = False,
    p_reach: Mapping[str, float] | None = None,
    costs: Sequence[Objective] = DEFAULT_COSTS,
) -> pa.Table:
    """The Pareto table: one row per configuration, by rank and then by costs. The order of `trials` has no effect.

    The metric is a mean over the seeds that ended `ok`, with the sample standard deviation and the 95 % Student t
    interval clipped to the bounds of the metric; both are null below two seeds. Configurations whose seeds are all
    `ok` are ranked by the objectives of `front_of`; the others have no rank. `state` is the worst state of the seeds;
    seeds that will run again count only if no other seed is final. `trial_id` is the id of the first seeds. `p_front`
    is the bootstrap probability over seeds of being on the front. It is null without a rank or a second seed.

    Args:
        trials: the rows from `Store.trials`.
        bootstrap: whether to compute `p_front`, which takes a second for 10,000 configurations; if not, it is null.
        p_reach: trial_id -> the column `p_reach` of those that are stopped, see `releases.shares_to_reach`.
        costs: of the front. The table notes them, see `columns.costs_in`.
    """
    metric, also = metric_in(trials), also_in(trials)
    judged, measured = (metric.val, metric.test), (metric.val, metric.test, *(one.test for one in also))
    # A fixed order, so that sums round alike and ties keep their order.
    rows = trials.sort_by([(name, "ascending") for name in (*KEYS, "seed", "trial_id")])
    columns, groups = _group_rows(rows, judged, measured)
    worst = pc.coalesce(groups["ended_max"], groups["worst_max"])
    result = {name: groups[name] for name in KEYS}
    result |= {name: groups[f"{name}_first"] for name in SHARED_COLUMNS}
    result |= {"n_seeds": groups["ok_sum"], "epochs": groups["epochs_max"], "state": pa.array(STATES).take(worst)}
    result |= _spread(groups, metric.val, metric) | _spread(groups, metric.test, metric)
    result |= {one.test: groups[f"{one.test}_mean"] for one in also}
    result |= ranking(pa.table(result), costs)
    if bootstrap and len(groups):
        order = np.argsort(groups["row_min"].to_numpy())  # Arrow shuffles the groups, but not the rows of one
        owner = np.repeat(order, groups["row_count"].to_numpy()[order])
        shares = _front_shares(result, by_seed(owner, rows["seed"], columns[metric.val]), metric, costs)
    else:
        shares = np.full(len(groups), np.nan)
    result |= {"p_front": pa.array(shares, from_pandas=True)}
    if p_reach:
        now = pa.array([p_reach.get(trial_id) for trial_id in groups["trial_id_first"].to_pylist()], pa.float64())
        result |= {"p_reach": pc.coalesce(result["p_reach"], now)}
    schema = pareto_schema(metric, also)
    table = pa.table(result).select(schema.names).cast(schema)
    return mark_costs(table.sort_by([("pareto_rank", "ascending"), *_order_of(costs)]), costs)


def _order_of(costs: Sequence[Objective]) -> list[tuple[str, str]]:
    """How rows are sorted: the first cost first, of equal ones by the next."""
    by_cost = [(one.name, "ascending" if one.sign > 0 else "descending") for one in costs]
    return [*by_cost, ("trial_id", "ascending")]


def _group_rows(
    rows: pa.Table, judged: Sequence[str], measured: Sequence[str]
) -> tuple[dict[str, pa.ChunkedArray], pa.Table]:
    """What is known of each row, null where it is not to count, and of all rows of each configuration.

    Args:
        rows: in the order in which they are added up.
        judged: the columns of which the spread is needed, too.
        measured: the columns that count where a training ended `ok`.
    """
    ok = pc.equal(rows["state"], "ok")
    worst = pc.index_in(rows["state"], pa.array(STATES))
    columns = {name: rows[name] for name in (*KEYS, *SHARED_COLUMNS, "epochs")}
    columns |= {name: pc.if_else(ok, rows[name], None) for name in measured}
    columns |= {"ok": ok.cast(pa.int32()), "worst": worst}
    columns |= {"ended": pc.if_else(pc.is_in(rows["state"], pa.array(FINAL)), worst, None)}
    columns |= {"row": pa.array(np.arange(len(rows)))}
    sample = pc.VarianceOptions(ddof=1)
    groups = (
        pa.table(columns)
        .group_by(KEYS, use_threads=False)
        .aggregate(
            [(name, "first") for name in SHARED_COLUMNS]
            + [("epochs", "max"), ("worst", "max"), ("row", "min"), ("row", "count"), ("ended", "max"), ("ok", "sum")]
            + [(name, "mean") for name in measured]
            + [(name, "stddev", sample) for name in judged]
        )
    )
    return columns, groups


def ranking(configurations: pa.Table, costs: Sequence[Objective] = DEFAULT_COSTS) -> dict[str, pa.Array]:
    """The columns `pareto_rank` and `is_pareto`: the ranks by the objectives of `front_of`, null unless `ok`.

    Args:
        configurations: columns of the Pareto table, at least `state` and those of `objectives.front_of`.
        costs: of the front.
    """
    values = _less_is_better(configurations, front_of(metric_in(configurations), costs))
    values[pc.not_equal(configurations["state"], "ok").to_numpy(zero_copy_only=False)] = np.nan
    ranks = rank(values)
    return {"pareto_rank": pa.array(ranks, mask=ranks == 0), "is_pareto": pa.array(ranks == 1)}


def _front_shares(
    result: Mapping[str, Any], values: NDArray[np.float64], metric: Metric, costs: Sequence[Objective]
) -> NDArray[np.float64]:
    """The column `p_front`, with NaN for null.

    Args:
        result: the columns of the Pareto table so far.
        values: of the metric; a row per configuration, a column per seed.
        metric: that judges.
        costs: of the front.
    """
    ranked = pc.is_valid(result["pareto_rank"]).to_numpy(zero_copy_only=False)
    errors = np.where(ranked[:, None], -metric.sign * values, np.nan)
    return front_probability(errors, _less_is_better(result, costs))


def _less_is_better(columns: Any, objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """The values (n, m) of objectives, less is better, NaN for null; `columns` by name."""
    return np.column_stack([one.sign * _floats(columns[one.name]) for one in objectives])


def by_seed(owner: NDArray[np.int64], seeds: pa.ChunkedArray, values: pa.ChunkedArray) -> NDArray[np.float64]:
    """The values as a matrix: a row per `owner` (0, 1, ...), a column per seed, NaN if there is no value."""
    distinct, column = np.unique(seeds.to_numpy(), return_inverse=True)
    matrix = np.full((int(owner.max(initial=-1)) + 1, len(distinct)), np.nan)
    matrix[owner, column] = _floats(values)
    return matrix


def table_front(pareto: pa.Table) -> pa.Table:
    """The rows of a Pareto table that are on the front, by ascending costs, the first one first."""
    return pareto.filter(pareto["is_pareto"]).sort_by(_order_of(costs_in(pareto))[:-1])


def _spread(groups: pa.Table, name: str, metric: Metric) -> dict[str, pa.Array]:
    """Mean, standard deviation and interval of a column of the metric; NaN becomes null."""
    n = groups["ok_sum"].to_numpy()
    mean, std = (_floats(groups[f"{name}_{of}"]) for of in ("mean", "stddev"))
    mean, std = round_means(mean), round_means(std, like=mean)  # so that equal means tie, and have no deviation
    from scipy.special import stdtrit  # here, because it takes 0.2 s and a launch does not need it to start

    half = stdtrit(n - 1, 0.975) * std / np.sqrt(np.maximum(n, 1))
    values = (mean, std, np.clip(mean - half, *metric.bounds), np.clip(mean + half, *metric.bounds))
    return {
        f"{name}{suffix}": pa.array(x, from_pandas=True) for suffix, x in zip(SPREAD_SUFFIXES, values, strict=True)
    }


def _floats(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """The column as floats, with NaN for null."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def final_ids(trials: pa.Table) -> set[str]:
    """The ids of the trials whose seeds are all in a `FINAL` state."""
    unfinished = pc.invert(pc.is_in(trials["state"], pa.array(FINAL)))
    return set(trials["trial_id"].to_pylist()) - set(trials.filter(unfinished)["trial_id"].to_pylist())
