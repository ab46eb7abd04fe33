"""The bytes of one Parquet file: written with checksums, checked when read.

This file turns bytes into tables and back; it opens no files. Nothing unpickles, and extension types are refused
because their readers may run code from the file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qdtune.spec.axes import AXES
from qdtune.store.columns import SCHEMA_VERSION, STATES

VERSION_KEY = "qdtune.schema_version"
DIGEST_KEY = "qdtune.sha256"  # of the rows
SMALL_ROWS = 200  # tables with fewer rows are written without compression


class NewerSchemaError(ValueError):
    """A newer qdtune wrote a file of the run folder."""


class DamagedError(ValueError):
    """A file is damaged."""


def to_table(rows: list[dict[str, Any]], schema: pa.Schema, metadata: dict[str, str]) -> pa.Table:
    """The rows as a table; a misspelt column is an error, because pyarrow would drop it silently."""
    if unknown := sorted({key for row in rows for key in row} - set(schema.names)):
        raise ValueError(f"the columns of a row must be among {', '.join(schema.names)}; got {', '.join(unknown)}")
    return add_metadata(pa.Table.from_pylist(rows, schema=schema), metadata)


def add_metadata(table: pa.Table, metadata: dict[str, str]) -> pa.Table:
    """The table with this metadata and the schema version."""
    return table.replace_schema_metadata({**metadata, VERSION_KEY: str(SCHEMA_VERSION)})


def check_rows(table: pa.Table, trial_id: str | None) -> None:
    """Raises if rows are missing or belong to another configuration, as in a file that was renamed.

    Args:
        trial_id: the id of every row; None for a pack, which has many.
    """
    ids = set(table["trial_id"].to_pylist())
    if trial_id is not None and (others := ids - {trial_id}):
        raise DamagedError(f"every row must carry trial_id {trial_id!r}, got {sorted(map(str, others))}")
    if "state" in table.column_names:
        if trial_id is not None and table.num_rows == 0:
            raise DamagedError("a configuration must have one row per seed, got none")
        if unknown := set(table["state"].to_pylist()) - set(STATES):
            raise DamagedError(f"state must be one of {', '.join(STATES)}; got {sorted(map(str, unknown))}")


def parse_table(data: bytes, path: object, schema: pa.Schema, whole: bool = False) -> pa.Table:
    """The table in the bytes of a Parquet file, after checks, with the columns of `schema` first.

    Args:
        path: its name in messages.
        whole: whether to keep the metadata of the file.
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
        if b"ARROW:extension:name" in plain.serialize().to_pybytes():  # because their readers may run code
            raise DamagedError("columns must be of plain types, got an extension type")
        merge_schemas(schema, plain, schema)
        table = file.read(use_threads=False).replace_schema_metadata()
        if table.num_rows != file.metadata.num_rows:
            raise DamagedError(f"{file.metadata.num_rows} rows promised, {table.num_rows} found")
        if (digest := metadata.get(DIGEST_KEY.encode())) is not None and digest.decode() != _digest(table):
            raise DamagedError(f"the rows do not fit their checksum {digest.decode()}")
        if not table.schema.equals(schema):
            table = complete_table(table, schema)
        kept = {key: value for key, value in metadata.items() if key != DIGEST_KEY.encode()}
        return table.replace_schema_metadata(kept) if whole else table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"unreadable: {str(error).splitlines()[0]}") from error


def complete_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of `schema` first; absent ones are null, and a new axis has its value `before`."""
    missing = set(schema.names) - set(table.column_names)
    for axis in AXES:
        if axis.is_new and axis.name in missing:
            table = table.append_column(axis.name, pa.repeat(axis.before, table.num_rows))
    return pa.concat_tables([schema.empty_table(), table], promote_options="permissive")


def _digest(table: pa.Table) -> str:
    """A checksum of every cell, because the checksum of a page does not cover its header."""
    return hashlib.sha256(json.dumps(table.to_pydict(), default=str).encode()).hexdigest()


def merge_schemas(merged: pa.Schema, found: pa.Schema, known: pa.Schema) -> pa.Schema:
    """Both schemas in one, unknown columns last; a known column must keep its type."""
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
    few = (
        table.num_rows < SMALL_ROWS
    )  # dictionaries, statistics and compression would enlarge a small file, and take as long again
    compact = {"use_dictionary": False, "write_statistics": False, "compression": "none"} if few else {}
    pq.write_table(table.replace_schema_metadata(stamp), sink, write_page_checksum=True, **compact)
    return sink.getvalue().to_pybytes()
