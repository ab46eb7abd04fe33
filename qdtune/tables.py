"""The tables of a run folder: their columns, one Parquet file's bytes, and the Pareto table over trials.

Bytes in, tables out, and back: no file is opened here. Nothing unpickles, and extension types, whose readers may run
code from the file, are refused.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qdtune.names import AXES, SINCE
from qdtune.pareto import front_probability, rank

SCHEMA_VERSION = 5  # rises with every column: a file of this version has them all, an older one reads as null, or
# as `names.SINCE` has it
VERSION_KEY = "qdtune.schema_version"
DIGEST_KEY = "qdtune.sha256"  # of the rows
SMALL = 200  # rows

STATES = ("ok", "pruned", "diverged", "timeout", "oom", "failed")  # from best to worst
# The other states may come out differently another time, so they run again on the next launch.
FINAL = frozenset({"ok", "pruned", "diverged"})

_AXES = [
    ("depth", pa.int32()),
    ("weight_bits", pa.int32()),
    ("activation", pa.string()),
    ("act_bits", pa.int32()),
    ("scale", pa.string()),
    ("factor_init", pa.string()),
    ("granularity", pa.string()),
    ("levels", pa.string()),
    ("decompose", pa.string()),
    ("hidden", pa.string()),
    ("warmup_lr", pa.float64()),
    ("qat_lr", pa.float64()),
    ("augment", pa.string()),
]
TRIALS = pa.schema(
    [
        ("trial_id", pa.string()),
        *_AXES,
        ("seed", pa.int64()),
        ("dataset", pa.string()),
        ("model", pa.string()),  # mlp, or the user's factory
        ("state", pa.string()),
        ("epochs", pa.int32()),
        ("train_loss", pa.float64()),
        ("val_accuracy", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("float_val_accuracy", pa.float64()),
        ("params", pa.int64()),
        ("size_bytes", pa.int64()),
        ("weight_bytes", pa.int64()),
        ("scale_bytes", pa.int64()),
        ("bias_bytes", pa.int64()),
        ("other_bytes", pa.int64()),
        ("fp32_bytes", pa.int64()),
        ("inner_dims", pa.list_(pa.list_(pa.int32()))),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("error", pa.string()),
        ("pruned_by", pa.string()),  # a trial_id, or the rule where no single trial beat it
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("attempt", pa.int32()),
    ]
)

HISTORY = pa.schema(
    [
        ("trial_id", pa.string()),
        ("seed", pa.int64()),
        ("phase", pa.string()),  # warmup | qat
        ("epoch", pa.int32()),  # 1-based within its phase
        ("train_loss", pa.float64()),
        ("val_accuracy", pa.float64()),
        ("seconds", pa.float64()),
    ]
)

_SHARED = ("trial_id", "model", "size_bytes", "other_bytes", "params", "pruned_by")  # by the seeds of a row
_SPREAD = ("", "_std", "_low", "_high")
PARETO = pa.schema(
    [
        ("trial_id", pa.string()),
        *_AXES,
        ("dataset", pa.string()),
        ("model", pa.string()),
        ("n_seeds", pa.int32()),
        *[(f"val_accuracy{suffix}", pa.float64()) for suffix in _SPREAD],
        *[(f"test_accuracy{suffix}", pa.float64()) for suffix in _SPREAD],
        ("size_bytes", pa.int64()),
        ("other_bytes", pa.int64()),
        ("params", pa.int64()),
        ("state", pa.string()),
        ("pruned_by", pa.string()),
        ("epochs", pa.int32()),
        ("pareto_rank", pa.int32()),
        ("is_pareto", pa.bool_()),
        ("p_front", pa.float64()),
    ]
)


class NewerSchemaError(ValueError):
    """A file of the run folder was written by a newer qdtune."""


class DamagedError(ValueError):
    """A file that cannot be believed."""


def aggregate(trials: pa.Table, bootstrap: bool = False) -> pa.Table:
    """The Pareto table, one row per configuration: ranked ones first, then by size, whatever the order of `trials`.

    Accuracies are means over the seeds that ended `ok`, with the sample standard deviation and the 95 % Student t
    interval clipped to [0, 1], both null below two seeds. Configurations whose every seed is `ok` are ranked by
    validation accuracy (up) and size (down); the others have no rank. `state` is the worst of the seeds' states, but
    seeds that are to run again do not count where others came to their end. `trial_id` is that of the first seeds.
    `p_front` is the bootstrap probability over seeds of being on the front, null without a rank or a second seed.

    Args:
        trials: rows as `Store.trials` returns them.
        bootstrap: whether `p_front` is computed, which takes a second for 10,000 configurations; else it is null.
    """
    # In this order sums round alike and ties stay put, whatever order the rows come in.
    rows = trials.sort_by([(name, "ascending") for name in (*AXES, "dataset", "seed", "trial_id")])
    keys = [*AXES, "dataset"]
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
    ranked = pc.is_valid(result["pareto_rank"]).to_numpy(zero_copy_only=False)
    p_front = np.full(len(ranked), np.nan)
    if bootstrap and len(ranked):
        order = np.argsort(groups["row_min"].to_numpy())  # rows of one lie together, but Arrow shuffles the groups
        owner = np.repeat(order, groups["row_count"].to_numpy()[order])
        accuracies = by_seed(owner, rows["seed"], columns["val_accuracy"])
        p_front = front_probability(np.where(ranked[:, None], -accuracies, np.nan), _floats(result["size_bytes"]))
    result |= {"p_front": pa.array(p_front, from_pandas=True)}
    table = pa.table(result).select(PARETO.names).cast(PARETO)
    return table.sort_by([(name, "ascending") for name in ("pareto_rank", "size_bytes", "trial_id")])


def ranking(configurations: pa.Table) -> dict[str, pa.Array]:
    """The columns `pareto_rank` and `is_pareto` of configurations: those that are `ok`, by accuracy up and size down.

    Args:
        configurations: columns of `PARETO`, at least `val_accuracy`, `size_bytes` and `state`.
    """
    costs = np.column_stack([-_floats(configurations["val_accuracy"]), _floats(configurations["size_bytes"])])
    costs[pc.not_equal(configurations["state"], "ok").to_numpy(zero_copy_only=False)] = np.nan
    ranks = rank(costs)
    return {"pareto_rank": pa.array(ranks, mask=ranks == 0), "is_pareto": pa.array(ranks == 1)}


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


def to_table(rows: list[dict[str, Any]], schema: pa.Schema, metadata: dict[str, str]) -> pa.Table:
    """Rows as a table; pyarrow alone would drop a misspelt column without a word."""
    if unknown := sorted({key for row in rows for key in row} - set(schema.names)):
        raise ValueError(f"the columns of a row must be among {', '.join(schema.names)}; got {', '.join(unknown)}")
    return stamped(pa.Table.from_pylist(rows, schema=schema), metadata)


def stamped(table: pa.Table, metadata: dict[str, str]) -> pa.Table:
    """The table with `metadata` and the schema version in its own."""
    return table.replace_schema_metadata({**metadata, VERSION_KEY: str(SCHEMA_VERSION)})


def check_rows(table: pa.Table, trial_id: str | None) -> None:
    """Raises where rows are missing or speak of another configuration: a renamed file counts for nobody.

    Args:
        trial_id: the one that every row must carry; None for a packed file, which has many.
    """
    ids = set(table["trial_id"].to_pylist())
    if trial_id is not None and (others := ids - {trial_id}):
        raise DamagedError(f"every row must carry trial_id {trial_id!r}, got {sorted(map(str, others))}")
    if "state" in table.column_names:
        if trial_id is not None and table.num_rows == 0:
            raise DamagedError("a configuration must have one row per seed, got none")
        if unknown := set(table["state"].to_pylist()) - set(STATES):
            raise DamagedError(f"state must be one of {', '.join(STATES)}; got {sorted(map(str, unknown))}")


def parse(data: bytes, path: object, schema: pa.Schema, whole: bool = False) -> pa.Table:
    """The table in the bytes of a Parquet file, checked against its checksums, the columns of `schema` first.

    Args:
        path: what messages call it.
        whole: keep the metadata of the file.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        found = file.schema_arrow
        metadata = found.metadata or {}
        version = metadata.get(VERSION_KEY.encode(), b"")
        if not version.isdigit():
            raise DamagedError(f"the file metadata must hold {VERSION_KEY}, got {version!r}")
        if int(version) > SCHEMA_VERSION:
            raise NewerSchemaError(
                f"{path} must have schema version {SCHEMA_VERSION} or lower, got {int(version)}: upgrade qdtune"
            )
        if int(version) == SCHEMA_VERSION and (missing := set(schema.names) - set(found.names)):
            raise DamagedError(f"columns missing: {', '.join(sorted(missing))}")
        plain = found.remove_metadata()
        if b"ARROW:extension:name" in plain.serialize().to_pybytes():  # their readers may run code from the file
            raise DamagedError("columns must be of plain types, got an extension type")
        merge(schema, plain, schema)
        table = file.read(use_threads=False).replace_schema_metadata()
        if table.num_rows != file.metadata.num_rows:
            raise DamagedError(f"{file.metadata.num_rows} rows promised, {table.num_rows} found")
        if (digest := metadata.get(DIGEST_KEY.encode())) is not None and digest.decode() != _digest(table):
            raise DamagedError(f"the rows do not fit their checksum {digest.decode()}")
        if not table.schema.equals(schema):
            table = completed(table, schema)
        kept = {key: value for key, value in metadata.items() if key != DIGEST_KEY.encode()}
        return table.replace_schema_metadata(kept) if whole else table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"unreadable: {str(error).splitlines()[0]}") from error


def completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of `schema` first; those that it lacks are null, or an axis of later versions."""
    for axis in SINCE.keys() & set(schema.names) - set(table.column_names):
        table = table.append_column(axis, pa.repeat(SINCE[axis], table.num_rows))
    return pa.concat_tables([schema.empty_table(), table], promote_options="permissive")


def _digest(table: pa.Table) -> str:
    """A checksum of every cell: that of a page does not cover what is written around it."""
    return hashlib.sha256(json.dumps(table.to_pydict(), default=str).encode()).hexdigest()


def merge(merged: pa.Schema, found: pa.Schema, known: pa.Schema) -> pa.Schema:
    """Both schemas in one, columns unknown to us last; a known column keeps its type."""
    try:
        unified = pa.unify_schemas([merged, found], promote_options="permissive")
    except pa.ArrowException as error:
        raise DamagedError(str(error).splitlines()[0]) from error
    if changed := [field.name for field in known if unified.field(field.name).type != field.type]:
        raise DamagedError(f"columns of another type than theirs: {', '.join(changed)}")
    return unified


def to_bytes(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file, with checksums."""
    sink = pa.BufferOutputStream()
    stamp = {**(table.schema.metadata or {}), DIGEST_KEY: _digest(table)}
    few = table.num_rows < SMALL  # then what would make it smaller makes it larger, and takes as long again
    compact = {"use_dictionary": False, "write_statistics": False, "compression": "none"} if few else {}
    pq.write_table(table.replace_schema_metadata(stamp), sink, write_page_checksum=True, **compact)
    return sink.getvalue().to_pybytes()
