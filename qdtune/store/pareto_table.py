"""The Pareto table over the rows of a run: one row per configuration, ranked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qdtune.pareto import front_probability, rank
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.objectives import FRONT
from qdtune.store.columns import _SHARED, _SPREAD, FINAL, PARETO, STATES


def aggregate(trials: pa.Table, bootstrap: bool = False) -> pa.Table:
    """The Pareto table, one row per configuration: ranked ones first, then by size, whatever the order of `trials`.

    Accuracies are means over the seeds that ended `ok`, with the sample standard deviation and the 95 % Student t
    interval clipped to [0, 1], both null below two seeds. Configurations whose every seed is `ok` are ranked by the
    objectives of `FRONT`; the others have no rank. `state` is the worst of the seeds' states, but
    seeds that are to run again do not count where others came to their end. `trial_id` is that of the first seeds.
    `p_front` is the bootstrap probability over seeds of being on the front, null without a rank or a second seed, and
    if the front is over more than accuracy and one objective that is known before a training.

    Args:
        trials: rows as `Store.trials` returns them.
        bootstrap: whether `p_front` is computed, which takes a second for 10,000 configurations; else it is null.
    """
    # In this order sums round alike and ties stay put, whatever order the rows come in.
    rows = trials.sort_by([(name, "ascending") for name in (*AXIS_NAMES, "dataset", "seed", "trial_id")])
    keys = [*AXIS_NAMES, "dataset"]
    ok = pc.equal(rows["state"], "ok")
    worst = pc.index_in(rows["state"], pa.array(STATES))
    columns = {name: rows[name] for name in (*keys, *_SHARED, "epochs")}
    columns |= {name: pc.if_else(ok, rows[name], None) for name in ("val_accuracy", "test_accuracy")}
    columns |= {"ok": ok.cast(pa.int32()), "worst": worst}
    columns |= {"ended": pc.if_else(pc.is_in(rows["state"], pa.array(FINAL)), worst, None)}
    columns |= {"row": pa.array(np.arange(len(rows)))}
    sample = pc.VarianceOptions(ddof=1)
    groups = (
        pa.table(columns)
        .group_by(keys, use_threads=False)
        .aggregate(
            [(name, "first") for name in _SHARED]
            + [("epochs", "max"), ("worst", "max"), ("row", "min"), ("row", "count"), ("ended", "max"), ("ok", "sum")]
            + [(name, "mean") for name in ("val_accuracy", "test_accuracy")]
            + [(name, "stddev", sample) for name in ("val_accuracy", "test_accuracy")]
        )
    )
    worst = pc.coalesce(groups["ended_max"], groups["worst_max"])
    result = {name: groups[name] for name in keys}
    result |= {name: groups[f"{name}_first"] for name in _SHARED}
    result |= {"n_seeds": groups["ok_sum"], "epochs": groups["epochs_max"], "state": pa.array(STATES).take(worst)}
    result |= _spread(groups, "val_accuracy") | _spread(groups, "test_accuracy")
    result |= ranking(pa.table(result))
    if bootstrap and len(groups):
        order = np.argsort(groups["row_min"].to_numpy())  # rows of one lie together, but Arrow shuffles the groups
        owner = np.repeat(order, groups["row_count"].to_numpy()[order])
        shares = _front_shares(result, by_seed(owner, rows["seed"], columns["val_accuracy"]))
    else:
        shares = np.full(len(groups), np.nan)
    result |= {"p_front": pa.array(shares, from_pandas=True)}
    table = pa.table(result).select(PARETO.names).cast(PARETO)
    return table.sort_by([(name, "ascending") for name in ("pareto_rank", "size_bytes", "trial_id")])


def ranking(configurations: pa.Table) -> dict[str, pa.Array]:
    """The columns `pareto_rank` and `is_pareto` of configurations: those that are `ok`, over the front.

    Args:
        configurations: columns of `PARETO`, at least `state` and those of `objectives.FRONT`.
    """
    costs = np.column_stack([one.sign * _floats(configurations[one.name]) for one in FRONT])
    costs[pc.not_equal(configurations["state"], "ok").to_numpy(zero_copy_only=False)] = np.nan
    ranks = rank(costs)
    return {"pareto_rank": pa.array(ranks, mask=ranks == 0), "is_pareto": pa.array(ranks == 1)}


def _front_shares(result: Mapping[str, Any], accuracies: NDArray[np.float64]) -> NDArray[np.float64]:
    """The column `p_front`, NaN where it is null.

    Args:
        result: the columns of the Pareto table so far.
        accuracies: a row per configuration, a column per seed.
    """
    known = [one for one in FRONT if one.value]
    if len(known) != 1:
        return np.full(len(accuracies), np.nan)
    ranked = pc.is_valid(result["pareto_rank"]).to_numpy(zero_copy_only=False)
    costs = known[0].sign * _floats(result[known[0].name])
    return front_probability(np.where(ranked[:, None], -accuracies, np.nan), costs)


def by_seed(owner: NDArray[np.int64], seeds: pa.ChunkedArray, values: pa.ChunkedArray) -> NDArray[np.float64]:
    """The values as a matrix, NaN where there is none: a row for each of `owner` (0, 1, ...), a column per seed."""
    distinct, column = np.unique(seeds.to_numpy(), return_inverse=True)
    matrix = np.full((int(owner.max(initial=-1)) + 1, len(distinct)), np.nan)
    matrix[owner, column] = _floats(values)
    return matrix


def table_front(pareto: pa.Table) -> pa.Table:
    """The rows of a Pareto table that are on the front, by ascending size."""
    return pareto.filter(pareto["is_pareto"]).sort_by([("size_bytes", "ascending")])


def _spread(groups: pa.Table, name: str) -> dict[str, pa.Array]:
    """Mean, deviation and interval of one accuracy; what is not a number becomes null."""
    n = groups["ok_sum"].to_numpy()
    # Accuracies are fractions of a count: at 12 digits equal ones tie, whatever the rounding of their sums.
    mean, std = (_floats(groups[f"{name}_{of}"]).round(12) for of in ("mean", "stddev"))
    from scipy.special import stdtrit  # 0.2 s, which a launch does not need before it starts

    half = stdtrit(n - 1, 0.975) * std / np.sqrt(np.maximum(n, 1))
    values = (mean, std, np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1))
    return {f"{name}{suffix}": pa.array(x, from_pandas=True) for suffix, x in zip(_SPREAD, values, strict=True)}


def _floats(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """The column as floats, null as NaN."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def final_ids(trials: pa.Table) -> set[str]:
    """The ids of the configurations whose every seed is in a `FINAL` state."""
    unfinished = pc.invert(pc.is_in(trials["state"], pa.array(FINAL)))
    return set(trials["trial_id"].to_pylist()) - set(trials.filter(unfinished)["trial_id"].to_pylist())
