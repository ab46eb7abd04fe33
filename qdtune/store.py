"""The run folder: what is done, what came out, and the Pareto table over it.

One configuration is one immutable Parquet file, named by its `trial_id`. A file appears whole or not at all: it
is put together in memory, written under a dot name, fsynced and renamed, so a kill at any moment leaves the old
state or the new one. Whoever writes holds `Store.lock`, which the kernel frees; readers need none. Nothing unpickles.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import socket
from collections.abc import Collection, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]

from qdtune.pareto import rank

SCHEMA_VERSION = 1  # rises with every column: a file of this version has them all, an older one reads as null
VERSION_KEY = "qdtune.schema_version"

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
    ("hidden", pa.string()),
    ("warmup_lr", pa.float64()),
    ("qat_lr", pa.float64()),
]
AXES = tuple(name for name, _ in _AXES)

TRIALS = pa.schema(
    [
        ("trial_id", pa.string()),
        *_AXES,
        ("seed", pa.int64()),
        ("dataset", pa.string()),
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
        ("fp32_bytes", pa.int64()),
        ("inner_dims", pa.list_(pa.list_(pa.int32()))),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("error", pa.string()),
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

_SPREAD = ("", "_std", "_low", "_high")
PARETO = pa.schema(
    [
        ("trial_id", pa.string()),
        *_AXES,
        ("dataset", pa.string()),
        ("n_seeds", pa.int32()),
        *[(f"val_accuracy{suffix}", pa.float64()) for suffix in _SPREAD],
        *[(f"test_accuracy{suffix}", pa.float64()) for suffix in _SPREAD],
        ("size_bytes", pa.int64()),
        ("params", pa.int64()),
        ("state", pa.string()),
        ("epochs", pa.int32()),
        ("pareto_rank", pa.int32()),
        ("is_pareto", pa.bool_()),
    ]
)


class RunInUse(ValueError):  # noqa: N818 - the state is the message
    """Another launch holds this run folder."""


class StorageError(OSError):
    """The run folder cannot be read or written; what was committed is as it was."""


class NewerSchemaError(ValueError):
    """A file of the run folder was written by a newer qdtune."""


class _DamagedError(ValueError):
    """A file that cannot be believed."""


class Store:
    """One run folder.

    Args:
        root: the folder; `create` or `lock` makes it.

    Attributes:
        damaged: one line for each file that the latest `done`, `trials` or `history` skipped, with the reason.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.damaged: list[str] = []

    def create(self, sweep_yaml: str) -> None:
        """Makes the folder and writes, or replaces, its `sweep.yaml`.

        Raises:
            StorageError: the folder cannot be written.
        """
        _commit(self.root / "sweep.yaml", sweep_yaml.encode())

    def sweep_yaml(self) -> str | None:
        """The text of `sweep.yaml`; None where the folder holds none yet.

        Raises:
            StorageError: the file is there but cannot be read.
        """
        data = _read(self.root / "sweep.yaml")
        return None if data is None else data.decode()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one launch and clears what a killed one left half written.

        Raises:
            RunInUse: another process holds it; the message names its pid, host and start.
            StorageError: the folder cannot be written.
        """
        path = self.root / ".lock"
        with contextlib.ExitStack() as stack:
            with _storage(path):
                self.root.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a+"))  # never removed: a second file could be locked beside it
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    holder = file.read().strip() or "a launch that is just starting"
                    raise RunInUse(
                        f"one launch may use {self.root} at a time, but it is held by {holder}: "
                        "wait for its end, or stop it and run the same command again"
                    ) from None
                file.truncate(0)
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                file.write(f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n")
                file.flush()
                for leftover in self.root.glob("**/.*.tmp"):
                    leftover.unlink()
            yield

    def set_aside(self) -> Path | None:
        """Renames the folder to `NAME.1`, or the next number that is free; the new path, None if there was none.

        Raises:
            RunInUse: another process holds it.
            StorageError: it cannot be renamed.
        """
        if not self.root.exists():
            return None
        numbers = itertools.count(1)
        aside = next(p for n in numbers if not (p := self.root.with_name(f"{self.root.name}.{n}")).exists())
        with self.lock(), _storage(self.root):
            self.root.rename(aside)
        return aside

    def done(self) -> set[str]:
        """The ids of the configurations that need no further run: a sound file, every seed in a `FINAL` state.

        Raises:
            StorageError: the folder cannot be read.
            NewerSchemaError: a file was written by a newer qdtune.
        """
        return _final(self.trials())

    def write(
        self,
        trial_id: str,
        rows: list[dict[str, Any]],
        history: list[dict[str, Any]],
        metadata: dict[str, str],
    ) -> bool:
        """Commits a finished configuration; True if written, False if a final result was there already and stays.

        A result that is not final is replaced; a damaged file is kept aside as `<trial_id>.parquet.damaged`.

        Args:
            trial_id: names the two files.
            rows: one dict per seed, keys from `TRIALS`; an absent key is null.
            history: one dict per seed and epoch, keys from `HISTORY`.
            metadata: provenance (versions, git commit), kept in the metadata of both files.

        Raises:
            ValueError: a row with an unknown column, another trial_id or an unknown state; no rows.
            StorageError: the folder cannot be written; files committed earlier are untouched.
        """
        tables = [("history", _table(history, HISTORY, metadata)), ("trials", _table(rows, TRIALS, metadata))]
        for _, table in tables:
            _check_rows(table, trial_id)
        path = self.root / "trials" / f"{trial_id}.parquet"
        found, damaged = self._scan("trials", TRIALS, [trial_id])
        if trial_id in _final(found):
            return False
        if damaged:
            with _storage(path):
                path.replace(f"{path}.damaged")
        for folder, table in tables:  # the trials file comes last, because its presence says "done"
            _commit(self.root / folder / f"{trial_id}.parquet", _to_bytes(table))
        return True

    def trials(self, ids: Collection[str] | None = None) -> pa.Table:
        """The rows of all configurations, or of those of `ids` that are there: `TRIALS`, then columns unknown to it.

        Raises:
            StorageError: the folder cannot be read.
            NewerSchemaError: a file was written by a newer qdtune.
        """
        table, self.damaged = self._scan("trials", TRIALS, ids)
        return table

    def history(self, ids: Collection[str] | None = None) -> pa.Table:
        """The learning curves of all configurations, or of those of `ids` that are there; else like `trials`."""
        table, self.damaged = self._scan("history", HISTORY, ids)
        return table

    def write_pareto(self, ids: Collection[str] | None = None) -> pa.Table:
        """Writes `pareto.parquet` over all configurations, or those of `ids`, and returns it; else like `trials`."""
        table = aggregate(self.trials(ids))
        _commit(self.root / "pareto.parquet", _to_bytes(_stamped(table, {})))
        return table

    def _scan(self, folder: str, schema: pa.Schema, ids: Collection[str] | None) -> tuple[pa.Table, list[str]]:
        if ids is None:
            with _storage(self.root / folder), contextlib.suppress(FileNotFoundError):
                names = os.listdir(self.root / folder)
                ids = [n.removesuffix(".parquet") for n in names if n.endswith(".parquet") and n[0] != "."]
        tables, damaged, merged = [schema.empty_table()], [], schema
        for trial_id in sorted(set(ids or ())):
            path = self.root / folder / f"{trial_id}.parquet"
            if (data := _read(path)) is None:
                continue
            try:
                table = _parse(data, path, schema)
                _check_rows(table, trial_id)
                merged = _merge(merged, table.schema, schema)
            except _DamagedError as error:
                damaged.append(f"{path}: {error}")
            else:
                tables.append(table)
        return pa.concat_tables(tables, promote_options="permissive"), damaged


def aggregate(trials: pa.Table) -> pa.Table:
    """The Pareto table, one row per configuration: ranked ones first, then by size, whatever the order of `trials`.

    Accuracies are means over the seeds that ended `ok`, with the sample standard deviation and the 95 % Student t
    interval clipped to [0, 1], both null below two seeds. Configurations whose every seed is `ok` are ranked by
    validation accuracy (up) and size (down); the others have no rank. `state` is the worst of the seeds' states.

    Args:
        trials: rows as `Store.trials` returns them.
    """
    # In this order sums round alike and ties stay put, whatever order the rows come in.
    rows = trials.sort_by([("trial_id", "ascending"), ("seed", "ascending")])
    ok = pc.equal(rows["state"], "ok")
    columns = {name: rows[name] for name in ("trial_id", *AXES, "dataset", "size_bytes", "params", "epochs")}
    columns |= {name: pc.if_else(ok, rows[name], None) for name in ("val_accuracy", "test_accuracy")}
    columns |= {"ok": ok.cast(pa.int32()), "worst": pc.index_in(rows["state"], pa.array(STATES))}
    sample = pc.VarianceOptions(ddof=1)
    groups = (
        pa.table(columns)
        .group_by("trial_id", use_threads=False)
        .aggregate(
            [(name, "first") for name in (*AXES, "dataset", "size_bytes", "params")]
            + [("epochs", "max"), ("worst", "max"), ("ok", "sum")]
            + [(name, "mean") for name in ("val_accuracy", "test_accuracy")]
            + [(name, "stddev", sample) for name in ("val_accuracy", "test_accuracy")]
        )
    )
    worst = groups["worst_max"].to_numpy()
    result = {name: groups[f"{name}_first"] for name in (*AXES, "dataset", "size_bytes", "params")}
    result |= {"trial_id": groups["trial_id"], "n_seeds": groups["ok_sum"], "epochs": groups["epochs_max"]}
    result |= {"state": pa.array(STATES).take(groups["worst_max"])}
    result |= _spread(groups, "val_accuracy") | _spread(groups, "test_accuracy")
    costs = np.column_stack([-_floats(result["val_accuracy"]), _floats(result["size_bytes"])])
    costs[worst > 0] = np.nan
    ranks = rank(costs)
    result |= {"pareto_rank": pa.array(ranks, mask=ranks == 0), "is_pareto": pa.array(ranks == 1)}
    table = pa.table(result).select(PARETO.names).cast(PARETO)
    return table.sort_by([(name, "ascending") for name in ("pareto_rank", "size_bytes")])


def table_front(pareto: pa.Table) -> pa.Table:
    """The rows of a Pareto table that are on the front, by ascending size."""
    return pareto.filter(pareto["is_pareto"]).sort_by([("size_bytes", "ascending")])


def _spread(groups: pa.Table, name: str) -> dict[str, pa.Array]:
    """Mean, deviation and interval of one accuracy; what is not a number becomes null."""
    n = groups["ok_sum"].to_numpy()
    # Accuracies are fractions of a count: at 12 digits equal ones tie, whatever the rounding of their sums.
    mean, std = (_floats(groups[f"{name}_{of}"]).round(12) for of in ("mean", "stddev"))
    half = stdtrit(n - 1, 0.975) * std / np.sqrt(np.maximum(n, 1))
    values = (mean, std, np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1))
    return {f"{name}{suffix}": pa.array(x, from_pandas=True) for suffix, x in zip(_SPREAD, values, strict=True)}


def _floats(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """The column as floats, null as NaN."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _final(trials: pa.Table) -> set[str]:
    unfinished = pc.invert(pc.is_in(trials["state"], pa.array(FINAL)))
    return set(trials["trial_id"].to_pylist()) - set(trials.filter(unfinished)["trial_id"].to_pylist())


def _table(rows: list[dict[str, Any]], schema: pa.Schema, metadata: dict[str, str]) -> pa.Table:
    """Rows as a table; pyarrow alone would drop a misspelt column without a word."""
    if unknown := sorted({key for row in rows for key in row} - set(schema.names)):
        raise ValueError(f"the columns of a row must be among {', '.join(schema.names)}; got {', '.join(unknown)}")
    return _stamped(pa.Table.from_pylist(rows, schema=schema), metadata)


def _stamped(table: pa.Table, metadata: dict[str, str]) -> pa.Table:
    return table.replace_schema_metadata({**metadata, VERSION_KEY: str(SCHEMA_VERSION)})


def _check_rows(table: pa.Table, trial_id: str) -> None:
    """Raises where rows are missing or speak of another configuration: a renamed file counts for nobody."""
    if others := set(table["trial_id"].to_pylist()) - {trial_id}:
        raise _DamagedError(f"every row must carry trial_id {trial_id!r}, got {sorted(map(str, others))}")
    if "state" in table.column_names:
        if table.num_rows == 0:
            raise _DamagedError("a configuration must have one row per seed, got none")
        if unknown := set(table["state"].to_pylist()) - set(STATES):
            raise _DamagedError(f"state must be one of {', '.join(STATES)}; got {sorted(map(str, unknown))}")


def _parse(data: bytes, path: Path, schema: pa.Schema) -> pa.Table:
    """The table in the bytes of a Parquet file, pages checked against checksums, the columns of `schema` first."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        found = file.schema_arrow
        version = (found.metadata or {}).get(VERSION_KEY.encode(), b"")
        if not version.isdigit():
            raise _DamagedError(f"the file metadata must hold {VERSION_KEY}, got {version!r}")
        if int(version) > SCHEMA_VERSION:
            raise NewerSchemaError(
                f"{path} must have schema version {SCHEMA_VERSION} or lower, got {int(version)}: upgrade qdtune"
            )
        if int(version) == SCHEMA_VERSION and (missing := set(schema.names) - set(found.names)):
            raise _DamagedError(f"columns missing: {', '.join(sorted(missing))}")
        plain = found.remove_metadata()
        if b"ARROW:extension:name" in plain.serialize().to_pybytes():  # their readers may run code from the file
            raise _DamagedError("columns must be of plain types, got an extension type")
        _merge(schema, plain, schema)
        table = file.read(use_threads=False)
        if table.num_rows != file.metadata.num_rows:
            raise _DamagedError(f"{file.metadata.num_rows} rows promised, {table.num_rows} found")
        return pa.concat_tables([schema.empty_table(), table.replace_schema_metadata()], promote_options="permissive")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _DamagedError(f"unreadable: {str(error).splitlines()[0]}") from error


def _merge(merged: pa.Schema, found: pa.Schema, known: pa.Schema) -> pa.Schema:
    """Both schemas in one, columns unknown to us last; a known column keeps its type."""
    try:
        unified = pa.unify_schemas([merged, found], promote_options="permissive")
    except pa.ArrowException as error:
        raise _DamagedError(str(error).splitlines()[0]) from error
    if changed := [field.name for field in known if unified.field(field.name).type != field.type]:
        raise _DamagedError(f"columns of another type than theirs: {', '.join(changed)}")
    return unified


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} must be readable and writable, got {error.strerror or error}: mend that and run the same "
            "command again, what was finished is kept"
        ) from error


def _read(path: Path) -> bytes | None:
    """The whole file, None where there is none."""
    with _storage(path), contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _commit(path: Path, data: bytes) -> None:
    """Makes the file hold the data, whole or not at all, and durable before it returns."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temp, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
        except OSError:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name survives a power cut, too
        finally:
            os.close(folder)
